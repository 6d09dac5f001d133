"""Densities and traces against matrices whose spectra are known, and the dense Hessian of a small ViT."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.landscape import (
    Hessian,
    LandscapeError,
    SpectralDensity,
    hessian,
    pool_densities,
    spectral_density,
    trace,
)
from tests.landscape.test_hessian import batch, dense, loss_closure, vit


def matrix_of(values, seed=0):
    """A symmetric matrix with these eigenvalues, as the library takes it."""
    torch.manual_seed(seed)
    values = torch.as_tensor(values, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64))[0]
    full = q @ torch.diag(values) @ q.T
    return Hessian(len(values), 0.0, full[0, :0], lambda v: full @ v)


def moments(result, most):
    """The mean over probes of sum of weight times node^j, for j = 0..most."""
    return [
        np.mean([np.dot(w, np.power(n, j)) for n, w in zip(result.nodes, result.weights, strict=True)])
        for j in range(most + 1)
    ]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(1, 8))
def test_density_is_a_gauss_quadrature(seed, size, steps):
    rng = np.random.default_rng(seed)
    matrix = matrix_of(rng.uniform(-1, 1, size), seed)
    some, every = (spectral_density(matrix, steps=n, seed=seed) for n in (steps, size))
    exact = 2 * min(steps, size) - 1
    assert moments(some, exact) == pytest.approx(moments(every, exact), abs=1e-8)


def test_as_many_steps_as_dimensions_find_every_eigenvalue():
    true = np.linspace(-1, 3, 20)
    result = spectral_density(matrix_of(true), probes=400, steps=99)
    assert np.allclose(result.nodes, true)
    shares = np.mean(result.weights, 0)
    assert np.allclose(shares.sum(), 1)
    assert np.allclose(shares, 1 / 20, atol=5 * np.std(result.weights, 0).max() / 20)


def test_moments_equal_the_dense_hessian():
    module, (images, labels) = vit(), batch()
    full = dense()
    with hessian(module, loss_closure(module, images, labels)) as matrix:
        result = spectral_density(matrix, probes=40, steps=12)
        total = trace(matrix, products=60)
    true = [full.trace().item() / len(full), full.square().sum().item() / len(full)]
    for j, expected in enumerate(true, 1):
        each = [np.dot(w, np.power(n, j)) for n, w in zip(result.nodes, result.weights, strict=True)]
        assert np.mean(each) == pytest.approx(expected, abs=4 * np.std(each) / np.sqrt(40))
    assert total.value == pytest.approx(full.trace().item(), abs=4 * total.error)
    assert total.error < 0.05 * torch.linalg.eigvalsh(full).abs().sum()
    assert total.products == 60


def test_smoothed_density_integrates_to_one():
    result = spectral_density(matrix_of([0.0] * 9 + [5.0]), probes=3, steps=4)
    grid = np.linspace(-2, 7, 2000)
    curve = result.smooth(grid, 0.2)
    assert np.trapezoid(curve, grid) == pytest.approx(1, abs=1e-6)
    one = SpectralDensity([[5.0]], [[1.0]]).smooth(grid, 0.2)
    assert np.trapezoid(one * (grid - 5) ** 2, grid) == pytest.approx(0.04, rel=1e-3)
    assert np.allclose(pool_densities([result, result]).smooth(grid, 0.2), curve)
    with pytest.raises(ValueError, match="width"):
        result.smooth(grid, 0)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(0, 5))
def test_trace_of_a_low_rank_matrix_is_exact(seed, size, rank):
    values = np.zeros(size)
    values[: min(rank, size)] = np.random.default_rng(seed).uniform(-3, 3, min(rank, size))
    result = trace(matrix_of(values, seed), products=18, seed=seed)
    assert result.value == pytest.approx(values.sum(), abs=1e-6)
    assert result.error < 1e-6


def test_error_of_a_trace_is_its_spread():
    true = np.sort(np.random.default_rng(0).standard_normal(60))
    matrix = matrix_of(true)
    result = [trace(matrix, products=60, seed=seed) for seed in range(100)]
    spread = np.std([one.value for one in result])
    assert np.mean([one.value for one in result]) == pytest.approx(true.sum(), abs=4 * spread / 10)
    assert np.mean([one.error for one in result]) == pytest.approx(spread, rel=0.3)


def test_invalid_arguments_raise():
    matrix = matrix_of([1.0, 2.0])
    with pytest.raises(ValueError, match="at least 1 of each"):
        spectral_density(matrix, probes=0)
    with pytest.raises(ValueError, match="at least 6"):
        trace(matrix, products=5)
    broken = Hessian(4, 0.0, torch.empty(0), lambda v: v * torch.nan)
    for instrument in (spectral_density, trace):
        with pytest.raises(LandscapeError, match="not finite"):
            instrument(broken)
