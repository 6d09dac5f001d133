"""Draw one random field per image from its own generator, and smooth fields."""

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

Border = Literal["nearest", "reflect"]


def uniform(images: Tensor, generators: Sequence[torch.Generator], *shape: int) -> Tensor:
    """Return uniform numbers in 0..1 (1 excluded), B x `shape`, float32 on the images' device."""
    fields = torch.empty(len(images), *shape, device=images.device)
    for field, generator in zip(fields, generators, strict=True):
        field.uniform_(generator=generator)
    return fields


def normal(images: Tensor, generators: Sequence[torch.Generator], *shape: int) -> Tensor:
    """Return standard normal numbers, B x `shape`, float32 on the images' device."""
    fields = torch.empty(len(images), *shape, device=images.device)
    for field, generator in zip(fields, generators, strict=True):
        field.normal_(generator=generator)
    return fields


def smooth(fields: Tensor, sigma: float, border: Border, truncate: float) -> Tensor:
    """Filter fields, B x H x W, with a Gaussian of `sigma` pixels truncated at `truncate` sigmas.

    Equals ``scipy.ndimage.gaussian_filter`` with mode `border`. The filter of each axis is a matrix, so the cost does
    not depend on sigma. Each image has its own product, so that its rounding does not depend on the batch.
    """
    rows, columns = (_filter_matrix(n, sigma, border, truncate).to(fields) for n in fields.shape[1:])
    smoothed = torch.empty_like(fields)
    for field, out in zip(fields, smoothed, strict=True):
        torch.mm(rows @ field, columns.T, out=out)
    return smoothed


@functools.lru_cache(maxsize=32)
def _filter_matrix(n: int, sigma: float, border: Border, truncate: float) -> Tensor:
    """Return the matrix of the filter, n x n: the filtered unit vectors."""
    return torch.from_numpy(ndimage.gaussian_filter(np.eye(n), (sigma, 0), mode=border, truncate=truncate))
