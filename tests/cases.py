"""Small randomly initialised models of every supported kind, built once here and used by all tests.

Each takes images of B x 3 x 32 x 32, has 2 attention layers (swin: 4, in two stages) and gives B x 5 logits. All
parameters are moved at random, so that attention is not uniform and no layer scale is near zero.
"""

from collections.abc import Callable

import clearhead  # noqa: F401  (must come before timm and torchvision)

# isort: split
import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn

from clearhead.models import Classifier, Preprocessing, from_module

SIZE = 32
CLASSES = 5
_PLAIN = {"patch_size": 8, "depth": 2, "num_heads": 4}
_SMALL_HF = {
    "image_size": SIZE,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def _timm(name: str, **changes: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        timm.layers.set_fused_attn(True, experimental=True)  # else swin's attention is written out
        return timm.create_model(name, img_size=SIZE, embed_dim=32, num_classes=CLASSES, **changes)

    return build


def _torchvision_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=SIZE, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=CLASSES
    )


def _huggingface(category: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        config = getattr(transformers, f"{category}Config")(**_SMALL_HF, num_labels=CLASSES, attn_implementation="sdpa")
        return getattr(transformers, f"{category}ForImageClassification")(config)

    return build


def _huggingface_clip() -> nn.Module:
    text = {"vocab_size": 8, "bos_token_id": 0, "eos_token_id": 0}  # never run
    config = transformers.CLIPConfig(
        vision_config=_SMALL_HF, text_config=text, num_labels=CLASSES, attn_implementation="sdpa"
    )
    return transformers.CLIPForImageClassification(config)


_BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "timm-vit": _timm("vit_tiny_patch16_224", **_PLAIN),
    "timm-deit-distilled": _timm("deit_tiny_distilled_patch16_224", **_PLAIN),
    "timm-dinov2-reg4": _timm("vit_small_patch14_reg4_dinov2", **_PLAIN),
    "timm-dinov3": _timm("vit_small_patch16_dinov3", **_PLAIN),
    "timm-eva02": _timm("eva02_tiny_patch14_224", **_PLAIN),
    "timm-beit": _timm("beit_base_patch16_224", **_PLAIN),
    "timm-swin": _timm("swin_tiny_patch4_window7_224", patch_size=4, depths=(2, 2), num_heads=(2, 4), window_size=4),
    "torchvision-vit": _torchvision_vit,
    "hf-vit": _huggingface("ViT"),
    "hf-deit": _huggingface("DeiT"),
    "hf-dinov2": _huggingface("Dinov2"),
    "hf-clip": _huggingface_clip,
}


def _small(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = _BUILDERS[name]().eval()
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {name: lambda name=name: _small(name) for name in _BUILDERS}
"""Name to a function that builds the model, in eval mode, with the same weights at each call."""


def images(batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal noise, batch x 3 x 32 x 32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, SIZE, SIZE, generator=generator, dtype=torch.float64).to(dtype)


def pixels(batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels in 0..1, uniform noise, batch x 3 x 32 x 32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, SIZE, SIZE, generator=generator, dtype=torch.float64).to(dtype)


def logits(model: nn.Module, batch: Tensor) -> Tensor:
    """The model's logits, B x 5, also where it gives them inside an output object."""
    output = model(batch)
    return output if isinstance(output, Tensor) else output.logits


def classifier(name: str) -> Classifier:
    """The model with its token grid and classes a to e, on images of values in 0..1 less a half, doubled."""
    side, half = (SIZE, SIZE), (0.5, 0.5, 0.5)
    preprocess = Preprocessing(side, side, half, half)
    return from_module(MODELS[name](), preprocess=preprocess, classes=tuple("abcde"), name=name)
