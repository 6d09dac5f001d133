"""Noise of Hendrycks & Dietterich (arXiv 1903.12261): Gaussian, shot, impulse and, of the extra types, speckle.

Formulas and constants are those of the published code, hendrycks/robustness, ImageNet-C/create_c/make_imagenet_c.py
and make_cifar_c.py; only the random numbers come from torch. Every channel of every pixel has its own.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clearhead.shifts.corruptions.random_fields import normal, uniform
from clearhead.shifts.corruptions.severity import corruption

_LEVELS = 255
"""Shot noise is tabulated at the grey levels of 8-bit images."""


@corruption(imagenet=[0.08, 0.12, 0.18, 0.26, 0.38], cifar=[0.04, 0.06, 0.08, 0.09, 0.10])
def gaussian_noise(images: Tensor, scale: float, generators: Sequence[torch.Generator]) -> Tensor:
    """x + scale n, n standard normal."""
    return normal(images, generators, *images.shape[1:]).mul_(scale).add_(images)


@corruption(imagenet=[60, 25, 12, 5, 3], cifar=[500, 250, 100, 75, 50])
def shot_noise(images: Tensor, photons: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Poisson(photons x) / photons: what a sensor counts that gets `photons` from white.

    ``torch.poisson`` takes two to three times as long on a CPU as NumPy. Here a count is the sum of two: one of the
    rate of the grey level at or below x, by Walker's alias method from a table of all 256, and one of the small
    remaining rate, from what is left of the same uniform number. x within 1e-4 of a grey level counts as that level,
    so that images of 8 bits need the first alone.
    """
    keep, other = (table.to(images.device) for table in _poisson_tables(photons))
    level = images * _LEVELS
    row = (level + 1e-4).floor_().clamp_(0, _LEVELS)
    rest = level.sub_(row)
    place = torch.empty(images.shape, dtype=torch.float64, device=images.device)
    for one, generator in zip(place, generators, strict=True):
        one.uniform_(0, photons + 1, generator=generator)
    column = place.floor()
    part = place.sub_(column)
    cell = row.mul_(photons + 1).add_(column).long().flatten()
    kept = keep.index_select(0, cell).view_as(part)
    first = part < kept
    counts = torch.where(first, column, other.index_select(0, cell).view_as(part))

    between = (rest > 1e-4).nonzero(as_tuple=True)
    if len(between[0]):
        part, kept, first = part[between], kept[between], first[between]
        left = torch.where(first, part / kept, (part - kept) / (1 - kept))  # uniform, whatever the first count is
        counts[between] += _poisson_inverse(left, rest[between].double() * (photons / _LEVELS))
    return counts.div_(photons).to(images.dtype)


@corruption(imagenet=[0.03, 0.06, 0.09, 0.17, 0.27], cifar=[0.01, 0.02, 0.03, 0.05, 0.07])
def impulse_noise(images: Tensor, share: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Salt and pepper: `share` of the values become 1 or 0, either with the same probability.

    One uniform number a value says both whether and what; the published code (scikit-image's random_noise) draws two.
    """
    drawn = uniform(images, generators, *images.shape[1:])
    return torch.where(drawn < share, (drawn < share / 2).to(images.dtype), images)


@corruption(imagenet=[0.15, 0.2, 0.35, 0.45, 0.6], cifar=[0.06, 0.1, 0.12, 0.16, 0.2])
def speckle_noise(images: Tensor, scale: float, generators: Sequence[torch.Generator]) -> Tensor:
    """x + scale x n, n standard normal."""
    return normal(images, generators, *images.shape[1:]).mul_(scale).add_(1).mul_(images)


@functools.lru_cache
def _poisson_tables(most: int) -> tuple[Tensor, Tensor]:
    """Alias tables of the Poisson distributions of rates ``most * (0..255) / 255``, flat, ``most + 1`` cells a rate.

    A uniform number picks a cell k and, within it, k itself (up to `keep`) or `other`. Counts of `most` and above are
    one outcome: they all mean white. (Walker 1977, built by giving the smallest cell what the largest has too much.)
    """
    rates = torch.arange(_LEVELS + 1, dtype=torch.float64)[:, None] * most / _LEVELS
    counts = torch.arange(most, dtype=torch.float64)
    chances = torch.exp(torch.xlogy(counts, rates) - rates - torch.lgamma(counts + 1))
    share = torch.cat([chances, (1 - chances.sum(1, keepdim=True)).clamp_(min=0)], 1) * (most + 1)
    low, high = (
        share.numpy().copy(),
        share.numpy().copy(),
    )  # what is not done yet; done is inf in one, -inf in the other
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
    """Poisson counts of uniform numbers by going up the distribution; the rates are below 2."""
    chance = torch.exp(-rates)
    below, counts = chance.clone(), torch.zeros_like(rates)
    for count in range(1, 33):  # 32 and more have a probability below 1e-26
        if not len(over := (uniform > below).nonzero()):
            break
        counts[over] += 1
        chance = chance * rates / count
        below = below + chance
    return counts
