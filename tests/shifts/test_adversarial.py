import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clearhead.shifts.adversarial import attack
from tests import cases

EPS = 2 / 255


class OnPixels(nn.Module):
    """A small model that normalises inside, in a user's state: training, one parameter frozen, gradients left over."""

    def __init__(self, name: str = "timm-vit") -> None:
        super().__init__()
        self.model = cases.MODELS[name]()
        self.dropout = nn.Dropout(0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        return cases.logits(self.model, self.dropout((pixels - 0.5) / 0.5))


@pytest.fixture(scope="module")
def model() -> OnPixels:
    return OnPixels().eval()


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.rand(16, 3, cases.SIZE, cases.SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def labels(model: OnPixels, pixels: Tensor) -> Tensor:
    """What the model says, but for the first four images."""
    with torch.no_grad():
        said = model(pixels).argmax(1)
    said[:4] = (said[:4] + 1) % cases.CLASSES
    return said


def losses(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return cross_entropy(model(images), labels, reduction="none")


@pytest.fixture
def toolbox() -> None:
    pytest.importorskip("art", reason="the extra clearhead[adversarial] is not installed")


@pytest.mark.usefixtures("toolbox")
@pytest.mark.parametrize("name", ["pgd", "apgd-ce"])
class TestAttack:
    @pytest.mark.parametrize("eps", [0.5 / 255, 4 / 255])
    def test_stays_within_its_bounds_and_does_harm(
        self, name: str, eps: float, model: OnPixels, pixels: Tensor, labels: Tensor
    ) -> None:
        found = attack(model, pixels, labels, eps=eps, name=name)
        assert found.shape == pixels.shape
        assert (found - pixels).abs().max() <= eps + 1e-6
        assert found.min() >= 0
        assert found.max() <= 1
        assert not found.requires_grad
        before, after = losses(model, pixels, labels), losses(model, found, labels)
        assert (after >= before - 1e-5).all()
        with torch.no_grad():
            fooled = (model(found).argmax(1) != labels)[4:]
        assert fooled.float().mean() > (0.2 if eps < 1 / 255 else 0.8)
        assert (after - before)[4:][fooled].min() > 0
        if name == "pgd":
            assert (after > before)[4:].float().mean() > 0.9
        assert torch.equal(found[:4], pixels[:4])  # already wrong

    def test_leaves_the_model_and_the_random_numbers_alone(self, name: str, pixels: Tensor, labels: Tensor) -> None:
        model = OnPixels().train()
        model.model.eval()
        frozen, *others = model.parameters()
        frozen.requires_grad_(False)
        others[0].grad = torch.ones_like(others[0])
        before = [parameter.detach().clone() for parameter in model.parameters()]
        np.random.seed(3)
        expected = np.random.rand()
        np.random.seed(3)
        torch_state = torch.get_rng_state()
        found = attack(model, pixels, labels, eps=EPS, name=name)
        assert np.random.rand() == expected
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
        assert not frozen.requires_grad
        assert all(p.requires_grad for p in others)
        assert torch.equal(others[0].grad, torch.ones_like(others[0]))
        assert all(p.grad is None for p in (frozen, *others[1:]))
        assert model.training
        assert model.dropout.training
        assert not model.model.training
        assert torch.equal(found, attack(model.eval(), pixels, labels, eps=EPS, name=name))  # no dropout in either

    def test_is_determined_by_its_seed(self, name: str, model: OnPixels, pixels: Tensor, labels: Tensor) -> None:
        once, again = (attack(model, pixels, labels, eps=EPS, name=name, seed=1) for _ in range(2))
        assert torch.equal(once, again)
        other = attack(model, pixels, labels, eps=EPS, name=name, seed=2)
        assert torch.equal(once, other) == (name == "pgd")

    def test_a_callable_that_is_no_module(self, name: str, model: OnPixels, pixels: Tensor, labels: Tensor) -> None:
        found = attack(lambda images: model(images), pixels, labels, eps=EPS, name=name)
        assert torch.equal(found, attack(model, pixels, labels, eps=EPS, name=name))
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_nothing_to_attack(self, name: str, model: OnPixels, pixels: Tensor, labels: Tensor) -> None:
        assert torch.equal(attack(model, pixels[:4], labels[:4], name=name), pixels[:4])

    def test_under_inference_mode(self, name: str, model: OnPixels, pixels: Tensor, labels: Tensor) -> None:
        expected = attack(model, pixels, labels, eps=EPS, name=name)
        with torch.inference_mode():
            found = attack(model, pixels, labels, eps=EPS, name=name)
        assert torch.equal(found, expected)


@pytest.mark.usefixtures("toolbox")
@pytest.mark.parametrize("name", ["timm-vit", "torchvision-vit"])
def test_one_step_is_fgsm(name: str, pixels: Tensor) -> None:
    model = OnPixels(name).eval()
    images = pixels[:6]
    labels = model(images).argmax(1)
    leaf = images.clone().requires_grad_()
    cross_entropy(model(leaf), labels).backward()
    expected = (images + EPS * leaf.grad.sign()).clamp(0, 1)
    worse = losses(model, expected, labels) > losses(model, images, labels)
    found = attack(model, images, labels, eps=EPS, steps=1)
    assert worse.any()
    torch.testing.assert_close(found[worse], expected[worse], atol=1e-6, rtol=0)
    assert torch.equal(found[~worse], images[~worse])


@pytest.mark.usefixtures("toolbox")
def test_pgd_is_projected_ascent_and_does_not_depend_on_the_batch(
    model: OnPixels, pixels: Tensor, labels: Tensor
) -> None:
    steps, images, wanted = 4, pixels[4:8], labels[4:8]
    expected = images
    for _ in range(steps):
        leaf = expected.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(model(leaf), wanted, reduction="sum"), leaf)
        moved = expected + 2.5 * EPS / steps * gradient.sign()
        expected = torch.minimum(torch.maximum(moved, images - EPS), images + EPS).clamp(0, 1)
    alone = torch.cat(
        [attack(model, images[i : i + 1], wanted[i : i + 1], eps=EPS, steps=steps) for i in range(len(images))]
    )
    together = attack(model, pixels, labels, eps=EPS, steps=steps)[4:8]
    for found in (alone, together):  # a gradient near zero may take the other sign
        assert ((found - expected).abs() < 1e-5).float().mean() > 0.999


@pytest.mark.usefixtures("toolbox")
def test_more_room_does_more_harm(model: OnPixels, pixels: Tensor, labels: Tensor) -> None:
    harm = [losses(model, attack(model, pixels, labels, eps=eps / 255), labels).mean() for eps in (0.5, 1, 2, 4)]
    assert harm == sorted(harm)


def test_what_is_refused(model: OnPixels, pixels: Tensor, labels: Tensor) -> None:
    with pytest.raises(ValueError, match="no attack 'fgsm'; there is pgd, apgd-ce"):
        attack(model, pixels, labels, name="fgsm")
    with pytest.raises(ValueError, match=r"pixels in 0\.\.1 are attacked, these are in -1"):
        attack(model, pixels * 2 - 1, labels)
    with pytest.raises(ValueError, match=r"outputs 0\.\.4"):
        attack(model, pixels, labels + 5)
    with pytest.raises(ValueError, match="eps 0 must be above 0"):
        attack(model, pixels, labels, eps=0)
    with pytest.raises(ValueError, match="steps 0 at least 1"):
        attack(model, pixels, labels, steps=0)


def test_without_the_toolbox(model: OnPixels, pixels: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "art", None)
    with pytest.raises(ValueError, match=r"pip install 'clearhead\[adversarial\]'"):
        attack(model, pixels, labels)
