"""Compute the gradient of a logit at a layer's input through each of its heads alone.

Nicolicioiu et al. (arXiv 2308.16274). With x the tokens that enter a layer's attention, o its heads' outputs and p the
explained logit, g_h is the gradient of p at x when the backward pass goes through head h only; the forward pass is
unchanged. One backward pass gives dO = dp/do for all heads. Heads do not interact inside attention, so the rest is one
batched step, with A the attention and s its scale::

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

from clearhead.attention_tap import AttentionCall, tap
from clearhead.errors import ClearheadError
from clearhead.models import Classifier
from clearhead.models.classifier import logit_gradients
from clearhead.models.classifier import logits as logits_in

Layers = str | Sequence[int]
"""Which attention layers: ``last``, ``all``, or positions in call order (negative from the end)."""
T = TypeVar("T")


def head_gradients(
    model: Classifier | nn.Module,
    images: Tensor,
    layers: Layers = "last",
    target: Tensor | int | None = None,
    *,
    differentiable: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """Return the gradients of a logit at each layer's input through each head alone, and the logits of the same pass.

    Args:
        model: a classifier or a plain module whose attention calls ``tap`` records.
        images: B x C x H x W, as the model takes them (pixels in 0..1 for a Classifier).
        layers: positions in call order (negative from the end), ``last`` or ``all``.
        target: the class of each image (B), one for all, or None for the largest logit of each image.
        differentiable: keep the graph, to train on the gradients (second order). Attention of layers after the first
            selected one then runs on the unfused kernel, the only one with a second derivative.

    Returns:
        For each layer B x H x N x D (for windowed attention B counts windows), and the logits, B x classes.

    Raises:
        NoAttentionError: if the model makes no attention call.
        ClearheadError: for a layer that does not exist, whose input cannot be differentiated at, or (differentiable)
            that uses attention dropout.
    """
    module, only_last = network(model), layers in ("last", [-1])
    kernel = sdpa_kernel(SDPBackend.MATH) if differentiable and not only_last else nullcontext()
    with torch.inference_mode(False), torch.enable_grad():
        if not differentiable:
            images = images.clone().requires_grad_()  # so that a frozen model has a graph
        with kernel, tap(module, needs_grad=True) as record:
            logits = logits_in(model(images))
        calls = pick_layers(list(record), layers)
        outputs = [call.output for call in calls]
        output_grads = logit_gradients(outputs, logits, target, retain_graph=True, create_graph=differentiable)
        gradients = [gradient_per_head(c, g, differentiable) for c, g in zip(calls, output_grads, strict=True)]
    return (gradients, logits) if differentiable else ([g.detach() for g in gradients], logits.detach())


def network(model: Classifier | nn.Module) -> nn.Module:
    """Return the module of a classifier, or the plain module itself."""
    return model.module if isinstance(model, Classifier) else model


def pick_layers(record: Sequence[T], layers: Layers) -> list[T]:
    """Return the layers that `layers` names, out of all in call order; ClearheadError for one that does not exist."""
    if isinstance(layers, str):
        if layers not in ("last", "all"):
            raise ClearheadError(f"layers: {layers!r} is unknown; choose from last, all, or positions from 0")
        return [record[-1]] if layers == "last" else list(record)
    if not layers or len({layer % len(record) for layer in layers}) < len(layers):
        raise ClearheadError(
            f"layers: {list(layers)} is empty or repeats a layer; choose from last, all, or positions from 0"
        )
    for layer in layers:
        if not -len(record) <= layer < len(record):
            raise ClearheadError(
                f"layers: {layer} does not exist; the model has attention layers 0 to {len(record) - 1}"
            )
    return [record[layer] for layer in layers]


def gradient_per_head(call: AttentionCall, output_grad: Tensor, differentiable: bool = False) -> Tensor:
    """Return g of one layer, B x H x N x D, from dO, B x H x N x d; both graphs are kept if `differentiable`."""
    if differentiable and call.dropout:
        raise ClearheadError(
            f"layers: '{call.name}' uses attention dropout in training, so its gradient is not that of the attention; "
            "set its attention dropout to 0"
        )
    qkv_grads: tuple[Tensor, ...]
    if differentiable:
        qkv_grads = _attention_backward(call, output_grad)
    else:
        qkv_grads = torch.autograd.grad(call.output, (call.q, call.k, call.v), output_grad, retain_graph=True)
    weights = qkv_weights(call)
    if weights is not None:
        return torch.cat(qkv_grads, -1).to(weights.dtype) @ weights
    if call.input is None or not call.input.requires_grad:
        raise ClearheadError(
            f"layers: the input of '{call.name}' is not a B x N x D tensor with a gradient; choose other layers"
        )
    heads = torch.eye(call.num_heads, dtype=output_grad.dtype, device=output_grad.device)[:, None, :, None, None]
    (gradients,) = torch.autograd.grad(
        (call.q, call.k, call.v),
        call.input,
        [(heads * part).to(call.q) for part in qkv_grads],
        is_grads_batched=True,
        create_graph=differentiable,
        retain_graph=True,
    )
    return gradients.movedim(0, 1)


def _attention_backward(call: AttentionCall, output_grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return dQ, dK and dV in closed form, by operations that can be differentiated again."""
    rows, tokens = _nonzero_rows(output_grad), output_grad.shape[-2]
    attn = call.attn(rows)
    with torch.autocast(attn.device.type, enabled=False):
        q, k, v, dO = (x.to(attn) for x in (call.q[..., rows, :], call.k, call.v, output_grad[..., rows, :]))
        product = attn * (dO @ v.transpose(-2, -1))
        dS = call.scale * (product - attn * product.sum(-1, keepdim=True))
        dQ = F.pad(dS @ k, (0, 0, 0, tokens - dO.shape[-2]))
        return dQ, dS.transpose(-2, -1) @ q, attn.transpose(-2, -1) @ dO


def _nonzero_rows(output_grad: Tensor) -> slice:
    """Return the first rows of dO, up to the last nonzero one: a single row where only the CLS token is pooled."""
    used = output_grad.detach().any(-1).flatten(0, -2).any(0).nonzero()
    return slice(0, int(used.max()) + 1 if len(used) else 1)


def qkv_weights(call: AttentionCall) -> Tensor | None:
    """Return the weights that make q, k and v of each head from the layer's input, H x 3d x D.

    None unless the layer's modules reproduce the record: q, k and v of the first image must be linear in the input with
    these weights.
    """
    weights = _weights_by_name(call.module)
    if weights is None or call.input is None or call.input.ndim != 3:
        return None
    heads, size = call.num_heads, call.q.shape[-1]
    if any(weight.shape != (heads * size, call.input.shape[-1]) for weight in weights):
        return None
    with torch.no_grad():
        x = call.input[0].to(weights[0].dtype)
        tolerance = 1e-3 if call.q.element_size() >= 4 else 3e-2
        for weight, recorded in zip(weights, (call.q, call.k, call.v), strict=True):
            expected = recorded[0].transpose(0, 1).flatten(1).to(x)
            centred = expected - expected.mean(0)  # without the bias
            if not (centred - (x - x.mean(0)) @ weight.T).norm() <= tolerance * centred.norm():
                return None
    return torch.cat([weight.reshape(heads, size, -1) for weight in weights], 1)


def _weights_by_name(module: nn.Module) -> Sequence[Tensor] | None:
    """Return the weights of q, k and v by the names that torch, timm and Hugging Face use."""
    if isinstance(module, nn.MultiheadAttention):
        return None if module.in_proj_weight is None else module.in_proj_weight.chunk(3)
    if isinstance(qkv := getattr(module, "qkv", None), nn.Linear):
        return qkv.weight.chunk(3) if qkv.out_features % 3 == 0 else None
    for names in (("q_proj", "k_proj", "v_proj"), ("query", "key", "value")):
        linears = [getattr(module, name, None) for name in names]
        if all(isinstance(linear, nn.Linear) for linear in linears):
            return [linear.weight for linear in linears if isinstance(linear, nn.Linear)]
    return None


def per_image(values: Tensor, images: int) -> Tensor:
    """Return values per window, (B windows) x ..., as values per image, B x windows x ..."""
    return values.reshape(images, -1, *values.shape[1:])
