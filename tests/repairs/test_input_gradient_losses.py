"""GradMask and RRR compared with their formulas image by image, and with finite differences."""

from collections.abc import Callable

import pytest
import torch

from clearhead.repairs import GradMaskLoss, RelevanceLoss, RRRLoss
from clearhead.repairs.relevance import relevance_maps
from tests.attribution.test_explain import classifier
from tests.repairs.test_relevance import LABEL, batch

LOSSES = {"gradmask": GradMaskLoss(), "rrr": RRRLoss()}
SCORES: dict[str, Callable] = {
    "gradmask": lambda logits, label: logits[label],
    "rrr": lambda logits, label: logits.log_softmax(0).sum(),
}
SIZES = {"gradmask": torch.Tensor.norm, "rrr": lambda outside: outside.square().sum() / (3 * 32 * 32)}


@pytest.mark.parametrize("name", ["timm-vit", "timm-swin", "hf-vit", "torchvision-vit"])
@pytest.mark.parametrize("method", LOSSES)
def test_the_penalty_matches_the_formula_image_by_image(method: str, name: str) -> None:
    model, data = classifier(name, torch.float64), batch()
    sizes = []
    for image, label, mask in zip(data["image"], LABEL, data["mask"], strict=True):
        image = model.normalize(image).requires_grad_()
        (gradient,) = torch.autograd.grad(SCORES[method](model.from_normalized(image[None])[0], label), image)
        sizes.append(SIZES[method](gradient[:, mask[0] == 0]))
    parts = LOSSES[method](model, data)
    torch.testing.assert_close(parts["background"], torch.stack(sizes).mean())
    cross_entropy = torch.nn.functional.cross_entropy(model(data["image"]), LABEL)
    torch.testing.assert_close(parts["loss"], parts["background"] + cross_entropy)


def slope(loss: Callable[[], torch.Tensor], model, direction: dict[str, torch.Tensor], step: float = 1e-5) -> float:
    """Compute the derivative of a loss along a direction in the parameters by central differences."""
    values = []
    for sign in (1, -2):
        with torch.no_grad():
            for name, parameter in model.module.named_parameters():
                parameter += sign * step * direction[name]
        values.append(loss().item())
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            parameter += step * direction[name]
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize("method", LOSSES)
def test_the_gradient_of_the_penalty_matches_finite_differences(method: str) -> None:
    torch.manual_seed(0)
    model, data = classifier("timm-vit", torch.float64), batch()
    loss = LOSSES[method]
    loss(model, data)["background"].backward()
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.module.named_parameters()}
    assert any(g.abs().max() > 0 for g in gradients.values())
    direction = {name: torch.randn_like(g) for name, g in gradients.items()}
    expected = slope(lambda: loss(model, data)["background"], model, direction)
    derivative = sum((gradients[name] * direction[name]).sum() for name in gradients)
    assert derivative.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("attribution", ["rollout", "attention", "input-gradient", "input-x-gradient"])
def test_the_relevance_loss_is_differentiable_for_every_attribution(attribution: str) -> None:
    torch.manual_seed(0)
    model, data = classifier("timm-vit", torch.float64), batch()
    loss = RelevanceLoss(attribution=attribution)
    parts = loss(model, data)
    parts["background"].backward()
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.module.named_parameters()}
    direction = {name: torch.randn_like(g) for name, g in gradients.items()}
    expected = slope(lambda: loss(model, data)["background"], model, direction, 1e-6)
    derivative = sum((gradients[name] * direction[name]).sum() for name in gradients).item()
    assert derivative != 0
    assert derivative == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("attribution", ["rollout", "attention", "input-gradient", "input-x-gradient"])
def test_the_loss_uses_the_map_of_explain(attribution: str) -> None:
    from clearhead.attribution import explain

    model, data = classifier("timm-vit", torch.float64), batch()
    maps, _ = relevance_maps(model, data["image"], LABEL, attribution)
    torch.testing.assert_close(maps.detach(), explain(model, data["image"], LABEL, attribution))


@pytest.mark.parametrize("loss", [GradMaskLoss(classification=0.0), RRRLoss(classification=0.0)])
def test_training_steps_reduce_the_penalty(loss: GradMaskLoss | RRRLoss) -> None:
    model, data = classifier("timm-vit"), batch(torch.float32)
    optimizer = torch.optim.AdamW(model.module.parameters(), 1e-3)
    penalties = []
    for _ in range(15):
        parts = loss(model, data)
        penalties.append(parts["background"].item())
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
    assert penalties[-1] < 0.5 * penalties[0]


@pytest.mark.parametrize("loss", LOSSES.values())
def test_missing_and_full_masks_add_no_penalty(loss: GradMaskLoss | RRRLoss) -> None:
    model, data = classifier("timm-vit", torch.float64), batch()
    single = loss(model, {name: value[:1] for name, value in data.items()})["background"]
    data["has_mask"] = torch.tensor([True, False])
    torch.testing.assert_close(loss(model, data)["background"], single)
    data["mask"] = torch.ones_like(data["mask"])
    parts = loss(model, data)
    assert parts["background"] == 0
    parts["loss"].backward()
    assert all(p.grad.isfinite().all() for p in model.module.parameters() if p.grad is not None)


@pytest.mark.parametrize("wrong", [{"attribution": "lime"}, {"attribution": "rollout", "second_order": True}])
def test_an_invalid_attribution_raises_an_error(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"attribution: 'lime' is unknown|second_order: requires"):
        RelevanceLoss(**wrong)
