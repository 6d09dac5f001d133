"""Add noise: Gaussian, shot, impulse and, of the extra types, speckle noise.

Only the random numbers are torch's, one per channel of each pixel.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clearhead.shifts.corruptions.random_fields import normal, uniform
from clearhead.shifts.corruptions.severity import corruption

_LEVELS = 255
"""Largest grey level of 8-bit images; shot noise is tabulated at grey levels."""


@corruption(imagenet=[0.08, 0.12, 0.18, 0.26, 0.38], cifar=[0.04, 0.06, 0.08, 0.09, 0.10])
def gaussian_noise(images: Tensor, scale: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Return x + scale n, n standard normal."""
    return normal(images, generators, *images.shape[1:]).mul_(scale).add_(images)


@corruption(imagenet=[60, 25, 12, 5, 3], cifar=[500, 250, 100, 75, 50])
def shot_noise(images: Tensor, photons: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Return Poisson(photons x) / photons: the signal of a sensor that counts `photons` for white.

    ``torch.poisson`` takes two to three times as long on a CPU as NumPy. Here a count is the sum of two: one for the
    rate of the grey level at or below x, by Walker's alias method from a table of all 256, and one for the small
    remaining rate, from the remainder of the same uniform number. x within 1e-4 of a grey level counts as that level,
    so that 8-bit images need only the first.
    """
    keep, other = (table.to(images.device) for table in _poisson_tables(photons))
    level = images * _LEVELS
    row = (level + 1e-4).floor_().clamp_(0, _LEVELS)
    rest = level.sub_(row)
    position = torch.empty(images.shape, dtype=torch.float64, device=images.device)
    for field, generator in zip(position, generators, strict=True):
        field.uniform_(0, photons + 1, generator=generator)
    column = position.floor()
    part = position.sub_(column)
    cell = row.mul_(photons + 1).add_(column).long().flatten()
    threshold = keep.index_select(0, cell).view_as(part)
    first = part < threshold
    counts = torch.where(first, column, other.index_select(0, cell).view_as(part))

    between = (rest > 1e-4).nonzero(as_tuple=True)
    if len(between[0]):
        part, threshold, first = part[between], threshold[between], first[between]
        remainder = torch.where(first, part / threshold, (part - threshold) / (1 - threshold))  # uniform again
        counts[between] += _poisson_inverse(remainder, rest[between].double() * (photons / _LEVELS))
    return counts.div_(photons).to(images.dtype)


@corruption(imagenet=[0.03, 0.06, 0.09, 0.17, 0.27], cifar=[0.01, 0.02, 0.03, 0.05, 0.07])
def impulse_noise(images: Tensor, fraction: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Set a fraction of the values to 1 or 0, with equal probability (salt and pepper noise).

    One uniform number per value decides both; the published code (scikit-image's random_noise) draws two.
    """
    random = uniform(images, generators, *images.shape[1:])
    return torch.where(random < fraction, (random < fraction / 2).to(images.dtype), images)


@corruption(imagenet=[0.15, 0.2, 0.35, 0.45, 0.6], cifar=[0.06, 0.1, 0.12, 0.16, 0.2])
def speckle_noise(images: Tensor, scale: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Return x + scale x n, n standard normal."""
    return normal(images, generators, *images.shape[1:]).mul_(scale).add_(1).mul_(images)


@functools.lru_cache
def _poisson_tables(most: int) -> tuple[Tensor, Tensor]:
    """Return alias tables of the Poisson distributions of rates ``most * (0..255) / 255``, ``most + 1`` cells per rate.

    A uniform number selects a cell k and, within it, k itself (up to `keep`) or `other`. Counts of `most` and above are
    one outcome, white. (Walker 1977: the smallest cell is filled with the excess of the largest.)
    """
    rates = torch.arange(_LEVELS + 1, dtype=torch.float64)[:, None] * most / _LEVELS
    counts = torch.arange(most, dtype=torch.float64)
    chances = torch.exp(torch.xlogy(counts, rates) - rates - torch.lgamma(counts + 1))
    cells = torch.cat([chances, (1 - chances.sum(1, keepdim=True)).clamp_(min=0)], 1) * (most + 1)
    low, high = cells.numpy().copy(), cells.numpy().copy()  # a finished cell is inf in low, -inf in high
    keep, other = np.ones_like(low), np.zeros_like(low)
    rows = np.arange(len(low))
    for _ in range(most):
        small, large = low.argmin(1), high.argmax(1)
        keep[rows, small], other[rows, small] = low[rows, small], large
        high[rows, large] -= 1 - low[rows, small]
        low[rows, large] = high[rows, large]
        low[rows, small], high[rows, small] = np.inf, -np.inf
    return torch.from_numpy(keep).flatten(), torch.from_numpy(other).flatten()


def _poisson_inverse(uniform: Tensor, rates: Tensor) -> Tensor:
    """Return Poisson counts of uniform numbers by inversion; the rates are below 2."""
    chance = torch.exp(-rates)
    below, counts = chance.clone(), torch.zeros_like(rates)
    for count in range(1, 33):  # 32 and more have a probability below 1e-26
        if not len(above := (uniform > below).nonzero()):
            break
        counts[above] += 1
        chance = chance * rates / count
        below = below + chance
    return counts
