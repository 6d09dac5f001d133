"""Estimate the whole spectrum of a Hessian: its density by stochastic Lanczos quadrature, its trace by Hutch++.

A few Lanczos runs from random vectors show how the eigenvalues are distributed, but not single eigenvalues of the bulk
(Ghorbani, Krishnan & Xiao 2019, arXiv 1901.10159; Golub & Welsch 1969).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clearhead.errors import ClearheadError
from clearhead.landscape.hessian import Hessian, LandscapeError, lanczos


@dataclass(frozen=True)
class SpectralDensity:
    """The density of a spectrum, as weighted points: for each probe a list of nodes and a list of their weights.

    For each probe v the weights sum to 1, and the sum of weight times node^j is vᵀ H^j v / vᵀ v for j < 2 steps, whose
    expectation is trace(H^j) / P: a weight estimates the fraction of the eigenvalues near its node.
    """

    nodes: list[list[float]]
    weights: list[list[float]]

    def smooth(self, grid: npt.NDArray[np.float64], width: float) -> npt.NDArray[np.float64]:
        """Return the density at the points of a grid (N), the mean over probes.

        Each node counts as a Gaussian of standard deviation `width`.

        Raises ClearheadError for a width that is not positive.
        """
        if not width > 0:
            raise ClearheadError(f"width: a positive number is needed, got {width}")
        nodes, weights = (np.concatenate([np.asarray(part) for part in parts]) for parts in (self.nodes, self.weights))
        gaussians = np.exp(-0.5 * ((np.asarray(grid)[:, None] - nodes) / width) ** 2) / (width * math.sqrt(2 * math.pi))
        density: npt.NDArray[np.float64] = gaussians @ weights / len(self.nodes)
        return density


def spectral_density(matrix: Hessian, *, probes: int = 1, steps: int = 80, seed: int = 0) -> SpectralDensity:
    """Return the density of the spectrum of a symmetric matrix, from probes x steps products.

    Args:
        matrix: symmetric, as ``hessian`` gives it.
        probes: random vectors; one is enough for a large matrix or for the mean over many batches.
        steps: nodes per probe, at most the size of the matrix: the resolution of the density.
        seed: random seed of the vectors.

    Raises:
        ClearheadError: for fewer than one probe or step.
        LandscapeError: where a product is not finite.
    """
    if probes < 1 or steps < 1:
        raise ClearheadError(f"probes and steps: at least 1 of each is needed, got {probes} and {steps}")
    draw = torch.Generator().manual_seed(seed)
    nodes, weights = [], []
    for _ in range(probes):
        v = torch.randn(matrix.size, generator=draw).to(matrix.like)
        for krylov in lanczos(matrix, v, min(steps, matrix.size)):  # noqa: B007 (only the last is used)
            pass
        values, vectors, _ = krylov.ritz()
        nodes.append(values.tolist())
        weights.append((vectors[0] ** 2).tolist())
    return SpectralDensity(nodes, weights)


def pool_densities(densities: Iterable[SpectralDensity]) -> SpectralDensity:
    """Return the mean of several densities, each probe with the same weight."""
    pooled = list(densities)
    return SpectralDensity([part for d in pooled for part in d.nodes], [part for d in pooled for part in d.weights])


@dataclass(frozen=True)
class Trace:
    """A trace, its standard error, and the number of products."""

    value: float
    error: float
    products: int


def trace(matrix: Hessian, *, products: int = 30, seed: int = 0) -> Trace:
    """Estimate the trace of a symmetric matrix by Hutch++ (Meyer, Musco, Musco & Woodruff 2021, algorithm 1).

    A third of the products finds a subspace Q in which the matrix is large, a third computes its exact trace there, and
    the rest is used for Hutchinson's estimate gᵀ H g of the remainder, with random signs g, whose spread gives the
    standard error. Memory: products / 3 vectors of P numbers.

    Args:
        matrix: symmetric, as ``hessian`` gives it.
        products: number of products, at least 6, for two probes of the spread.
        seed: random seed of the vectors.

    Raises:
        ClearheadError: for fewer than 6 products.
        LandscapeError: where a product is not finite.
    """
    if products < 6:
        raise ClearheadError(f"products: at least 6 are needed, got {products}")
    draw = torch.Generator().manual_seed(seed)

    def signs() -> Tensor:
        return (2 * torch.randint(2, (matrix.size,), generator=draw) - 1).to(matrix.like)

    width = min(products // 3, matrix.size)
    q = torch.linalg.qr(torch.stack([matrix(signs()) for _ in range(width)], 1)).Q
    exact = sum(float(column @ matrix(column)) for column in q.T)
    remainder = []
    for _ in range(products - 2 * (products // 3)):
        g = signs()
        g -= q @ (q.T @ g)
        remainder.append(float(g @ matrix(g)))
    value, error = exact + float(np.mean(remainder)), _standard_error(remainder)
    if not math.isfinite(value):
        raise LandscapeError("a product with the Hessian is not finite: the loss is not smooth enough there")
    return Trace(value, error, 2 * width + len(remainder))


def _standard_error(values: list[float]) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))
