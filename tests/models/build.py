"""Small models of every library, and images, for the tests of `clearhead.models`."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from clearhead.models import Classifier, Preprocessing

import timm  # isort: skip  (after clearhead, which lets torchvision import)
import transformers  # isort: skip

NORM = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def picture(width: int = 90, height: int = 71, seed: int = 0) -> Image.Image:
    """Noise: the content on which a filter or a crop that is off by one pixel shows most."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def batch(model: Classifier, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, *model.preprocess.size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def same_logits(a: Classifier, b) -> bool:
    """Whether a classifier gives, for some pixels, what another one or a module (which takes them normalised) gives."""
    images = batch(a)
    other = b(images if isinstance(b, Classifier) else a.normalize(images))
    return torch.equal(a(images), getattr(other, "logits", other))


def network_input(preprocess: Preprocessing, image: Image.Image) -> torch.Tensor:
    return preprocess.normalize(preprocess.image(image))


TINY = {
    "deit_tiny_patch16_224": {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "vit_small_patch14_reg4_dinov2": {"img_size": 56, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "vit_small_patch16_dinov3": {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2, "global_pool": "token"},
    "vit_tiny_patch16_224": {"img_size": [48, 80], "embed_dim": 32, "depth": 2, "num_heads": 2, "global_pool": "avg"},
    "eva02_tiny_patch14_336": {"img_size": 56, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "beit_base_patch16_224": {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "vit_base_patch16_siglip_224": {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]},
    "swinv2_tiny_window8_256": {"img_size": 64, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]},
    "resnet18": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
}


def timm_folder(folder: Path, architecture: str, num_classes: int = 3, **model_config) -> nn.Module:
    """A small timm model with random weights, written by timm's own function."""
    module = timm.create_model(architecture, num_classes=num_classes, **TINY[architecture]).eval()
    timm.models.save_for_hf(
        module, folder, model_config=model_config, model_args=TINY[architecture], safe_serialization=True
    )
    return module


HF_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 48,
    "patch_size": 16,
}
CROPPED = {"size": {"shortest_edge": 56}, "crop_size": {"height": 48, "width": 48}}


def hf_model(category: str, labels: int = 3) -> tuple[nn.Module, object]:
    """A small Hugging Face model with random weights, and the image processor that goes with it."""
    t = transformers
    if category == "clip":
        config = t.CLIPConfig(vision_config=HF_SMALL, text_config={"hidden_size": 8, "num_hidden_layers": 1})
        config.num_labels = labels
        return t.CLIPForImageClassification(config), t.CLIPImageProcessor(**CROPPED)
    if category == "resnet":
        config = t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=labels)
        return t.ResNetForImageClassification(config), t.ConvNextImageProcessor(size={"shortest_edge": 56})
    if category == "vit":
        config = t.ViTConfig(**HF_SMALL, num_labels=labels)
        return t.ViTForImageClassification(config), t.ViTImageProcessor(size={"height": 48, "width": 48})
    if category == "deit":
        config = t.DeiTConfig(**HF_SMALL, num_labels=labels)
        processor = t.DeiTImageProcessor(size={"height": 56, "width": 56}, crop_size={"height": 48, "width": 48})
        return t.DeiTForImageClassificationWithTeacher(config), processor
    config = t.Dinov2Config(**HF_SMALL, num_labels=labels)
    return t.Dinov2ForImageClassification(config), t.BitImageProcessor(**CROPPED)


def hf_folder(folder: Path, category: str, names: list[str] | None = None) -> tuple[nn.Module, object]:
    module, processor = hf_model(category)
    if names:
        module.config.id2label = dict(enumerate(names))
    module.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return module, processor


class Patches(nn.Module):
    """One layer of bare attention, and a head that reads what it is message to."""

    def __init__(self, read, prefix: int = 1, zero_head: bool = False) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 8, 8)
        self.prefix = nn.Parameter(torch.randn(1, prefix, 8))
        self.qkv = nn.Linear(8, 24)
        self.head = nn.Linear(8, 4)
        self.read = read
        if zero_head:
            nn.init.zeros_(self.head.weight)

    def forward(self, images):
        x = self.patch(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], 1)
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        x = x + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(nn.functional.layer_norm(self.read(x), (8,)))


PLAIN = Preprocessing(size=(32, 48), resize=(32, 48), **NORM)
LETTERS = tuple("abcd")
