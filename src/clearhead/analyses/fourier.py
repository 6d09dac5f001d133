"""Frequencies and variance of feature maps through the depth of a model.

After Park & Kim, "How Do Vision Transformers Work?" (arXiv 2202.06709), figures 2 and 8: attention lowers the high
frequencies and the variance of feature maps, convolutions raise them. One forward pass an image; a feature map is
measured where it is made, and none is kept.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from clearhead.data.dataset import ImageIndex
from clearhead.data.loading import ImageDataset, loader
from clearhead.layers.branches import (
    LayersError,
    ResidualBranch,
    find_branches,
    flatten_positions,
    hooked_forward,
    repeatable_forward,
)
from clearhead.metrics.statistics import Estimate, mean
from clearhead.models import Classifier


@dataclass(frozen=True)
class FeatureMap:
    """The feature map of one unit, over images.

    Attributes:
        unit, kind, depth: which unit, as in ``ResidualBranch``.
        height, width: its grid of positions.
        frequency: of each amplitude, in units of π (radians a position).
        amplitude: relative log amplitude at each frequency, mean over images; 0 at frequency 0.
        high: that of the last frequency; NaN on a grid too small to have one.
        variance: over positions.
        high_change, variance_change: through the unit, after less before; None where the grid before was another, or
            unknown, or too small.
    """

    unit: str
    kind: str
    depth: float
    height: int
    width: int
    frequency: list[float]
    amplitude: list[float]
    high: Estimate
    variance: Estimate
    high_change: Estimate | None
    variance_change: Estimate | None


@dataclass(frozen=True)
class FeatureMaps:
    """The feature maps of one model.

    Attributes:
        units: in order of depth.
        high_change: by kind, the mean change of the last frequency's amplitude through a unit of it.
        variance_change: by kind, the mean change of the variance.
        left_out: names of units whose positions form no grid.
        images: how many.
    """

    units: list[FeatureMap]
    high_change: dict[str, Estimate]
    variance_change: dict[str, Estimate]
    left_out: list[str]
    images: int


def frequencies(height: int, width: int) -> list[float]:
    """The frequencies of ``log_amplitudes`` in units of π: 0 to the last below π, which is 6/7 π on a grid of 14."""
    shorter = min(height, width)
    return [2 * k / shorter for k in range((shorter + 1) // 2)]


def log_amplitudes(values: Tensor, height: int, width: int) -> Tensor:
    """log(|F| + 1e-6) on the diagonal of the Fourier transform from its centre to the corner, mean over channels.

    The transform is the unnormalised one of two dimensions. Of one that is not square the bins nearest to the diagonal
    are taken. Only these few are computed, by a product with their waves.

    Args:
        values: B x (height * width) x C.
        height, width: of the grid.

    Returns:
        B x frequencies, as ``frequencies`` tells them.
    """
    cosine, sine = (_waves(height, width, values.device) @ values.float()).chunk(2, 1)
    return (torch.hypot(cosine, sine) + 1e-6).log().mean(-1)


def variances(values: Tensor) -> Tensor:
    """The unbiased variance over positions of B x positions x C, mean over channels: B."""
    values = values.float()
    centred = values - values.mean(1, keepdim=True)
    return centred.square_().sum(1).mean(-1) / (values.shape[1] - 1)  # torch.var is several times slower on a CPU


@cache
def _waves(height: int, width: int, device: torch.device) -> Tensor:
    """The cosines, then the sines of each frequency at each position: 2 frequencies x positions."""
    with torch.inference_mode(False):  # it is kept
        bins = torch.arange((min(height, width) + 1) // 2, dtype=torch.float64)
        down, across = ((bins * side / min(height, width)).round() / side for side in (height, width))
        y, x = torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64)
        turns = down[:, None, None] * y[:, None] + across[:, None, None] * x
        phase = 2 * math.pi * turns.flatten(1)
        return torch.cat([phase.cos(), -phase.sin()]).float().to(device)


def feature_maps(
    model: Classifier,
    folder: ImageIndex,
    *,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    progress: Callable[[Iterable, int], Iterable] | None = None,
) -> FeatureMaps:
    """Amplitudes and variance of each unit's feature map; one forward pass an image, in eval mode.

    Args:
        model: the classifier; it runs where its parameters are.
        folder: the images.
        batch_size: images a batch.
        workers: processes that load images.
        seed: of the intervals, bootstrapped over images.
        track: wraps the batches to show progress: ``track(batches, count)``.

    Raises:
        LayersError: for a model without units, or none of whose units has positions on a grid.
        DataError: for an image that cannot be read.
    """
    device = next(model.module.parameters()).device
    batches = loader(ImageDataset(folder, model.preprocess), batch_size, workers)
    with repeatable_forward(model):
        every = find_branches(model)
        units = [unit for unit in every if unit.layout]
        if not units:
            shape = " x ".join(map(str, every[-1].shape))
            raise LayersError(
                f"{model.name}: the feature maps (of {every[-1].name}: {shape} an image) "
                "form no grid with the proportions of the image"
            )
        found: list[dict[str, list[Tensor]]] = [defaultdict(list) for _ in units]

        def measure(i: int, value: Callable[[], Tensor], _shortcut: Tensor | None) -> Tensor:
            made, layout = value(), units[i].layout
            assert layout
            x = flatten_positions(made, layout)
            found[i]["amplitude"].append(log_amplitudes(x, layout.height, layout.width))
            found[i]["variance"].append(variances(x))
            return made

        for batch in progress(batches, len(batches)) if progress else batches:
            hooked_forward(model, batch["image"].to(device, non_blocking=True), units, measure)
    numbers = [{name: torch.cat(values).double().cpu().numpy() for name, values in each.items()} for each in found]
    return _summed_up(every, numbers, seed)


def _summed_up(every: list[ResidualBranch], numbers: list[dict[str, np.ndarray]], seed: int) -> FeatureMaps:
    """`numbers` are those of the units that have a grid, in order."""
    maps, before, rest = [], None, iter(numbers)
    changes: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    for unit in every:
        if not unit.layout:
            before = None
            continue
        of_unit, grid = next(rest), (unit.layout.height, unit.layout.width)
        relative = of_unit["amplitude"] - of_unit["amplitude"][:, :1]
        of_unit |= {"high": relative[:, -1] if relative.shape[1] > 1 else np.full(len(relative), np.nan)}
        change: dict[str, Estimate] = {}
        if before and before[0] == grid and unit.kind != "embed":
            for name in ("high", "variance"):
                difference = of_unit[name] - before[1][name]
                if np.isfinite(difference).all():
                    change[name] = _mean(difference, seed)
                    changes[name, unit.kind].append(difference)
        before = grid, of_unit
        maps.append(
            FeatureMap(
                *(unit.name, unit.kind, unit.depth, *grid, frequencies(*grid), relative.mean(0).tolist()),
                high=_mean(of_unit["high"], seed),
                variance=_mean(of_unit["variance"], seed),
                high_change=change.get("high"),
                variance_change=change.get("variance"),
            )
        )
    kinds: list[str] = list(dict.fromkeys(unit.kind for unit in maps if unit.kind != "embed"))
    high, variance = (
        {kind: _mean(np.mean(changes[name, kind], 0), seed) for kind in kinds if changes[name, kind]}
        for name in ("high", "variance")
    )
    left_out = [unit.name for unit in every if not unit.layout]
    return FeatureMaps(maps, high, variance, left_out, len(numbers[0]["variance"]))


def _mean(values: np.ndarray, seed: int) -> Estimate:
    if np.isnan(values).any():
        return Estimate(math.nan, math.nan, math.nan, len(values))
    return mean(values, seed=seed)
