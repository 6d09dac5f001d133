"""Random fields, one an image from its own generator, and their smoothing."""

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

Border = Literal["nearest", "reflect"]


def uniform(images: Tensor, generators: Sequence[torch.Generator], *shape: int) -> Tensor:
    """Numbers in 0..1 (1 excluded), B x `shape`, float32 on the images' device."""
    fields = torch.empty(len(images), *shape, device=images.device)
    for field, generator in zip(fields, generators, strict=True):
        field.uniform_(generator=generator)
    return fields


def normal(images: Tensor, generators: Sequence[torch.Generator], *shape: int) -> Tensor:
    """Numbers of mean 0 and deviation 1, B x `shape`, float32 on the images' device."""
    fields = torch.empty(len(images), *shape, device=images.device)
    for field, generator in zip(fields, generators, strict=True):
        field.normal_(generator=generator)
    return fields


def smooth(fields: Tensor, sigma: float, border: Border, truncate: float) -> Tensor:
    """Fields, B x H x W, filtered with a Gaussian of `sigma` pixels that ends at `truncate` sigmas.

    As ``scipy.ndimage.gaussian_filter``, whose mode `border` is: the filter of each axis as a matrix, which costs the
    same for every sigma. One product an image, so that what is beside it in the batch cannot change its rounding.
    """
    rows, columns = (_filter(n, sigma, border, truncate).to(fields) for n in fields.shape[1:])
    smoothed = torch.empty_like(fields)
    for field, out in zip(fields, smoothed, strict=True):
        torch.mm(rows @ field, columns.T, out=out)
    return smoothed


@functools.lru_cache(maxsize=32)
def _filter(n: int, sigma: float, border: Border, truncate: float) -> Tensor:
    """What filtering does to n pixels, n x n: the filtered unit vectors."""
    return torch.from_numpy(ndimage.gaussian_filter(np.eye(n), (sigma, 0), mode=border, truncate=truncate))
