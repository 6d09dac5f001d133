"""Architectures of the papers' experiments that timm lacks; importing this module adds them to timm's registry.

>>> import clearhead.zoo
>>> module = timm.create_model("alternet50_32", num_classes=10, attn_blocks=3)
>>> model = load_model("zoo:alternet50_32,attn_blocks=3", num_classes=10)  # the same as a classifier

Their weights are random: none were published. `MODELS` lists the names.
"""

from clearhead.zoo import alternet, transformers
from clearhead.zoo.alternet import AlterNet, build_up
from clearhead.zoo.vit import SmallViT, mnist_cifar_vit
from clearhead.zoo.windows import WindowVisionTransformer, window_mask

__all__ = ["MODELS", "AlterNet", "SmallViT", "WindowVisionTransformer", "build_up", "mnist_cifar_vit", "window_mask"]

MODELS = (*transformers.default_cfgs, *alternet.default_cfgs)
