"""Measure how well a model's features separate classes it was not trained on, by k-nearest-neighbour accuracy.

Each image is assigned the majority class of its k nearest neighbours, by the cosine similarity of the penultimate
features. Nothing is trained, so the features before and after a repair can be compared on any data set (as in arXiv
2206.01161, figs. 12 to 14).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clearhead.data.dataset import ImageIndex
from clearhead.data.image_io import DataError
from clearhead.data.loading import ImageDataset, loader
from clearhead.errors import ClearheadError
from clearhead.metrics.statistics import Estimate, proportion
from clearhead.models import Classifier
from clearhead.models.features import features

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
    correct: dict[int, np.ndarray]
    file: np.ndarray
    bank: int


def knn(
    model: Classifier,
    folder: ImageIndex,
    *,
    k: Sequence[int] = (1, 10),
    bank: ImageIndex | None = None,
    batch_size: int = 32,
    workers: int = 0,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] | None = None,
) -> NearestNeighbours:
    """Return the k-NN accuracy of a model's features; the classes are those of the data, not the model's.

    Args:
        model: the classifier; it runs on the device of its parameters.
        folder: the images to classify, read without the model's classes.
        k: numbers of neighbours.
        bank: reference images of known class; None compares each image with all others (leave-one-out).
        batch_size: images per batch.
        workers: processes that load images; 0 loads in the main process.
        progress: wraps the batches to show progress: ``progress(batches, count)``.

    Raises:
        DataError: if a file is unreadable, all images are of one class, or the bank has other classes.
        ClearheadError: if a k is outside 1..images in the bank, a feature is not finite, or the model's logits are not
            the output of one linear layer.
    """
    references = bank or folder
    size = len(references.samples) - (bank is None)
    _check(folder, references, k, size)
    x = _features(model, folder, batch_size, workers, progress)
    others = None if bank is None else _features(model, bank, batch_size, workers, progress)
    nearest = neighbours(x, max(k), others).cpu()
    labels, bank_labels = (torch.tensor([sample.label for sample in f.samples]) for f in (folder, references))
    correct = {n: (vote(bank_labels[nearest[:, :n]]) == labels).numpy() for n in k}
    return NearestNeighbours(
        accuracy={n: proportion(values) for n, values in correct.items()},
        correct=correct,
        file=np.array([sample.file for sample in folder.samples]),
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


def _check(folder: ImageIndex, references: ImageIndex, k: Sequence[int], size: int) -> None:
    if folder.classes != references.classes:
        raise DataError(
            f"bank: {references.root} has other classes than {folder.root} ({len(references.classes)} and "
            f"{len(folder.classes)}); read both with the same classes: read_folder(..., classes=bank.classes)"
        )
    labels = {sample.label for sample in references.samples}
    if len(labels) < 2:
        raise DataError(
            f"{references.root}: all images are of one class, {references.classes[min(labels)]}; k-NN needs two or more"
        )
    if not k or min(k) < 1 or max(k) > size:
        raise ClearheadError(f"k: {', '.join(map(str, k)) or 'none'}; numbers of neighbours in 1..{size} are needed")


def _features(
    model: Classifier,
    folder: ImageIndex,
    batch_size: int,
    workers: int,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] | None,
) -> Tensor:
    """Return the features of each image, N x D in float32, on the device of the model."""
    batches = loader(ImageDataset(folder, model.preprocess), batch_size, workers)
    x = features(model, progress(batches, len(batches)) if progress else batches).float()
    if broken := (~x.isfinite().all(1)).nonzero().flatten().tolist():
        file = folder.samples[broken[0]].path
        raise ClearheadError(f"model: the features of {len(broken)} images are not finite; the first is {file}")
    return x.to(next(model.module.parameters()).device)
