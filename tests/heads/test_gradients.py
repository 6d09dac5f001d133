"""Head gradients against one masked backward pass per head; the diversity loss against a plain loop."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from clearhead.attention_tap import tap
from clearhead.heads import DiversityLoss, head_gradients
from clearhead.heads.diversity import diversity_loss, similarity
from clearhead.heads.gradients import qkv_weights
from clearhead.models import Classifier, Preprocessing
from clearhead.training.loop import cross_entropy
from tests import cases

HALF = (0.5, 0.5, 0.5)
NOT_LINEAR = {"timm-dinov3", "timm-eva02"}
"""Rotary embedding lies between the weights and q, k."""


def classifier(name: str, dtype: torch.dtype = torch.float64) -> Classifier:
    module = cases.MODELS[name]().to(dtype)
    side = (cases.SIZE, cases.SIZE)
    return Classifier(module, name, "module", Preprocessing(side, side, HALF, HALF), tuple("abcde"))


def images() -> Tensor:
    return cases.images(dtype=torch.float64)


def one_by_one(model: Classifier, x: Tensor, layer: int, target: Tensor | None = None) -> Tensor:
    """H forward and backward passes: all heads but one are detached at the layer's output."""
    with tap(model.module) as record:
        model(x)
    layer, heads = layer % len(record), record[layer].num_heads
    result = []
    for head in range(heads):
        keep = torch.zeros(heads, 1, 1, dtype=x.dtype)
        keep[head] = 1
        pixels = x.clone().requires_grad_()
        with tap(model.module, heads={layer: lambda o, keep=keep: o * keep + (o * (1 - keep)).detach()}) as record:
            logits = model(pixels)
        # the layer's input reaches the logits along the residual stream as well: cut the graph at q, k and v
        chosen = logits.max(-1).values if target is None else logits.gather(1, target[:, None])[:, 0]
        call = record[layer]
        through = torch.autograd.grad(chosen.sum(), (call.q, call.k, call.v), retain_graph=True)
        result.append(torch.autograd.grad((call.q, call.k, call.v), call.input, through)[0])
    return torch.stack(result, 1)


@pytest.mark.parametrize("name", cases.MODELS)
def test_gradients_equal_one_masked_backward_pass_per_head(name: str) -> None:
    model, x = classifier(name), images()
    gradients, logits = head_gradients(model, x, [0, -1])
    torch.testing.assert_close(logits, model(x).detach())
    for layer, result in zip((0, -1), gradients, strict=True):
        torch.testing.assert_close(result, one_by_one(model, x, layer), rtol=1e-9, atol=1e-12)
        assert result.abs().max() > 1e-6


@pytest.mark.parametrize("name", ["timm-vit", "timm-eva02", "torchvision-vit", "hf-vit"])
def test_differentiable_gradients_equal_plain_ones(name: str) -> None:
    model, x = classifier(name), images()
    plain, _ = head_gradients(model, x, "all")
    with_graph, _ = head_gradients(model, x, "all", differentiable=True)
    for a, b in zip(plain, with_graph, strict=True):
        assert b.requires_grad
        assert not a.requires_grad
        torch.testing.assert_close(a, b.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", cases.MODELS)
def test_closed_form_is_used_where_q_k_v_are_linear(name: str) -> None:
    model = classifier(name)
    with tap(model.module) as record:
        model(images())
    assert (qkv_weights(record[-1]) is None) == (name in NOT_LINEAR)


def test_weights_that_do_not_reproduce_the_record_are_not_used() -> None:
    model, x = classifier("timm-vit"), images()
    attn = model.module.blocks[-1].attn
    attn.q_norm = nn.LayerNorm(attn.head_dim, dtype=x.dtype)
    gradients, _ = head_gradients(model, x)
    torch.testing.assert_close(gradients[0], one_by_one(model, x, -1), rtol=1e-9, atol=1e-12)


def test_frozen_model_and_explicit_target() -> None:
    model, x = classifier("timm-vit"), images()
    model.module.requires_grad_(False)
    target = torch.tensor([3, 1])
    with torch.no_grad():
        (result,), _ = head_gradients(model, x, target=target)
    model.module.requires_grad_(True)
    torch.testing.assert_close(result, one_by_one(model, x, -1, target))
    assert not x.requires_grad


@pytest.mark.parametrize("layers", [[2], [-3], [], "first"])
def test_unknown_layers_raise(layers: object) -> None:
    with pytest.raises(ValueError, match="layers: "):
        head_gradients(classifier("timm-vit"), images(), layers)  # type: ignore[arg-type]


def loss_by_loops(gradients: Tensor, normalize: bool, mean: bool) -> float:
    batch, heads, tokens, _ = gradients.shape
    total = 0.0
    for b in range(batch):
        for n in range(tokens):
            for i in range(heads):
                for j in range(heads):
                    g, h = gradients[b, i, n], gradients[b, j, n]
                    if i != j:
                        c = float(g @ h)
                        total += (c / float(g.norm() * h.norm()) if normalize else c) ** 2
    return total / (batch * tokens) / (heads**2 if mean else 1)


@pytest.mark.parametrize("normalize", ["token", None])
@pytest.mark.parametrize("scaling", ["sum", "mean"])
def test_loss_equals_plain_loops(normalize: str | None, scaling: str) -> None:
    g = torch.randn(2, 4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = diversity_loss(g, normalize, scaling)  # type: ignore[arg-type]
    assert result.item() == pytest.approx(loss_by_loops(g, normalize == "token", scaling == "mean"), rel=1e-9)


def test_loss_of_orthogonal_and_of_equal_gradients() -> None:
    eye = torch.eye(4, dtype=torch.float64)[None, :, None].expand(2, -1, 3, -1)
    assert diversity_loss(eye).item() == pytest.approx(0, abs=1e-12)
    assert diversity_loss(torch.ones_like(eye)).item() == pytest.approx(4 * 3)
    assert diversity_loss(torch.ones_like(eye), scaling="mean").item() == pytest.approx(4 * 3 / 16)
    assert diversity_loss(eye[:, :1]).item() == 0
    with pytest.raises(ValueError, match="B x H x N x D"):
        similarity(eye[0])


def test_zero_gradient_gives_finite_derivative() -> None:
    g = torch.zeros(1, 2, 3, 4, requires_grad=True)
    diversity_loss(g).backward()
    assert torch.isfinite(g.grad).all()


@pytest.mark.parametrize("name", ["timm-vit", "timm-eva02", "hf-vit", "torchvision-vit"])
@pytest.mark.parametrize("layers", ["last", "all"])
def test_loss_gradient_equals_finite_differences(name: str, layers: str) -> None:
    model, x = classifier(name), images()
    batch = {"image": x, "label": torch.tensor([0, 1])}
    loss = DiversityLoss(weight=2.0, layers=layers, normalize=None)
    # kinks: the largest logit may change hands, so small steps along one direction
    parameters = [p for p in model.module.parameters() if p.requires_grad]
    total = loss(model, batch)["loss"]
    slopes = torch.autograd.grad(total, parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum(float((g * d).sum()) for g, d in zip(slopes, direction, strict=True) if g is not None)

    def at(step: float) -> float:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += step * d
        result = loss(model, batch)["loss"].item()
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p -= step * d
        return result

    assert (at(1e-6) - at(-1e-6)) / 2e-6 == pytest.approx(slope, rel=1e-4)


def test_second_derivatives_pass_gradgradcheck() -> None:
    module = nn.MultiheadAttention(4, 2, batch_first=True, dtype=torch.float64)
    head = nn.Linear(4, 2, dtype=torch.float64)

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.head = module, head

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            return self.head(torch.tanh(self.attn(tokens, tokens, tokens, need_weights=False)[0]).mean(1))

    preprocess = Preprocessing((1, 3), (1, 3), (0.0,) * 3, (1.0,) * 3)  # it normalises nothing, so 4 channels will do
    model = Classifier(Tiny(), "tiny", "module", preprocess, ("a", "b"))
    x = torch.randn(1, 4, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def gradients(pixels: Tensor, layers: str) -> Tensor:
        return head_gradients(model, pixels, layers, target=0, differentiable=True)[0][0]

    assert torch.autograd.gradcheck(lambda pixels: gradients(pixels, "last"), (x,))
    assert torch.autograd.gradgradcheck(lambda pixels: gradients(pixels, "all"), (x,))


def test_zero_weight_is_plain_training() -> None:
    model, x = classifier("timm-vit"), images()
    batch = {"image": x, "label": torch.tensor([0, 1])}
    zero, plain = DiversityLoss(weight=0.0)(model, batch), cross_entropy(model, batch)
    torch.testing.assert_close(zero["loss"], plain["loss"])
    with torch.no_grad():
        evaluated = DiversityLoss()(model, batch)
    torch.testing.assert_close(evaluated["loss"], DiversityLoss()(model, batch)["loss"].detach())
    with pytest.raises(ValueError, match="weight"):
        replace(DiversityLoss(), weight=-1.0)


@pytest.mark.parametrize("name", ["timm-vit", "hf-vit", "torchvision-vit"])
def test_plain_module_in_a_custom_training_loop(name: str) -> None:
    """A plain module takes normalised input, and a Hugging Face model returns an output object."""
    model, x = classifier(name), images()
    labels = torch.tensor([0, 1])
    module, batch = model.module, {"image": model.normalize(x), "label": labels}
    (plain,), logits = head_gradients(module, batch["image"])
    (expected,), expected_logits = head_gradients(model, x)
    torch.testing.assert_close(plain, expected)
    torch.testing.assert_close(logits, expected_logits)
    parts = DiversityLoss(weight=2.0)(module, batch)
    torch.testing.assert_close(parts["loss"], DiversityLoss(weight=2.0)(model, {"image": x, "label": labels})["loss"])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        DiversityLoss(weight=2.0)(module, batch)["loss"].backward()
        optimizer.step()
    assert DiversityLoss(weight=2.0)(module, batch)["loss"] < parts["loss"]


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_training_in_mixed_precision(dtype: torch.dtype) -> None:
    model = classifier("timm-vit", torch.float32)
    batch = {"image": images().float(), "label": torch.tensor([0, 1])}
    with torch.autocast("cpu", dtype):
        half = DiversityLoss(weight=2.0)(model, batch)
        half["loss"].backward()
    full = DiversityLoss(weight=2.0)(model, batch)
    assert half["diversity"].item() == pytest.approx(full["diversity"].item(), rel=0.1)
    assert all(torch.isfinite(p.grad).all() for p in model.module.parameters() if p.grad is not None)


def test_attention_dropout_raises_where_it_would_be_wrong() -> None:
    model, x = classifier("timm-vit"), images()
    model.module.blocks[-1].attn.attn_drop.p = 0.3
    head_gradients(model, x, differentiable=True)  # in eval mode nothing is dropped
    model.module.train()
    with pytest.raises(ValueError, match=r"'blocks\.1\.attn' uses attention dropout"):
        head_gradients(model, x, differentiable=True)


def test_penalty_of_windows_is_averaged_per_image() -> None:
    model = cases.classifier("timm-swin")
    batch = {"image": torch.randn(3, 3, cases.SIZE, cases.SIZE), "label": torch.tensor([0, 1, 2])}
    each = [DiversityLoss(layers=[i])(model, batch)["diversity"] for i in range(4)]
    assert len({len(g) for g in head_gradients(model, batch["image"], "all")[0]}) > 1  # windows, then images
    torch.testing.assert_close(DiversityLoss(layers="all")(model, batch)["diversity"], torch.stack(each).mean())
    (windows,), _ = head_gradients(model, batch["image"], [0])
    torch.testing.assert_close(each[0].detach(), diversity_loss(windows).detach())
