"""The loss landscape: the loss on a line, a plane or a block of weights through those of a model.

Cross-entropy, the L2 term and accuracy are reported separately: with the weight decay of training the L2 term can be
most of a surface, and it is the same bowl for every model. It needs no forward pass: along the directions it is a
quadratic.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clearhead.analyses.each_model import measure_each
from clearhead.analyses.epochs import expand_epochs
from clearhead.analyses.subject import Subject, subject_of
from clearhead.data.dataset import ImageIndex
from clearhead.data.images import DataLike, as_image_index
from clearhead.data.loading import ImageDataset, loader
from clearhead.errors import ClearheadError
from clearhead.landscape.hessian import LandscapeError, loss_closure
from clearhead.landscape.surface import eigenvector_directions, l2_at_points, loss_at_points, random_directions
from clearhead.metrics.statistics import format_value
from clearhead.models import Classifier
from clearhead.models.source import ModelLike, as_classifier, display_names
from clearhead.options import Option, Seed, Split, Workers
from clearhead.progress import Progress, track
from clearhead.report import plots
from clearhead.report.page import Figure, Page, Row, Section, Table

Array = npt.NDArray[Any]

DECIDES = ("batch_size",)
"""The eigenvectors are those of the first batch."""
EPOCHS = True


@dataclass(frozen=True)
class Surface:
    """The loss on a grid of weights, point by point: the last coordinate changes fastest.

    Attributes:
        dims: number of directions, 1 to 3.
        steps: the coordinates along each of them; the model's own weights are in the middle.
        nll: mean cross-entropy in nats; None where it is not finite.
        l2: λ/2 ||w||²; zeros without weight decay.
        accuracy: share of correct predictions; None where the cross-entropy is not finite.
        images: how many were used.
        curvature: the eigenvalues whose eigenvectors the directions are; empty for random ones.
    """

    dims: int
    steps: list[float]
    nll: list[float | None]
    l2: list[float]
    accuracy: list[float | None]
    images: int
    curvature: list[float]


@dataclass(frozen=True)
class SurfaceResult:
    """The loss landscape around the weights of several models on the same images, by model.

    Attributes:
        subject: the models and images.
        along: the directions.
        surfaces: by model.
    """

    subject: Subject
    along: Literal["random", "eigenvectors"]
    surfaces: dict[str, Surface]


def measure(
    models: Sequence[ModelLike],
    data: DataLike,
    *,
    split: Split = None,
    dims: Annotated[int, Option("Number of directions: 1 (a line), 2 (a plane) or 3 (a block).", min=1, max=3)] = 2,
    points: Annotated[int, Option("Number of points along each direction, an odd number.", min=3)] = 21,
    span: Annotated[
        float, Option("Coordinates go from -span to span; 1 adds a direction with the weights' norm.")
    ] = 1.0,
    along: Annotated[
        Literal["random", "eigenvectors"],
        Option("Random filter-normalised directions, or eigenvectors of the Hessian (try --span 0.02)."),
    ] = "random",
    weight_decay: Annotated[float, Option("Weight decay of the L2 term, which is reported separately.", min=0)] = 0.0,
    limit: Annotated[int, Option("Use at most this many images, drawn at random.", min=1)] = 1000,
    batch_size: Annotated[int, Option("Batch size.", min=1)] = 64,
    workers: Workers = 0,
    seed: Seed = 0,
    progress: Progress | None = None,
    state: Path | None = None,
) -> SurfaceResult:
    """Measure the loss on a grid of weights around a model's own, in points^dims passes over the images.

    The run folder of ``train --save-epochs`` stands for its saved epochs and its checkpoint.

    Example:
        $ clearhead landscape surface timm:vit_small_patch16_224 timm:resnet50 DATA --dims 1

    Args:
        models: classifiers, modules, names or run folders.
        data: labelled images: a folder, another source, or an index.
        dims, points, span, along, weight_decay, limit, batch_size: as for ``surface``.

    The other arguments are described in ``clearhead.options``.

    Raises:
        ClearheadError: for dims, points, limit or a span outside their range.
        LandscapeError: for a model whose loss is not finite at its own weights.
        DataError: for data that cannot be used.
    """
    options: dict[str, Any] = {"dims": dims, "points": points, "span": span, "along": along, "limit": limit}
    options |= {"weight_decay": weight_decay, "batch_size": batch_size, "workers": workers, "seed": seed}

    def read(classes: tuple[str, ...]) -> ImageIndex:
        return as_image_index(data, classes=classes, split=split)

    epochs = expand_epochs(models)
    results, index = measure_each(surface, Surface, epochs, read, progress=progress, state=state, **options)
    subject = subject_of(display_names(models), index, data, split)
    return SurfaceResult(replace(subject, images=min(limit, subject.images)), along, results)


def surface(
    model: ModelLike,
    index: ImageIndex,
    *,
    dims: int = 2,
    points: int = 21,
    span: float = 1.0,
    along: Literal["random", "eigenvectors"] = "random",
    weight_decay: float = 0.0,
    limit: int = 1000,
    batch_size: int = 64,
    workers: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Surface:
    """Return the loss of a classifier on a grid of weights around its own, in points^dims passes over the images.

    The model is in eval mode: no dropout, and batch norm keeps the running statistics of the model's own weights at
    every point. The images are decoded once and stay on the device.

    Args:
        model: the classifier; it runs where its parameters are.
        index: the images with their labels.
        dims: number of directions, 1 to 3.
        points: number along each of them, odd, so that one point is the weights themselves.
        span: the coordinates go from -span to span.
        along: ``random`` directions, or ``eigenvectors`` of the Hessian of the cross-entropy on the first batch, with
            the largest eigenvalues, each with the norm of all parameters together: choose a smaller span there.
        weight_decay: λ of λ/2 ||w||².
        limit: use at most this many images, drawn at random.
        batch_size: images per forward pass.
        workers: data-loading processes.
        seed: of the images and the directions.
        progress: shows progress over the points.

    Raises:
        ClearheadError: for dims, points, limit or a span outside their range.
        LandscapeError: where the loss is not finite at the model's own weights.
    """
    if dims not in (1, 2, 3):
        raise ClearheadError(f"dims: got {dims}; give 1, 2 or 3 directions")
    if points < 3 or points % 2 == 0:
        raise ClearheadError(f"points: got {points}; give an odd number of at least 3: one is the weights themselves")
    if not 0 < span < math.inf:
        raise ClearheadError(f"span: got {span}; give a positive number")
    if limit < 1:
        raise ClearheadError(f"limit: got {limit}; give at least 1 image")
    model = as_classifier(model)
    module, batches = model.module, _batches(model, index, limit, batch_size, workers, seed)
    curvature: list[float] = []
    if along == "random":
        directions = random_directions(module, dims, seed=seed)
    else:
        loss = loss_closure(model.from_normalized, *batches[0])
        directions, curvature = eigenvector_directions(module, loss, dims, seed=seed)
    steps: list[float] = np.linspace(-span, span, points).tolist()
    grid = list(itertools.product(steps, repeat=dims))
    centre = torch.stack(loss_at_points(module, directions, [(0.0,) * dims], batches))
    if not bool(centre[0, 0].isfinite()):
        raise LandscapeError(f"the loss is {centre[0, 0].item()} at the model's own weights: it has no surface there")
    measured = torch.stack(loss_at_points(module, directions, track(grid, progress, "points"), batches)).tolist()
    finite = [(nll, accuracy) if math.isfinite(nll) else (None, None) for nll, accuracy in measured]
    return Surface(
        dims,
        steps,
        [nll for nll, _ in finite],
        l2_at_points(module, directions, grid, weight_decay),
        [accuracy for _, accuracy in finite],
        sum(len(label) for _, label in batches),
        curvature,
    )


def _batches(
    model: Classifier, index: ImageIndex, limit: int, batch_size: int, workers: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Return the first images of a random order, normalised, on the model's device, with their labels."""
    device = model.device
    dataset = ImageDataset(index, model.preprocess)
    missing, batches = min(limit, len(dataset)), []
    for batch in loader(dataset, batch_size, workers, shuffle=True, seed=seed):
        images = model.normalize(batch["image"][:missing].to(device))
        batches.append((images, batch["label"][:missing].to(device)))
        missing -= len(images)
        if missing == 0:
            break
    return batches


_DIRECTIONS = {
    "random": "Directions are random; 1 adds a direction whose filters have the norm of the model's own.",
    "eigenvectors": "Directions are eigenvectors of the Hessian on a mini-batch; 1 adds one with the weights' norm.",
}


def page(result: SurfaceResult) -> Page:
    """Show lines along the first direction, maps of planes, and a table of models."""
    sections: list[Section] = []
    first = next(iter(result.surfaces.values()))
    if first.dims == 1 or len(result.surfaces) > 1:
        sections += _lines(result)
    if first.dims > 1:
        sections += _maps(result)
    subject = result.subject
    return Page(
        f"{subject.listed()}: loss landscape",
        f"The loss on {subject.images:,} images of {subject.data}.",
        sections=[*sections, _table(result)],
    )


def _table(result: SurfaceResult) -> Table:
    rows = []
    for name, one in result.surfaces.items():
        gaps = sum(value is None for value in one.nll)
        note = f"{len(one.nll):,} points, {one.images:,} images" + (f"; not finite at {gaps:,}" if gaps else "")
        if one.curvature:
            note += f"; eigenvalues {', '.join(map(format_value, one.curvature))}"
        middle, nll = len(one.nll) // 2, _filled(one.nll)
        cells = [format_value(float(x), "nats") for x in (nll[middle], np.nanmean(nll) - nll[middle], np.nanmax(nll))]
        accuracy = format_value(float(_filled(one.accuracy)[middle]), "%")
        rows.append(Row(name, [*cells, accuracy, format_value(one.l2[middle]) if any(one.l2) else "–"], note))
    text = (
        "Cross-entropy at the model's own weights, its mean rise over all points, and its highest value; accuracy and "
        f"the L2 term at its own weights. {_DIRECTIONS[result.along]}"
    )
    columns = ["loss at the weights", "mean rise", "highest", "accuracy", "L2 term"]
    return Table("Surface", columns, rows, text, names="model")


def _quantities(one: Surface) -> dict[str, tuple[Array, str]]:
    """Return what is drawn, by title: numbers on the grid, and their unit."""
    nll, l2 = _filled(one.nll), np.array(one.l2)
    drawn = {"Cross-entropy": (nll, "nats"), "Accuracy": (_filled(one.accuracy), "%")}
    if l2.any():
        drawn |= {"L2 term": (l2, ""), "Cross-entropy + L2": (nll + l2, "")}
    shape = [len(one.steps)] * one.dims
    return {title: (values.reshape(shape), unit) for title, (values, unit) in drawn.items()}


def _lines(result: SurfaceResult) -> list[Section]:
    """Draw all models on the line along the first direction through their weights."""
    sections: list[Section] = []
    quantities = {name: _quantities(one) for name, one in result.surfaces.items()}
    for title, (_, unit) in next(iter(quantities.values())).items():
        points = {}
        for name, one in result.surfaces.items():
            values = quantities[name][title][0].reshape(len(one.steps), -1)
            line = values[:, values.shape[1] // 2]
            points[name] = [(x, float(y), 0.0) for x, y in zip(one.steps, line, strict=True)]
        heading = f"{title} on a line"
        label = title.lower().replace("l2", "L2")
        plot = plots.lines(points, heading, "along direction 1", label, unit=unit, markers=False)
        sections.append(Figure(heading, _DIRECTIONS[result.along], plot))
    return sections


def _maps(result: SurfaceResult) -> list[Section]:
    """Draw maps of each quantity, all models in the same colours; of 3 dimensions, the planes across the third one."""
    sections: list[Section] = []
    quantities = {name: _quantities(one) for name, one in result.surfaces.items()}
    for title, (_, unit) in next(iter(quantities.values())).items():
        values = np.concatenate([drawn[title][0].ravel() for drawn in quantities.values()])
        limits = (float(np.nanmin(values)), float(np.nanmax(values)))
        for name, one in result.surfaces.items():
            for label, plane in _planes(quantities[name][title][0], one.steps).items():
                if np.isfinite(plane).any():
                    heading = f"{title}{label}" + (f": {name}" if len(result.surfaces) > 1 else "")
                    plot = plots.contours(
                        plane.tolist(), one.steps, heading, "direction 1", "direction 2", limits, unit
                    )
                    sections.append(Figure(heading, f"+: the model's own weights. {_DIRECTIONS[result.along]}", plot))
    return sections


def _planes(values: Array, steps: Sequence[float]) -> dict[str, Array]:
    """Return a grid of 2 dimensions as it is; of 3, the planes at both ends and in the middle of the third one."""
    if values.ndim == 2:
        return {"": values}
    shown = (0, len(steps) // 2, len(steps) - 1)
    return {f", direction 3 at {steps[i]:g}".replace("-", "−"): values[..., i] for i in shown}


def _filled(values: Sequence[float | None]) -> Array:
    return np.array([math.nan if value is None else value for value in values])
