"""Localisation of relevance maps: their agreement with foreground masks.

A map becomes a segmentation by thresholding at its own mean: pixels above it are foreground. The measures are those of
Chefer, Gur and Wolf (arXiv 2012.09838) and arXiv 2206.01161, whose public code sums pixels over the data set for pixel
accuracy and intersection over union (IoU), and averages average precision (AP) over images. Its AP pools a map's values
for the foreground with one minus them for the background: it depends on how the values are spread over 0..1 as well as
on their order, while the AP of the foreground depends on the order alone. Both are computed here.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from clearhead.analyses.faithfulness import methods_of
from clearhead.analyses.subject import Subject, subject_of
from clearhead.attribution import explain_with_logits
from clearhead.data.dataset import ImageIndex
from clearhead.data.image_io import DataError
from clearhead.data.images import DataLike, as_image_index
from clearhead.data.loading import ImageDataset, loader
from clearhead.errors import ClearheadError
from clearhead.metrics.statistics import Estimate, bootstrap_interval, mean
from clearhead.models.classifier import evaluation_mode
from clearhead.models.source import ModelLike, as_classifier, display_names, require_same_classes
from clearhead.options import BatchSize, Methods, Option, Seed, Split, Workers
from clearhead.prediction.predict import default_method
from clearhead.progress import Progress, prefixed, track
from clearhead.report.page import Page, Row, Table
from clearhead.storage import NotSaved, resumable

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Overlap:
    """Agreement of each of N maps with its mask.

    Attributes:
        correct: fraction of the pixels on the correct side of the threshold, N.
        intersection: number of pixels that are background, and foreground, in both, N x 2.
        union: number of pixels that are so in either, N x 2.
        precision: average precision of the map's values, N: the area under precision against recall of the foreground
            as the threshold falls.
        pooled_precision: average precision of the map's values for the foreground and one minus them for the
            background, pooled, N.
        area: fraction of the pixels that are foreground in the mask, N: the average precision of a constant map.
    """

    correct: Array
    intersection: Array
    union: Array
    precision: Array
    pooled_precision: Array
    area: Array

    @property
    def iou(self) -> Array:
        """Mean of the IoU of foreground and background of each image, N."""
        per_image: Array = (self.intersection / self.union).mean(1)
        return per_image


@dataclass(frozen=True)
class Localisation:
    """The maps of one method as segmentations; intervals are over images.

    Attributes:
        pixel_accuracy: fraction of the pixels on the correct side of the threshold.
        iou: mean of foreground and background of the IoU of all images' pixels together.
        image_iou: mean over images of their own IoU.
        precision: mean over images of the average precision of the foreground.
        pooled_precision: the same of foreground and background pooled, as in the public code.
        area: mean fraction of the image that is foreground.
        excluded: number of images without a usable mask, and, with `correct_only`, of misclassified ones.
        method: the attribution method.
        overlap: the numbers of each image; only in memory.
        file: unique name of each image that counts; only in memory.
    """

    pixel_accuracy: Estimate
    iou: Estimate
    image_iou: Estimate
    precision: Estimate
    pooled_precision: Estimate
    area: Estimate
    excluded: dict[str, int]
    method: str
    overlap: NotSaved = None
    file: NotSaved = None


@dataclass(frozen=True)
class LocalisationResult:
    """Localisation of the maps of several models on the same images.

    Attributes:
        subject: models and data.
        correct_only: whether misclassified images are excluded.
        models: by model, then method.
    """

    subject: Subject
    correct_only: bool
    models: dict[str, dict[str, Localisation]]


def measure(
    models: Sequence[ModelLike],
    data: DataLike,
    *,
    split: Split = None,
    methods: Methods = None,
    correct_only: Annotated[bool, Option("Exclude misclassified images.")] = False,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    seed: Seed = 0,
    progress: Progress | None = None,
    state: Path | None = None,
) -> LocalisationResult:
    """Measure how well relevance maps localise the foreground; needs foreground masks.

    Example:
        $ clearhead localize timm:vit_small_patch16_224 DATA --methods all

    Args:
        models: classifiers or names, all of the same classes.
        data: the images: a folder, another source, or an index.
        methods: keys of ``clearhead.attribution.METHODS``; None is each model's default, ``["all"]`` all it supports.
        correct_only: exclude images whose prediction is wrong.

    The other arguments are described in ``clearhead.options``.

    Raises:
        ModelError: for models of different classes.
        ClearheadError: for an unknown method, or one that a model does not support.
        DataError: for data that cannot be used, or without a usable mask.
    """
    classes = require_same_classes(models)
    index = as_image_index(data, classes=classes, split=split)
    names = display_names(models)
    results: dict[str, dict[str, Localisation]] = {}
    for name, model in zip(names, models, strict=True):
        model = as_classifier(model)
        results[name] = {}
        for method in methods_of(model, methods):
            compute = partial(
                localisation,
                model,
                index,
                method=method,
                correct_only=correct_only,
                batch_size=batch_size,
                workers=workers,
                seed=seed,
                progress=prefixed(progress, f"{name}, {method}"),
            )
            results[name][method] = resumable(state, f"{name}, {method}", compute, Localisation)
    return LocalisationResult(subject_of(names, index, data, split), correct_only, results)


def localisation(
    model: ModelLike,
    index: ImageIndex,
    *,
    method: str | None = None,
    correct_only: bool = False,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Localisation:
    """Compare maps of the predicted class with the masks of the images that have one.

    A mask is as the model sees it, cut at one half; one that then has foreground only, or none, is not usable.

    Args:
        model: the classifier; it runs on the device of its parameters.
        index: the images.
        method: attribution method, a key of ``clearhead.attribution.METHODS``; None is ``default_method``.
        correct_only: exclude images whose prediction is wrong; otherwise labels are not used.
        batch_size: images per batch.
        workers: data-loading processes.
        seed: of the bootstrap.
        progress: shows progress.

    Raises:
        DataError: for a file that cannot be read, or if no image is left.
        ClearheadError: for an unknown method, or one that the model does not support.
    """
    model = as_classifier(model)
    method = method or default_method(model)
    masked = replace(index, samples=tuple(sample for sample in index.samples if sample.mask))
    batches = loader(ImageDataset(masked, model.preprocess), batch_size, workers)
    device = model.device
    columns: dict[str, list[Array]] = defaultdict(list)
    wrong = 0
    with evaluation_mode(model.module):
        for batch in track(batches, progress, "localisation"):
            masks = batch["mask"][:, 0] > 0.5
            counted = usable(masks)
            maps, logits = explain_with_logits(model, batch["image"].to(device), method=method)
            if correct_only:
                correct = logits.argmax(-1).cpu() == batch["label"]
                wrong += int((counted & ~correct).sum())
                counted = counted & correct
            columns["index"].append(batch["index"][counted].numpy())
            for name, values in vars(segmentation(maps[counted.to(device)], masks[counted].to(device))).items():
                columns[name].append(values)
    numbers = {name: np.concatenate(parts) for name, parts in columns.items()}
    positions = numbers.pop("index", np.zeros(0, dtype=int))
    excluded = {"no usable mask": len(index.samples) - len(positions) - wrong}
    excluded |= {"wrong prediction": wrong} if correct_only else {}
    if not len(positions):
        reasons = ", ".join(f"{count} of {len(index.samples)}: {reason}" for reason, count in excluded.items())
        raise DataError(
            f"data: {index.root}: no image is left to compare a map with ({reasons}); masks are PNG files in "
            "masks/<class>/, of the name and size of their image, nonzero where the foreground is"
        )
    overlap = Overlap(**numbers)
    return Localisation(
        pixel_accuracy=mean(overlap.correct, "%", seed),
        iou=_pooled_iou(overlap, seed),
        image_iou=mean(overlap.iou, "%", seed),
        precision=mean(overlap.precision, "%", seed),
        pooled_precision=mean(overlap.pooled_precision, "%", seed),
        area=mean(overlap.area, "%", seed),
        excluded=excluded,
        method=method,
        overlap=overlap,
        file=np.array([sample.file for sample in masked.samples])[positions],
    )


def segmentation(maps: Tensor, masks: Tensor) -> Overlap:
    """Return the agreement of maps (B x H x W in 0..1) with masks (B x H x W, bool, each of both kinds of pixels).

    A constant map has no foreground. Raises ClearheadError for shapes that differ, maps that are not in 0..1, or a mask
    without foreground or background.
    """
    if maps.shape != masks.shape or maps.ndim != 3:
        raise ClearheadError(f"maps and masks: B x H x W both, got {tuple(maps.shape)} and {tuple(masks.shape)}")
    if not ((maps >= 0) & (maps <= 1)).all():
        raise ClearheadError("maps: values in 0..1 are needed, without NaN; see clearhead.attribution.scale")
    values, truth = maps.flatten(1).float(), masks.flatten(1).bool()
    if (bad := ~usable(masks)).any():
        raise ClearheadError(f"masks: {int(bad.sum())} of {len(masks)} are all foreground or all background")
    varies = values.amax(1, keepdim=True) > values.amin(1, keepdim=True)  # rounding can put a constant above its mean
    predicted = (values > values.mean(1, keepdim=True)) & varies
    sides = [(~predicted, ~truth), (predicted, truth)]
    counts = {
        "intersection": torch.stack([(a & b).sum(1) for a, b in sides], 1),
        "union": torch.stack([(a | b).sum(1) for a, b in sides], 1),
        "correct": (predicted == truth).float().mean(1),
        "precision": average_precision(values, truth),
        "pooled_precision": average_precision(torch.cat([values, 1 - values], 1), torch.cat([truth, ~truth], 1)),
        "area": truth.float().mean(1),
    }
    return Overlap(**{name: value.cpu().numpy() for name, value in counts.items()})


def usable(masks: Tensor) -> Tensor:
    """Return which masks (B x H x W, bool) have both foreground and background, B."""
    return masks.flatten(1).any(1) & ~masks.flatten(1).all(1)


def average_precision(scores: Tensor, truth: Tensor) -> Tensor:
    """Return the area under precision against recall, B, of scores (B x P) for the positives `truth` (B x P, bool).

    It is the sum over thresholds of the precision times the growth of recall; equal scores are one threshold. Each row
    needs at least one positive.
    """
    scores, order = scores.sort(1, descending=True)
    positive = truth.gather(1, order)
    rank = torch.arange(1, scores.shape[1] + 1, device=scores.device)
    last = F.pad(scores[:, 1:] < scores[:, :-1], (0, 1), value=True)
    end = rank.where(last, len(rank)).flip(1).cummin(1).values.flip(1)  # how many have this score or a higher one
    precision = positive.cumsum(1).gather(1, end - 1) / end
    return (precision * positive).sum(1) / positive.sum(1)


def _pooled_iou(overlap: Overlap, seed: int) -> Estimate:
    """Return the mean of the two IoUs of all pixels together, with its bootstrap interval over images."""

    def iou(drawn: Array) -> float:
        return float((overlap.intersection[drawn].sum(0) / overlap.union[drawn].sum(0)).mean())

    every = np.arange(len(overlap.correct))
    return Estimate(iou(every), *bootstrap_interval(every, iou, seed, vectorized=False), len(every), "%")


def page(result: LocalisationResult) -> Page:
    """Show the numbers of every model and method in one table."""
    several = len(result.models) > 1
    rows = [
        Row(
            f"{model}, {method}" if several else method,
            [one.pixel_accuracy, one.iou, one.image_iou, one.precision, one.pooled_precision, one.area],
            ", ".join(f"{count:,} excluded: {reason}" for reason, count in one.excluded.items() if count),
        )
        for model, methods in result.models.items()
        for method, one in methods.items()
    ]
    columns = ["pixel accuracy", "mIoU", "mIoU per image", "mAP", "mAP, pooled", "mask area"]
    text = (
        "A map is thresholded at its own mean. mIoU: mean of foreground and background, over the pixels of all images "
        "together. mAP: average precision of the map's values for the foreground, mean over images; a constant map has "
        "the mask area. Pooled: with the background's beside it, as in published tables."
    )
    subject = result.subject
    images = "correctly classified images" if result.correct_only else "images"
    return Page(
        f"{subject.listed()}: localisation of relevance maps",
        f"Maps of the predicted class compared with the masks of {images} of {subject.data}.",
        sections=[Table("Localisation", columns, rows, text, names="method")],
    )
