"""Distances and angles against NumPy, and trajectories of known shape."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clearhead.landscape import LandscapeError, trajectory, weight_vector


@given(st.integers(0, 10**6), st.integers(3, 6), st.integers(2, 9))
def test_distances_and_angles_equal_numpy(seed, count, size):
    points = np.random.default_rng(seed).standard_normal((count, size))
    result = trajectory(torch.from_numpy(points))
    steps = np.diff(points, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    assert result.norm == pytest.approx(np.linalg.norm(points, axis=1))
    assert result.distance == pytest.approx(np.linalg.norm(points - points[0], axis=1))
    assert result.step == pytest.approx(lengths)
    cosines = (steps[1:] * steps[:-1]).sum(1) / (lengths[1:] * lengths[:-1])
    assert np.cos(np.radians(result.angle)) == pytest.approx(cosines, abs=1e-9)


def test_straight_right_angle_and_reverse_steps():
    way = torch.tensor([[0, 0], [1, 0], [3, 0], [3, 1], [3, 0], [3, 0], [4, 0]], dtype=torch.float64)
    assert trajectory(way).angle == [pytest.approx(0), pytest.approx(90), pytest.approx(180), None, None]
    nearly = torch.tensor([[0, 0], [1, 0], [2, 1e-9]], dtype=torch.float64)
    assert trajectory(nearly).angle == [pytest.approx(math.degrees(1e-9))]  # arccos would give 0


def test_weight_vector_has_all_parameters():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    vector = weight_vector(module)
    assert (len(vector), vector.dtype) == (2 * 3 + 3 + 3 + 3, torch.float64)  # no running statistics
    assert torch.equal(vector[:6], module[0].weight.detach().double().flatten())


def test_invalid_trajectories_raise():
    with pytest.raises(LandscapeError, match="at least two snapshots, got 1"):
        trajectory([torch.zeros(3)])
    with pytest.raises(LandscapeError, match="snapshot 2 has 4 weights, the first 3"):
        trajectory([torch.zeros(3), torch.zeros(4)])
    with pytest.raises(LandscapeError, match="snapshot 2 has weights that are not finite"):
        trajectory([torch.zeros(3), torch.full((3,), torch.nan)])
