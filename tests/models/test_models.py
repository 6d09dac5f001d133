import json
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from clearhead.attribution import explain
from clearhead.data.folder import read_folder
from clearhead.data.loading import ImageDataset
from clearhead.models import Classifier, ModelError, Preprocessing, TokenGrid, from_module, load_model, save_model
from clearhead.models.classifier import evaluation_mode
from clearhead.models.preprocessing import to_uint8
from tests import cases

import timm  # isort: skip  (after clearhead, which lets torchvision import)
import torchvision  # isort: skip
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


def hf_model(kind: str, labels: int = 3) -> tuple[nn.Module, object]:
    """A small Hugging Face model with random weights, and the image processor that goes with it."""
    t = transformers
    if kind == "clip":
        config = t.CLIPConfig(vision_config=HF_SMALL, text_config={"hidden_size": 8, "num_hidden_layers": 1})
        config.num_labels = labels
        return t.CLIPForImageClassification(config), t.CLIPImageProcessor(**CROPPED)
    if kind == "resnet":
        config = t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=labels)
        return t.ResNetForImageClassification(config), t.ConvNextImageProcessor(size={"shortest_edge": 56})
    if kind == "vit":
        config = t.ViTConfig(**HF_SMALL, num_labels=labels)
        return t.ViTForImageClassification(config), t.ViTImageProcessor(size={"height": 48, "width": 48})
    if kind == "deit":
        config = t.DeiTConfig(**HF_SMALL, num_labels=labels)
        processor = t.DeiTImageProcessor(size={"height": 56, "width": 56}, crop_size={"height": 48, "width": 48})
        return t.DeiTForImageClassificationWithTeacher(config), processor
    config = t.Dinov2Config(**HF_SMALL, num_labels=labels)
    return t.Dinov2ForImageClassification(config), t.BitImageProcessor(**CROPPED)


def hf_folder(folder: Path, kind: str, names: list[str] | None = None) -> tuple[nn.Module, object]:
    module, processor = hf_model(kind)
    if names:
        module.config.id2label = dict(enumerate(names))
    module.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return module, processor


class Patches(nn.Module):
    """One layer of bare attention, and a head that reads what it is told to."""

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


# Preprocessing


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(8, 60), st.integers(8, 60)),
    square=st.booleans(),
    crop_pct=st.sampled_from([0.7, 0.875, 0.9, 0.95, 0.965, 1.0]),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
    interpolation=st.sampled_from(["bilinear", "bicubic", "lanczos"]),
    width=st.integers(5, 120),
    height=st.integers(5, 120),
)
def test_image_is_timms_own_bit_for_bit(size, square, crop_pct, crop_mode, interpolation, width, height):
    size = (size[0], size[0]) if square else size
    data = {"crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation, **NORM}
    expected = timm.data.create_transform(input_size=(3, *size), is_training=False, **data)(picture(width, height))
    box = (int(size[0] / crop_pct), int(size[1] / crop_pct))
    ours = Preprocessing(size=size, resize=box, crop_mode=crop_mode, interpolation=interpolation, **NORM)
    assert torch.equal(network_input(ours, picture(width, height)), expected)


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "swin_t"])
def test_image_is_torchvisions_own(name):
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    model = load_model(f"torchvision:{name}", pretrained=False) if name == "resnet18" else None
    interpolation, (box,), (size,) = preset.interpolation.value, preset.resize_size, preset.crop_size
    ours = Preprocessing((size, size), (box, box), NORM["mean"], NORM["std"], interpolation=interpolation)
    if model is not None:
        assert model.preprocess == ours
    for width, height in [(300, 411), (640, 333), (224, 224), (40, 50)]:
        assert torch.equal(network_input(ours, picture(width, height)), preset(picture(width, height)))


@pytest.mark.parametrize("kind", ["vit", "deit", "clip", "dino", "resnet"])
def test_image_is_the_hf_processors_own(kind, tmp_path):
    """Exactly, for its Pillow backend; torchvision's rounds between its two passes and is off by one level or so."""
    _, processor = hf_folder(tmp_path, kind)
    preprocess = load_model(str(tmp_path)).preprocess
    std = torch.tensor(preprocess.std)[:, None, None]
    pillow = getattr(transformers, type(processor).__name__ + "Pil", None)
    for width, height in [(90, 71), (57, 120), (301, 200)]:
        ours = network_input(preprocess, picture(width, height))
        theirs = processor(images=picture(width, height), return_tensors="pt")["pixel_values"][0]
        assert ((ours - theirs) * std).abs().mean() < 0.5 / 255
        if pillow is not None:
            exact = pillow.from_pretrained(tmp_path)(images=picture(width, height), return_tensors="pt")
            assert torch.allclose(ours, torch.as_tensor(exact["pixel_values"][0]), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    crop_mode=st.sampled_from(["center", "squash", "border"]),
    size=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    margin=st.integers(0, 9),
    odd_margin=st.sampled_from(["even", "down"]),
    width=st.integers(3, 90),
    height=st.integers(3, 90),
)
def test_a_mask_has_the_images_geometry(crop_mode, size, margin, odd_margin, width, height):
    preprocess = Preprocessing(
        size, (size[0] + margin, size[1] + margin), (0.0,) * 3, (1.0,) * 3, crop_mode=crop_mode, odd_margin=odd_margin
    )
    grey = picture(width, height).convert("L")
    mask = preprocess.mask(grey)
    assert mask.shape == (1, *size)
    assert torch.equal(mask[0], preprocess.image(grey.convert("RGB"))[0])
    assert 0 <= mask.min() <= mask.max() <= 1


def test_pixels_are_in_0_to_1_and_become_the_image_again():
    preprocess = Preprocessing((30, 40), (30, 40), **NORM)
    pixels = preprocess.image(picture(40, 30))
    assert 0 <= pixels.min() < 0.01 < 0.99 < pixels.max() <= 1
    shown = to_uint8(pixels)
    assert shown.dtype == np.uint8
    assert np.array_equal(shown, np.asarray(picture(40, 30)))


def test_an_image_of_another_mode_is_taken_as_rgb():
    grey = picture().convert("L")
    assert torch.equal(PLAIN.image(grey), PLAIN.image(grey.convert("RGB")))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"resize": (20, 48)}, "no \\(32, 48\\) can be cut out of \\(20, 48\\)"),
        ({"interpolation": "cubic"}, "bilinear"),
        ({"crop_mode": "crop"}, "center, squash, border"),
        ({"std": (0.0, 1.0, 1.0)}, "std > 0"),
        ({"size": (0, 4)}, "at least 1 pixel"),
    ],
)
def test_a_wrong_preprocessing_is_refused(wrong, told):
    with pytest.raises(ModelError, match=told):
        replace(PLAIN, **wrong)


# Grids


@pytest.mark.parametrize(
    ("architecture", "grid"),
    [
        ("deit_tiny_patch16_224", TokenGrid(4, 4, 1, "cls")),
        ("deit_tiny_distilled_patch16_224", TokenGrid(4, 4, 2, "cls")),
        ("vit_small_patch14_reg4_dinov2", TokenGrid(4, 4, 5, "cls")),
        ("vit_small_patch16_dinov3", TokenGrid(16, 16, 5, "cls")),  # takes any size; its config says 256
        ("vit_tiny_patch16_224", TokenGrid(3, 5, 1, "mean")),
        ("eva02_tiny_patch14_336", TokenGrid(4, 4, 1, "mean")),
        ("beit_base_patch16_224", TokenGrid(4, 4, 1, "mean")),
        ("vit_base_patch16_siglip_224", None),  # its last attention pools: one query
        ("swin_tiny_patch4_window7_224", None),
        ("swinv2_tiny_window8_256", None),
        ("resnet18", None),
    ],
)
def test_a_timm_folder_loads_and_comes_back(architecture, grid, tmp_path):
    module = timm_folder(tmp_path / "theirs", architecture, label_names=["x", "y", "z"])
    model = load_model(str(tmp_path / "theirs"))
    assert (model.grid, model.library, model.classes) == (grid, "timm", ("x", "y", "z"))
    data = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path / 'theirs'}"))
    transform = timm.data.create_transform(**data, is_training=False)
    assert torch.equal(network_input(model.preprocess, picture()), transform(picture()))
    with torch.no_grad():
        # the tested model may attend by the fused kernel where theirs does not
        assert torch.allclose(model(batch(model)), module(model.normalize(batch(model))), atol=1e-5)

    save_model(model, tmp_path / "ours")
    again = load_model(str(tmp_path / "ours"))
    assert replace(again, module=None, name="", rebuild={}) == replace(model, module=None, name="", rebuild={})
    assert same_logits(model, again)
    alone = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.allclose(model(batch(model)), alone(model.normalize(batch(model))), atol=1e-5)
    if not architecture.startswith("swin"):  # which is created unfused by timm alone
        assert same_logits(model, alone)


@pytest.mark.parametrize(
    ("kind", "grid"),
    [
        ("vit", TokenGrid(3, 3, 1, "cls")),
        ("deit", TokenGrid(3, 3, 2, "cls")),
        ("dino", TokenGrid(3, 3, 1, "cls")),
        ("clip", TokenGrid(3, 3, 1, "mean")),
        ("resnet", None),
    ],
)
def test_an_hf_folder_loads_and_comes_back(kind, grid, tmp_path):
    module, _ = hf_folder(tmp_path / "theirs", kind, ["x", "y", "z"])
    model = load_model(f"hf:{tmp_path / 'theirs'}")
    assert (model.grid, model.library, model.classes) == (grid, "hf", ("x", "y", "z"))
    assert same_logits(model, module)

    save_model(replace(model, classes=("u", "v", "w")), tmp_path / "ours")
    again = load_model(str(tmp_path / "ours"))
    assert again.classes == ("u", "v", "w")
    assert (again.preprocess, again.grid) == (model.preprocess, grid)
    assert same_logits(model, again)
    alone = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "ours").eval()
    assert same_logits(model, alone)
    assert alone.config.id2label == {0: "u", 1: "v", 2: "w"}
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours")
    pixels = processor(images=picture(), return_tensors="pt")["pixel_values"][0]
    assert (pixels - network_input(model.preprocess, picture())).abs().max() < 1.01 / 255 / min(model.preprocess.std)


def test_torchvision_models_load_and_come_back(tmp_path):
    model = load_model("torchvision:vit_b_16", pretrained=False, num_classes=4, classes=LETTERS, image_size=64)
    assert model.grid == TokenGrid(4, 4, 1, "cls")
    assert (model.preprocess.size, model.preprocess.resize) == ((64, 64), (73, 73))
    save_model(model, tmp_path / "vit")
    again = load_model(str(tmp_path / "vit"))
    assert same_logits(model, again)
    assert (again.preprocess, again.classes, again.grid) == (model.preprocess, LETTERS, model.grid)
    alone = torchvision.models.vit_b_16(num_classes=4, image_size=64).eval()
    alone.load_state_dict(load_file(tmp_path / "vit" / "model.safetensors"))
    assert same_logits(model, alone)


def test_torchvision_resnet_from_a_file(tmp_path):
    source = torchvision.models.resnet18(num_classes=7).eval()
    torch.save(source.state_dict(), tmp_path / "r.pth")
    model = load_model(f"torchvision:resnet18@{tmp_path / 'r.pth'}")
    assert model.grid is None
    assert model.classes == tuple(f"class {i}" for i in range(7))
    assert same_logits(model, source)
    fresh = load_model(f"torchvision:resnet18@{tmp_path / 'r.pth'}", num_classes=3)
    assert fresh.module.fc.weight.shape == (3, 512)
    assert torch.equal(fresh.module.conv1.weight, source.conv1.weight)


@pytest.mark.parametrize("zero_head", [False, True])
@pytest.mark.parametrize(
    ("read", "prefix", "grid"),
    [
        (lambda x: x[:, 0], 1, TokenGrid(4, 6, 1, "cls")),
        (lambda x: x[:, 0] + x[:, 1], 2, TokenGrid(4, 6, 2, "cls")),
        (lambda x: x[:, 0] + x[:, 1:].mean(1), 1, TokenGrid(4, 6, 1, "cls")),
        (lambda x: x[:, 3:].mean(1), 3, TokenGrid(4, 6, 3, "mean")),
        (lambda x: x.mean(1), 1, TokenGrid(4, 6, 1, "mean")),
        (lambda x: x.mean(1), 0, TokenGrid(4, 6, 0, "mean")),
        (lambda x: x[:, 0], 17, None),
        (lambda x: x[:, -1], 1, None),
    ],
)
def test_what_the_head_reads_is_found(read, prefix, grid, zero_head):
    module = Patches(read, prefix, zero_head)
    assert from_module(module, preprocess=PLAIN, classes=LETTERS).grid == grid


class Beside(nn.Module):
    """The mean of what models say, each of the image as a function gives it."""

    def __init__(self, models, views=(lambda x: x,)):
        super().__init__()
        self.models, self.views = nn.ModuleList(models), views

    def forward(self, x):
        return torch.stack([model(view(x)) for model in self.models for view in self.views]).mean(0)


class OnFrozen(nn.Module):
    """A head on features that are made without a graph."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(5, 5)

    def forward(self, x):
        with torch.no_grad():
            x = self.backbone(x)
        return self.head(x)


@pytest.mark.parametrize(
    "around",
    [
        lambda model: Beside([model], [lambda x: x, lambda x: x.flip(-1)]),
        lambda model: Beside([model, cases.MODELS["timm-vit"]()]),
        OnFrozen,
    ],
)
def test_tokens_of_several_runs_or_without_a_graph_are_no_grid(around):
    classes = tuple("abcde")
    preprocess = Preprocessing((32, 32), (32, 32), (0.5,) * 3, (0.5,) * 3)
    model = from_module(around(cases.MODELS["timm-vit"]()), preprocess=preprocess, classes=classes)
    assert model.grid is None
    with pytest.raises(ValueError, match="of several branches"):
        explain(model, cases.images())


def test_the_probe_leaves_a_module_that_is_used_twice_as_it_was():
    module = cases.MODELS["timm-vit"]()
    nn.init.zeros_(module.blocks[0].attn.qkv.bias)
    module.blocks[1] = module.blocks[0]
    before, expected = {n: v.clone() for n, v in module.state_dict().items()}, module(cases.images()).detach()
    preprocess = Preprocessing((32, 32), (32, 32), (0.5,) * 3, (0.5,) * 3)
    model = from_module(module, preprocess=preprocess, classes=tuple("abcde"))
    assert model.grid == TokenGrid(4, 4, 1, "cls")
    assert torch.equal(module(cases.images()), expected)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert isinstance(module.blocks[1].attn.qkv.bias, nn.Parameter)


def test_the_probe_leaves_no_trace():
    module = nn.Sequential(Patches(lambda x: x[:, 0], zero_head=True), nn.BatchNorm1d(4), nn.Dropout(0.5))
    module[1].eval()
    module[0].head.requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state, kernel = torch.get_rng_state(), nn.functional.scaled_dot_product_attention
    with torch.inference_mode():
        from_module(module, preprocess=PLAIN, classes=LETTERS)
    assert torch.equal(state, torch.get_rng_state())
    assert nn.functional.scaled_dot_product_attention is kernel
    assert [m.training for m in module] == [True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert [n for n, p in module.named_parameters() if not p.requires_grad] == ["0.head.weight", "0.head.bias"]


def test_evaluation_mode_tells_modules_of_their_mode_again():
    class Merging(nn.Linear):  # as some adapters do, whose merged weights cannot be trained
        merged = False

        def train(self, mode: bool = True):
            self.merged = not mode
            return super().train(mode)

    module = nn.Sequential(Merging(2, 2), nn.BatchNorm1d(2))
    module[1].eval()
    with evaluation_mode(module):
        assert module[0].merged
    assert not module[0].merged
    assert [m.training for m in module.modules()] == [True, True, False]


def test_fused_attention_is_put_back():
    timm.layers.set_fused_attn(False)
    try:
        load_model("timm:deit_tiny_patch16_224", pretrained=False)
        assert not timm.layers.use_fused_attn()
    finally:
        timm.layers.set_fused_attn(True)
    load_model("timm:resnet18", pretrained=False)
    assert timm.layers.use_fused_attn()
    assert not timm.layers.use_fused_attn(experimental=True)


# Names, heads, classes


@pytest.fixture(scope="module")
def deit() -> nn.Module:
    return timm.create_model("deit_tiny_patch16_224").eval()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_timm_checkpoint_file(suffix, tmp_path, deit):
    file = tmp_path / f"deit{suffix}"
    if suffix == ".pth":
        torch.save({"model": {f"module.{k}": v for k, v in deit.state_dict().items()}}, file)
    else:
        save_file(deit.state_dict(), file)
    model = load_model(f"timm:deit_tiny_patch16_224@{file}")
    assert same_logits(model, deit)
    assert model.grid == TokenGrid(14, 14, 1, "cls")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(deit), is_training=False)
    assert torch.equal(network_input(model.preprocess, picture(640, 427)), transform(picture(640, 427)))


def test_a_fresh_head_on_strictly_loaded_weights(tmp_path, deit):
    file = tmp_path / "deit.safetensors"
    save_file(deit.state_dict(), file)
    model = load_model(f"timm:deit_tiny_patch16_224@{file}", num_classes=3, classes=["x", "y", "z"], image_size=64)
    assert model.classes == ("x", "y", "z")
    assert model.grid == TokenGrid(4, 4, 1, "cls")
    assert model(batch(model)).shape == (2, 3)
    ours, theirs = model.module.state_dict(), deit.state_dict()
    differing = {name for name in theirs if not torch.equal(ours[name], theirs[name])}
    assert differing == {"head.weight", "head.bias", "pos_embed"}  # the last resized
    save_model(model, tmp_path / "saved")
    assert same_logits(model, load_model(str(tmp_path / "saved")))
    assert same_logits(model, timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval())
    fresh = load_model(str(tmp_path / "saved"), num_classes=5)
    assert fresh.classes == tuple(f"class {i}" for i in range(5))

    state = deit.state_dict()
    del state["blocks.3.mlp.fc1.weight"]
    save_file(state, file)
    with pytest.raises(ModelError, match=r"blocks\.3\.mlp\.fc1\.weight"):
        load_model(f"timm:deit_tiny_patch16_224@{file}", num_classes=3)


def test_a_file_without_a_head_needs_num_classes(tmp_path, deit):
    file = tmp_path / "backbone.safetensors"
    save_file({k: v for k, v in deit.state_dict().items() if not k.startswith("head.")}, file)
    with pytest.raises(ModelError, match="no classification head; give num_classes"):
        load_model(f"timm:deit_tiny_patch16_224@{file}")
    model = load_model(f"timm:deit_tiny_patch16_224@{file}", num_classes=2)
    assert torch.equal(model.module.blocks[0].attn.qkv.weight, deit.blocks[0].attn.qkv.weight)


def test_the_files_own_number_of_classes_is_kept(tmp_path):
    module = timm.create_model("deit_tiny_patch16_224", num_classes=4).eval()
    save_file(module.state_dict(), tmp_path / "four.safetensors")
    model = load_model(f"timm:deit_tiny_patch16_224@{tmp_path / 'four.safetensors'}", classes=LETTERS)
    assert model.classes == LETTERS
    assert same_logits(model, module)


def test_a_fresh_hf_head_leaves_the_rest_strict(tmp_path):
    module, _ = hf_folder(tmp_path / "m", "vit")
    model = load_model(str(tmp_path / "m"), num_classes=5)
    assert model.module.config.num_labels == 5
    differing = {n for n, p in model.module.state_dict().items() if not torch.equal(p, module.state_dict()[n])}
    assert differing == {"classifier.weight", "classifier.bias"}

    state = load_file(tmp_path / "m" / "model.safetensors")
    lost = next(name for name in state if "layernorm" in name and name.endswith("weight"))
    save_file({k: v for k, v in state.items() if k != lost}, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks.*layernorm.*weight"):
        load_model(str(tmp_path / "m"), num_classes=5)
    rest = {k: v for k, v in state.items() if not k.startswith("classifier")}
    save_file(rest, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ModelError, match=r"classifier\.bias, classifier\.weight; if that is the head, give num_classes"
    ):
        load_model(str(tmp_path / "m"))


def test_imagenet_names_are_short_and_fit_the_data_folder(tmp_path):
    model = load_model("timm:resnet18", pretrained=False)
    folded = [name.casefold() for name in model.classes]
    assert len(set(folded)) == len(model.classes) == 1000
    assert model.classes[0] == "tench"
    assert model.classes == load_model("torchvision:resnet18", pretrained=False).classes
    cranes = [name for name in model.classes if name.startswith("crane")]
    assert cranes == ["crane (n02012849)", "crane (n03126707)"]
    for folder in ("n01440764", "n02012849", "goldfish", "crane (n03126707)"):
        (tmp_path / folder).mkdir()
        picture().save(tmp_path / folder / "1.png")
    data = read_folder(tmp_path, classes=model.classes)
    assert {s.file.split("/")[0]: s.label for s in data.samples} == {
        "n01440764": 0,
        "goldfish": 1,
        "n02012849": 134,
        "crane (n03126707)": 517,
    }
    assert ImageDataset(data, model.preprocess)[0]["image"].shape == (3, 224, 224)


def test_hf_classes_without_names_are_numbered(tmp_path):
    hf_folder(tmp_path, "vit")
    assert load_model(str(tmp_path)).classes == ("class 0", "class 1", "class 2")


def test_random_weights_of_a_folder(tmp_path):
    module = timm_folder(tmp_path / "timm", "deit_tiny_patch16_224")
    assert not same_logits(load_model(str(tmp_path / "timm"), pretrained=False), module)
    hf, _ = hf_folder(tmp_path / "hf", "vit")
    assert not same_logits(load_model(str(tmp_path / "hf"), pretrained=False), hf)


def test_a_convolutional_model_takes_any_size():
    model = load_model("timm:resnet18", pretrained=False, image_size=96, num_classes=2)
    assert model.preprocess.size == (96, 96)
    assert model(batch(model)).shape == (2, 2)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("timm:deit_tinny_patch16_224", "did you mean deit_tiny_patch16_224"),
        ("timm:deit_tiny_patch16_224.no_such", r"there is deit_tiny_patch16_224\.fb_in1k"),
        ("timm:deit_tiny_patch16_224@no/file.pth", "no such file: no/file.pth"),
        ("timm:", "write timm:NAME"),
        ("torchvision:vit_b16", "did you mean vit_b_16"),
        ("deit_tiny_patch16_224", "Write timm:deit_tiny_patch16_224"),
        ("weights/deit.safetensors", "write timm:ARCHITECTURE@weights/deit.safetensors"),
        ("resnet_18", "neither a folder that exists nor .* did you mean timm:resnet18"),
    ],
)
def test_an_unknown_name_says_what_would_work(name, told):
    with pytest.raises(ModelError, match=told):
        load_model(name)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"classes": ["a", "b"]}, "1000 outputs, but there are 2 class names; num_classes=2 gives it a fresh head"),
        ({"classes": ["a", "a"]}, "'a' is named twice"),
        ({"classes": ["a", "b"], "num_classes": 3}, "num_classes is 3, but classes has 2 names"),
        ({"num_classes": 0}, "num_classes: 0; at least 1"),
        ({"image_size": -1}, "image_size: -1; at least 1"),
    ],
)
def test_wrong_arguments(arguments, told):
    with pytest.raises(ModelError, match=told):
        load_model("timm:resnet18", pretrained=False, **arguments)


def test_weights_that_do_not_fit_or_cannot_be_read(tmp_path):
    save_file({"head.weight": torch.zeros(1000, 5)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="Missing key"):
        load_model(f"timm:deit_tiny_patch16_224@{tmp_path / 'other.safetensors'}")
    with pytest.raises(ModelError, match="Missing key"):
        load_model(f"torchvision:resnet18@{tmp_path / 'other.safetensors'}")
    for name in ("cut.safetensors", "cut.pth"):
        (tmp_path / name).write_bytes(b"\x08\x00broken")
        with pytest.raises(ModelError, match=name):
            load_model(f"timm:deit_tiny_patch16_224@{tmp_path / name}")


def test_a_size_the_library_cannot_take(tmp_path):
    hf_folder(tmp_path / "hf", "vit")
    with pytest.raises(ModelError, match="image_size: 64; a Hugging Face model keeps its own"):
        load_model(str(tmp_path / "hf"), image_size=64)
    with pytest.raises(ModelError, match="indivisible by patch size"):
        load_model("torchvision:vit_b_16", pretrained=False, image_size=100)
    with pytest.raises(ModelError, match="does not run on a 1 x 3 x 96 x 96 image"):
        load_model("torchvision:maxvit_t", pretrained=False, image_size=96)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "has no config.json"),
        ("{", "cannot be read as JSON"),
        ("[]", "holds a list"),
        ("{}", "names no architecture .* and no model_type"),
        ('{"architecture": "no_such"}', "no_such"),
        ('{"model_type": "no_such"}', "no_such"),
    ],
)
def test_a_folder_that_is_no_checkpoint(content, told, tmp_path):
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=told):
        load_model(str(tmp_path))


def test_an_hf_folder_whose_preprocessing_is_unknown(tmp_path):
    module, _ = hf_model("vit")
    module.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no image processor \(preprocessor_config.json\)"):
        load_model(str(tmp_path))
    transformers.LevitImageProcessor(**CROPPED).save_pretrained(tmp_path)  # resizes to 256/224 of the size
    with pytest.raises(ModelError, match="LevitImageProcessor does something besides"):
        load_model(str(tmp_path))
    transformers.ViTImageProcessor(do_resize=False).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="does not bring every image to one size"):
        load_model(str(tmp_path))


def test_without_transformers(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"pip install clearhead\[hf\]"):
        load_model(f"hf:{tmp_path}")


@pytest.mark.parametrize("name", ["timm:deit_tiny_patch16_224", "torchvision:resnet18", "hf:google/no-such-vit"])
def test_without_a_network(name, monkeypatch, tmp_path):
    def refuse(*_args, **_kwargs):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ModelError, match="Without a network, give local files: timm:NAME@FILE"):
        load_model(name)


# Modules and saving


def test_a_module_of_ones_own(tmp_path):
    module = Patches(lambda x: x[:, 0])
    model = from_module(module, preprocess=PLAIN, classes=LETTERS, name="mine")
    assert (model.library, model.name, model.grid) == ("module", "mine", TokenGrid(4, 6, 1, "cls"))
    save_model(model, tmp_path / "mine")
    again = Patches(lambda x: x[:, 0])
    again.load_state_dict(load_file(tmp_path / "mine" / "model.safetensors"))
    assert same_logits(model, again)
    saved = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert saved["label_names"] == list(LETTERS)
    with pytest.raises(ModelError, match="give it to from_module"):
        load_model(str(tmp_path / "mine"))
    with pytest.raises(ModelError, match="4 outputs, but there are 3 class names"):
        from_module(module, preprocess=PLAIN, classes=["a", "b", "c"])
    with pytest.raises(ModelError, match="does not run on a 1 x 3 x 4 x 4 image"):
        from_module(module, preprocess=Preprocessing((4, 4), (4, 4), **NORM), classes=LETTERS)


def test_saving_what_safetensors_alone_refuses(tmp_path):
    """Weights that share memory, and weights in channels-last order."""
    shared = nn.Linear(3, 3)
    module = nn.Sequential(nn.Conv2d(3, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), shared, shared)
    module.to(memory_format=torch.channels_last)
    save_model(from_module(module, preprocess=PLAIN, classes="abc"), tmp_path / "m")
    module.load_state_dict(load_file(tmp_path / "m" / "model.safetensors"))


def test_saving_replaces_a_checkpoint_but_nothing_else(tmp_path):
    first, second = (from_module(Patches(lambda x: x[:, 0]), preprocess=PLAIN, classes=LETTERS) for _ in range(2))
    (tmp_path / "new").mkdir()
    for model in (first, second):
        save_model(model, tmp_path / "new")
    weights = load_file(tmp_path / "new" / "model.safetensors")
    assert torch.equal(weights["patch.weight"], second.module.patch.weight)
    assert [p.name for p in tmp_path.iterdir()] == ["new"]

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").touch()
    with pytest.raises(ModelError, match="exists and is no checkpoint"):
        save_model(first, tmp_path / "photos")
    assert (tmp_path / "photos" / "1.jpg").exists()


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    model = from_module(Patches(lambda x: x[:, 0]), preprocess=PLAIN, classes=LETTERS)
    save_model(model, tmp_path / "m")
    before = (tmp_path / "m" / "model.safetensors").read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clearhead.models.checkpoint_io.save_file", full)
    with pytest.raises(ModelError, match=r"could not be written: OSError.*No space left"):
        save_model(model, tmp_path / "m")
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_preprocessing_the_librarys_config_cannot_say(tmp_path):
    model = load_model("timm:resnet18", pretrained=False)
    odd = replace(model, preprocess=replace(model.preprocess, odd_margin="down"))
    with pytest.raises(ModelError, match="a timm config cannot say"):
        save_model(odd, tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def small_resnet(tmp_path_factory) -> Classifier:
    folder = tmp_path_factory.mktemp("resnet")
    timm_folder(folder, "resnet18")
    return load_model(str(folder))


@settings(max_examples=25, deadline=None)
@given(side=st.integers(32, 200), crop_pct=st.floats(0.5, 1.0), mode=st.sampled_from(["center", "squash", "border"]))
@example(side=34, crop_pct=0.671875, mode="center")  # 34 / (34 / 50) rounds to less than 50
def test_any_margin_around_the_crop_is_read_back(small_resnet, tmp_path_factory, side, crop_pct, mode):
    box = int(side / crop_pct)
    model = replace(small_resnet, preprocess=Preprocessing((side, side), (box, box), crop_mode=mode, **NORM))
    folder = tmp_path_factory.getbasetemp() / "margin"
    save_model(model, folder)
    assert load_model(str(folder)).preprocess == model.preprocess


@pytest.mark.slow
@pytest.mark.skipif("CLEARHEAD_DATA" not in os.environ, reason="CLEARHEAD_DATA names no folder of real data")
def test_deit_tiny_on_real_photographs():
    root = Path(os.environ["CLEARHEAD_DATA"])
    model = load_model(f"timm:deit_tiny_patch16_224@{root / 'models' / 'deit_tiny_patch16_224.safetensors'}")
    data = read_folder(root / "nips17", classes=model.classes, check=False)
    images = ImageDataset(data, model.preprocess)
    right = 0
    with torch.no_grad():
        for item in images:
            right += model(item["image"][None]).argmax().item() == item["label"]
    assert len(images) == 455
    assert right / len(images) == pytest.approx(0.857, abs=0.0005)
