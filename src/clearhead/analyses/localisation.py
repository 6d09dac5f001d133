"""Is the map the object? Relevance maps as segmentations, against foreground masks.

A map is made a segmentation by its own mean: what is above it is foreground. The figures are those of Chefer, Gur and
Wolf (arXiv 2012.09838) and arXiv 2206.01161, whose public code adds up pixels over the data set for pixel accuracy
and intersection over union (IoU), and takes the mean over images of the average precision (AP). Its AP pools a map's
values for the foreground with one minus them for the background: it tells how well the values are spread over 0..1 as
well as whether they are in the right order, as the AP of the foreground does alone. Both are here.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import bootstrap
from torch import Tensor

from clearhead.attribution import explain_with_logits
from clearhead.data.dataset import ImageIndex
from clearhead.data.image_io import DataError
from clearhead.data.loading import ImageDataset, loader
from clearhead.errors import ClearheadError
from clearhead.metrics.statistics import RESAMPLES, Estimate, mean
from clearhead.models import Classifier
from clearhead.models.classifier import evaluation_mode
from clearhead.prediction.predict import default_method


@dataclass(frozen=True)
class Overlap:
    """How well each of N maps covers its mask.

    Attributes:
        correct: share of the pixels on the right side, N.
        intersection: number of pixels that are background, and foreground, in both, N x 2.
        union: number of pixels that are so in either, N x 2.
        precision: average precision of the map's values, N: the area under precision against recall of the foreground
            as the threshold falls.
        pooled_precision: average precision of the map's values for the foreground and one minus them for the
            background, taken together, N.
    """

    correct: np.ndarray
    intersection: np.ndarray
    union: np.ndarray
    precision: np.ndarray
    pooled_precision: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """Mean of the IoU of foreground and background of each image, N."""
        return (self.intersection / self.union).mean(1)


@dataclass(frozen=True)
class Segmentation:
    """The maps of a model on a folder as segmentations; intervals are over images.

    Attributes:
        pixel_accuracy: share of the pixels on the right side.
        iou: mean of foreground and background of the IoU of all images' pixels together.
        image_iou: mean over images of each one's own.
        precision: mean over images of the average precision of the foreground.
        pooled_precision: the same of foreground and background pooled, as in the public code.
        overlap: the numbers of each image.
        file: unique name of each image that counts.
        left_out: images without a usable mask, and, where only right predictions count, with a wrong one.
        method: the relevance method.
    """

    pixel_accuracy: Estimate
    iou: Estimate
    image_iou: Estimate
    precision: Estimate
    pooled_precision: Estimate
    overlap: Overlap
    file: np.ndarray
    left_out: dict[str, int]
    method: str


def segmentation(maps: Tensor, masks: Tensor) -> Overlap:
    """How well maps cover masks: maps B x H x W in 0..1, masks B x H x W, bool, each of both kinds of pixels.

    Of a constant map, no pixel is foreground. Raises ClearheadError for shapes that differ, maps that are not in 0..1,
    or a
    mask without foreground or background.
    """
    if maps.shape != masks.shape or maps.ndim != 3:
        raise ClearheadError(f"maps and masks: B x H x W both, got {tuple(maps.shape)} and {tuple(masks.shape)}")
    if not ((maps >= 0) & (maps <= 1)).all():
        raise ClearheadError("maps: values in 0..1 are needed, without NaN; see clearhead.attribution.scale")
    values, truth = maps.flatten(1).float(), masks.flatten(1).bool()
    if (bad := ~usable(masks)).any():
        raise ClearheadError(f"masks: {int(bad.sum())} of {len(masks)} are all foreground or all background")
    spread = values.amax(1, keepdim=True) > values.amin(1, keepdim=True)  # rounding can put a constant above its mean
    found = (values > values.mean(1, keepdim=True)) & spread
    sides = [(~found, ~truth), (found, truth)]
    counts = {
        "intersection": torch.stack([(a & b).sum(1) for a, b in sides], 1),
        "union": torch.stack([(a | b).sum(1) for a, b in sides], 1),
        "correct": (found == truth).float().mean(1),
        "precision": average_precision(values, truth),
        "pooled_precision": average_precision(torch.cat([values, 1 - values], 1), torch.cat([truth, ~truth], 1)),
    }
    return Overlap(**{name: value.cpu().numpy() for name, value in counts.items()})


def usable(masks: Tensor) -> Tensor:
    """Which masks (B x H x W, bool) have both foreground and background, B."""
    return masks.flatten(1).any(1) & ~masks.flatten(1).all(1)


def average_precision(scores: Tensor, truth: Tensor) -> Tensor:
    """Area under precision against recall (B) of scores (B x P) for what is true (B x P, bool, some of it in each row).

    The sum over thresholds of the precision times the growth of recall; equal scores are one threshold.
    """
    scores, order = scores.sort(1, descending=True)
    true = truth.gather(1, order)
    place = torch.arange(1, scores.shape[1] + 1, device=scores.device)
    last = F.pad(scores[:, 1:] < scores[:, :-1], (0, 1), value=True)
    end = place.where(last, len(place)).flip(1).cummin(1).values.flip(1)  # how many have this score or a higher one
    precision = true.cumsum(1).gather(1, end - 1) / end
    return (precision * true).sum(1) / true.sum(1)


def segment(
    model: Classifier,
    folder: ImageIndex,
    *,
    method: str | None = None,
    correct_only: bool = False,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    progress: Callable[[Iterable, int], Iterable] | None = None,
) -> Segmentation:
    """The maps of the predicted class as segmentations, on the images of a folder that have masks.

    A mask is as the model sees it, cut at one half; one that then shows foreground alone, or none, is not usable.

    Args:
        model: the classifier; it runs where its parameters are.
        folder: the data, as ``read_folder`` gives it.
        method: relevance method, a key of ``clearhead.attribution.METHODS``; None takes ``default_method``.
        correct_only: leave out images whose prediction is wrong; else their labels do not matter.
        batch_size: images a batch.
        workers: processes that load images; 0 loads in this one.
        seed: of the bootstrap.
        track: wraps the batches to show progress: ``track(batches, count)``.

    Raises:
        DataError: for a file that can no longer be read, or if no image is left.
        ClearheadError: for an unknown method, or one this model cannot be explained by.
    """
    method = method or default_method(model)
    masked = replace(folder, samples=tuple(sample for sample in folder.samples if sample.mask))
    batches = loader(ImageDataset(masked, model.preprocess), batch_size, workers)
    device = next(model.module.parameters()).device
    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    wrong = 0
    with evaluation_mode(model.module):
        for batch in progress(batches, len(batches)) if progress else batches:
            masks = batch["mask"][:, 0] > 0.5
            kept = usable(masks)
            maps, logits = explain_with_logits(model, batch["image"].to(device), method=method)
            if correct_only:
                right = logits.argmax(-1).cpu() == batch["label"]
                wrong += int((kept & ~right).sum())
                kept = kept & right
            columns["index"].append(batch["index"][kept].numpy())
            for name, values in vars(segmentation(maps[kept.to(device)], masks[kept].to(device))).items():
                columns[name].append(values)
    numbers = {name: np.concatenate(parts) for name, parts in columns.items()}
    index = numbers.pop("index", np.zeros(0, dtype=int))
    left_out = {"no usable mask": len(folder.samples) - len(index) - wrong} | (
        {"wrong prediction": wrong} if correct_only else {}
    )
    if not len(index):
        told = ", ".join(f"{count} of {len(folder.samples)}: {why}" for why, count in left_out.items())
        raise DataError(
            f"{folder.root}: no image is left to hold a map against ({told}); masks are PNG files in masks/<class>/, "
            "of the name and size of their image, nonzero where the foreground is"
        )
    overlap = Overlap(**numbers)
    return Segmentation(
        pixel_accuracy=mean(overlap.correct, "%", seed),
        iou=_pooled_iou(overlap, seed),
        image_iou=mean(overlap.iou, "%", seed),
        precision=mean(overlap.precision, "%", seed),
        pooled_precision=mean(overlap.pooled_precision, "%", seed),
        overlap=overlap,
        file=np.array([sample.file for sample in masked.samples])[index],
        left_out=left_out,
        method=method,
    )


def _pooled_iou(overlap: Overlap, seed: int) -> Estimate:
    """Mean of the two IoUs of all pixels together, with the percentile interval of the bootstrap over images."""

    def iou(drawn: np.ndarray) -> float:
        return float((overlap.intersection[drawn].sum(0) / overlap.union[drawn].sum(0)).mean())

    every = np.arange(len(overlap.correct))
    if len(every) < 2:
        return Estimate(iou(every), np.nan, np.nan, len(every), "%")
    found = bootstrap(
        (every,), iou, vectorized=False, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Estimate(iou(every), float(found.low), float(found.high), len(every), "%")
