"""Relevance the long way, to hold the library against: explicit attention, full matrices, one backward call a layer."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases import logits


@contextmanager
def explicit_attention() -> Iterator[list[Tensor]]:
    """Every attention call as an explicit softmax; yields the list its A (B x H x N x N) are put into."""
    seen: list[Tensor] = []

    def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        scores = q @ k.transpose(-2, -1) * (scale or 1 / math.sqrt(q.shape[-1]))
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        seen.append(scores.softmax(-1))
        return seen[-1] @ v

    kernel, fast = F.scaled_dot_product_attention, torch.backends.mha.get_fastpath_enabled()
    F.scaled_dot_product_attention = attention
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield seen
    finally:
        F.scaled_dot_product_attention = kernel
        torch.backends.mha.set_fastpath_enabled(fast)


def gae(model: nn.Module, images: Tensor, target: Tensor, *, graph: str = "none") -> tuple[Tensor, Tensor]:
    """R (B x N x N) by the paper's formula, and the logits.

    `graph`: ``none``; ``first``: R carries a graph through A, with dA constant; ``second``: through dA too.
    """
    with explicit_attention() as attention:
        actual = logits(model, images)
    score = actual.gather(1, target[:, None]).sum()
    relevance = torch.eye(attention[0].shape[-1], dtype=images.dtype).expand(len(images), -1, -1)
    for attn in attention:
        (gradient,) = torch.autograd.grad(score, attn, retain_graph=True, create_graph=graph == "second")
        relevance = relevance + (gradient * attn).clamp(min=0).mean(1) @ relevance
    return (relevance.detach() if graph == "none" else relevance), actual
