"""Relevance maps against the same mathematics written out: explicit softmax, full products, float64."""

import copy
import importlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.attention_tap import NoAttentionError, tap
from clearhead.attribution import METHODS, explain, explain_with_logits, scale
from clearhead.models import Classifier, Preprocessing, from_module
from tests import reference
from tests.cases import CLASSES, MODELS, SIZE, images

import timm  # isort: skip  (after clearhead, which lets torchvision import)

PREPROCESS = Preprocessing((SIZE, SIZE), (SIZE, SIZE), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
gae_module = importlib.import_module("clearhead.attribution.gae")  # the package has a function of this name
GLOBAL = [name for name in MODELS if name != "timm-swin"]
ATTENTION_METHODS = ["gae", "rollout", "attention"]


def classifier(name: str, dtype: torch.dtype = torch.float32) -> Classifier:
    found = from_module(MODELS[name](), preprocess=PREPROCESS, classes=[f"c{i}" for i in range(CLASSES)], name=name)
    found.module.to(dtype)
    return found


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
    maps, found = METHODS["gae"](model, batch, target)
    matrix, expected = reference.gae(model.module, model.normalize(batch), target)
    start = 0 if model.grid.pooling == "cls" else 1 / 16  # of a mean, what R is at first is left out
    torch.testing.assert_close(maps, read_row(model, matrix) - start)
    torch.testing.assert_close(found, expected.detach())


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
    maps, found = explain_with_logits(model, batch, method=method)
    torch.testing.assert_close(maps, explain(model, batch, found.argmax(-1), method=method))
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
    batch = torch.randn(1, 3, 32, 64)
    assert explain(model, batch, method=method).shape == (1, 32, 64)
    with pytest.raises(ValueError, match="images: 64 x 32 pixels, but the model's tokens lie on 32 x 64"):
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


@pytest.mark.parametrize(("target", "said"), [(CLASSES, "0..4"), (-1, "0..4"), (torch.tensor([0, 9]), "9")])
def test_a_class_that_does_not_exist_is_named(target, said):
    with pytest.raises(ValueError, match=said):
        explain(classifier("timm-vit"), images(), target)


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match=r"'lrp'.*gae"):
        explain(classifier("timm-vit"), images(), method="lrp")
