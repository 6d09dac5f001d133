"""Hessian max-eigenvalue spectra: the largest eigenvalues of the loss on one mini-batch after the other.

After Park & Kim, "How Do Vision Transformers Work?" (arXiv 2202.06709), figures 1 and 4: a flat loss has small
eigenvalues, one that is not convex has negative ones. The values of all batches make one density, drawn separately for
negative and positive values.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import gaussian_kde

from clearhead.analyses.each_model import measure_each
from clearhead.analyses.epochs import expand_epochs
from clearhead.analyses.subject import Subject, subject_of
from clearhead.data.augment import Augmentation, augmentation, mix_batch
from clearhead.data.dataset import ImageIndex
from clearhead.data.images import DataLike, as_image_index
from clearhead.data.loading import ImageDataset, loader
from clearhead.landscape import pool_densities
from clearhead.landscape.hessian import LandscapeError, eigenvalues, hessian, loss_closure
from clearhead.landscape.spectrum import SpectralDensity, Trace, spectral_density, trace
from clearhead.metrics.statistics import Estimate, format_value, mean
from clearhead.models.source import ModelLike, as_classifier, display_names
from clearhead.options import Option, Seed, Split, Workers
from clearhead.progress import Progress, track
from clearhead.report import plots
from clearhead.report.page import Figure, Page, Row, Section, Table

Array = npt.NDArray[Any]

DECIDES = ("batch_size",)
EPOCHS = True

MOST_CURVES = 8
"""Figures draw the first of the models; the table has all."""


@dataclass(frozen=True)
class BatchSpectrum:
    """The spectrum of one mini-batch.

    Attributes:
        loss: on the batch.
        values: eigenvalues of largest magnitude.
        lowest, highest: both ends of the spectrum.
        products: Hessian-vector products that were needed.
        error: estimated relative error of the values.
        density, trace: of the whole spectrum, from one probe each, if requested.
    """

    loss: float
    values: list[float]
    lowest: float
    highest: float
    products: int
    error: float
    density: SpectralDensity | None = None
    trace: Trace | None = None


@dataclass(frozen=True)
class Spectrum:
    """The spectra of one model on many mini-batches; means are over batches, with bootstrap intervals.

    Attributes:
        batches: in order.
        largest: mean highest eigenvalue.
        lowest: mean lowest eigenvalue.
        negative: share of negative values among those of largest magnitude.
        positive: mean of the positive ones.
        loss: mean loss.
        trace: mean trace, if requested.
    """

    batches: list[BatchSpectrum]
    largest: Estimate
    lowest: Estimate
    negative: Estimate
    positive: Estimate
    loss: Estimate
    trace: Estimate | None = None


@dataclass(frozen=True)
class HessianResult:
    """The Hessian spectra of several models on the same images, by model; `top` eigenvalues per mini-batch."""

    subject: Subject
    top: int
    spectra: dict[str, Spectrum]


def measure(
    models: Sequence[ModelLike],
    data: DataLike,
    *,
    split: Split = None,
    top: Annotated[int, Option("Number of eigenvalues of largest magnitude per mini-batch.", min=1)] = 5,
    batches: Annotated[int, Option("Number of mini-batches, at most one pass over the images.", min=2)] = 20,
    batch_size: Annotated[int, Option("Mini-batch size.", min=1)] = 16,
    weight_decay: Annotated[float, Option("Weight decay of the loss; it adds to every eigenvalue.", min=0)] = 0.0,
    augment: Annotated[
        Literal["none", "crop", "weak", "strong"],
        Option("Training augmentation. crop: random crop + flip; weak: shift + flip; strong: weak + RandAugment."),
    ] = "none",
    mixup: Annotated[float, Option("Mixup parameter (alpha), drawn per batch; 0 is off.", min=0)] = 0.0,
    cutmix: Annotated[float, Option("CutMix parameter (alpha), drawn per batch; 0 is off.", min=0)] = 0.0,
    label_smoothing: Annotated[float, Option("Label smoothing.", min=0, max=1)] = 0.0,
    tolerance: Annotated[float, Option("Relative error of an eigenvalue.", min=1e-6)] = 1e-3,
    density: Annotated[
        bool, Option("Add the density and the trace of the whole spectrum: 110 more products per batch.")
    ] = False,
    workers: Workers = 0,
    seed: Seed = 0,
    progress: Progress | None = None,
    state: Path | None = None,
) -> HessianResult:
    """Measure how flat and how convex the loss is: the largest Hessian eigenvalues, mini-batch by mini-batch.

    The run folder of ``train --save-epochs`` stands for its saved epochs and its checkpoint.

    Example:
        $ clearhead landscape hessian timm:vit_small_patch16_224 timm:resnet50 DATA --split train

    Args:
        models: classifiers, modules, names or run folders.
        data: labelled images: a folder, another source, or an index.
        top, batches, batch_size, weight_decay, augment, mixup, cutmix, label_smoothing, tolerance, density: as for
            ``spectra``.

    The other arguments are described in ``clearhead.options``.

    Raises:
        LandscapeError: for fewer images than a batch, or a loss without a spectrum.
        DataError: for data that cannot be used.
    """
    options: dict[str, Any] = {"top": top, "batches": batches, "batch_size": batch_size, "weight_decay": weight_decay}
    options |= {"augment": augment, "mixup": mixup, "cutmix": cutmix, "label_smoothing": label_smoothing}
    options |= {"tolerance": tolerance, "density": density, "workers": workers, "seed": seed}

    def read(classes: tuple[str, ...]) -> ImageIndex:
        return as_image_index(data, classes=classes, split=split)

    epochs = expand_epochs(models)
    results, index = measure_each(spectra, Spectrum, epochs, read, progress=progress, state=state, **options)
    used = min(batches, len(index.samples) // batch_size) * batch_size
    subject = replace(subject_of(display_names(models), index, data, split), images=used)
    return HessianResult(subject, top, results)


def spectra(
    model: ModelLike,
    index: ImageIndex,
    *,
    top: int = 5,
    batches: int = 20,
    batch_size: int = 16,
    weight_decay: float = 0.0,
    augment: Augmentation = "none",
    mixup: float = 0.0,
    cutmix: float = 0.0,
    label_smoothing: float = 0.0,
    tolerance: float = 1e-3,
    density: bool = False,
    workers: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Spectrum:
    """Return the spectrum of the mean cross-entropy on mini-batches drawn at random.

    Args:
        model: the classifier; it runs in eval mode where its parameters are.
        index: the images with their labels.
        top: number of eigenvalues per batch.
        batches: number of batches, at most one pass over the images.
        batch_size: images per batch.
        weight_decay: λ of λ/2 ||w||² in the loss; it adds λ to every eigenvalue.
        augment: the training augmentation, as in ``TrainConfig``; ``crop`` takes at least half of the area.
        mixup, cutmix, label_smoothing: as in ``TrainConfig``; images and their labels are mixed per batch.
        tolerance: relative error of an eigenvalue.
        density: add the density and the trace of the whole spectrum, with 110 products per batch.
        workers: data-loading processes.
        seed: of the batches, the augmentation, and the first vectors.
        progress: shows progress.

    Raises:
        LandscapeError: for fewer images than a batch, or a loss without a spectrum.
        DataError: for an image that cannot be read.
    """
    model = as_classifier(model)
    if len(index.samples) < batch_size:
        raise LandscapeError(f"{index.root}: {len(index.samples)} images are fewer than a batch of {batch_size}")
    images = ImageDataset(index, model.preprocess, augmentation(augment, 0.5))
    count = min(batches, len(index.samples) // batch_size)
    drawn = islice(loader(images, batch_size, workers, shuffle=True, seed=seed), count)
    device = model.device

    def batch_spectrum(number: int, batch: Mapping[str, Any]) -> BatchSpectrum:
        # a function, so that its graph is freed before the next one is built
        image, target = batch["image"], batch["label"]
        if mixup or cutmix or label_smoothing:
            soft = {"mixup": mixup, "cutmix": cutmix, "label_smoothing": label_smoothing}
            image, target = mix_batch(image, target, len(model.classes), **soft, seed=(seed, number))
        loss = loss_closure(model, image.to(device), target.to(device))
        with hessian(model.module, loss, weight_decay=weight_decay) as matrix:
            e = eigenvalues(matrix, top, tolerance=tolerance, seed=seed)
            probe = seed + number  # other random vectors for each batch: their errors do not add up
            bulk = (spectral_density(matrix, seed=probe), trace(matrix, seed=probe)) if density else (None, None)
            return BatchSpectrum(matrix.loss, e.values, e.lowest, e.highest, e.products, e.error, *bulk)

    tracked = track(drawn, progress, "mini-batches", count)
    measured = [batch_spectrum(number, batch) for number, batch in enumerate(tracked)]
    values = [np.array(one.values) for one in measured]
    return Spectrum(
        measured,
        largest=mean(np.array([one.highest for one in measured]), seed=seed),
        lowest=mean(np.array([one.lowest for one in measured]), seed=seed),
        negative=mean(np.array([(v < 0).mean() for v in values]), "%", seed),
        positive=mean(np.array([v[v > 0].mean() for v in values if (v > 0).any()]), seed=seed),
        loss=mean(np.array([one.loss for one in measured]), "nats", seed),
        trace=mean(np.array([one.trace.value for one in measured if one.trace]), seed=seed) if density else None,
    )


def page(result: HessianResult) -> Page:
    """Show changes by epoch, the density of negative and positive values, the whole spectrum, and a table of models."""
    sections, (drawn, note) = _by_epoch(result), _first(result.spectra)
    values = {name: np.concatenate([b.values for b in spectrum.batches]) for name, spectrum in drawn.items()}
    for word, sign in (("Negative", -1), ("Positive", 1)):
        one = {name: v[v * sign > 0] for name, v in values.items() if len(np.unique(v[v * sign > 0])) > 1}
        if one:
            medians = [abs(float(np.median(v))) for v in one.values()]
            log = max(medians) > 10 * min(medians)
            title = f"{word} eigenvalues"
            text = (
                f"Density of the {word.lower()} values among the {result.top} eigenvalues of largest magnitude of each "
                f"mini-batch{', by power of ten: the models are far apart' if log else ''}.{note}"
            )
            label = "magnitude of the eigenvalue" if log and sign < 0 else "eigenvalue"
            points = {name: _density(v, log) for name, v in one.items()}
            plot = plots.lines(points, title, label, "density", unit="", markers=False, log_x=log)
            sections.append(Figure(title, text, plot))
    pooled = {
        name: pool_densities(b.density for b in spectrum.batches if b.density)
        for name, spectrum in drawn.items()
        if spectrum.batches[0].density
    }
    if pooled:
        title = "Whole spectrum"
        text = (
            "Density of all eigenvalues, mean over mini-batches, by stochastic Lanczos quadrature; smooth_labels by a "
            f"Gaussian of 1% of the range, in powers of ten: most eigenvalues are near 0.{note}"
        )
        plot = plots.lines(_smooth(pooled), title, "eigenvalue", "density", unit="", markers=False, log_y=True)
        sections.append(Figure(title, text, plot))
    subject = result.subject
    return Page(
        f"{subject.listed()}: Hessian spectra",
        f"The loss on mini-batches of {subject.data}.",
        sections=[*sections, _table(result)],
    )


def _table(result: HessianResult) -> Table:
    rows = []
    for name, spectrum in result.spectra.items():
        cells = [spectrum.largest, spectrum.lowest, spectrum.negative, spectrum.positive, spectrum.loss]
        cells += [spectrum.trace] if spectrum.trace else []
        products = float(np.mean([b.products for b in spectrum.batches]))
        rows.append(Row(name, cells, f"{len(spectrum.batches)} batches, {format_value(products)} products each"))
    text = (
        "Means over mini-batches. Highest and lowest: the two ends of the whole spectrum. Negative: share of negative "
        f"values among the {result.top} eigenvalues of largest magnitude; positive: mean of the positive ones."
    )
    with_trace = any(spectrum.trace for spectrum in result.spectra.values())
    columns = ["highest", "lowest", "negative", "positive", "loss", *(["trace"] if with_trace else [])]
    return Table("Spectra", columns, rows, text, names="model")


def _by_epoch(result: HessianResult) -> list[Section]:
    """Show the highest eigenvalue and the share of negative ones against the epoch, for each run of several epochs."""
    epochs: dict[str, list[tuple[int, str]]] = {}
    for name in result.spectra:
        if match := re.fullmatch(r"(?:(.*), )?epoch (\d+)", name):
            epochs.setdefault(match[1] or "epochs", []).append((int(match[2]), name))
    several, note = _first({run: numbered for run, numbered in epochs.items() if len(numbered) > 1})
    sections: list[Section] = []
    for title, label, unit, attribute in (
        ("Highest eigenvalue by epoch", "eigenvalue", "", "largest"),
        ("Negative eigenvalues by epoch", "share", "%", "negative"),
    ):
        points = {
            run: [(float(epoch), *_bar(getattr(result.spectra[name], attribute))) for epoch, name in numbered]
            for run, numbered in several.items()
        }
        if not any(y for line in points.values() for _, y, _ in line):
            continue
        text = f"Mean over mini-batches with its 95% interval.{note}"
        sections.append(Figure(title, text, plots.lines(points, title, "epoch", label, unit=unit)))
    return sections


def _first(lines: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the models that a figure draws, and a sentence where they are not all."""
    drawn = dict(list(lines.items())[:MOST_CURVES])
    return drawn, "" if len(drawn) == len(lines) else f" The first {MOST_CURVES} of {len(lines)} models."


def _bar(estimate: Estimate) -> tuple[float, float]:
    half = (estimate.high - estimate.low) / 2
    return estimate.value, half if math.isfinite(half) else 0.0


def _density(values: Array, log: bool) -> list[tuple[float, float, float]]:
    """Return a Gaussian kernel density (Scott's rule) of values of one sign, or of their magnitudes' powers of ten."""
    points = np.log10(np.abs(values)) if log else values
    margin = 0.1 * float(np.ptp(points))
    low, high = float(points.min() - margin), float(points.max() + margin)
    if not log:
        low, high = (max(low, 0.0), high) if values[0] > 0 else (low, min(high, 0.0))
    grid = np.linspace(low, high, 100)
    heights = gaussian_kde(points)(grid)
    return [(float(x), float(y), 0.0) for x, y in zip(10**grid if log else grid, heights, strict=True)]


def _smooth(densities: Mapping[str, SpectralDensity]) -> dict[str, list[tuple[float, float, float]]]:
    """Return smooth densities on one grid, cut off a little below the lowest bump of a node at either end."""
    nodes = np.concatenate([np.asarray(part) for d in densities.values() for part in d.nodes])
    low, high = float(nodes.min()), float(nodes.max())
    width = 0.01 * (high - low) or 1e-3 * max(abs(high), 1e-30)
    grid = np.linspace(low - 4 * width, high + 4 * width, 432)  # four points per width
    curves = {name: d.smooth(grid, width) for name, d in densities.items()}
    ends = [
        float(d.smooth(np.array([min(map(min, d.nodes)), max(map(max, d.nodes))]), width).min())
        for d in densities.values()
    ]
    floor = max(0.3 * min(ends), 1e-10 * max(float(curve.max()) for curve in curves.values()))
    return {
        name: [(float(x), max(float(y), floor), 0.0) for x, y in zip(grid, curve, strict=True)]
        for name, curve in curves.items()
    }
