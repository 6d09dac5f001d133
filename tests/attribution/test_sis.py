"""Sufficient subsets against all subsets of a small image, and against back-selection written out."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clearhead.attribution.sis import sufficient_subset
from clearhead.models import Classifier, Preprocessing, from_module
from tests.attribution.test_explain import classifier
from tests.cases import CLASSES, SIZE
from tests.cases import pixels as images

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def of(module: nn.Module, side: int, classes: int = 2, name: str = "small") -> Classifier:
    preprocess = Preprocessing((side, side), (side, side), MEAN, STD)
    return from_module(module, preprocess=preprocess, classes=[f"c{i}" for i in range(classes)], name=name)


def linear(weight: torch.Tensor, bias: float = 0.0) -> Classifier:
    """Two classes whose log odds are linear: ``weight`` (3 x side x side) times the image, plus ``bias``."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(weight.numel(), 2))
    with torch.no_grad():
        module[1].weight.copy_(torch.stack([torch.zeros_like(weight), weight]).flatten(1))
        module[1].bias.copy_(torch.tensor([0.0, bias]))
    return of(module, weight.shape[-1])


def written_out(model, image, target, confidence, steps, memory, fill):
    """The procedure for one image (C x H x W) in float64: each step sorts what is left, then pixels are put back."""
    image, fill = image.double(), torch.tensor(fill, dtype=torch.float64)[:, None, None]
    size = image[0].numel()
    mask, removed, curve, worth = torch.ones(size, dtype=torch.float64), [], [], 0

    def probability(mask):
        shown = mask.view(1, *image.shape[1:]) * image + (1 - mask).view(1, *image.shape[1:]) * fill
        return model(shown[None])[0].softmax(-1)[target]

    for i in range(steps):
        mask.requires_grad_()
        value = probability(mask)
        (gradient,) = torch.autograd.grad(value, mask)
        curve.append(value.item())
        mask = mask.detach()
        worth = memory * worth + gradient / (value * (1 - value)).detach()
        there = [p for p in worth.argsort().tolist() if mask[p]]
        gone = there[: len(there) - round(size * (1 - (i + 1) / steps) ** 1.5)]
        mask[gone] = 0
        removed.append(gone)
    curve.append(probability(mask).item())
    at = max((i for i, p in enumerate(curve) if p >= confidence), default=curve.index(max(curve)))
    subset = torch.zeros(size, dtype=torch.bool)
    for gone in removed[at:]:
        subset[gone] = True
    return subset.view(image.shape[1:]), curve


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([0.3, 3.0, 300.0]), fill=st.sampled_from(["mean", "black"]))
def test_of_a_linear_model_it_is_the_smallest_of_all_subsets(seed, size, fill):
    generator = torch.Generator().manual_seed(seed)
    model = linear(size * torch.randn(3, 3, 3, generator=generator), bias=-1.0)
    image = torch.rand(1, 3, 3, 3, generator=generator)
    actual = sufficient_subset(model, image, 1, steps=20, fill=fill)  # so many that they take one pixel at a time
    ground = torch.zeros(3) if fill == "black" else torch.tensor(MEAN)
    masks = torch.tensor(list(product([False, True], repeat=9))).view(-1, 1, 3, 3)
    with torch.no_grad():
        every = model(torch.where(masks, image, ground[:, None, None])).softmax(-1)[:, 1]
    enough = every >= 0.9
    assert bool(actual.reached) == bool(enough.any())
    if enough.any():
        assert actual.subset.sum() == masks.sum((1, 2, 3))[enough].min()
    else:
        torch.testing.assert_close(actual.confidence[0], every.max())


@pytest.mark.parametrize(("memory", "confidence"), [(0, 0.25), (0.7, 0.9)])
def test_it_is_back_selection_written_out(memory, confidence):
    model = classifier("timm-vit", torch.float64)
    batch, target = images(3, dtype=torch.float64), torch.tensor([3, 0, 1])
    actual = sufficient_subset(model, batch, target, confidence=confidence, steps=7, memory=memory, fill="black")
    for i in range(3):
        subset, curve = written_out(model, batch[i], target[i], confidence, 7, memory, [0.0, 0.0, 0.0])
        assert torch.equal(actual.subset[i], subset)
        torch.testing.assert_close(actual.curve[i], torch.tensor(curve), rtol=1e-5, atol=1e-6)


def convolutional() -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 8, 5, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        return of(nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(32, CLASSES)), SIZE, CLASSES, "cnn")


@pytest.mark.parametrize("name", ["timm-dinov2-reg4", "timm-swin", "torchvision-vit", "cnn"])
def test_the_subset_is_what_it_says(name):
    model = convolutional() if name == "cnn" else classifier(name)
    state = {key: value.clone() for key, value in model.module.state_dict().items()}
    model.module.train()
    batch = images(2).repeat(CLASSES, 1, 1, 1)
    target = torch.arange(CLASSES).repeat_interleave(2)
    with torch.inference_mode():
        actual = sufficient_subset(model, batch, target, confidence=0.5, steps=6)
    assert all(module.training for module in model.module.modules())
    assert all(parameter.grad is None for parameter in model.module.parameters())
    assert all(torch.equal(value, state[key]) for key, value in model.module.state_dict().items())
    model.module.eval()
    with torch.no_grad():
        mean = torch.tensor(model.preprocess.mean)[:, None, None]
        logits, alone = model(batch), model(torch.where(actual.subset[:, None], batch, mean)).softmax(-1)
    torch.testing.assert_close(actual.logits, logits)
    torch.testing.assert_close(actual.curve[:, 0], logits.softmax(-1).gather(1, target[:, None])[:, 0])
    torch.testing.assert_close(actual.confidence, alone.gather(1, target[:, None])[:, 0])
    torch.testing.assert_close(actual.share, actual.subset.float().mean((1, 2)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(actual.remaining, torch.linspace(1, 0, 7) ** 1.5, rtol=0, atol=1 / SIZE**2)
    assert torch.equal(actual.reached, actual.confidence >= 0.5)
    assert torch.equal(actual.reached, (actual.curve >= 0.5).any(1))
    smaller = actual.remaining[None] < actual.share[:, None]
    assert (actual.curve[smaller] < actual.confidence[:, None].expand_as(smaller)[smaller].clamp(max=0.5)).all()
    assert torch.equal(actual.target, target)


def test_the_predicted_label_is_the_default():
    model, batch = classifier("timm-vit"), images(3)
    actual, named = (
        sufficient_subset(model, batch, steps=3),
        sufficient_subset(model, batch, model(batch).argmax(-1), steps=3),
    )
    assert torch.equal(actual.target, model(batch).argmax(-1))
    assert torch.equal(actual.subset, named.subset)


def test_a_constant_image_has_no_pixel_that_counts():
    model = classifier("timm-vit")
    actual = sufficient_subset(model, torch.full((1, 3, SIZE, SIZE), 0.5), steps=4)  # the mean colour
    assert not actual.reached.item()
    assert actual.share.item() == 0
    assert actual.subset.sum() == 0
    torch.testing.assert_close(actual.curve, actual.curve[:, :1].expand(1, 5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"confidence": 90}, "confidence: 90; a probability"),
        ({"confidence": float("nan")}, "confidence: nan"),
        ({"steps": 0}, "steps: 0; at least 1"),
        ({"memory": 1}, "memory: 1; a weight"),
        ({"fill": "grey"}, "fill: 'grey' is unknown; choose from mean, black"),
        ({"target": 5}, "target: class 5"),
        ({"images": torch.full((1, 3, SIZE, SIZE), torch.nan)}, "images: some pixels are NaN"),
    ],
)
def test_what_cannot_be_asked(changes, message):
    with pytest.raises(ValueError, match=message):
        sufficient_subset(**{"model": classifier("timm-vit"), "images": images(1)} | changes)


def test_a_model_with_one_output_or_none_that_is_finite_is_an_error():
    one = of(nn.Sequential(nn.Flatten(), nn.Linear(27, 1)), 3, 1)
    with pytest.raises(ValueError, match="a single output"):
        sufficient_subset(one, torch.ones(1, 3, 3, 3))
    broken = linear(torch.full((3, 3, 3), torch.nan))
    with pytest.raises(ValueError, match="not finite"):
        sufficient_subset(broken, torch.ones(1, 3, 3, 3))
