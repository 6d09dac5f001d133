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
    """A small model that normalises inside, in training mode, with one frozen parameter and existing gradients."""

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
    """The model's predictions, changed for the first four images."""
    with torch.no_grad():
        predicted = model(pixels).argmax(1)
    predicted[:4] = (predicted[:4] + 1) % cases.CLASSES
    return predicted


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
        attacked = attack(model, pixels, labels, eps=eps, name=name)
        assert attacked.shape == pixels.shape
        assert (attacked - pixels).abs().max() <= eps + 1e-6
        assert attacked.min() >= 0
        assert attacked.max() <= 1
        assert not attacked.requires_grad
        before, after = losses(model, pixels, labels), losses(model, attacked, labels)
        assert (after >= before - 1e-5).all()
        with torch.no_grad():
            fooled = (model(attacked).argmax(1) != labels)[4:]
        assert fooled.float().mean() > (0.2 if eps < 1 / 255 else 0.8)
        assert (after - before)[4:][fooled].min() > 0
        if name == "pgd":
            assert (after > before)[4:].float().mean() > 0.9
        assert torch.equal(attacked[:4], pixels[:4])  # already wrong

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
        attacked = attack(model, pixels, labels, eps=EPS, name=name)
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
        assert torch.equal(attacked, attack(model.eval(), pixels, labels, eps=EPS, name=name))  # no dropout in either

    def test_is_determined_by_its_seed(self, name: str, model: OnPixels, pixels: Tensor, labels: Tensor) -> None:
        first, second = (attack(model, pixels, labels, eps=EPS, name=name, seed=1) for _ in range(2))
        assert torch.equal(first, second)
        other = attack(model, pixels, labels, eps=EPS, name=name, seed=2)
        assert torch.equal(first, other) == (name == "pgd")

    def test_a_callable_that_is_no_module(self, name: str, model: OnPixels, pixels: Tensor, labels: Tensor) -> None:
        attacked = attack(lambda images: model(images), pixels, labels, eps=EPS, name=name)
        assert torch.equal(attacked, attack(model, pixels, labels, eps=EPS, name=name))
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_nothing_to_attack(self, name: str, model: OnPixels, pixels: Tensor, labels: Tensor) -> None:
        assert torch.equal(attack(model, pixels[:4], labels[:4], name=name), pixels[:4])

    def test_under_inference_mode(self, name: str, model: OnPixels, pixels: Tensor, labels: Tensor) -> None:
        expected = attack(model, pixels, labels, eps=EPS, name=name)
        with torch.inference_mode():
            attacked = attack(model, pixels, labels, eps=EPS, name=name)
        assert torch.equal(attacked, expected)


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
    attacked = attack(model, images, labels, eps=EPS, steps=1)
    assert worse.any()
    torch.testing.assert_close(attacked[worse], expected[worse], atol=1e-6, rtol=0)
    assert torch.equal(attacked[~worse], images[~worse])


@pytest.mark.usefixtures("toolbox")
def test_pgd_is_projected_gradient_ascent_and_does_not_depend_on_the_batch(
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
    for attacked in (alone, together):  # a gradient near zero may take the other sign
        assert ((attacked - expected).abs() < 1e-5).float().mean() > 0.999


@pytest.mark.usefixtures("toolbox")
def test_a_larger_eps_increases_the_loss(model: OnPixels, pixels: Tensor, labels: Tensor) -> None:
    harm = [losses(model, attack(model, pixels, labels, eps=eps / 255), labels).mean() for eps in (0.5, 1, 2, 4)]
    assert harm == sorted(harm)


def test_errors_name_the_argument(model: OnPixels, pixels: Tensor, labels: Tensor) -> None:
    with pytest.raises(ValueError, match="name: 'fgsm' is unknown; choose from pgd, apgd-ce"):
        attack(model, pixels, labels, name="fgsm")
    with pytest.raises(ValueError, match=r"images: got values in -1\.\.1; pixels in 0\.\.1"):
        attack(model, pixels * 2 - 1, labels)
    with pytest.raises(ValueError, match=r"outputs 0\.\.4"):
        attack(model, pixels, labels + 5)
    with pytest.raises(ValueError, match="eps must be above 0"):
        attack(model, pixels, labels, eps=0)
    with pytest.raises(ValueError, match=r"got .* and 0; .*steps at least 1"):
        attack(model, pixels, labels, steps=0)


def test_an_error_names_the_missing_toolbox(
    model: OnPixels, pixels: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "art", None)
    with pytest.raises(ValueError, match=r"pip install 'clearhead\[adversarial\]'"):
        attack(model, pixels, labels)
