"""Measure the trajectory of the weights through training: how far they move, and how straight."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clearhead.landscape.hessian import LandscapeError


@dataclass(frozen=True)
class Trajectory:
    """Distances and angles of n snapshots of the weights, Euclidean over all parameters.

    Attributes:
        norm: norm of the weights of each snapshot, n.
        distance: from the first snapshot, n.
        step: distance from the previous snapshot, n - 1.
        angle: between the steps to and from a snapshot, in degrees, n - 2; None next to a step of length 0.
    """

    norm: list[float]
    distance: list[float]
    step: list[float]
    angle: list[float | None]


def weight_vector(module: nn.Module) -> Tensor:
    """Return all parameters as one vector (P) in float64 on the CPU."""
    return torch.cat([p.detach().flatten().double().cpu() for p in module.parameters()])


def trajectory(snapshots: Iterable[Tensor]) -> Trajectory:
    """Return the trajectory through snapshots of the weights.

    Args:
        snapshots: vectors of one length, in order; four are in memory at a time.

    Raises:
        LandscapeError: for fewer than two snapshots, different lengths, or a weight that is not finite.
    """
    first: Tensor | None = None
    previous: Tensor | None = None
    last_step: Tensor | None = None
    norm, distance, steps, angles = [], [], [], []
    for number, current in enumerate(snapshots, 1):
        if not bool(current.isfinite().all()):
            raise LandscapeError(f"snapshot {number} has weights that are not finite, so it has no distance")
        if first is None or previous is None:
            first = current
        elif len(current) != len(first):
            raise LandscapeError(f"snapshot {number} has {len(current):,} weights, the first {len(first):,}")
        else:
            step = current - previous
            steps.append(float(step.norm()))
            if last_step is not None:
                angles.append(_angle(last_step, step))
            last_step = step
        norm.append(float(current.norm()))
        distance.append(float((current - first).norm()))
        previous = current
    if len(norm) < 2:
        raise LandscapeError(f"a trajectory needs at least two snapshots, got {len(norm)}")
    return Trajectory(norm, distance, steps, angles)


def _angle(a: Tensor, b: Tensor) -> float | None:
    """Return the angle in degrees by Kahan's half-angle formula, exact for small angles; None for a zero vector."""
    if not bool(a.any() and b.any()):
        return None
    a, b = a / a.norm(), b / b.norm()
    return math.degrees(2 * math.atan2(float((a - b).norm()), float((a + b).norm())))
