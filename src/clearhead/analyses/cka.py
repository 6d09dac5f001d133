"""Centred kernel alignment: how alike are the representations of images in two layers?

Linear CKA from mini-batches with the unbiased estimator of HSIC (Nguyen, Raghu and Kornblith 2021, arXiv 2010.15327,
equations 2 and 3; Song et al. 2012): features of all images are never held at once, and the size of a batch does not
bias it.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from clearhead.data.dataset import ImageIndex
from clearhead.data.loading import ImageDataset, loader
from clearhead.layers.branches import LayersError, ResidualBranch, find_branches, hooked_forward, repeatable_forward
from clearhead.models import Classifier


@dataclass(frozen=True)
class Similarity:
    """CKA between the units of two models, or of one with itself.

    Attributes:
        rows, columns: names of the units of the first and of the second model.
        cka: rows x columns, from -1 to 1, 1 for the same representation up to rotation and scale; its estimator of
            HSIC is unbiased, so that it may be slightly below 0 by chance.
        images: how many.
        batch_size: of the mini-batches.
    """

    rows: list[str]
    columns: list[str]
    cka: list[list[float]]
    images: int
    batch_size: int


def cka(
    model: Classifier,
    folder: ImageIndex,
    other: Classifier | None = None,
    *,
    batch_size: int = 64,
    workers: int = 0,
    seed: int = 0,
    progress: Callable[[Iterable, int], Iterable] | None = None,
) -> Similarity:
    """Linear CKA between all units; one forward pass an image and model, in eval mode.

    Args:
        model: the classifier of the rows; it runs where its parameters are.
        folder: the images, shuffled: batches in the order of classes would show how alike the images of a class are.
        other: the classifier of the columns; None takes the first one again.
        batch_size: images a batch, at least 4; what is left over at the end is not used.
        workers: processes that load images.
        seed: of the order of images.
        track: wraps the batches to show progress: ``track(batches, count)``.

    Raises:
        LayersError: for a model without units, or fewer than 4 images.
        DataError: for an image that cannot be read.
    """
    count = len(folder.samples)
    size = min(batch_size, count)
    if size < 4:
        raise LayersError(f"{folder.root}: {size} images a batch; the unbiased estimator needs at least 4")
    models = [model] if other is None else [model, other]
    loaders = [loader(ImageDataset(folder, one.preprocess), size, workers, shuffle=True, seed=seed) for one in models]
    sums: list[Tensor | float] = [0.0, 0.0, 0.0]  # rows x columns, and of either side with itself
    rounds: Iterable = zip(*loaders, strict=True)
    with ExitStack() as stack:
        for one in models:
            stack.enter_context(repeatable_forward(one))
        units = [find_branches(one) for one in models]
        for batches in progress(rounds, len(loaders[0])) if progress else rounds:
            if len(batches[0]["image"]) < size:
                break
            grams = [_grams(m, u, batch["image"]) for m, u, batch in zip(models, units, batches, strict=True)]
            a, b = grams[0], grams[-1].to(grams[0].device)
            for i, hsic in enumerate((a @ b.T, a.square().sum(1), b.square().sum(1))):
                sums[i] = sums[i] + hsic
    cross, rows, columns = (torch.as_tensor(value).cpu() for value in sums)
    alike = cross / (rows[:, None] * columns).sqrt()
    names = [[unit.name for unit in of_model] for of_model in units]
    return Similarity(names[0], names[-1], alike.tolist(), count // size * size, size)


def _grams(model: Classifier, units: list[ResidualBranch], images: Tensor) -> Tensor:
    """The U-centred Gram matrix of the images at each unit: units x n², in float64; its products are n (n - 3) HSIC."""
    found: list[Tensor] = []

    def measure(_i: int, value: Callable[[], Tensor], _shortcut: Tensor | None) -> Tensor:
        made = value()
        x = made.reshape(len(images), -1).float()
        x = x - x.mean(0)  # changes nothing but the rounding
        found.append(centred(x @ x.T).flatten())
        return made

    hooked_forward(model, images.to(next(model.module.parameters()).device, non_blocking=True), units, measure)
    return torch.stack(found)


def centred(gram: Tensor) -> Tensor:
    """A Gram matrix (n x n) without its diagonal, U-centred (Székely and Rizzo 2014), in float64: its rows sum to 0."""
    n = len(gram)
    k = gram.to(torch.float64, copy=True).fill_diagonal_(0)
    rows = k.sum(1, keepdim=True) / (n - 2)
    return (k - rows - rows.T + k.sum() / ((n - 1) * (n - 2))).fill_diagonal_(0)
