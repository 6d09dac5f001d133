"""The whole spectrum of a Hessian: its density by stochastic Lanczos quadrature, its trace by Hutch++.

A few Lanczos runs from random vectors tell how many eigenvalues lie where, though not one of the bulk by itself
(Ghorbani, Krishnan & Xiao 2019, arXiv 1901.10159; Golub & Welsch 1969).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clearhead.errors import ClearheadError
from clearhead.landscape.hessian import Hessian, LandscapeError, lanczos


@dataclass(frozen=True)
class SpectralDensity:
    """The density of a spectrum, as points with weights: for each probe a list of nodes and one of their weights.

    For each probe v the weights sum to 1, and the sum of weight times node^j is vᵀ H^j v / vᵀ v for j < 2 steps, whose
    expectation is trace(H^j) / P: nodes and weights stand for the share of the eigenvalues near each node.
    """

    nodes: list[list[float]]
    weights: list[list[float]]

    def smooth(self, grid: np.ndarray, width: float) -> np.ndarray:
        """The density at the points of a grid (N), each node a Gaussian of standard deviation `width`; mean of probes.

        Raises ClearheadError for a width that is not positive.
        """
        if not width > 0:
            raise ClearheadError(f"width: a positive number is needed, got {width}")
        nodes, weights = (np.concatenate([np.asarray(part) for part in parts]) for parts in (self.nodes, self.weights))
        bumps = np.exp(-0.5 * ((np.asarray(grid)[:, None] - nodes) / width) ** 2) / (width * math.sqrt(2 * math.pi))
        return bumps @ weights / len(self.nodes)


def spectral_density(matrix: Hessian, *, probes: int = 1, steps: int = 80, seed: int = 0) -> SpectralDensity:
    """The density of the spectrum of a symmetric matrix, in probes x steps products.

    Args:
        matrix: symmetric, as ``hessian`` gives it.
        probes: random vectors; one is enough for a large matrix or for the mean over many batches.
        steps: nodes a probe, at most the size of the matrix: how finely the density is resolved.
        seed: of the vectors.

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
        for found in lanczos(matrix, v, min(steps, matrix.size)):  # noqa: B007 (a list of all would hold every basis)
            pass
        values, small, _ = found.ritz()
        nodes.append(values.tolist())
        weights.append((small[0] ** 2).tolist())
    return SpectralDensity(nodes, weights)


def pool_densities(densities: Iterable[SpectralDensity]) -> SpectralDensity:
    """The mean of several densities, each probe counting alike."""
    every = list(densities)
    return SpectralDensity([part for d in every for part in d.nodes], [part for d in every for part in d.weights])


@dataclass(frozen=True)
class Trace:
    """A trace, its standard error, and the products it took."""

    value: float
    error: float
    products: int


def trace(matrix: Hessian, *, products: int = 30, seed: int = 0) -> Trace:
    """The trace of a symmetric matrix by Hutch++ (Meyer, Musco, Musco & Woodruff 2021, algorithm 1).

    A third of the products finds a subspace Q in which the matrix is large, a third its trace there, exactly; the rest
    goes into Hutchinson's estimate gᵀ H g of what is left, with g of signs, from whose spread the error is told. It
    holds a third of `products` vectors of P numbers.

    Args:
        matrix: symmetric, as ``hessian`` gives it.
        products: how many, at least 6: two probes for the spread.
        seed: of the vectors.

    Raises:
        ClearheadError: for fewer than 6 products.
        LandscapeError: where a product is not finite.
    """
    if products < 6:
        raise ClearheadError(f"products: at least 6 are needed, got {products}")
    draw = torch.Generator().manual_seed(seed)

    def signs() -> Tensor:
        return (2 * torch.randint(2, (matrix.size,), generator=draw) - 1).to(matrix.like)

    wide = min(products // 3, matrix.size)
    q = torch.linalg.qr(torch.stack([matrix(signs()) for _ in range(wide)], 1)).Q
    exact = sum(float(column @ matrix(column)) for column in q.T)
    left = []
    for _ in range(products - 2 * (products // 3)):
        g = signs()
        g -= q @ (q.T @ g)
        left.append(float(g @ matrix(g)))
    value, error = exact + float(np.mean(left)), float(np.std(left, ddof=1) / math.sqrt(len(left)))
    if not math.isfinite(value):
        raise LandscapeError("a product with the Hessian is not finite: the loss is not smooth enough there")
    return Trace(value, error, 2 * wide + len(left))
