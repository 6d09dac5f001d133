"""Relevance maps against the same mathematics written out: explicit softmax, full products, float64."""

import copy
import importlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clearhead.attention_tap import NoAttentionError, tap
from clearhead.attribution import METHODS, explain, explain_with_logits, list_methods, register_method, scale
from clearhead.errors import ClearheadError
from clearhead.models import Classifier, Preprocessing, as_classifier, from_module, save_model
from tests import reference
from tests.cases import CLASSES, MODELS, SIZE
from tests.cases import pixels as images

import timm  # isort: skip  (after clearhead, which lets torchvision import)

PREPROCESS = Preprocessing((SIZE, SIZE), (SIZE, SIZE), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
gae_module = importlib.import_module("clearhead.attribution.gae")  # the package has a function of this name
GLOBAL = [name for name in MODELS if name != "timm-swin"]
ATTENTION_METHODS = ["gae", "rollout", "attention"]


def classifier(name: str, dtype: torch.dtype = torch.float32) -> Classifier:
    actual = from_module(MODELS[name](), preprocess=PREPROCESS, classes=[f"c{i}" for i in range(CLASSES)], name=name)
    actual.module.to(dtype)
    return actual


def read_row(model: Classifier, matrix: torch.Tensor) -> torch.Tensor:
    """The row of R that the head reads, at the patches: B x h x w."""
    grid = model.grid
    row = matrix[:, 0] if grid.pooling == "cls" else matrix[:, grid.prefix :].mean(1)
    return row[:, grid.prefix :].unflatten(1, (grid.height, grid.width))


@pytest.mark.parametrize("name", GLOBAL)
def test_gae_is_the_full_recursion(name, monkeypatch):
    monkeypatch.setattr(gae_module, "_BLOCK_ELEMENTS", 2 * 4 * 17 * 3)  # several blocks of rows, the last one smaller
    model, batch = classifier(name, torch.float64), images(dtype=torch.float64)
    target = torch.tensor([3, 1])
    maps, actual = METHODS["gae"](model, batch, target)
    matrix, expected = reference.gae(model.module, model.normalize(batch), target)
    start = 0 if model.grid.pooling == "cls" else 1 / 16  # of a mean, what R is at first is left out
    torch.testing.assert_close(maps, read_row(model, matrix) - start)
    torch.testing.assert_close(actual, expected.detach())


@pytest.mark.parametrize("name", GLOBAL)
def test_rollout_and_attention_are_the_explicit_ones(name):
    model, batch = classifier(name, torch.float64), images(dtype=torch.float64)
    with reference.explicit_attention() as attention, torch.no_grad():
        model(batch)
    product = torch.eye(attention[0].shape[-1], dtype=torch.float64)
    for attn in attention:
        product = (attn.mean(1) + torch.eye(len(product[-1]))) / 2 @ product
    torch.testing.assert_close(METHODS["rollout"](model, batch, None)[0], read_row(model, product))
    last = read_row(model, attention[-1].mean(1))
    torch.testing.assert_close(METHODS["attention"](model, batch, None)[0], last)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_agree_with_finite_differences(name):
    model, batch = classifier(name, torch.float64), images(1, dtype=torch.float64)
    direction, step = images(1, seed=1, dtype=torch.float64), 1e-5
    std = torch.tensor(model.preprocess.std, dtype=torch.float64)[:, None, None]  # a step in the normalised input
    with torch.no_grad():
        slope = (model(batch + step * std * direction) - model(batch - step * std * direction))[0, 2] / (2 * step)
    moved = model.normalize(batch).requires_grad_()
    (gradient,) = torch.autograd.grad(model.from_normalized(moved)[0, 2], moved)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(METHODS["input-gradient"](model, batch, 2)[0], gradient.abs().amax(1))
    torch.testing.assert_close(METHODS["input-x-gradient"](model, batch, 2)[0], (gradient * moved).sum(1).clamp(min=0))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", ["plain", "no_grad", "inference", "frozen"])
def test_each_method_works_in_every_mode_and_leaves_no_trace(method, mode):
    model, batch = classifier("timm-vit"), images(3)
    expected = explain(model, batch, method=method)
    assert expected.shape == (3, SIZE, SIZE)
    assert expected.amin((1, 2)).tolist() == [0, 0, 0]
    assert expected.amax((1, 2)).tolist() == [1, 1, 1]
    if mode == "frozen":
        model.module.requires_grad_(False)
    context = {"no_grad": torch.no_grad, "inference": torch.inference_mode}.get(mode, torch.enable_grad)
    with context():
        maps = explain(model, images(3), method=method)
    torch.testing.assert_close(maps, expected)
    assert not batch.requires_grad
    assert all(parameter.grad is None for parameter in model.module.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_the_predicted_class_is_the_default_and_a_number_serves_all(method):
    model, batch = classifier("timm-vit"), images(3)
    maps, actual = explain_with_logits(model, batch, method=method)
    torch.testing.assert_close(maps, explain(model, batch, actual.argmax(-1), method=method))
    torch.testing.assert_close(
        explain(model, batch, 2, method=method), explain(model, batch, torch.tensor([2, 2, 2]), method=method)
    )


@settings(deadline=None, max_examples=10)
@given(st.permutations(range(4)))
def test_an_image_is_explained_alike_in_any_batch(order):
    model, batch = classifier("timm-vit"), images(4)
    maps = explain(model, batch, 1)
    torch.testing.assert_close(explain(model, batch[order], 1), maps[order], rtol=1e-4, atol=1e-5)


@given(st.floats(-1e3, 1e3), st.integers(1, 9))
def test_a_constant_map_scales_to_zeros(value, side):
    assert scale(torch.full((1, side, side), value), (12, 12)).abs().max() == 0


@pytest.mark.parametrize("method", ATTENTION_METHODS)
def test_windowed_attention_is_refused_with_a_way_out(method):
    with pytest.raises(ValueError, match="input-gradient"):
        explain(classifier("timm-swin"), images(), method=method)


def test_a_cnn_is_explained_by_its_gradients():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 30 * 30, 2))
    model = from_module(module, preprocess=PREPROCESS, classes=["a", "b"])
    assert explain(model, images(), method="input-x-gradient").shape == (2, SIZE, SIZE)
    with pytest.raises(ValueError, match="input-gradient"):
        explain(model, images(), method="gae")


def test_a_small_head_does_not_drown_the_map_of_a_model_that_averages():
    model, batch = classifier("timm-dinov3"), images()
    assert model.grid.pooling == "mean"
    with torch.no_grad():
        model.module.head.weight *= 1e-4
    exact = explain(replace(model, module=copy.deepcopy(model.module).double()), batch.double(), 1)
    torch.testing.assert_close(explain(model, batch, 1).double(), exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["gae", "rollout", "attention", "legrad", "attnlrp", "libragrad"])
def test_images_of_another_size_are_refused(method):
    module = timm.create_model(
        "vit_tiny_patch16_224", img_size=(32, 64), patch_size=8, depth=1, dynamic_img_size=True, num_classes=CLASSES
    )
    wide = Preprocessing((32, 64), (32, 64), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    model = from_module(module, preprocess=wide, classes=[f"c{i}" for i in range(CLASSES)])
    batch = torch.rand(1, 3, 32, 64)
    assert explain(model, batch, method=method).shape == (1, 32, 64)
    with pytest.raises(ValueError, match="images: 64 x 32 pixels, but the model's tokens cover 32 x 64"):
        explain(model, batch.transpose(2, 3), method=method)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_in_train_mode_is_explained_as_it_answers_and_left_as_it_was(method):
    model, batch = classifier("timm-vit"), images()
    expected = explain(model, batch, 1, method)
    model.module.blocks[0].mlp.drop1.p = 0.5
    model.module.train()
    torch.testing.assert_close(explain(model, batch, 1, method), expected)
    assert all(m.training for m in model.module.modules())


@pytest.mark.parametrize("method", ["gae", "legrad", "attnlrp", "libragrad"])
def test_a_layer_whose_heads_are_replaced_has_no_part(method):
    model, batch = classifier("timm-vit"), images()
    with tap(model.module, heads={0: torch.zeros_like}):
        replaced = explain(model, batch, 1, method)
    with tap(model.module, heads={0: torch.zeros(4)}):
        torch.testing.assert_close(explain(model, batch, 1, method), replaced)


@pytest.mark.parametrize("method", ["gae", "legrad"])
def test_checkpointed_layers_are_explained_alike(method):
    model, batch = classifier("timm-vit"), images()
    expected = explain(model, batch, 1, method)
    model.module.set_grad_checkpointing()
    torch.testing.assert_close(explain(model, batch, 1, method), expected)


def test_hidden_attention_comes_with_the_way_to_show_it():
    model = classifier("timm-vit")
    for block in model.module.blocks:
        block.attn.fused_attn = False
    model = from_module(model.module, preprocess=PREPROCESS, classes=model.classes)
    assert model.grid is None
    with pytest.raises(NoAttentionError, match=r"set_fused_attn\(True"):
        explain(model, images())


@pytest.mark.parametrize("method", ["attention", "rollout", "gae"])
def test_attention_hidden_after_loading_is_reported(method):
    model = classifier("timm-vit")
    for block in model.module.blocks:
        block.attn.fused_attn = False
    with pytest.raises(NoAttentionError, match="no attention call was seen"):
        explain(model, images(), method=method)


@pytest.mark.parametrize(("target", "reported"), [(CLASSES, "0..4"), (-1, "0..4"), (torch.tensor([0, 9]), "9")])
def test_a_class_that_does_not_exist_is_named(target, reported):
    with pytest.raises(ValueError, match=reported):
        explain(classifier("timm-vit"), images(), target)


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match=r"'lrp'.*gae"):
        explain(classifier("timm-vit"), images(), method="lrp")


# What people pass


def test_images_are_taken_as_people_have_them(tmp_path):
    model = classifier("timm-vit")
    image = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "1.png")
    tensor = model.preprocess.image(Image.fromarray(image))
    expected = explain(model, tensor[None], 2)
    for same in (tensor, image, Image.fromarray(image), tmp_path / "1.png", str(tmp_path / "1.png"), [image]):
        assert torch.equal(explain(model, same, 2), expected)
    several = [image, Image.fromarray(image), tensor, tmp_path / "1.png"]
    torch.testing.assert_close(explain(model, several, 2), expected.expand(4, -1, -1), rtol=1e-4, atol=1e-5)


def test_a_plain_module_a_class_name_and_another_precision():
    module = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2).eval()
    batch = images(2)
    expected = explain(module, batch, 817)
    assert torch.equal(explain(module, batch, "sports car"), expected)
    assert torch.equal(explain(as_classifier(module), batch, "817"), expected)
    torch.testing.assert_close(explain(module.double(), batch, 817).float(), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"class 'sport car' is not one of the model's 1000 classes: .*sports car"):
        explain(module, batch, "sport car")


def test_a_name_is_a_model(tmp_path):
    model = classifier("hf-vit")
    model = replace(model, library="hf", preprocess=replace(model.preprocess, odd_margin="down"))
    save_model(model, tmp_path / "m")
    assert torch.equal(explain(str(tmp_path / "m"), images(1), 1), explain(model, images(1), 1))
    assert list_methods(tmp_path / "m") == list(METHODS)


def test_a_module_of_unknown_preprocessing_is_explained_on_its_own_tensors_alone():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 30 * 30, 2))
    tensors = 3 * torch.randn(2, 3, 32, 32)
    assert explain(module, tensors, method="input-gradient").shape == (2, 32, 32)
    with pytest.raises(ValueError, match=r"preprocessing of Sequential is unknown.*transform="):
        explain(as_classifier(module, image_size=(32, 32)), Image.new("RGB", (40, 40)), method="input-gradient")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (3 * torch.randn(1, 3, 32, 32), r"pixels in 0\.\.1 are needed, got -.*before normalisation"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), r"of torch.uint8; floats .*images / 255"),
        (torch.zeros(32, 32, 3), r"got a tensor \(32, 32, 3\)"),
        (np.zeros((32, 32, 3)), "of float64; H x W x 3 of uint8"),
        ([], "got list of no images"),
        (7, "got int; pass a PIL image, a path"),
        ("no/file.jpg", "no/file.jpg"),
    ],
)
def test_images_that_cannot_be_are_named(wrong, message):
    with pytest.raises(ClearheadError, match=message):
        explain(classifier("timm-vit"), wrong)


def test_methods_are_listed_by_what_works_and_can_be_added(monkeypatch):
    monkeypatch.setattr("clearhead.attribution.METHODS", dict(METHODS))
    register_method("mine", lambda model, images, target: (images.mean(1), model(images)))
    register_method("mine", lambda model, images, target: (images.amax(1), model(images)))
    assert list_methods()[-1] == "mine"
    assert list_methods(classifier("timm-swin")) == ["input-gradient", "input-x-gradient", "mine"]
    assert explain(classifier("timm-swin"), images(2), method="mine").shape == (2, SIZE, SIZE)
    with pytest.raises(ValueError, match="name: 'gae' is a method of clearhead"):
        register_method("gae", lambda model, images, target: (images.mean(1), model(images)))


@pytest.mark.slow
@pytest.mark.skipif("CLEARHEAD_DATA" not in os.environ, reason="CLEARHEAD_DATA names no folder of real data")
def test_the_deit_in_twelve_lines(tmp_path):
    data = Path(os.environ["CLEARHEAD_DATA"])
    photo = next(path for path in sorted((data / "nips17").rglob("*")) if path.suffix in (".png", ".jpg", ".jpeg"))
    import clearhead

    model = clearhead.load_model(f"timm:deit_tiny_patch16_224@{data / 'models' / 'deit_tiny_patch16_224.safetensors'}")
    for target in (None, "sports car"):
        maps = clearhead.explain(model, photo, target)
        assert maps.shape == (1, 224, 224)
        clearhead.show(photo, maps, model=model).savefig(tmp_path / "map.png")
    few = clearhead.sufficient_subset(model, photo, steps=5)
    assert 0 < few.share.item() < 1
