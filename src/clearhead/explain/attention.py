"""Maps read off the attention alone: the last layer's, and its rollout through all layers. No gradient, no class."""

import torch
from torch import Tensor

from clearhead.explain.gae import blocks, first_row, token_grid
from clearhead.models import Classifier
from clearhead.tap import tap


def attention(model: Classifier, images: Tensor, target: Tensor | int | None = None) -> tuple[Tensor, Tensor]:
    """The last layer's attention from the read-out token to the patches, mean over heads; the same for every class.

    Returns and raises as ``gae``; ``target`` is not used.
    """
    grid = token_grid(model, "attention")
    with torch.no_grad(), tap(model.module) as record:
        logits = model(images)
        rows = slice(0, 1) if grid.readout == "cls" else slice(grid.prefix, None)
        row = record[-1].attn(rows).mean((1, 2))
    return row[:, grid.prefix :].unflatten(1, (grid.height, grid.width)), logits


def rollout(model: Classifier, images: Tensor, target: Tensor | int | None = None) -> tuple[Tensor, Tensor]:
    """Attention rollout (Abnar and Zuidema, arXiv 2005.00928): the product of (Ā + I) / 2 over the layers.

    Ā is the mean over heads; only the read-out row of the product is formed, from the last layer to the first. Returns
    and raises as ``gae``; ``target`` is not used.
    """
    grid = token_grid(model, "rollout")
    with torch.no_grad(), tap(model.module) as record:
        logits = model(images)
        row = first_row(record[-1], grid)
        for layer in reversed(list(record)):
            weights = row.to(layer.q)[:, None, None]
            for rows in blocks(layer.q, layer.k):
                row = row + (weights[..., rows] @ layer.attn(rows)).mean(1)[:, 0]
            row = row / 2
    return row[:, grid.prefix :].unflatten(1, (grid.height, grid.width)), logits
