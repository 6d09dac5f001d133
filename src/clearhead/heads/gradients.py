"""The gradient of the decision at a layer's input through each of its heads alone.

Nicolicioiu et al. (arXiv 2308.16274). With x the tokens that enter a layer's attention, o its heads' outputs and p the
explained logit, g_h is the gradient of p at x when only head h lets the backward pass through; the forward pass is
whole. One backward pass gives dO = dp/do for all heads. Heads do not meet inside attention, so the rest is one batched
step, with A the attention and s its scale::

    dV = Aᵀ dO,  dA = dO Vᵀ,  dS = s A ∘ (dA - rowsum(dA ∘ A)),  dQ = dS K,  dK = dSᵀ Q        (each B x H x N x d)
    g_h = dQ_h W_q,h + dK_h W_k,h + dV_h W_v,h                                                  (B x H x N x D)

Where q, k and v are not one linear map of x (q/k norm, rotary embedding), the last line is a vector-Jacobian product
that PyTorch batches over the heads.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from clearhead.errors import ClearheadError
from clearhead.models import Classifier
from clearhead.models.classifier import logit_gradients
from clearhead.tap import AttentionCall, tap

Layers = str | Sequence[int]
"""Which attention layers: ``last``, ``all``, or positions in call order (negative from the end)."""
T = TypeVar("T")


def head_input_gradients(
    model: Classifier,
    images: Tensor,
    layers: Layers = "last",
    target: Tensor | int | None = None,
    *,
    differentiable: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """Gradients of a logit at each layer's input through each head alone, and the logits of the same pass.

    Args:
        model: any classifier whose attention the seam sees.
        images: B x C x H x W.
        layers: positions in call order (negative from the end), ``last`` or ``all``.
        target: the class of each image (B), one for all, or None for the largest logit of each image.
        differentiable: keep the graph, to train on the gradients (second order); attention of layers after the first
            chosen one then runs on the unfused kernel, which alone has a second derivative.

    Returns:
        For each layer B x H x N x D (for windowed attention B counts windows), and the logits, B x classes.

    Raises:
        NoAttentionError: if no attention call is seen.
        ClearheadError: for a layer that does not exist, whose input cannot be differentiated at, or (differentiable)
        that
            drops attention out.
    """
    last_alone = layers in ("last", [-1])
    kernel = sdpa_kernel(SDPBackend.MATH) if differentiable and not last_alone else nullcontext()
    with torch.inference_mode(False), torch.enable_grad():
        if not differentiable:
            images = images.clone().requires_grad_()  # so that a frozen model has a graph
        with kernel, tap(model.module, needs_grad=True) as record:
            logits = model(images)
        picked = pick(list(record), layers)
        outputs = [layer.output for layer in picked]
        gradients = logit_gradients(outputs, logits, target, retain_graph=True, create_graph=differentiable)
        found = [through_heads(layer, g, differentiable) for layer, g in zip(picked, gradients, strict=True)]
    return (found, logits) if differentiable else ([g.detach() for g in found], logits.detach())


def pick(record: Sequence[T], layers: Layers) -> list[T]:
    """The layers asked for, out of all in call order; ClearheadError for one that does not exist."""
    if isinstance(layers, str):
        if layers not in ("last", "all"):
            raise ClearheadError(f"layers: {layers!r} is unknown; there is last, all, or positions from 0")
        return [record[-1]] if layers == "last" else list(record)
    if not layers or len({layer % len(record) for layer in layers}) < len(layers):
        raise ClearheadError(
            f"layers: {list(layers)} names none, or one twice; there is last, all, or positions from 0"
        )
    for layer in layers:
        if not -len(record) <= layer < len(record):
            raise ClearheadError(
                f"layers: {layer} does not exist; the model has attention layers 0 to {len(record) - 1}"
            )
    return [record[layer] for layer in layers]


def through_heads(layer: AttentionCall, gradient: Tensor, differentiable: bool = False) -> Tensor:
    """g of one layer, B x H x N x D, from dO, B x H x N x d; both graphs are kept if `differentiable`."""
    if differentiable and layer.dropout:
        raise ClearheadError(f"'{layer.name}' drops attention out while it trains: set its attention dropout to 0")
    if differentiable:
        to_q, to_k, to_v = _attention_backward(layer, gradient)
    else:
        to_q, to_k, to_v = torch.autograd.grad(layer.output, (layer.q, layer.k, layer.v), gradient, retain_graph=True)
    weights = projections(layer)
    if weights is not None:
        return torch.cat([to_q, to_k, to_v], -1).to(weights.dtype) @ weights
    if layer.input is None or not layer.input.requires_grad:
        raise ClearheadError(f"layers: the input of '{layer.name}' is no B x N x D that can be differentiated at")
    heads = torch.eye(layer.num_heads, dtype=gradient.dtype, device=gradient.device)[:, None, :, None, None]
    (found,) = torch.autograd.grad(
        (layer.q, layer.k, layer.v),
        layer.input,
        [(heads * part).to(layer.q) for part in (to_q, to_k, to_v)],
        is_grads_batched=True,
        create_graph=differentiable,
        retain_graph=True,
    )
    return found.movedim(0, 1)


def _attention_backward(layer: AttentionCall, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dQ, dK, dV in closed form, by operations that can be differentiated again."""
    rows, tokens = _live(gradient), gradient.shape[-2]
    attn = layer.attn(rows)
    with torch.autocast(attn.device.type, enabled=False):
        q, k, v, gradient = (x.to(attn) for x in (layer.q[..., rows, :], layer.k, layer.v, gradient[..., rows, :]))
        product = attn * (gradient @ v.transpose(-2, -1))
        scores = layer.scale * (product - attn * product.sum(-1, keepdim=True))
        to_q = F.pad(scores @ k, (0, 0, 0, tokens - gradient.shape[-2]))
        return to_q, scores.transpose(-2, -1) @ q, attn.transpose(-2, -1) @ gradient


def _live(gradient: Tensor) -> slice:
    """The first rows of dO, up to the last that is not zero: of a last layer that is read at the CLS token, one."""
    used = gradient.detach().any(-1).flatten(0, -2).any(0).nonzero()
    return slice(0, int(used.max()) + 1 if len(used) else 1)


def projections(layer: AttentionCall) -> Tensor | None:
    """The weights that make q, k and v of each head from the layer's input, H x 3d x D.

    None unless the modules at hand explain what was recorded: q, k and v of the first image must follow the input
    linearly by these weights.
    """
    parts = _weights(layer.module)
    if parts is None or layer.input is None or layer.input.ndim != 3:
        return None
    heads, size = layer.num_heads, layer.q.shape[-1]
    if any(part.shape != (heads * size, layer.input.shape[-1]) for part in parts):
        return None
    with torch.no_grad():
        x = layer.input[0].to(parts[0].dtype)
        tolerance = 1e-3 if layer.q.element_size() >= 4 else 3e-2
        for part, recorded in zip(parts, (layer.q, layer.k, layer.v), strict=True):
            found = recorded[0].transpose(0, 1).flatten(1).to(x)
            error = (found - found.mean(0)) - (x - x.mean(0)) @ part.T
            if not error.norm() <= tolerance * (found - found.mean(0)).norm():
                return None
    return torch.cat([part.unflatten(0, (heads, size)) for part in parts], 1)


def _weights(module: nn.Module) -> Sequence[Tensor] | None:
    """The weights of q, k and v by the names the libraries have for them."""
    if isinstance(module, nn.MultiheadAttention):
        return None if module.in_proj_weight is None else module.in_proj_weight.chunk(3)
    if isinstance(qkv := getattr(module, "qkv", None), nn.Linear):
        return qkv.weight.chunk(3) if qkv.out_features % 3 == 0 else None
    for names in (("q_proj", "k_proj", "v_proj"), ("query", "key", "value")):
        found = [getattr(module, name, None) for name in names]
        if all(isinstance(part, nn.Linear) for part in found):
            return [part.weight for part in found if isinstance(part, nn.Linear)]
    return None


def by_image(values: Tensor, images: int) -> Tensor:
    """Windows of an image brought together: (B windows) x ... to B x windows x ..."""
    return values.unflatten(0, (images, -1))
