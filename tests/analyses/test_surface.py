"""Surfaces against weights that are moved by hand, directions filter by filter, models left unchanged; the command."""

import copy
import json
import math
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from clearhead.analyses.surface import measure, page, surface
from clearhead.landscape import LandscapeError, check_hvp, hessian
from clearhead.landscape.sharpness import sharpness
from clearhead.landscape.surface import eigenvector_directions, loss_at_points, random_directions
from clearhead.models import Preprocessing, from_module
from clearhead.models.classifier import copied
from tests import cases
from tests.command import clearhead, error, result


def convolutional():
    """Convolution, batch norm with statistics of its own, and a linear layer."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    module(torch.randn(16, 3, 4, 4) * 2)
    return module.eval()


def named(module):
    return from_module(module, preprocess=Preprocessing((4, 4), (4, 4), (0.5,) * 3, (0.2,) * 3), classes=["a", "b"])


def shifted_weights(module, directions, point):
    """A copy of a module with its weights moved by hand."""
    other = copy.deepcopy(module)
    with torch.no_grad():
        for x, direction in zip(point, directions, strict=True):
            for name, d in direction.items():
                other.get_parameter(name).add_(x * d)
    return other


@pytest.mark.parametrize("name", cases.MODELS)
def test_directions_are_as_long_as_the_filters_and_nothing_else_moves(name):
    module = cases.MODELS[name]()
    one, other = random_directions(module, 2, seed=3)
    alone = random_directions(module, 1, seed=3)[0]
    assert all(torch.equal(alone[key], d) for key, d in one.items())
    layers = {f"{n}.weight" for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    layers |= {f"{n}.in_proj_weight" for n, m in module.named_modules() if isinstance(m, nn.MultiheadAttention)}
    assert set(one) == layers
    for key, d in one.items():
        weight = module.get_parameter(key).detach()
        torch.testing.assert_close(d.flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1))
        assert abs(F.cosine_similarity(d.flatten(), other[key].flatten(), 0)) < 0.5


def test_a_plane_is_that_of_weights_moved_by_hand(ten_images):
    module = convolutional()
    model = named(module)
    measured = surface(model, ten_images, dims=2, points=3, span=0.5, weight_decay=0.1, batch_size=4, seed=1)
    images = torch.stack([model.preprocess.image(Image.open(sample.path)) for sample in ten_images.samples])
    labels = torch.tensor([sample.label for sample in ten_images.samples])
    directions = random_directions(module, 2, seed=1)
    assert (measured.steps, measured.images) == ([-0.5, 0.0, 0.5], 10)
    for i, point in enumerate([(x, y) for x in measured.steps for y in measured.steps]):
        other = shifted_weights(module, directions, point)
        assert not other.training
        output = other(model.normalize(images))
        assert measured.nll[i] == pytest.approx(F.cross_entropy(output, labels).item(), rel=1e-5)
        assert measured.accuracy[i] == pytest.approx((output.argmax(1) == labels).float().mean().item())
        squares = sum(p.detach().double().square().sum().item() for p in other.parameters())
        assert measured.l2[i] == pytest.approx(0.05 * squares, rel=1e-6)


@pytest.mark.parametrize("name", ["timm-vit", "timm-swin", "hf-vit", "torchvision-vit"])
def test_points_of_a_transformer_of_any_library(name):
    module, images, labels = cases.MODELS[name](), cases.images(4), torch.tensor([0, 1, 2, 3])
    directions = random_directions(module, 1)
    measured = loss_at_points(
        module, directions, [(0.0,), (0.3,)], [(images[:3], labels[:3]), (images[3:], labels[3:])]
    )
    for point, (nll, _) in zip([(0.0,), (0.3,)], measured, strict=True):
        output = cases.logits(shifted_weights(module, directions, point), images)
        assert float(nll) == pytest.approx(F.cross_entropy(output, labels).item(), rel=1e-4)


def test_along_eigenvectors_the_curvature_is_the_eigenvalue(ten_images):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    images, labels = torch.randn(6, 3, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 0, 1])

    def loss():
        return F.cross_entropy(module(images), labels)

    directions, values = eigenvector_directions(module, loss, 3)
    assert abs(values[0]) >= abs(values[1]) >= abs(values[2])
    length = math.sqrt(sum(p.detach().square().sum().item() for p in module.parameters()))
    for direction, value in zip(directions, values, strict=True):
        flat = torch.cat([d.flatten() for d in direction.values()])
        assert flat.norm().item() == pytest.approx(length)
        with hessian(module, loss) as matrix:
            torch.testing.assert_close(matrix(flat), value * flat, rtol=0, atol=2e-3 * abs(value) * length)
        low, here, high = (
            F.cross_entropy(shifted_weights(module, [direction], (x,))(images), labels) for x in (-1e-3, 0, 1e-3)
        )
        assert (low + high - 2 * here).item() / 1e-6 == pytest.approx(value * length**2, rel=1e-2)

    measured = surface(named(convolutional()), ten_images, dims=2, points=3, span=0.01, along="eigenvectors")
    assert len(measured.curvature) == 2
    assert len(measured.nll) == 9


@pytest.mark.parametrize("how", ["whole", "stopped", "broken"])
def test_the_model_is_never_written_to(ten_images, how):
    module = convolutional().train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    versions = [p._version for p in module.parameters()]

    def progress(points, _count, _description):
        for i, point in enumerate(points):
            if how != "whole" and i == 1:
                raise KeyboardInterrupt if how == "stopped" else RuntimeError
            yield point

    try:
        surface(named(module), ten_images, dims=1, points=3, progress=progress)
    except (KeyboardInterrupt, RuntimeError):
        assert how != "whole"
    assert module.training
    assert [p._version for p in module.parameters()] == versions
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


class _Brittle(nn.Module):
    """NaN where its weight is longer than it was made, or everywhere."""

    def __init__(self, everywhere: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(48, 2, bias=False)
        self.limit = -1.0 if everywhere else 1.05 * self.head.weight.norm().item()

    def forward(self, images):
        return self.head(images.flatten(1)).masked_fill(self.head.weight.norm() > self.limit, torch.nan)


def test_not_a_number_far_out_is_a_gap_and_at_the_weights_an_error(ten_images):
    measured = surface(named(_Brittle(False)), ten_images, dims=1, points=5)
    assert measured.nll[2] is not None
    assert measured.nll[0] is None
    assert measured.nll[4] is None
    assert [value is None for value in measured.accuracy] == [value is None for value in measured.nll]
    assert '"nll": [null' in json.dumps(asdict(measured), allow_nan=False)
    with pytest.raises(LandscapeError, match="the loss is nan at the model's own weights"):
        surface(named(_Brittle(True)), ten_images, dims=1, points=5)


def test_images_are_drawn_by_the_seed_and_all_taken_where_there_are_fewer(ten_images):
    model = named(convolutional())
    first, other = (surface(model, ten_images, dims=1, points=3, limit=3, seed=seed) for seed in (0, 1))
    assert first.images == 3
    assert first.nll[1] != other.nll[1]
    in_parts = surface(model, ten_images, dims=1, points=3, limit=3, batch_size=2)
    assert in_parts.nll == pytest.approx(first.nll, rel=1e-5)
    assert surface(model, ten_images, dims=1, points=3, limit=99).images == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": 4}, "dims: got 4; give 1, 2 or 3"),
        ({"points": 4}, "an odd number of at least 3"),
        ({"points": 1}, "an odd number of at least 3"),
        ({"span": 0}, "give a positive number"),
        ({"span": math.inf}, "give a positive number"),
        ({"limit": 0}, "limit: got 0; give at least 1"),
    ],
)
def test_impossible_grids_raise_an_error(ten_images, options, message):
    with pytest.raises(ValueError, match=message):
        surface(named(convolutional()), ten_images, **options)


class _Keeping(nn.Module):
    """In eval mode caches what it made of a weight until its mode is set again, as timm's LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.kept = nn.Linear(48, 2), None

    def train(self, mode=True):
        self.kept = None
        return super().train(mode)

    def forward(self, images):
        bias = 3 * self.head.bias if self.training or self.kept is None else self.kept
        self.kept = None if self.training else bias
        return images.flatten(1) @ self.head.weight.T + bias


def test_what_a_module_keeps_in_eval_mode_is_of_the_weights_it_has(ten_images):
    model = named(_Keeping().eval())
    images, labels = torch.randn(6, 3, 4, 4), torch.randint(2, (6,))
    model(images).sum().backward()  # what is kept is now part of a graph
    direction = {"head.bias": torch.tensor([1.0, -0.5])}
    points = loss_at_points(model.module, [direction], [(-1.0,), (0.0,), (1.0,)], [(images, labels)])
    weight, bias = model.module.head.weight, model.module.head.bias
    for x, measured in zip((-1.0, 0.0, 1.0), points, strict=True):
        logits = images.flatten(1) @ weight.T + 3 * (bias + x * direction["head.bias"])
        assert measured[0].item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    double = copied(model.module).double()

    def loss():
        return F.cross_entropy(double(images.double()), labels)

    with hessian(double, loss) as matrix:
        assert check_hvp(matrix).difference < 1e-5
    gradient = torch.autograd.grad(loss(), list(double.parameters()))
    norm = torch.cat([g.flatten() for g in gradient]).norm()
    (weight, bias), (by_weight, by_bias) = double.parameters(), gradient
    there = images.double().flatten(1) @ (weight + 0.1 * by_weight / norm).T + 3 * (bias + 0.1 * by_bias / norm)
    expected = F.cross_entropy(there, labels) - loss()
    assert sharpness(double, loss, radius=0.1) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ("--dims", 2, "--weight-decay", 0.1),
            ["Cross-entropy on a line", "Cross-entropy: trained", "L2 term: trained"],
        ),
        (("--dims", 3), ["Accuracy, direction 3 at −1: trained", "Cross-entropy, direction 3 at 0: model"]),
        (("--along", "eigenvectors", "--span", 0.05), ["eigenvectors of the Hessian", "eigenvalues"]),
    ],
)
def test_the_command_shows_models_side_by_side(workspace, trained, options, expected):
    out = "-".join(map(str, ("surface", *options)))
    command = ("landscape", "surface", "model", trained / "checkpoint", "data", "--points", 3, "--limit", 6)
    run = clearhead(*command, *options, "--out", out, cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert "mean rise" in run.stdout
    measured = result(workspace / out)
    assert measured["subject"]["models"] == ["model", "trained"]
    for one in measured["surfaces"].values():
        assert len(one["nll"]) == len(one["accuracy"]) == len(one["l2"]) == 3 ** one["dims"]
    text = (workspace / out / "report.html").read_text()
    assert all(part in text for part in expected)


def test_measure_takes_a_classifier(ten_images):
    model = named(convolutional())
    measured = measure([model], ten_images, dims=1, points=3)
    assert measured.surfaces == {measured.subject.model: surface(model, ten_images, dims=1, points=3)}
    assert measured.subject.images == 10
    assert page(measured).sections[0].title == "Cross-entropy on a line"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--points", 4), "points: got 4; give an odd number"),
        (("--span", 0), "span: got 0.0; give a positive number"),
        (("--dims", 4), "Invalid value for '--dims'"),
        (("--split", "nowhere"), "nowhere"),
        (("--out", "data"), "holds other files"),
    ],
)
def test_bad_input_is_reported(workspace, options, message):
    assert message in error(clearhead("landscape", "surface", "model", "data", *options, cwd=workspace))
