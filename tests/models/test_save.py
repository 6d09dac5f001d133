"""Checkpoints that come back, in clearhead and in the library they belong to."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from clearhead.models import Classifier, ModelError, Preprocessing, TokenGrid, from_module, load_model, save_model
from tests.models.build import (
    LETTERS,
    NORM,
    PLAIN,
    Patches,
    batch,
    hf_folder,
    network_input,
    picture,
    same_logits,
    timm_folder,
)

import timm  # isort: skip  (after clearhead, which lets torchvision import)
import torchvision  # isort: skip
import transformers  # isort: skip


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
    ("category", "grid"),
    [
        ("vit", TokenGrid(3, 3, 1, "cls")),
        ("deit", TokenGrid(3, 3, 2, "cls")),
        ("dino", TokenGrid(3, 3, 1, "cls")),
        ("clip", TokenGrid(3, 3, 1, "mean")),
        ("resnet", None),
    ],
)
def test_an_hf_folder_loads_and_comes_back(category, grid, tmp_path):
    module, _ = hf_folder(tmp_path / "theirs", category, ["x", "y", "z"])
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


def test_saving_what_safetensors_alone_refuses(tmp_path):
    """Weights that share memory, and weights in channels-last order."""
    shared = nn.Linear(3, 3)
    module = nn.Sequential(nn.Conv2d(3, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), shared, shared)
    module.to(memory_format=torch.channels_last)
    save_model(from_module(module, preprocess=PLAIN, classes=["a", "b", "c"]), tmp_path / "m")
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
    with pytest.raises(ModelError, match="a timm config cannot express"):
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
