"""Maps from the attention alone: the last layer's, and its rollout through all layers. No gradient, no class."""

from collections.abc import Sequence

import torch
from torch import Tensor

from clearhead.attention_tap import AttentionCall, tap
from clearhead.attribution.gae import blocks, first_row, on_grid, read_rows, token_grid
from clearhead.models import Classifier, TokenGrid


def attention(model: Classifier, images: Tensor, target: Tensor | int | None = None) -> tuple[Tensor, Tensor]:
    """Return the last layer's attention from the token that the head reads to the patches; the same for every class.

    It is the mean over heads. Returns and raises as ``gae``; ``target`` is not used.
    """
    grid = token_grid(model, "attention", images)
    with torch.no_grad():
        with tap(model.module) as record:  # at its end it raises, if no attention was seen
            logits = model(images)
        return attention_map(list(record), grid), logits


def rollout(model: Classifier, images: Tensor, target: Tensor | int | None = None) -> tuple[Tensor, Tensor]:
    """Return the attention rollout (Abnar and Zuidema, arXiv 2005.00928): the product of (Ā + I) / 2 over the layers.

    Ā is the mean over heads. Returns and raises as ``gae``; ``target`` is not used.
    """
    grid = token_grid(model, "rollout", images)
    with torch.no_grad():
        with tap(model.module) as record:  # at its end it raises, if no attention was seen
            logits = model(images)
        return rollout_map(list(record), grid), logits


def attention_map(layers: Sequence[AttentionCall], grid: TokenGrid) -> Tensor:
    """Return the map of ``attention`` (B x h x w) from the recorded layers; differentiable."""
    row = layers[-1].attn(read_rows(grid)).mean((1, 2))
    return on_grid(row, grid)


def rollout_map(layers: Sequence[AttentionCall], grid: TokenGrid) -> Tensor:
    """Return the map of ``rollout`` (B x h x w) from the recorded layers; differentiable.

    Only the row of the product that the head reads is formed, from the last layer to the first.
    """
    row = first_row(layers[-1], grid)
    with torch.autocast(row.device.type, enabled=False):
        for layer in reversed(layers):
            total = row
            for rows in blocks(layer.q, layer.k):
                total = total + (row[:, None, None, rows] @ layer.attn(rows)).mean(1)[:, 0]
            row = total / 2
    return on_grid(row, grid)
