"""How tokens cover the image, found by a probe."""

import pytest
import torch
from torch import nn

from clearhead.attribution import explain
from clearhead.models import Preprocessing, TokenGrid, from_module
from tests import cases
from tests.models.build import LETTERS, PLAIN, Patches


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
        explain(model, cases.pixels())


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
