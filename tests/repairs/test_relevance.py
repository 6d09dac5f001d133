"""The relevance loss and its gradient compared with the paper's formula, written with explicit attention matrices."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from clearhead.attribution import METHODS, lrp, scale
from clearhead.heads import DiversityLoss
from clearhead.landscape import LandscapeError, hessian
from clearhead.repairs.relevance import RelevanceLoss, relevance_maps
from tests import reference
from tests.attribution.test_explain import GLOBAL, classifier, gae_module, read_row
from tests.cases import pixels

LABEL = torch.tensor([3, 1])


def batch(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    mask = torch.zeros(2, 1, 32, 32, dtype=dtype)
    mask[0, :, 4:20, 8:30] = 1
    mask[1, :, 10:, :15] = 1
    return {"image": pixels(dtype=dtype), "label": LABEL, "mask": mask, "has_mask": torch.tensor([True, True])}


@pytest.mark.parametrize("name", GLOBAL)
@pytest.mark.parametrize("order", ["first", "second"])
def test_loss_and_gradient_match_the_explicit_formula(name, order, monkeypatch):
    monkeypatch.setattr(gae_module, "_BLOCK_ELEMENTS", 2 * 4 * 17 * 5)
    data = batch()
    mask = data["mask"][:, 0]

    model = classifier(name, torch.float64)
    matrix, logits = reference.gae(model.module, model.normalize(data["image"]), LABEL, graph=order)
    maps = scale(read_row(model, matrix), (32, 32))
    expected = 0.8 * (2 * ((maps * (1 - mask)) ** 2).mean() + 0.3 * ((maps * mask - mask) ** 2).mean())
    expected = expected + 0.2 * torch.nn.functional.cross_entropy(logits, logits.argmax(-1))
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in model.module.named_parameters() if p.grad is not None}

    model.module.zero_grad()
    loss = RelevanceLoss(second_order=order == "second")(model, data)["loss"]
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for n, p in model.module.named_parameters():
        if n in gradients:
            torch.testing.assert_close(p.grad, gradients[n], msg=lambda m, n=n: f"{n}: {m}")


def test_gradient_checkpointing_does_not_change_the_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = classifier("timm-vit", torch.float64)
        model.module.set_grad_checkpointing(checkpointing)
        RelevanceLoss()(model, batch())["loss"].backward()
        gradients.append([parameter.grad for parameter in model.module.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


class Mixed(nn.Module):
    """A model that runs in half precision with float32 inputs and outputs, as under Accelerate."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(x).float()


LOSSES = {name: RelevanceLoss(attribution=name) for name in ("gae", "rollout", "attention")}
LOSSES |= {"diversity": DiversityLoss(layers="all")}


@pytest.mark.parametrize("loss", LOSSES)
def test_mixed_precision_with_a_float_attention_mask(loss):
    model, data = classifier("timm-beit"), batch(torch.float32)
    exact = LOSSES[loss](model, data)["loss"].item()
    total = LOSSES[loss](replace(model, module=Mixed(model.module)), data)["loss"]
    total.backward()
    assert total.item() == pytest.approx(exact, rel=0.02)


def test_images_without_a_mask_count_in_the_classification_term_only():
    model, data = classifier("timm-vit", torch.float64), batch()
    data["has_mask"] = torch.tensor([True, False])
    parts = RelevanceLoss()(model, data)
    alone = RelevanceLoss()(model, {name: value[:1] for name, value in data.items()})
    torch.testing.assert_close(parts["background"], alone["background"])
    torch.testing.assert_close(parts["foreground"], alone["foreground"])
    data["has_mask"] = torch.tensor([False, False])
    parts = RelevanceLoss()(model, data)
    torch.testing.assert_close(parts["loss"], 0.2 * parts["classification"])


def test_the_target_truth_uses_the_labels():
    model, data = classifier("timm-vit", torch.float64), batch()
    parts = RelevanceLoss(target="truth", temperature=2.0)(model, data)
    expected = torch.nn.functional.cross_entropy(model(data["image"]) / 2, LABEL)
    torch.testing.assert_close(parts["classification"], expected)


def test_training_steps_move_the_relevance_into_the_mask():
    model, data = classifier("timm-vit"), batch(torch.float32)
    optimizer = torch.optim.AdamW(model.module.parameters(), 1e-3)
    shares = []
    for _ in range(20):
        maps, _ = relevance_maps(model, data["image"], LABEL)
        shares.append(((maps * data["mask"][:, 0]).sum() / maps.sum()).item())
        loss = RelevanceLoss()(model, data)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert shares[-1] > shares[0] + 0.1


def test_a_hessian_of_the_loss_raises_an_error():
    model = classifier(GLOBAL[0], torch.float64)
    with (
        pytest.raises(LandscapeError, match="a GAE map has no second derivatives"),
        hessian(model.module, lambda: RelevanceLoss()(model, batch())["loss"]),
    ):
        pass


def test_a_model_without_a_token_grid_raises_an_error():
    with pytest.raises(ValueError, match="timm-swin"):
        RelevanceLoss()(classifier("timm-swin"), batch(torch.float32))


def test_background_swap_changes_half_of_a_training_batch():
    model, data = classifier("timm-vit"), batch(torch.float32)
    seen = []
    model.module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    loss = RelevanceLoss(target="truth", background_swap=0.5)
    loss(model, data)
    shown = model.normalize(data["image"])
    assert torch.equal(seen[-1], shown)  # no swap in eval mode
    model.module.train()
    loss(model, data)
    changed, inside = seen[-1], data["mask"].bool().expand_as(seen[-1])
    assert torch.equal(changed[1], shown[1])
    assert torch.equal(changed[0][inside[0]], shown[0][inside[0]])
    assert not torch.equal(changed[0], shown[0])


@pytest.mark.parametrize("wrong", [{"background_swap": 0.5}, {"background_swap": 1.5, "target": "truth"}])
def test_an_invalid_background_swap_raises_an_error(wrong):
    with pytest.raises(ValueError, match="background_swap"):
        RelevanceLoss(**wrong)


@pytest.mark.parametrize("method", ["libragrad", "attnlrp"])
@pytest.mark.parametrize("name", ["timm-vit", "timm-dinov3", "hf-dinov2"])
def test_maps_by_modified_gradients_have_the_gradient_of_their_tokens(method, name, monkeypatch):
    """The gradient by finite differences, with the modified gradients of the token held constant."""
    model, data = classifier(name, torch.float64), batch()
    expected, logits = METHODS[method](model, data["image"], LABEL)
    loss = RelevanceLoss(attribution=method, target="truth", classification=0)
    maps, plain_logits = relevance_maps(model, data["image"], LABEL, method)
    torch.testing.assert_close(maps, scale(expected, (32, 32)))
    torch.testing.assert_close(plain_logits, logits)

    loss(model, data)["loss"].backward()
    parameters = [p for p in model.module.parameters() if p.grad is not None]
    assert parameters
    constants = lrp._tokens_and_gradients(model, data["image"], LABEL, method)
    monkeypatch.setattr(lrp, "_tokens_and_gradients", lambda *_: constants)
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum((p.grad * d).sum() for p, d in zip(parameters, directions, strict=True))
    step, values = 1e-6, []
    for sign in (1, -2):
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(d, alpha=sign * step)
        values.append(loss(model, data)["loss"])
    torch.testing.assert_close((values[0] - values[1]) / (2 * step), slope, rtol=1e-4, atol=1e-9)
    assert slope.abs() > 1e-6


def test_maps_by_modified_gradients_in_training_mode_leave_its_state_alone():
    model, data = classifier("timm-vit"), batch(torch.float32)
    model.train()
    first = RelevanceLoss(attribution="libragrad")(model, data)["loss"]
    assert model.module.training
    first.backward()
    assert sum(p.grad is not None for p in model.module.parameters()) > 10
    with torch.no_grad():
        validated = RelevanceLoss(attribution="libragrad")(model.eval(), data)["loss"]
    torch.testing.assert_close(validated, first.detach())
