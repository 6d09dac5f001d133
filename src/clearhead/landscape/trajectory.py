"""The way of the weights through training: how far they go, and how straight."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clearhead.landscape.hessian import LandscapeError


@dataclass(frozen=True)
class Trajectory:
    """Distances and angles of n snapshots of the weights, all in weight space (Euclidean, every parameter).

    Attributes:
        norm: length of the weights at each, n.
        distance: of each from the first, n.
        step: of each but the first from the one before, n - 1.
        angle: between the step to a snapshot and the step from it, in degrees, n - 2; None beside a step of length 0.
    """

    norm: list[float]
    distance: list[float]
    step: list[float]
    angle: list[float | None]


def weight_vector(module: nn.Module) -> Tensor:
    """All parameters as one vector (P) in float64 on the CPU."""
    return torch.cat([p.detach().flatten().double().cpu() for p in module.parameters()])


def trajectory(snapshots: Iterable[Tensor]) -> Trajectory:
    """The way through snapshots of the weights.

    Args:
        snapshots: vectors of one length, in order; four are held at a time.

    Raises:
        LandscapeError: for fewer than two snapshots, or of different lengths, or with a weight that is not finite.
    """
    first: Tensor | None = None
    before: Tensor | None = None
    last_step: Tensor | None = None
    norm, distance, steps, angles = [], [], [], []
    for number, now in enumerate(snapshots, 1):
        if not bool(now.isfinite().all()):
            raise LandscapeError(f"snapshot {number} has weights that are not finite: its distance cannot be told")
        if first is None or before is None:
            first = now
        elif len(now) != len(first):
            raise LandscapeError(f"snapshot {number} has {len(now):,} weights, the first {len(first):,}")
        else:
            step = now - before
            steps.append(float(step.norm()))
            if last_step is not None:
                angles.append(_angle(last_step, step))
            last_step = step
        norm.append(float(now.norm()))
        distance.append(float((now - first).norm()))
        before = now
    if len(norm) < 2:
        raise LandscapeError(f"a trajectory needs at least two snapshots, got {len(norm)}")
    return Trajectory(norm, distance, steps, angles)


def _angle(a: Tensor, b: Tensor) -> float | None:
    """In degrees, by the half-angle formula, which is exact for small ones too (Kahan); None for a vector of zeros."""
    if not bool(a.any() and b.any()):
        return None
    a, b = a / a.norm(), b / b.norm()
    return math.degrees(2 * math.atan2(float((a - b).norm()), float((a + b).norm())))
