"""Frequencies and variance of feature maps through the depth of a model.

After Park & Kim, "How Do Vision Transformers Work?" (arXiv 2202.06709), figures 2 and 8: attention lowers the high
frequencies and the variance of feature maps, convolutions raise them. One forward pass an image; a feature map is
measured where it is made, and none is kept.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clearhead.analyses.subject import Subject, subject_of
from clearhead.data.dataset import ImageIndex
from clearhead.data.images import DataLike, as_image_index
from clearhead.data.loading import ImageDataset, loader
from clearhead.data.splits import sample_n
from clearhead.layers.branches import (
    LayersError,
    ResidualBranch,
    find_branches,
    flatten_positions,
    hooked_forward,
    repeatable_forward,
)
from clearhead.metrics.statistics import Estimate, mean
from clearhead.models.source import ModelLike, as_classifier, display_names
from clearhead.options import BatchSize, Limit, Seed, Split, Workers
from clearhead.progress import Progress, prefixed, track
from clearhead.report import layer_plots
from clearhead.report.layer_plots import kind_name
from clearhead.report.page import Figure, Page, Row, Section, Table
from clearhead.storage import resumable

Array = npt.NDArray[Any]


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


@dataclass(frozen=True)
class Fourier:
    """Frequencies and variance of the feature maps of several models on the same images, by model."""

    subject: Subject
    maps: dict[str, FeatureMaps]


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


def measure(
    models: Sequence[ModelLike],
    data: DataLike,
    *,
    split: Split = None,
    limit: Limit = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    seed: Seed = 0,
    progress: Progress | None = None,
    state: Path | None = None,
) -> Fourier:
    """Measure which layers lower high frequencies and which raise them, and the variance of feature maps.

    Any images will do: labels are not used.

    Example:
        $ clearhead layers fourier timm:vit_small_patch16_224 timm:resnet50 DATA

    Args:
        models: classifiers, modules or names.
        data: the images: a folder, another source, or an index.
        split: use the images of this split.
        limit: use at most this many images, drawn at random.
        batch_size: images per forward pass.
        workers: data-loading processes.
        seed: of the drawn images and of the bootstrap over images.
        progress: shows progress.
        state: folder in which the result of each model is saved, to go on after an interruption.

    Raises:
        LayersError: for a model without residual branches, or none of whose feature maps lies on a grid.
        DataError: for data that cannot be used.
    """
    index = sample_n(as_image_index(data, split=split), limit, seed)
    names, maps = display_names(models), {}
    for name, model in zip(names, models, strict=True):
        compute = partial(
            feature_maps,
            model,
            index,
            batch_size=batch_size,
            workers=workers,
            seed=seed,
            progress=prefixed(progress, name),
        )
        maps[name] = resumable(state, name, compute, FeatureMaps)
    return Fourier(subject_of(names, index, data, split), maps)


def feature_maps(
    model: ModelLike,
    index: ImageIndex,
    *,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> FeatureMaps:
    """Measure amplitudes and variance of the feature map after each residual branch; one forward pass per image.

    Args:
        model: the classifier; it runs in eval mode where its parameters are.
        index: the images.
        batch_size: images per forward pass.
        workers: data-loading processes.
        seed: of the bootstrap over images.
        progress: shows progress.

    Raises:
        LayersError: for a model without residual branches, or none of whose feature maps lies on a grid.
        DataError: for an image that cannot be read.
    """
    model = as_classifier(model)
    device = next(model.module.parameters()).device
    batches = loader(ImageDataset(index, model.preprocess), batch_size, workers)
    with repeatable_forward(model):
        branches = find_branches(model)
        on_grid = [branch for branch in branches if branch.layout]
        if not on_grid:
            shape = " x ".join(map(str, branches[-1].shape))
            raise LayersError(
                f"{model.name}: the feature maps (after {branches[-1].name}: {shape} per image) "
                "form no grid with the proportions of the image"
            )
        measured: list[dict[str, list[Tensor]]] = [defaultdict(list) for _ in on_grid]

        def record(i: int, compute: Callable[[], Tensor], _shortcut: Tensor | None) -> Tensor:
            feature_map, layout = compute(), on_grid[i].layout
            assert layout
            x = flatten_positions(feature_map, layout)
            measured[i]["amplitude"].append(log_amplitudes(x, layout.height, layout.width))
            measured[i]["variance"].append(variances(x))
            return feature_map

        for batch in track(batches, progress, "feature maps"):
            hooked_forward(model, batch["image"].to(device, non_blocking=True), on_grid, record)
    numbers = [{name: torch.cat(values).double().cpu().numpy() for name, values in each.items()} for each in measured]
    return _summarize(branches, numbers, seed)


def _summarize(branches: list[ResidualBranch], numbers: list[dict[str, Array]], seed: int) -> FeatureMaps:
    """Return the estimates; `numbers` belong to the branches with a grid, in order."""
    maps: list[FeatureMap] = []
    before: tuple[tuple[int, int], dict[str, Array]] | None = None
    rest = iter(numbers)
    changes: dict[tuple[str, str], list[Array]] = defaultdict(list)
    for branch in branches:
        if not branch.layout:
            before = None
            continue
        own, grid = next(rest), (branch.layout.height, branch.layout.width)
        relative = own["amplitude"] - own["amplitude"][:, :1]
        own |= {"high": relative[:, -1] if relative.shape[1] > 1 else np.full(len(relative), np.nan)}
        change: dict[str, Estimate] = {}
        if before and before[0] == grid and branch.type != "embed":
            for name in ("high", "variance"):
                difference = own[name] - before[1][name]
                if np.isfinite(difference).all():
                    change[name] = _mean(difference, seed)
                    changes[name, branch.type].append(difference)
        before = grid, own
        maps.append(
            FeatureMap(
                *(branch.name, branch.type, branch.depth, *grid, frequencies(*grid), relative.mean(0).tolist()),
                high=_mean(own["high"], seed),
                variance=_mean(own["variance"], seed),
                high_change=change.get("high"),
                variance_change=change.get("variance"),
            )
        )
    kinds: list[str] = list(dict.fromkeys(one.kind for one in maps if one.kind != "embed"))
    high, variance = (
        {kind: _mean(np.mean(changes[name, kind], 0), seed) for kind in kinds if changes[name, kind]}
        for name in ("high", "variance")
    )
    left_out = [branch.name for branch in branches if not branch.layout]
    return FeatureMaps(maps, high, variance, left_out, len(numbers[0]["variance"]))


def _mean(values: Array, seed: int) -> Estimate:
    if np.isnan(values).any():
        return Estimate(math.nan, math.nan, math.nan, len(values))
    return mean(values, seed=seed)


def page(result: Fourier) -> Page:
    """Show the change through each type of branch, then for each model its spectra, its variance and its numbers."""
    sections: list[Section] = [_change_table(result)]
    for name, maps in result.maps.items():
        sections += _model_sections(maps, f": {name}" if len(result.maps) > 1 else "")
    subject = result.subject
    return Page(
        f"{subject.listed()}: frequencies through depth",
        f"Feature maps of images of {subject.data}.",
        sections=sections,
    )


def _change_table(result: Fourier) -> Table:
    rows = [
        Row(
            f"{name}, {kind_name(kind)}",
            [maps.high_change.get(kind, ""), maps.variance_change[kind]],
            _lowering(maps, kind),
        )
        for name, maps in result.maps.items()
        for kind in maps.variance_change
    ]
    text = (
        "Mean change of the feature map through a branch of each type (after - before), where the grid stays the same. "
        "High frequency: log amplitude of the highest frequency relative to frequency 0; below 0 the branch is a "
        "low-pass filter."
    )
    return Table("Change through a branch", ["high frequency", "variance"], rows, text)


def _lowering(maps: FeatureMaps, kind: str) -> str:
    changes = [one.high_change.value for one in maps.units if one.kind == kind and one.high_change]
    return f"{len(changes)} branches, {sum(change < 0 for change in changes)} lower it" if changes else ""


def _model_sections(maps: FeatureMaps, suffix: str) -> list[Section]:
    grids = " and ".join(dict.fromkeys(f"{one.height} x {one.width}" for one in maps.units))
    last = " and ".join(dict.fromkeys(f"{one.frequency[-1]:.3g}π" for one in maps.units if len(one.frequency) > 1))
    lines = [(one.depth, one.frequency, one.amplitude) for one in maps.units if len(one.frequency) > 1]
    excluded = f" Excluded, because their positions form no grid: {', '.join(maps.left_out)}." if maps.left_out else ""
    sections: list[Section] = []
    if lines:
        title = f"Fourier spectrum{suffix}"
        text = (
            "Log amplitude on the diagonal of the Fourier transform of the feature map after each branch, relative to "
            f"frequency 0; mean over channels and {maps.images:,} images. Grid of {grids}.{excluded}"
        )
        sections.append(Figure(title, text, layer_plots.amplitudes(lines, title)))
        title = f"High frequency{suffix}"
        text = f"The highest of these frequencies ({last}) after each branch, coloured by the branch's type."
        high = [(one.kind, one.depth, one.high) for one in maps.units]
        sections.append(Figure(title, text, layer_plots.through_depth(high, title, "Δ log amplitude", steps=True)))
    title = f"Variance of feature maps{suffix}"
    text = "Variance over positions, mean over channels and images, after each branch."
    variance = [(one.kind, one.depth, one.variance) for one in maps.units]
    sections.append(Figure(title, text, layer_plots.through_depth(variance, title, "variance", steps=True)))
    rows = [
        Row(
            one.unit,
            [one.high, one.high_change or "", one.variance, one.variance_change or ""],
            f"{one.height} x {one.width}",
        )
        for one in maps.units
    ]
    columns = ["high frequency", "change", "variance", "change of variance"]
    return [*sections, Table(f"Branches{suffix}", columns, rows, "After each branch, with its grid.", names="branch")]
