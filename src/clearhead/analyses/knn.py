"""Measure how well a model's features separate classes it was not trained on, by k-nearest-neighbour accuracy.

Each image is assigned the majority class of its k nearest neighbours, by the cosine similarity of the penultimate
features. Nothing is trained, so the features before and after a repair can be compared on any data set (as in arXiv
2206.01161, figs. 12 to 14).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clearhead.analyses.each_model import measure_each
from clearhead.analyses.subject import Subject, subject_of
from clearhead.data.dataset import ImageIndex
from clearhead.data.image_io import DataError
from clearhead.data.images import DataLike, as_image_index
from clearhead.data.loading import ImageDataset, loader
from clearhead.errors import ClearheadError
from clearhead.metrics.statistics import Estimate, accuracy_difference, proportion
from clearhead.models import Classifier
from clearhead.models.features import features
from clearhead.models.source import ModelLike, as_backbone, display_names
from clearhead.options import BatchSize, Option, Split, Workers
from clearhead.progress import Progress, track
from clearhead.report.page import Page, Row, Table

_QUERIES, _REFERENCES = 256, 16384
"""Rows and columns of one chunk of similarities: 16 MiB in float32."""


@dataclass(frozen=True)
class NearestNeighbours:
    """k-NN classification of N images.

    Attributes:
        accuracy: by k.
        correct: by k, whether each image was classified correctly, N, in the order of the index; two models can be
            compared in pairs.
        file: unique name of each image, N.
        bank: number of reference images each image was compared with.
    """

    accuracy: dict[int, Estimate]
    correct: dict[int, list[bool]]
    file: list[str]
    bank: int


@dataclass(frozen=True)
class KnnResult:
    """k-NN accuracy of several models on the same images.

    Attributes:
        subject: models and data.
        accuracy: by model, then k.
        change: by model except the first, then k: its accuracy minus that of the first model, paired.
    """

    subject: Subject
    accuracy: dict[str, dict[int, Estimate]]
    change: dict[str, dict[int, Estimate]]


def measure(
    models: Sequence[ModelLike],
    data: DataLike,
    *,
    split: Split = None,
    k: Annotated[Sequence[int], Option("Numbers of neighbours, comma-separated.")] = (1, 10),
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    progress: Progress | None = None,
    state: Path | None = None,
) -> KnnResult:
    """Measure how well features separate classes, by leave-one-out k-nearest-neighbour accuracy.

    The classes are those of the data and need not be the models'. With several models, the others are compared with
    the first, image by image.

    Example:
        $ clearhead knn timm:vit_small_patch16_224 hf-dataset:uoft-cs/cifar100/cifar100 --split test

    Args:
        models: classifiers or names; weights without a classifier head too.
        data: the images: a folder, another source, or an index.
        k: numbers of neighbours.

    The other arguments are described in ``clearhead.options``.

    Raises:
        DataError: for data that cannot be used, or of one class.
        ClearheadError: if a k is outside 1..images - 1, a feature is not finite, or a model's logits are not the output
            of one linear layer.
    """
    index = as_image_index(data, split=split)
    names = display_names(models)
    options: dict[str, Any] = {"k": k, "batch_size": batch_size, "workers": workers}
    by_name = dict(zip(names, models, strict=True))
    results, _ = measure_each(knn, NearestNeighbours, by_name, index, progress=progress, state=state, **options)
    baseline = results[names[0]].correct
    change = {
        name: {
            n: accuracy_difference(np.array(baseline[n]), np.array(correct))
            for n, correct in results[name].correct.items()
        }
        for name in names[1:]
    }
    accuracy = {name: result.accuracy for name, result in results.items()}
    return KnnResult(subject_of(names, index, data, split), accuracy, change)


def knn(
    model: ModelLike,
    data: DataLike,
    *,
    k: Sequence[int] = (1, 10),
    bank: DataLike | None = None,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
) -> NearestNeighbours:
    """Return the k-NN accuracy of a model's features; the classes are those of the data, not the model's.

    Args:
        model: the classifier; it runs on the device of its parameters.
        data: the images to classify: a folder, another source, or an index read without the model's classes.
        k: numbers of neighbours.
        bank: reference images of known class; None compares each image with all others (leave-one-out).
        batch_size: images per batch.
        workers: data-loading processes.
        progress: shows progress.

    Raises:
        DataError: if a file is unreadable, all images are of one class, or the bank has other classes.
        ClearheadError: if a k is outside 1..images in the bank, a feature is not finite, or the model's logits are not
            the output of one linear layer.
    """
    index = as_image_index(data)
    references = index if bank is None else as_image_index(bank)
    size = len(references.samples) - (bank is None)
    _require_usable(index, references, k, size)
    model = as_backbone(model)
    x = _features(model, index, batch_size, workers, progress)
    others = None if bank is None else _features(model, references, batch_size, workers, progress)
    nearest = neighbours(x, max(k), others).cpu()
    labels, bank_labels = (torch.tensor([sample.label for sample in f.samples]) for f in (index, references))
    correct = {n: (vote(bank_labels[nearest[:, :n]]) == labels).numpy() for n in k}
    return NearestNeighbours(
        accuracy={n: proportion(values) for n, values in correct.items()},
        correct={n: values.tolist() for n, values in correct.items()},
        file=[sample.file for sample in index.samples],
        bank=size,
    )


def neighbours(x: Tensor, k: int, bank: Tensor | None = None) -> Tensor:
    """Return the indices (N x k) of the rows of the bank (M x D) nearest to each row of `x` (N x D), nearest first.

    The search is exact, by cosine similarity. Without a bank, the neighbours are the other rows of `x`. A row of zeros
    is equally far from all rows. Memory is bounded: the N x M similarities are computed in chunks.
    """
    x = F.normalize(x.detach(), dim=1)
    references = x if bank is None else F.normalize(bank.detach(), dim=1)
    return torch.cat([_nearest(x, start, k, references, bank is None) for start in range(0, len(x), _QUERIES)])


def _nearest(x: Tensor, start: int, k: int, references: Tensor, leave_out: bool) -> Tensor:
    """Return the neighbours of one chunk of the rows, merged over the chunks of the references."""
    queries = x[start : start + _QUERIES]
    best = queries.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.long, device=x.device)
    for first in range(0, len(references), _REFERENCES):
        similarity = queries @ references[first : first + _REFERENCES].T
        if leave_out:
            similarity.diagonal(start - first).fill_(-torch.inf)  # empty where the rows are not in this chunk
        values, columns = similarity.topk(min(k, similarity.shape[1]))
        best, indices = torch.cat([best, values], 1), torch.cat([indices, first + columns], 1)
        best, order = best.topk(min(k, best.shape[1]))
        indices = indices.gather(1, order)
    return indices


def vote(labels: Tensor) -> Tensor:
    """Return the majority label of the neighbours (N x k, nearest first), N; ties go to the nearest neighbour."""
    votes = (labels[:, :, None] == labels[:, None, :]).sum(-1)
    return labels.gather(1, votes.argmax(1, keepdim=True))[:, 0]  # the first maximum


def _require_usable(index: ImageIndex, references: ImageIndex, k: Sequence[int], size: int) -> None:
    if index.classes != references.classes:
        raise DataError(
            f"bank: {references.root} has other classes than {index.root} ({len(references.classes)} and "
            f"{len(index.classes)}); read both with the same classes: read_folder(..., classes=bank.classes)"
        )
    labels = {sample.label for sample in references.samples}
    if len(labels) < 2:
        raise DataError(
            f"{references.root}: all images are of one class, {references.classes[min(labels)]}; k-NN needs two or more"
        )
    if not k or min(k) < 1 or max(k) > size:
        raise ClearheadError(f"k: got {', '.join(map(str, k)) or 'none'}; give numbers of neighbours in 1..{size}")


def _features(model: Classifier, index: ImageIndex, batch_size: int, workers: int, progress: Progress | None) -> Tensor:
    """Return the features of each image, N x D in float32, on the device of the model."""
    batches = loader(ImageDataset(index, model.preprocess), batch_size, workers)
    x = features(model, track(batches, progress, "features")).float()
    if broken := (~x.isfinite().all(1)).nonzero().flatten().tolist():
        file = index.samples[broken[0]].path
        raise ClearheadError(f"model: the features of {len(broken)} images are not finite; the first is {file}")
    return x.to(model.device)


def page(result: KnnResult) -> Page:
    """Show accuracy by model and number of neighbours, then the changes from the first model."""
    columns = [f"k = {k}" for k in next(iter(result.accuracy.values()))]
    rows = [Row(model, list(by_k.values())) for model, by_k in result.accuracy.items()]
    baseline = result.subject.model
    rows += [Row(f"{model} - {baseline}", list(by_k.values())) for model, by_k in result.change.items()]
    text = (
        "Fraction of images with the class of most of their k nearest neighbours, by the cosine similarity of the "
        "penultimate features. Nothing is trained. Differences are paired, image by image."
    )
    return Page(
        f"{result.subject.listed()}: nearest neighbours",
        f"Leave-one-out k-NN accuracy on {result.subject.images:,} images of {result.subject.data}.",
        sections=[Table("k-NN accuracy", columns, rows, text, names="model")],
    )
