"""Centred kernel alignment: how similar are the representations of images in two layers?

Linear CKA from mini-batches with the unbiased estimator of HSIC (Nguyen, Raghu and Kornblith 2021, arXiv 2010.15327,
equations 2 and 3; Song et al. 2012): the features of all images are never in memory together, and the batch size does
not bias it.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from clearhead.analyses.subject import Subject, subject_of
from clearhead.data.dataset import ImageIndex
from clearhead.data.images import DataLike, as_image_index
from clearhead.data.loading import ImageDataset, loader
from clearhead.data.splits import sample_n
from clearhead.layers.branches import LayersError, ResidualBranch, find_branches, hooked_forward, repeatable_forward
from clearhead.models import Classifier
from clearhead.models.source import ModelLike, as_classifier, display_names
from clearhead.options import Limit, Option, Seed, Split, Workers
from clearhead.progress import Progress, track
from clearhead.report import layer_plots
from clearhead.report.page import Figure, Page, Row, Section, Table

DECIDES = ("batch_size",)
"""Other mini-batches give another estimate."""


@dataclass(frozen=True)
class Similarity:
    """CKA between the branches of two models, or of one model with itself.

    Attributes:
        rows, columns: names of the branches of the first and of the second model.
        cka: rows x columns, from -1 to 1; 1 for the same representation up to rotation and scale. The estimator of
            HSIC is unbiased, so values slightly below 0 occur by chance.
        images: how many were used.
        batch_size: of the mini-batches.
    """

    rows: list[str]
    columns: list[str]
    cka: list[list[float]]
    images: int
    batch_size: int


@dataclass(frozen=True)
class CkaResult:
    """The similarity of the layers of one model, or of two models."""

    subject: Subject
    similarity: Similarity


def measure(
    models: Sequence[ModelLike],
    data: DataLike,
    *,
    split: Split = None,
    limit: Limit = None,
    batch_size: Annotated[int, Option("Mini-batch size of the estimator.", min=4)] = 64,
    workers: Workers = 0,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> CkaResult:
    """Measure how similar the representations in different layers are, of one model or of two models (linear CKA).

    Any images will do: labels are not used.

    Example:
        $ clearhead layers cka timm:vit_small_patch16_224 timm:resnet50 DATA --limit 1000

    Args:
        models: one classifier, module or name, or two.
        data: the images: a folder, another source, or an index.
        batch_size: of the mini-batches, at least 4; an incomplete last batch is not used.

    The other arguments are described in ``clearhead.options``.

    Raises:
        LayersError: for more than two models, a model without residual branches, or fewer than 4 images.
        DataError: for data that cannot be used.
    """
    if not 1 <= len(models) <= 2:
        raise LayersError(f"models: got {len(models)}; give one model, to compare its layers, or two")
    index = sample_n(as_image_index(data, split=split), limit, seed)
    names = display_names(models)
    options = {"batch_size": batch_size, "workers": workers, "seed": seed}
    similarity = cka(models[0], index, models[1] if len(models) > 1 else None, **options, progress=progress)
    return CkaResult(subject_of(names, index, data, split), similarity)


def cka(
    model: ModelLike,
    index: ImageIndex,
    other: ModelLike | None = None,
    *,
    batch_size: int = 64,
    workers: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Similarity:
    """Return linear CKA between all branches; one forward pass per image and model, in eval mode.

    Args:
        model: the classifier of the rows; it runs where its parameters are.
        index: the images; they are shuffled, because batches in the order of classes would show how similar the images
            of a class are.
        other: the classifier of the columns; None is the first one again.
        batch_size: of the mini-batches, at least 4; an incomplete last batch is not used.
        workers: data-loading processes.
        seed: of the order of the images.
        progress: shows progress.

    Raises:
        LayersError: for a model without residual branches, or fewer than 4 images.
        DataError: for an image that cannot be read.
    """
    count = len(index.samples)
    size = min(batch_size, count)
    if size < 4:
        raise LayersError(f"{index.root}: {size} images per batch; the unbiased estimator needs at least 4")
    models = [as_classifier(one) for one in ([model] if other is None else [model, other])]
    loaders = [loader(ImageDataset(index, one.preprocess), size, workers, shuffle=True, seed=seed) for one in models]
    sums: list[Tensor | float] = [0.0, 0.0, 0.0]  # rows x columns, and of either side with itself
    rounds: Iterable[Any] = zip(*loaders, strict=True)
    with ExitStack() as stack:
        for one in models:
            stack.enter_context(repeatable_forward(one))
        branches = [find_branches(one) for one in models]
        for batches in track(rounds, progress, "similarity", len(loaders[0])):
            if len(batches[0]["image"]) < size:
                break
            grams = [_grams(m, b, batch["image"]) for m, b, batch in zip(models, branches, batches, strict=True)]
            a, b = grams[0], grams[-1].to(grams[0].device)
            for i, hsic in enumerate((a @ b.T, a.square().sum(1), b.square().sum(1))):
                sums[i] = sums[i] + hsic
    cross, rows, columns = (torch.as_tensor(value).cpu() for value in sums)
    similar = cross / (rows[:, None] * columns).sqrt()
    names = [[branch.name for branch in of_model] for of_model in branches]
    return Similarity(names[0], names[-1], similar.tolist(), count // size * size, size)


def _grams(model: Classifier, branches: list[ResidualBranch], images: Tensor) -> Tensor:
    """Return the U-centred Gram matrix of the images after each branch: branches x n², float64.

    The product of two rows is n (n - 3) HSIC.
    """
    grams: list[Tensor] = []

    def record(_i: int, compute: Callable[[], Tensor], _shortcut: Tensor | None) -> Tensor:
        features = compute()
        x = features.reshape(len(images), -1).float()
        x = x - x.mean(0)  # changes nothing but the rounding
        grams.append(centred(x @ x.T).flatten())
        return features

    hooked_forward(model, images.to(model.device, non_blocking=True), branches, record)
    return torch.stack(grams)


def centred(gram: Tensor) -> Tensor:
    """Return a Gram matrix (n x n) without its diagonal, U-centred (Székely and Rizzo 2014), float64: rows sum to 0."""
    n = len(gram)
    k = gram.to(torch.float64, copy=True).fill_diagonal_(0)
    rows = k.sum(1, keepdim=True) / (n - 2)
    return (k - rows - rows.T + k.sum() / ((n - 1) * (n - 2))).fill_diagonal_(0)


def page(result: CkaResult) -> Page:
    """Show the matrix, and which branch of the second model is most similar to each branch of the first."""
    similarity, models = result.similarity, result.subject.models
    first, second = models[0], models[-1]
    title = f"CKA between the branches of {first}" + (f" and {second}" if len(models) > 1 else "")
    text = (
        f"Linear CKA from mini-batches of {similarity.batch_size}, {similarity.images:,} images in total; from 0 "
        "(clear) to 1 (full colour). Branches are numbered as in the table."
    )
    plot = layer_plots.matrix(similarity.cka, title, f"branch of {_short(first)}", f"branch of {_short(second)}")
    rows = []
    for i, (name, row) in enumerate(zip(similarity.rows, similarity.cka, strict=True)):
        others = [(value, j) for j, value in enumerate(row) if value == value and (len(models) > 1 or j != i)]
        cells = ["–", "–"]
        if others:
            value, j = max(others)
            cells = [f"{j}  {similarity.columns[j]}", f"{value:.3f}"]
        rows.append(Row(f"{i}  {name}", cells))
    text_of_table = "The most similar branch for each branch."
    sections: list[Section] = [
        Figure("Similarity of representations", text, plot),
        Table("Most similar branches", [f"branch of {second}", "CKA"], rows, text_of_table, names=first),
    ]
    lead = f"Feature maps of images of {result.subject.data}, branch by branch."
    return Page(f"{result.subject.listed()}: similarity of layers", lead, sections=sections)


def _short(name: str, letters: int = 30) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"
