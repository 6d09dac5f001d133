"""k-nearest-neighbour accuracy of a model's features: how well do they part classes it was never trained for?

Each image is given the class that most of its k nearest neighbours have, by the cosine of the features (what the last
layer is given). Nothing is trained, so that the features before and after a repair can be held against each other
on any folder (as in arXiv 2206.01161, figs. 12 to 14).
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

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

_QUERIES, _BANK = 256, 16384
"""Similarities that are alive at once: 16 MiB."""

_GROUP = 64
"""Columns whose maximum is taken first."""


@dataclass(frozen=True)
class NearestNeighbours:
    """k-NN on N images.

    Attributes:
        accuracy: for each k.
        correct: for each k, whether each image got its class, N, in the order of the folder; two models' can be paired.
        file: unique name of each image, N.
        bank: how many images each was compared with.
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
    progress: Callable[[Iterable, int], Iterable] | None = None,
) -> NearestNeighbours:
    """k-NN accuracy of a model's features; the classes are the folder's, and need not be the model's.

    Args:
        model: the classifier; it runs where its parameters are.
        folder: the images to classify, read without the model's classes.
        k: numbers of neighbours.
        bank: the images whose classes are known; None takes all others of the folder (leave one out).
        batch_size: images a batch.
        workers: processes that load images; 0 loads in this one.
        track: wraps the batches to show progress: ``track(batches, count)``.

    Raises:
        DataError: for a file that can no longer be read, fewer than two classes among the images, or a bank of other
            classes.
        ClearheadError: for a k that is not in 1..images in the bank, features that are not finite, or a model whose
        logits
            are not the output of one linear layer.
    """
    known = bank or folder
    size = len(known.samples) - (bank is None)
    _check(folder, known, k, size)
    x = _features(model, folder, batch_size, workers, progress)
    others = None if bank is None else _features(model, bank, batch_size, workers, progress)
    nearest = neighbours(x, max(k), others).cpu()
    labels, of_bank = (torch.tensor([sample.label for sample in f.samples]) for f in (folder, known))
    correct = {n: (vote(of_bank[nearest[:, :n]]) == labels).numpy() for n in k}
    return NearestNeighbours(
        accuracy={n: proportion(right) for n, right in correct.items()},
        correct=correct,
        file=np.array([sample.file for sample in folder.samples]),
        bank=size,
    )


def neighbours(x: Tensor, k: int, bank: Tensor | None = None) -> Tensor:
    """Indices (N x k) of the rows of the bank (M x D) nearest to each row of `x` (N x D) by cosine, nearest first.

    Exact; without a bank, of the other rows of `x`. A row of zeros is as far from all. No more than a part of the
    N x M similarities is held at once. Faiss searches where it is installed (float32 on a CPU under Linux), which is
    faster and the same but for the order of rows that are equally near.
    """
    x = F.normalize(x.detach(), dim=1)
    known = x if bank is None else F.normalize(bank.detach(), dim=1)
    # elsewhere than on Linux, faiss and torch each bring an OpenMP of their own and bring the process down
    if sys.platform == "linux" and x.device.type == "cpu" and x.dtype == torch.float32 and find_spec("faiss"):
        return _by_faiss(x, k, known, bank is None)
    return torch.cat([_nearest(x, start, k, known, bank is None) for start in range(0, len(x), _QUERIES)])


def _by_faiss(x: Tensor, k: int, known: Tensor, leave_out: bool) -> Tensor:
    import faiss

    index = faiss.IndexFlatIP(known.shape[1])
    index.add(known.numpy())
    found = torch.from_numpy(index.search(x.numpy(), k + leave_out)[1])
    if not leave_out:
        return found
    others = found != torch.arange(len(x))[:, None]
    others[others.all(1), -1] = False  # so many twins that the row itself is not among them
    return found[others].view(len(x), k)


def _nearest(x: Tensor, start: int, k: int, known: Tensor, leave_out: bool) -> Tensor:
    """The neighbours of one part of the rows, found part by part of the bank."""
    queries = x[start : start + _QUERIES]
    best, found = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long, device=x.device)
    for first in range(0, len(known), _BANK):
        similarity = queries @ known[first : first + _BANK].T
        if leave_out:
            similarity.diagonal(start - first).fill_(-torch.inf)  # empty where the rows are not in this part
        values, index = _highest(similarity, k)
        best, found = torch.cat([best, values], 1), torch.cat([found, first + index], 1)
        best, chosen = best.topk(min(k, best.shape[1]))
        found = found.gather(1, chosen)
    return found


def _highest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest of each row (N x M) and their columns, or all M where they are fewer.

    They lie in the k groups of columns whose maxima are highest, so that little is left to sort.
    """
    count = values.shape[1]
    if missing := -count % _GROUP:
        values = F.pad(values, (0, missing), value=-torch.inf)
    groups = values.unflatten(1, (-1, _GROUP))
    highest = groups.amax(2).topk(min(k, groups.shape[1])).indices[:, :, None]
    columns = highest * _GROUP + torch.arange(_GROUP, device=values.device)
    found, chosen = groups.gather(1, highest.expand_as(columns)).flatten(1).topk(min(k, count))
    return found, columns.flatten(1).gather(1, chosen)


def vote(labels: Tensor) -> Tensor:
    """The label most of the neighbours have (N x k, nearest first, to N); of equals, the one of the nearest."""
    votes = (labels[:, :, None] == labels[:, None, :]).sum(-1)
    return labels.gather(1, votes.argmax(1, keepdim=True))[:, 0]  # the first of equals


def _check(folder: ImageIndex, known: ImageIndex, k: Sequence[int], size: int) -> None:
    if folder.classes != known.classes:
        raise DataError(
            f"bank: {known.root} has other classes than {folder.root} ({len(known.classes)} and "
            f"{len(folder.classes)}); read both with the same classes: read_folder(..., classes=bank.classes)"
        )
    there = Counter(sample.label for sample in known.samples)
    if len(there) < 2:
        raise DataError(
            f"{known.root}: all images are of one class, {known.classes[min(there)]}; nearest neighbours need two or "
            "more to tell apart"
        )
    if not k or min(k) < 1 or max(k) > size:
        raise ClearheadError(f"k: {', '.join(map(str, k)) or 'none'}; numbers of neighbours in 1..{size} are needed")


def _features(
    model: Classifier,
    folder: ImageIndex,
    batch_size: int,
    workers: int,
    progress: Callable[[Iterable, int], Iterable] | None,
) -> Tensor:
    """Features of each image of a folder, N x D in float32, where the model is."""
    batches = loader(ImageDataset(folder, model.preprocess), batch_size, workers)
    found = features(model, progress(batches, len(batches)) if progress else batches).float()
    if broken := (~found.isfinite().all(1)).nonzero().flatten().tolist():
        file = folder.samples[broken[0]].path
        raise ClearheadError(f"model: the features of {len(broken)} images are not finite; the first is {file}")
    return found.to(next(model.module.parameters()).device)
