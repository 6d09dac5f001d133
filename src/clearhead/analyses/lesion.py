"""Measure what a trained model loses when one of its residual branches, or a whole block, is removed.

A removed branch passes on its shortcut and nothing else. Everything before it is unchanged and is not computed again
for each branch, which halves the work; this is tried on the model first, and not used where it changes the output.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clearhead.analyses.each_model import measure_each
from clearhead.analyses.subject import Subject, subject_of
from clearhead.data.dataset import ImageIndex, require_classes
from clearhead.data.images import DataLike, as_image_index
from clearhead.data.loading import ImageDataset, loader
from clearhead.data.splits import sample_n
from clearhead.errors import ClearheadError
from clearhead.layers.branches import ResidualBranch, find_branches, group_blocks, hooked_forward, repeatable_forward
from clearhead.layers.prefix_caching import PrefixShapes, placeholder
from clearhead.metrics.statistics import Estimate, accuracy_difference, mean, mean_difference, proportion
from clearhead.models import Classifier
from clearhead.models.classifier import require_not_nan
from clearhead.models.source import ModelLike, as_classifier, display_names
from clearhead.options import BatchSize, Limit, Seed, Split, Workers
from clearhead.progress import Progress, track
from clearhead.report import layer_plots
from clearhead.report.page import Figure, Page, Row, Section, Table

MOST_COSTLY = 8
"""Lesions of each model in the first table."""


@dataclass(frozen=True)
class Lesion:
    """The model without one branch, or without a block of branches, compared with the whole model on the same images.

    Attributes:
        name: of the branch or the block.
        type: of the branch; ``block`` for several branches.
        depth: of the branch, or of the last one of the block.
        accuracy: without it - with it.
        nll: negative log-likelihood, without it - with it, in nats.
    """

    name: str
    type: str
    depth: float
    accuracy: Estimate
    nll: Estimate


@dataclass(frozen=True)
class Lesions:
    """What one model loses.

    Attributes:
        accuracy, nll: of the whole model.
        branches: without each branch, in order of depth.
        blocks: without each block of several branches.
        passes: forward passes per image; a pass that starts at a lesion counts as the part of a pass that it computes.
    """

    accuracy: Estimate
    nll: Estimate
    branches: list[Lesion]
    blocks: list[Lesion]
    passes: float


@dataclass(frozen=True)
class LesionResult:
    """What several models lose on the same images, by model."""

    subject: Subject
    lesions: dict[str, Lesions]


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
) -> LesionResult:
    """Measure what models lose in accuracy and likelihood without each residual branch and each block.

    Example:
        $ clearhead layers lesion timm:vit_small_patch16_224 DATA --limit 1000

    Args:
        models: classifiers, modules or names.
        data: labelled images: a folder, another source, or an index.
        batch_size: images per forward pass; the shortcuts of all branches are in memory for one batch.

    The other arguments are described in ``clearhead.options``.

    Raises:
        LayersError: for a model without residual branches.
        DataError: for data that cannot be used, or classes that are not the model's.
    """

    def read(classes: tuple[str, ...]) -> ImageIndex:
        return sample_n(as_image_index(data, classes=classes, split=split), limit, seed)

    names = display_names(models)
    options = {"batch_size": batch_size, "workers": workers, "seed": seed}
    by_name = dict(zip(names, models, strict=True))
    results, index = measure_each(lesions, Lesions, by_name, read, progress=progress, state=state, **options)
    return LesionResult(subject_of(names, index, data, split), results)


def lesions(
    model: ModelLike,
    index: ImageIndex,
    *,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Lesions:
    """Measure accuracy and likelihood without each branch and each block; about half a forward pass per image each.

    Args:
        model: the classifier; it runs in eval mode where its parameters are.
        index: the images with their labels.
        batch_size: images per forward pass; the shortcuts of all branches are in memory for one batch.
        workers: data-loading processes.
        seed: of the intervals of the likelihood, bootstrapped over images.
        progress: shows progress.

    Raises:
        LayersError: for a model without residual branches.
        DataError: for an image that cannot be read, or an index with other classes than the model's.
        ClearheadError: for a model whose logits are NaN.
    """
    model = as_classifier(model)
    require_classes(index, model.classes)
    device = model.device
    batches = loader(ImageDataset(index, model.preprocess), batch_size, workers)
    with repeatable_forward(model):
        branches = [branch for branch in find_branches(model) if branch.type != "embed"]
        removals = [[i] for i in range(len(branches))]
        removals += [block for block in group_blocks(branches) if len(block) > 1]
        resumes = _resumes(model, branches)
        measured: list[list[Tensor]] = [[] for _ in range(1 + len(removals))]
        for batch in track(batches, progress, "lesions"):
            images, labels = (batch[key].to(device, non_blocking=True) for key in ("image", "label"))
            logits, starts = whole(model, images, branches)
            measured[0].append(_scores(require_not_nan(logits), labels))
            for scores, removed in zip(measured[1:], removals, strict=True):
                start = starts if resumes[removed[0]] else None
                scores.append(_scores(without(model, images, branches, removed, start), labels))
    (correct, loss), *rest = ([c.numpy() for c in torch.cat(each, 1).cpu()] for each in measured)
    results = []
    for removed, (still_correct, losses) in zip(removals, rest, strict=True):
        last = branches[removed[-1]]
        name, type_ = (last.name, last.type) if len(removed) == 1 else (_block_name(branches, removed), "block")
        change = accuracy_difference(correct > 0, still_correct > 0), mean_difference(loss, losses, "nats", seed)
        results.append(Lesion(name, type_, last.depth, *change))
    passes = 1 + sum(1 - removed[0] / len(branches) if resumes[removed[0]] else 1.0 for removed in removals)
    accuracy, nll = proportion(correct > 0), mean(loss.astype(np.float64), "nats", seed)
    return Lesions(accuracy, nll, results[: len(branches)], results[len(branches) :], passes)


@dataclass(frozen=True)
class Starts:
    """Where a forward pass without some branches can start: the shortcut of each branch, and all shapes."""

    shortcuts: list[Tensor]
    prefix: PrefixShapes


def whole(model: Classifier, images: Tensor, branches: Sequence[ResidualBranch]) -> tuple[Tensor, Starts]:
    """Return the logits (B x classes) of the whole model, and where ``without`` can start for these images."""
    starts = Starts([], PrefixShapes())

    def record(_i: int, compute: Callable[[], Tensor], shortcut: Tensor | None) -> Tensor:
        starts.shortcuts.append(images[:0] if shortcut is None else shortcut.clone())
        return compute()

    return hooked_forward(model, images, branches, record, starts.prefix.record), starts


def without(
    model: Classifier,
    images: Tensor,
    branches: Sequence[ResidualBranch],
    removed: Sequence[int],
    starts: Starts | None = None,
) -> Tensor:
    """Return the logits (B x classes) of the model without some of its branches.

    Args:
        model: the classifier.
        images: B x 3 x H x W.
        branches: as ``find_branches`` returns them.
        removed: positions in `branches`, the first one first; the embedding cannot be removed.
        starts: from ``whole`` for the same images: then nothing before the first one is computed again.

    Raises:
        ClearheadError: for a branch without a shortcut.
        PrefixNeededError: with `starts`, for a model whose later part uses what was not computed.
    """
    if any(branches[i].skip is None for i in removed):
        raise ClearheadError("removed: the embedding has no shortcut; give branches with a residual connection")
    first = removed[0]

    def act(i: int, compute: Callable[[], Tensor], shortcut: Tensor | None) -> Tensor:
        if i not in removed:
            return compute()
        assert shortcut is not None
        return (starts.shortcuts[first] if starts and i == first else shortcut).clone()

    if starts is None:
        return hooked_forward(model, images, branches, act)
    return hooked_forward(model, placeholder(images), branches, act, starts.prefix.resume_at(branches[first].call))


@torch.inference_mode()
def _resumes(model: Classifier, branches: Sequence[ResidualBranch]) -> list[bool]:
    """Return for each branch whether a pass without it may start there: whether it gives the logits of a whole pass."""
    parameter = next(model.module.parameters())
    images = torch.rand(2, 3, *model.preprocess.size, generator=torch.Generator().manual_seed(1)).to(parameter)
    starts = whole(model, images, branches)[1]
    resumes = []
    for i in range(len(branches)):
        expected = without(model, images, branches, [i])
        spread = (expected[0] - expected[1]).abs().max()  # the logits of another image would be as far off as that
        try:
            error = (without(model, images, branches, [i], starts) - expected).abs().max()
        except Exception:  # whatever a model raises that gets no values
            error = torch.full_like(spread, torch.inf)
        resumes.append(bool(error <= 1e-3 * spread))
    return resumes


def _scores(logits: Tensor, labels: Tensor) -> Tensor:
    """Return whether each image is correct (NaN never is), and its negative log-likelihood: 2 x B."""
    logits = logits.float()
    correct = (logits.argmax(-1) == labels) & ~logits.isnan().any(-1)
    return torch.stack([correct.float(), F.cross_entropy(logits, labels, reduction="none")])


def _block_name(branches: Sequence[ResidualBranch], block: Sequence[int]) -> str:
    return min((branches[i].module for i in block), key=len)


def page(result: LesionResult) -> Page:
    """Show the most costly lesions, then for each model all lesions against depth and their numbers."""
    sections: list[Section] = [_most_costly(result)]
    for name, measured in result.lesions.items():
        sections += _model_sections(measured, f": {name}" if len(result.lesions) > 1 else "")
    subject = result.subject
    return Page(
        f"{subject.listed()}: lesions",
        f"Models without one of their residual branches, on images of {subject.data}.",
        sections=sections,
    )


def _most_costly(result: LesionResult) -> Table:
    rows = []
    for name, measured in result.lesions.items():
        rows.append(Row(name, [measured.accuracy, measured.nll], "the whole model"))
        costly = sorted([*measured.branches, *measured.blocks], key=lambda one: -one.nll.value)[:MOST_COSTLY]
        rows += [Row(f"without {one.name}", [one.accuracy, one.nll]) for one in costly]
    text = (
        f"The whole model, and the change (without - with) for the {MOST_COSTLY} branches and blocks whose removal "
        "costs most likelihood."
    )
    return Table("Most costly lesions", ["accuracy", "NLL"], rows, text, names="model")


def _model_sections(measured: Lesions, suffix: str) -> list[Section]:
    title = f"Accuracy without each branch{suffix}"
    text = (
        "Accuracy without one branch - accuracy of the whole model, on the same images. "
        f"The whole model: {100 * measured.accuracy.value:.1f}% of {measured.accuracy.count:,} images."
    )
    plot = layer_plots.through_depth(_points(measured.branches, "accuracy"), title, "accuracy, pp", "pp")
    sections: list[Section] = [Figure(title, text, plot)]
    title = f"Likelihood without each branch{suffix}"
    text = "Negative log-likelihood without the branch - with it; it shows changes too small to change accuracy."
    nll = layer_plots.through_depth(_points(measured.branches, "nll"), title, "NLL, nats")
    sections.append(Figure(title, text, nll))
    for title, removed in ((f"Branches{suffix}", measured.branches), (f"Blocks{suffix}", measured.blocks)):
        if removed:
            rows = [Row(one.name, [one.accuracy, one.nll]) for one in removed]
            text = "Change without it (without - with), paired by image."
            sections.append(Table(title, ["accuracy", "NLL"], rows, text, names="without"))
    return sections


def _points(measured: Sequence[Lesion], name: str) -> list[tuple[str, float, Estimate]]:
    return [(one.type, one.depth, getattr(one, name)) for one in measured]
