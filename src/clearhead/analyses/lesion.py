"""Lesion: what does a trained model lose when one of its units, or a whole block, is taken out?

Taken out, a unit passes on its shortcut and nothing else. All that comes before it is as it was and is not computed
again for every unit, which halves the work; tried out on the model first, and done without where it does not hold.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clearhead.data.dataset import ImageIndex, require_classes
from clearhead.data.loading import ImageDataset, loader
from clearhead.errors import ClearheadError
from clearhead.layers.branches import ResidualBranch, find_branches, group_blocks, hooked_forward, repeatable_forward
from clearhead.layers.prefix_caching import Outline, stand_in
from clearhead.metrics.statistics import Estimate, accuracy_difference, mean, mean_difference, proportion
from clearhead.models import Classifier
from clearhead.models.classifier import require_not_nan


@dataclass(frozen=True)
class Lesion:
    """The model without one unit, or without a block of units, against the whole model on the same images.

    Attributes:
        name: the unit's, or the block's.
        kind: of the unit; ``block`` for several.
        depth: of the unit, or the last one of the block.
        accuracy: without it less with it.
        nll: negative log-likelihood, without it less with it, in nats.
    """

    name: str
    kind: str
    depth: float
    accuracy: Estimate
    nll: Estimate


@dataclass(frozen=True)
class Lesions:
    """What one model loses.

    Attributes:
        accuracy, nll: of the whole model.
        units: without each unit, in order of depth.
        blocks: without each block of several units.
        passes: forward passes an image, in parts of a whole one where units before a lesion were not computed again.
    """

    accuracy: Estimate
    nll: Estimate
    units: list[Lesion]
    blocks: list[Lesion]
    passes: float


def lesions(
    model: Classifier,
    folder: ImageIndex,
    *,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    progress: Callable[[Iterable, int], Iterable] | None = None,
) -> Lesions:
    """Accuracy and likelihood without each unit and each block; about half a forward pass an image for each.

    Args:
        model: the classifier; it runs where its parameters are, in eval mode.
        folder: the images with their labels.
        batch_size: images a batch; the shortcuts of all units are kept for one batch.
        workers: processes that load images.
        seed: of the intervals of the likelihood, bootstrapped over images.
        track: wraps the batches to show progress: ``track(batches, count)``.

    Raises:
        LayersError: for a model without units.
        DataError: for an image that cannot be read.
    """
    require_classes(folder, model.classes)
    device = next(model.module.parameters()).device
    batches = loader(ImageDataset(folder, model.preprocess), batch_size, workers)
    with repeatable_forward(model):
        units = [unit for unit in find_branches(model) if unit.kind != "embed"]
        blocks = [block for block in group_blocks(units) if len(block) > 1]
        cut = [[i] for i in range(len(units))] + blocks
        resumes = _resumes(model, units)
        found: list[list[Tensor]] = [[] for _ in range(1 + len(cut))]
        for batch in progress(batches, len(batches)) if progress else batches:
            images, labels = (batch[key].to(device, non_blocking=True) for key in ("image", "label"))
            logits, starts = whole(model, images, units)
            found[0].append(_scores(require_not_nan(logits), labels))
            for scores, removed in zip(found[1:], cut, strict=True):
                start = starts if resumes[removed[0]] else None
                scores.append(_scores(without(model, images, units, removed, start), labels))
    (correct, loss), *rest = ([c.numpy() for c in torch.cat(each, 1).cpu()] for each in found)
    told = []
    for removed, (right, losses) in zip(cut, rest, strict=True):
        last = units[removed[-1]]
        name, kind = (last.name, last.kind) if len(removed) == 1 else (_block_name(units, removed), "block")
        change = accuracy_difference(correct > 0, right > 0), mean_difference(loss, losses, "nats", seed)
        told.append(Lesion(name, kind, last.depth, *change))
    passes = 1 + sum(1 - removed[0] / len(units) if resumes[removed[0]] else 1.0 for removed in cut)
    accuracy, nll = proportion(correct > 0), mean(loss.astype(np.float64), "nats", seed)
    return Lesions(accuracy, nll, told[: len(units)], told[len(units) :], passes)


@dataclass(frozen=True)
class Starts:
    """What a forward pass without some units can go on from: the shortcut of each unit, and all shapes."""

    shortcuts: list[Tensor]
    outline: Outline


def whole(model: Classifier, images: Tensor, units: Sequence[ResidualBranch]) -> tuple[Tensor, Starts]:
    """The logits (B x classes) of the whole model, and what ``without`` can go on from for these images."""
    starts = Starts([], Outline())

    def keep(_i: int, value: Callable[[], Tensor], shortcut: Tensor | None) -> Tensor:
        starts.shortcuts.append(images[:0] if shortcut is None else shortcut.clone())
        return value()

    return hooked_forward(model, images, units, keep, starts.outline.note), starts


def without(
    model: Classifier,
    images: Tensor,
    units: Sequence[ResidualBranch],
    removed: Sequence[int],
    starts: Starts | None = None,
) -> Tensor:
    """The logits (B x classes) of the model without some of its units.

    Args:
        model: the classifier.
        images: B x 3 x H x W.
        units: as ``find_branches`` gives them.
        removed: positions in `units`, the first one first; the embedding cannot be removed.
        starts: from ``whole`` for the same images: then all before the first one is not computed again.

    Raises:
        ClearheadError: for a unit without a shortcut.
        LooksBack: with `starts`, for a model whose later part uses what was not computed.
    """
    if any(units[i].skip is None for i in removed):
        raise ClearheadError("removed: the embedding has no shortcut; give units that are a residual sum")
    first = removed[0]

    def at(i: int, value: Callable[[], Tensor], shortcut: Tensor | None) -> Tensor:
        if i not in removed:
            return value()
        assert shortcut is not None
        return (starts.shortcuts[first] if starts and i == first else shortcut).clone()

    if starts is None:
        return hooked_forward(model, images, units, at)
    return hooked_forward(model, stand_in(images), units, at, starts.outline.from_call(units[first].call))


@torch.inference_mode()
def _resumes(model: Classifier, units: Sequence[ResidualBranch]) -> list[bool]:
    """For each unit whether the model without it gives the same gone on from there as from the start: tried out."""
    like = next(model.module.parameters())
    images = torch.rand(2, 3, *model.preprocess.size, generator=torch.Generator().manual_seed(1)).to(like)
    starts = whole(model, images, units)[1]
    found = []
    for i in range(len(units)):
        expected = without(model, images, units, [i])
        spread = (expected[0] - expected[1]).abs().max()  # an answer for another image would be as far off as that
        try:
            off = (without(model, images, units, [i], starts) - expected).abs().max()
        except Exception:  # whatever a model raises that is given no values
            off = torch.full_like(spread, torch.inf)
        found.append(bool(off <= 1e-3 * spread))
    return found


def _scores(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each image is right (NaN never is), and its negative log-likelihood: 2 x B."""
    logits = logits.float()
    right = (logits.argmax(-1) == labels) & ~logits.isnan().any(-1)
    return torch.stack([right.float(), F.cross_entropy(logits, labels, reduction="none")])


def _block_name(units: Sequence[ResidualBranch], block: Sequence[int]) -> str:
    return min((units[i].module for i in block), key=len)
