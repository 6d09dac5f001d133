"""Measure frequencies and variance of feature maps through the depth of a model.

After Park & Kim, "How Do Vision Transformers Work?" (arXiv 2202.06709), figures 2 and 8: attention lowers the high
frequencies and the variance of feature maps, convolutions raise them. One forward pass per image; a feature map is
measured where it is computed, and none is stored.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clearhead.analyses.each_model import measure_each
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
from clearhead.progress import Progress, track
from clearhead.report import layer_plots
from clearhead.report.layer_plots import type_name
from clearhead.report.page import Figure, Page, Row, Section, Table

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class FeatureMap:
    """The feature map after one residual branch, over images.

    Attributes:
        branch, type, depth: name, type and depth of the branch, as in ``ResidualBranch``.
        height, width: its grid of positions.
        frequency: of each amplitude, in units of π (radians per position).
        amplitude: relative log amplitude at each frequency, mean over images; 0 at frequency 0.
        high: that of the last frequency; NaN on a grid too small to have one.
        variance: over positions.
        high_change, variance_change: through the branch, after - before; None where the grid before was another, or
            unknown, or too small.
    """

    branch: str
    type: str
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
        branches: in order of depth.
        high_change: by type, the mean change of the last frequency's amplitude through a branch of this type.
        variance_change: by type, the mean change of the variance.
        left_out: names of branches whose positions form no grid.
        images: how many.
    """

    branches: list[FeatureMap]
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
    """Return the frequencies of ``log_amplitudes`` in units of π: 0 to the last below π, 6/7 π on a grid of 14."""
    shorter = min(height, width)
    return [2 * k / shorter for k in range((shorter + 1) // 2)]


def log_amplitudes(values: Tensor, height: int, width: int) -> Tensor:
    """Return log(|F| + 1e-6) on the diagonal of the Fourier transform from centre to corner, mean over channels.

    The transform is the unnormalised one of two dimensions; where it is not square, the bins nearest to the diagonal
    are used. Only these few are computed, by a product with their waves.

    Args:
        values: B x (height * width) x C.
        height, width: of the grid.

    Returns:
        B x frequencies, as ``frequencies`` lists them.
    """
    cosine, sine = (_waves(height, width, values.device) @ values.float()).chunk(2, 1)
    return (torch.hypot(cosine, sine) + 1e-6).log().mean(-1)


def variances(values: Tensor) -> Tensor:
    """Return the unbiased variance over positions of B x positions x C, mean over channels: B."""
    values = values.float()
    centred = values - values.mean(1, keepdim=True)
    return centred.square_().sum(1).mean(-1) / (values.shape[1] - 1)  # torch.var is several times slower on a CPU


@cache
def _waves(height: int, width: int, device: torch.device) -> Tensor:
    """Return the cosines, then the sines of each frequency at each position: 2 frequencies x positions."""
    with torch.inference_mode(False):  # it is cached
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

    Labels are not used.

    Example:
        $ clearhead layers fourier timm:vit_small_patch16_224 timm:resnet50 DATA

    Args:
        models: classifiers, modules or names.
        data: the images: a folder, another source, or an index.

    The other arguments are described in ``clearhead.options``.

    Raises:
        LayersError: for a model without residual branches, or none of whose feature maps lies on a grid.
        DataError: for data that cannot be used.
    """
    index = sample_n(as_image_index(data, split=split), limit, seed)
    names = display_names(models)
    options = {"batch_size": batch_size, "workers": workers, "seed": seed}
    by_name = dict(zip(names, models, strict=True))
    maps, _ = measure_each(feature_maps, FeatureMaps, by_name, index, progress=progress, state=state, **options)
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
    device = model.device
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
    types = list(dict.fromkeys(one.type for one in maps if one.type != "embed"))
    high, variance = (
        {type_: _mean(np.mean(changes[name, type_], 0), seed) for type_ in types if changes[name, type_]}
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
            f"{name}, {type_name(type_)}",
            [maps.high_change.get(type_, ""), maps.variance_change[type_]],
            _lowering(maps, type_),
        )
        for name, maps in result.maps.items()
        for type_ in maps.variance_change
    ]
    text = (
        "Mean change of the feature map through a branch of each type (after - before), where the grid stays the same. "
        "High frequency: log amplitude of the highest frequency relative to frequency 0; below 0 the branch is a "
        "low-pass filter."
    )
    return Table("Change through a branch", ["high frequency", "variance"], rows, text)


def _lowering(maps: FeatureMaps, type_: str) -> str:
    changes = [one.high_change.value for one in maps.branches if one.type == type_ and one.high_change]
    return f"{len(changes)} branches, {sum(change < 0 for change in changes)} lower it" if changes else ""


def _model_sections(maps: FeatureMaps, suffix: str) -> list[Section]:
    grids = " and ".join(dict.fromkeys(f"{one.height} x {one.width}" for one in maps.branches))
    last = " and ".join(dict.fromkeys(f"{one.frequency[-1]:.3g}π" for one in maps.branches if len(one.frequency) > 1))
    lines = [(one.depth, one.frequency, one.amplitude) for one in maps.branches if len(one.frequency) > 1]
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
        high = [(one.type, one.depth, one.high) for one in maps.branches]
        sections.append(Figure(title, text, layer_plots.through_depth(high, title, "Δ log amplitude", steps=True)))
    title = f"Variance of feature maps{suffix}"
    text = "Variance over positions, mean over channels and images, after each branch."
    variance = [(one.type, one.depth, one.variance) for one in maps.branches]
    sections.append(Figure(title, text, layer_plots.through_depth(variance, title, "variance", steps=True)))
    rows = [
        Row(
            one.branch,
            [one.high, one.high_change or "", one.variance, one.variance_change or ""],
            f"{one.height} x {one.width}",
        )
        for one in maps.branches
    ]
    columns = ["high frequency", "change", "variance", "change of variance"]
    return [*sections, Table(f"Branches{suffix}", columns, rows, "After each branch, with its grid.", names="branch")]
