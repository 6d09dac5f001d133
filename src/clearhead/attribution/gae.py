"""Generic attention explainability (GAE): relevance propagated from the token that the head reads back to the patches.

Chefer, Gur and Wolf (arXiv 2103.15679), as used in arXiv 2206.01161. With A the attention of a layer and dA its
gradient for the explained logit, both B x H x N x N::

    Ā = mean over heads of max(dA ∘ A, 0),      R ← R + Ā R from the first layer to the last, R = identity at first

and the map is the CLS row of R at the patches. Only that row is needed, and it can be propagated from the last layer to
the first: r = e_cls, then r ← r + r Ā. One backward pass gives all dA = dO vᵀ, and since A ≥ 0 and r ≥ 0,
r Ā = mean over heads of Σ_n A_nm max((r_n dO_n) v_mᵀ, 0). A is recomputed in blocks of rows, so memory grows with N;
the model itself runs on its fused kernels.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clearhead.attention_tap import AttentionCall, attention_like, tap
from clearhead.errors import ClearheadError
from clearhead.models import Classifier, TokenGrid
from clearhead.models.classifier import evaluation_mode, logit_gradients

_BLOCK_ELEMENTS = 2**22
"""Entries of B x H x rows x M that are alive at once: 16 MiB in float32, which also stays near the caches."""


def gae(model: Classifier, images: Tensor, target: Tensor | int | None = None) -> tuple[Tensor, Tensor]:
    """Return the relevance of each patch for a class (B x h x w, raw) and the logits; see the head of this file.

    For a model that averages its patch tokens instead of reading a CLS token, the mean of their rows of R takes the
    place of the CLS row; the initial value of R, the same for all patches, is then left out of the map.

    Raises:
        ClearheadError: if the model has no grid of tokens that attend to each other (windowed or hierarchical), or the
            images have another size than the model's input.
        NoAttentionError: if no attention call is seen.
    """
    grid = token_grid(model, "gae", images)
    with torch.inference_mode(False), torch.enable_grad(), tap(model.module, needs_grad=True) as record:
        logits = model(images.clone() if images.is_inference() else images)
    with torch.no_grad():
        return relevance(list(record), logit_gradients(record.outputs, logits, target), grid), logits.detach()


def relevance(layers: list[AttentionCall], gradients: list[Tensor], grid: TokenGrid) -> Tensor:
    """Return the map (B x h x w) from recorded layers and the gradients dO at their outputs (B x H x N x d).

    Differentiable in the layers' q, k and mask (and in v and dO, when those carry a graph).
    """
    row = first_row(layers[-1], grid)
    carried = torch.zeros_like(row)  # apart from the mean's 1 / hw, to which small values would be lost in rounding
    for number, (layer, gradient) in enumerate(zip(reversed(layers), reversed(gradients), strict=True)):
        rows = read_rows(grid) if number == 0 else slice(None)
        q = layer.q[..., rows, :] * layer.scale
        mask = _bias(layer, rows)
        start = (row + carried)[:, rows]
        carried = carried + _carry(start, q, layer.k, layer.v, gradient[..., rows, :], mask)
    return on_grid(carried, grid)


def token_grid(model: Classifier, method: str, images: Tensor) -> TokenGrid:
    """Return the model's token grid. Raises for a model without one, and for images of another size than its input."""
    if model.grid is None:
        if attention_like(model.module):
            with torch.no_grad(), evaluation_mode(model.module), tap(model.module):
                model(images[:1])  # where attention is hidden, the error of the tap says what to do
        raise ClearheadError(
            f"method {method!r} needs a model whose tokens form one grid and attend to each other in every layer; "
            f"{model.name} (windowed, hierarchical, of several branches or without attention) has none: use "
            "input-gradient or input-x-gradient"
        )
    if images.shape[-2:] != model.preprocess.size:
        sizes = (" x ".join(map(str, size)) for size in (images.shape[-2:], model.preprocess.size))
        raise ClearheadError("images: {} pixels, but the model's tokens cover {}".format(*sizes))
    return model.grid


def first_row(layer: AttentionCall, grid: TokenGrid) -> Tensor:
    """Return the row of the identity that the head reads (B x N): the first token's, or the mean of the patches'."""
    precision = torch.promote_types(layer.q.dtype, torch.float32)
    row = layer.q.new_zeros(layer.q.shape[0], layer.q.shape[-2], dtype=precision)
    row[:, read_rows(grid)] = 1 if grid.pooling == "cls" else 1 / (grid.height * grid.width)
    return row


def read_rows(grid: TokenGrid) -> slice:
    """Return the tokens that the head reads."""
    return slice(0, 1) if grid.pooling == "cls" else slice(grid.prefix, None)


def on_grid(row: Tensor, grid: TokenGrid) -> Tensor:
    """Return values of all tokens (B x N) as a map of the patches, B x h x w."""
    return row[:, grid.prefix :].reshape(len(row), grid.height, grid.width)


def _bias(layer: AttentionCall, rows: slice) -> Tensor | None:
    """Return the mask as a term to add to the scores of these rows."""
    mask = layer.mask
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device, dtype=layer.q.dtype).masked_fill(~mask, float("-inf"))
    return mask if mask.shape[-2] == 1 else mask[..., rows, :]


class _Carry(torch.autograd.Function):
    """r Ā for some rows: B x rows, and B x H x rows x d (q scaled), to B x M; the backward pass in closed form.

    With P = A ∘ max(dA, 0), w = r / H and g the gradient at the result:
    dS_nm = w_n (P_nm g_m - A_nm Σ_j P_nj g_j) at the scores, Σ_hm P_nm g_m / H at r, w_n A_nm g_m at dA where P > 0.
    A and P are saved for it if they are one block, and recomputed if they are more.
    """

    @staticmethod
    def forward(
        ctx: Any, row: Tensor, q: Tensor, k: Tensor, v: Tensor, gradient: Tensor, bias: Tensor | None
    ) -> Tensor:
        total = row.new_zeros(row.shape[0], k.shape[-2])
        saved: tuple[Tensor, ...] = ()
        ranges = blocks(q, k)
        for rows in ranges:
            attn, positive = _positive(q, k, v, gradient, bias, rows)
            total += torch.einsum("bn,bhnm->bm", row[:, rows].to(positive), positive)
            if len(ranges) == 1 and any(ctx.needs_input_grad):
                saved = attn, positive
        ctx.save_for_backward(row, q, k, v, gradient, bias, *saved)
        return total / q.shape[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; once_differentiable goes unseen by autograd.grad
            raise RuntimeError("a GAE map has no second derivatives: its backward pass is in closed form")
        row, q, k, v, gradient, bias, *saved = ctx.saved_tensors
        g = (grads[0] / q.shape[1]).to(q)[:, None, None, :]
        to_row, to_q, to_k = torch.zeros_like(row), torch.zeros_like(q), torch.zeros_like(k)
        second = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
        to_v, to_gradient = (torch.zeros_like(v), torch.zeros_like(gradient)) if second else (None, None)
        to_bias = torch.zeros_like(bias) if ctx.needs_input_grad[5] else None
        for rows in blocks(q, k):
            attn, positive = saved or _positive(q, k, v, gradient, bias, rows)
            w = row[:, None, rows, None].to(q)
            product = positive * g
            sums = product.sum(-1, keepdim=True)
            to_row[:, rows] = sums[..., 0].sum(1).to(row)
            if to_v is not None and to_gradient is not None:
                to_slope = (w * attn * g).mul_(positive > 0)
                to_gradient[..., rows, :] = to_slope @ v
                to_v += to_slope.transpose(-2, -1) @ gradient[..., rows, :]
            scores = product.addcmul_(attn, sums, value=-1).mul_(w)
            to_q[..., rows, :] = scores @ k
            to_k += scores.transpose(-2, -1) @ q[..., rows, :]
            if to_bias is not None:
                part = slice(None) if bias.shape[-2] == 1 else rows
                to_bias[..., part, :] += scores.sum_to_size(to_bias[..., part, :].shape)
        return to_row, to_q, to_k, to_v, to_gradient, to_bias


_carry: Callable[..., Tensor] = _Carry.apply


def _positive(
    q: Tensor, k: Tensor, v: Tensor, gradient: Tensor, bias: Tensor | None, rows: slice
) -> tuple[Tensor, Tensor]:
    """Return A and P = A ∘ max(dA, 0) of some rows, both B x H x rows x M."""
    attn = _softmax(q, k, bias, rows)
    slope = gradient[..., rows, :] @ v.transpose(-2, -1)
    return attn, slope.clamp_(min=0).mul_(attn)


def blocks(q: Tensor, k: Tensor) -> list[slice]:
    """Return row ranges so small that one block of the attention fits ``_BLOCK_ELEMENTS``."""
    step = max(1, _BLOCK_ELEMENTS // max(1, q.shape[0] * q.shape[1] * k.shape[-2]))
    return [slice(start, start + step) for start in range(0, q.shape[-2], step)]


def _softmax(q: Tensor, k: Tensor, bias: Tensor | None, rows: slice) -> Tensor:
    """Return A of some rows from scaled q."""
    scores = q[..., rows, :] @ k.transpose(-2, -1)
    if bias is not None:
        scores += bias if bias.shape[-2] == 1 else bias[..., rows, :]
    return scores.softmax(-1)
