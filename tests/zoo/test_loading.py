"""The zoo by name, as classifiers: loaded, explained, saved and loaded again."""

import pytest
import torch

from clearhead.attribution import METHODS, explain
from clearhead.models import ModelError, TokenGrid, load_model, save_model
from clearhead.models.features import last_layer
from clearhead.zoo import MODELS

import timm  # isort: skip  (after clearhead, which lets torchvision import)

GRIDS = {
    "vit_mini_patch4_32,depth=2": TokenGrid(8, 8, 1, "cls"),
    "vit_mini_patch4_window_32,depth=2,window=5": TokenGrid(8, 8, 0, "mean"),
    "alternet_mini_32,attn_blocks=3": None,
    "swin_mini_patch2_window4_32": None,
}


def logits(module: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", GRIDS)
def test_a_model_is_loaded_saved_and_loaded_again(name, tmp_path):
    model = load_model(f"zoo:{name}", num_classes=10)
    assert model.grid == GRIDS[name]
    assert model.preprocess.size == model.preprocess.resize == (32, 32)
    assert model.classes == tuple(f"class {i}" for i in range(10))
    assert last_layer(model) is not None
    save_model(model, tmp_path / "model")
    again = load_model(str(tmp_path / "model"))
    assert (again.grid, again.classes, again.preprocess) == (model.grid, model.classes, model.preprocess)
    timms = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    file = load_model(f"zoo:{name}@{tmp_path / 'model' / 'model.safetensors'}")
    for other in (again.module, timms, file.module):
        assert torch.equal(logits(other), logits(model.module))
    if "=" in name:
        value = model.rebuild["model_args"]
        assert value
        assert again.rebuild["model_args"] == value
    fresh = load_model(str(tmp_path / "model"), num_classes=3)
    assert len(fresh.classes) == 3 == logits(fresh.module).shape[1]


def test_arguments_in_the_name_are_the_constructors():
    wide = load_model("zoo:vit_mini_patch4_window_32,window=7,drop_path_rate=0.1").module
    assert wide.window == 7
    assert wide.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)
    assert len(load_model("zoo:alternet_mini_32,attn_blocks=0").module.stages[3].blocks) == 2


def test_another_image_size():
    model = load_model("zoo:vit_mini_patch4_window_32", image_size=48)
    assert model.preprocess.size == (48, 48)
    assert model.grid == TokenGrid(12, 12, 0, "mean")
    assert load_model("zoo:alternet_mini_32", image_size=64).preprocess.size == (64, 64)
    with pytest.raises(ModelError, match="cannot be cut into windows"):
        load_model("zoo:alternet_mini_32", image_size=48)


def test_pretrained_or_not_the_weights_are_random_and_follow_the_seed():
    models = []
    for pretrained in (True, False):
        torch.manual_seed(3)
        models.append(load_model("zoo:vit_mini_patch4_32", pretrained=pretrained).module)
    assert torch.equal(*(logits(m) for m in models))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_explains_a_vit_with_windows(method):
    torch.manual_seed(0)
    model = load_model("zoo:vit_mini_patch4_window_32,depth=2")
    maps = explain(model, torch.rand(2, 3, 32, 32), method=method)
    assert maps.shape == (2, 32, 32)
    assert maps.isfinite().all()
    assert maps.std() > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zoo:alternet5_32", r"the zoo has no model 'alternet5_32'; did you mean zoo:alternet50_32"),
        ("zoo:xyzzy", r"the zoo has no model 'xyzzy'; choose from vit_tiny_patch2_32, "),
        ("zoo:", r"write zoo:NAME"),
        ("alternet50_32", r"write zoo:alternet50_32"),
        ("zoo:vit_mini_patch4_32@nowhere.safetensors", r"no such file: nowhere.safetensors"),
        ("zoo:vit_mini_patch4_window_32,window=4", r"window: 4; an odd number"),
        (
            "zoo:vit_mini_patch4_window_32,window=three",
            r"'window=three': arguments after a name are written key=number",
        ),
        ("zoo:vit_mini_patch4_window_32,window", r"'window': arguments after a name"),
        ("zoo:vit_mini_patch4_32,img_size=64", r"pass num_classes and image_size to load_model itself"),
        (
            "zoo:vit_mini_patch4_32,heads=4",
            r"'heads=4': vit_mini_patch4_32 has no argument 'heads'; did you mean num_heads\?",
        ),
        ("zoo:vit_mini_patch4_window_32,depht=4", r"no argument 'depht'; did you mean depth"),
        ("zoo:vit_mini_patch4_window_32,window=2.5", r"window: 2.5; an odd number"),
        ("timm:vit_mini_patch4_32", r"No pretrained weights exist for vit_mini_patch4_32"),
    ],
)
def test_what_cannot_be_loaded_is_said(name, message):
    with pytest.raises(ModelError, match=message):
        load_model(name)


def test_weights_of_another_architecture_are_refused(tmp_path):
    names = ("vit_mini_patch4_gap_32", "preact_resnet_mini_32")
    for name in names:
        save_model(load_model(f"zoo:{name}"), tmp_path / name)
    gap, resnet = (f"@{tmp_path / name / 'model.safetensors'}" for name in names)
    assert load_model(f"zoo:vit_mini_patch4_window_32{gap}").grid == TokenGrid(8, 8, 0, "mean")  # these fit
    with pytest.raises(ModelError, match=r"Missing key.*attn\.qkv"):
        load_model(f"zoo:alternet_mini_32{resnet}")
    with pytest.raises(ModelError, match=r"zoo:vit_mini_patch4_32@"):
        load_model(f"zoo:vit_mini_patch4_32{gap}")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_model_loads(name):
    model = load_model(f"zoo:{name}", num_classes=10)
    assert len(model.classes) == 10
    assert f"{model.preprocess.size[0]}" in name
