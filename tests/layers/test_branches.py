"""Residual branches of many architectures, none of which the code knows, and additions that are none."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clearhead.analyses.cka import cka
from clearhead.analyses.fourier import feature_maps
from clearhead.analyses.lesion import lesions
from clearhead.layers import LayersError, Layout, find_branches, flatten_positions, group_blocks, hooked_forward
from tests.cases import MODELS, classifier
from tests.layers.conftest import build, small


@pytest.mark.parametrize("name", MODELS)
def test_transformers_alternate_attention_and_mlp(name):
    model = classifier(name)
    branches = find_branches(model)
    layers = 4 if name == "timm-swin" else 2
    assert [branch.type for branch in branches] == ["embed", *["attention", "mlp"] * layers]
    assert [branch.depth for branch in branches] == pytest.approx([i / (2 * layers) for i in range(2 * layers + 1)])
    assert group_blocks(branches) == [[1 + 2 * i, 2 + 2 * i] for i in range(layers)]
    sides = [(u.layout.height, u.layout.width) for u in branches]
    if model.grid:
        assert sides == [(model.grid.height, model.grid.width)] * len(branches)
        assert {u.layout.prefix for u in branches} == {model.grid.prefix}
    else:
        assert sides == [(8, 8)] * 5 + [(4, 4)] * 4


@pytest.mark.parametrize(
    ("name", "types", "layouts"),
    [
        ("resnet", "cccccc", [Layout("first", n, n) for n in (8, 8, 8, 4, 2, 1)]),
        ("resnet-preact", "cccc", [Layout("first", 8, 8)] * 3 + [Layout("first", 4, 4)]),
        ("torchvision-resnet", "ccccc", [Layout("first", n, n) for n in (8, 8, 4, 2, 1)]),
        ("convnext", "ccccc", [Layout("first", n, n) for n in (8, 8, 4, 2, 1)]),
        ("mixer", "cmmmm", [Layout("last", 4, 4)] * 5),
        ("pit", "camam", [Layout("last", 7, 7, 1)] * 3 + [Layout("last", 4, 4, 1)] * 2),
        ("torchvision-swin", "camamamam", [Layout("last", 8, 8)] * 5 + [Layout("last", 4, 4)] * 4),
        ("vit-not-square", "camam", [Layout("last", 4, 6, 3)] * 5),
    ],
)
def test_other_architectures(name, types, layouts):
    branches = find_branches(small(name))
    assert branches[0].type == "embed"
    assert "".join(branch.type[0] for branch in branches[1:]) == types[1:]
    assert [branch.layout for branch in branches] == layouts


def test_names_are_those_of_the_adding_modules():
    assert [branch.name for branch in find_branches(small("resnet"))] == [
        "embedding",
        "layer1.0 conv",
        "layer1.1 conv",
        "layer2.0 conv",
        "layer3.0 conv",
        "layer4.0 conv",
    ]
    assert [branch.name for branch in find_branches(small("vit"))][:3] == [
        "embedding",
        "blocks.0 attention",
        "blocks.0 mlp",
    ]


@pytest.mark.parametrize("name", ["resnet", "resnet-preact", "vit", "pit", "convnext"])
def test_feature_maps_equal_block_outputs(name):
    model, maps, expected = small(name), [], []
    branches = find_branches(model)
    images = torch.randn(2, 3, *model.preprocess.size)

    def keep(_i, value, _shortcut):
        maps.append(value().clone())
        return maps[-1]

    logits = hooked_forward(model, images, branches, keep)
    blocks = {branch.module for branch in branches if branch.module}
    for block in blocks:
        model.module.get_submodule(block).register_forward_hook(lambda _m, _i, output: expected.append(output.clone()))
    with torch.inference_mode():
        torch.testing.assert_close(logits, model(images))
    last = [maps[block[-1]] for block in group_blocks(branches)]
    assert len(last) == len(expected)
    for ours, theirs in zip(last, expected, strict=True):
        torch.testing.assert_close(ours.relu() if name == "resnet" else ours, theirs)  # whose block ends in a ReLU


class Handmade(nn.Module):
    """A transformer block with a choice of additions."""

    def __init__(self, branch):
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 16, 8, 8), branch
        self.one, self.two, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.place = nn.Parameter(torch.randn(1, 16, 16))

    def forward(self, images):
        x = self.stem(images).flatten(2).mT + self.place.expand(len(images), -1, -1)
        return self.head(self.branch(self, x).mean(1))


def gelu(m, x):
    h = m.one(x)
    return x + m.two(0.5 * h * (1 + torch.tanh(0.8 * (h + 0.044715 * h**3))))


def rotary(m, x):
    q, turned = m.one(x), m.one(x).flip(-1)
    q = q * 0.6 + turned * 0.8
    return x + F.scaled_dot_product_attention(q, q, m.two(x))


def written_out(m, x):
    scores = m.one(x) @ m.two(x).mT
    bias = torch.randn(scores.shape, generator=torch.Generator().manual_seed(0))
    return m.two((scores + bias).softmax(-1) @ x) + x


def nested(m, x):
    inner = m.one(x)
    return x + m.two(inner + m.two(inner))


def in_place(m, x):
    y = m.one(x)
    y += x
    return y


def parallel(m, x):
    attended = F.scaled_dot_product_attention(m.one(x), m.one(x), m.one(x))
    return x + attended + m.two(F.relu(x))


@pytest.mark.parametrize(
    ("branch", "types", "skips"),
    [
        (gelu, ["mlp"], [0]),
        (rotary, ["attention"], [0]),
        (written_out, ["attention"], [1]),
        (nested, ["mlp"], [0]),
        (in_place, ["mlp"], [1]),
        (parallel, ["attention", "mlp"], [0, 0]),
    ],
)
def test_only_residual_connections_count(branch, types, skips):
    branches = find_branches(build(Handmade(branch)))
    assert [branch.type for branch in branches] == ["embed", *types]
    assert [branch.skip for branch in branches] == [None, *skips]


def test_models_without_residual_connections_and_compiled_ones_raise():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(LayersError, match="no residual connection was found in Sequential"):
        find_branches(build(plain))
    model = build(Handmade(nested))
    model.module.one = torch.jit.script(model.module.one)
    with pytest.raises(LayersError, match="compiled"):
        find_branches(model)


def test_model_whose_passes_differ_raises():
    calls = []

    def fickle(m, x):
        calls.append(1)
        for _ in range(len(calls)):
            x = F.relu(x)
        return x + m.one(x)

    with pytest.raises(LayersError, match="forward passes differ"):
        find_branches(build(Handmade(fickle)))


def test_model_is_restored():
    model = small("vit")
    model.module.train()
    find_branches(model)
    assert model.module.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def logits_at(model, _folder):
    hooked_forward(model, torch.randn(2, 3, 64, 64), find_branches(model), lambda _i, value, _shortcut: value())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("measure", [logits_at, feature_maps, lesions, cka])
def test_values_cached_in_eval_mode_are_dropped_afterwards(measure, training, folder):
    model = small("levit")  # its attention caches its biases until its mode is set
    model.module.train(training)
    measure(model, folder)
    assert {m.training for m in model.module.modules()} == {training}
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    biases = [p.grad for name, p in model.module.named_parameters() if name.endswith("attention_biases")]
    assert biases
    assert all(grad is not None for grad in biases)


def test_positions_are_rows_then_columns():
    x = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert torch.equal(flatten_positions(x, Layout("first", 3, 4)), x.flatten(2).transpose(1, 2))
    assert torch.equal(flatten_positions(x, Layout("last", 2, 3)), x.flatten(1, 2))
    assert torch.equal(flatten_positions(x[0], Layout("last", 1, 2, 1)), x[0][:, 1:])
