"""Small models of random weights and few images."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

from clearhead.data.folder import read_folder
from clearhead.models import Preprocessing, from_module

BUILDERS = {
    "resnet": lambda: timm.models.ResNet(
        timm.models.resnet.Bottleneck, (2, 1, 1, 1), channels=(8, 8, 8, 8), num_classes=3
    ),
    "resnet-preact": lambda: timm.models.ResNetV2(
        (2, 1),
        channels=(16, 32),
        num_classes=3,
        stem_chs=8,
        norm_layer=timm.layers.BatchNormAct2d,
        conv_layer=timm.layers.create_conv2d,
    ),
    "convnext": lambda: timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 16, 16), num_classes=3),
    "mixer": lambda: timm.models.MlpMixer(img_size=32, patch_size=8, num_blocks=2, embed_dim=16, num_classes=3),
    "pit": lambda: timm.models.pit.PoolingVisionTransformer(
        img_size=32, patch_size=8, stride=4, base_dims=(8, 8), depth=(1, 1), heads=(2, 4), mlp_ratio=2, num_classes=3
    ),
    "torchvision-swin": lambda: torchvision.models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=3),
    "torchvision-resnet": lambda: torchvision.models.ResNet(
        torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3
    ),
    "levit": lambda: timm.models.Levit(
        img_size=64, embed_dim=(16, 16, 16), key_dim=8, depth=(1, 1, 1), num_heads=(2, 2, 2), num_classes=3
    ),
    "vit": lambda: timm.models.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3
    ),
    "vit-not-square": lambda: timm.models.VisionTransformer(
        img_size=(32, 48), patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3, reg_tokens=2
    ),
}


def build(module: nn.Module, size=(32, 32), classes=("a", "b", "c")):
    """A classifier of any module, its parameters moved at random so that no branch is zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn_like(p))
    half = (0.5,) * 3
    return from_module(module.eval(), preprocess=Preprocessing(size, size, half, half), classes=classes)


def small(name: str):
    torch.manual_seed(1)
    return build(BUILDERS[name](), {"vit-not-square": (32, 48), "levit": (64, 64)}.get(name, (32, 32)))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in "abc":
        (root / name).mkdir()
        for i in range(4):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(root / name / f"{i}.png")
    return read_folder(root)


def images_of(model, folder):
    """All images as the model sees them, and their labels."""
    images = torch.stack([model.preprocess.image(Image.open(s.path)) for s in folder.samples])
    return images, torch.tensor([s.label for s in folder.samples])
