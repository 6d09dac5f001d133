"""Select the heads to keep on validation images, and estimate how optimistic the selection is.

arXiv 2308.16274 masks a subset of the last layer's heads, selected on images of the shifted distribution, and scales
the remaining heads by H / kept; ``search`` has that and two cheaper searches.

The best of many candidates scores higher on the images that selected it than on others. By how much is estimated by
cross-validating the selection: each image is scored with the candidate that is best on the other folds. The estimate
uses the candidates that were tried, so for greedy and importance searches, which chose those on the same images, it is
a lower bound.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from clearhead.data.dataset import ImageIndex, group_labels, require_classes
from clearhead.data.image_io import DataError
from clearhead.data.loading import ImageDataset, loader
from clearhead.errors import ClearheadError
from clearhead.heads.fold import fold_heads
from clearhead.heads.gradients import Layers, pick_layers
from clearhead.heads.head_masking import HeadMask, attention_layers, head_mask_runner
from clearhead.heads.prune import prune_heads
from clearhead.metrics.statistics import MIN_GROUP
from clearhead.models import Classifier
from clearhead.models.classifier import evaluation_mode
from clearhead.progress import Progress, duration, log
from clearhead.repairs.head_search import (
    SEARCHES,
    Candidates,
    HeadSearch,
    Objective,
    OverBudget,
    Search,
    group_accuracy,
    mean_outputs,
)

_FOLDS, _REPEATS = 5, 20


@dataclass(frozen=True)
class Selection:
    """The selected heads, and how they were selected.

    Attributes:
        search: the search.
        objective: what was maximised.
        kept_heads: for each searched layer, by its module's name, whether each head is kept.
        before: the objective on the validation images with all heads.
        after: the same with the kept heads.
        optimism: the expected excess of `after`; None where it was not estimated (relevance-mass).
        tried: number of candidates.
        images: number of validation images used.
        smallest: number of them in the smallest group for worst-group, else all of them.
        images_without_budget: number of validation images that a larger budget would have used; 0 if all were used.
    """

    search: Search
    objective: Objective
    kept_heads: dict[str, list[bool]]
    before: float
    after: float
    optimism: float | None
    tried: int
    images: int
    smallest: int
    images_without_budget: int = 0


def select_heads(
    model: Classifier,
    folder: ImageIndex,
    *,
    search: Search = "exhaustive",
    layers: Layers | None = None,
    objective: Objective | None = None,
    group_columns: list[str] | None = None,
    ablation: Literal["rescale", "mean"] = "rescale",
    uniform: bool = False,
    limit: int | None = None,
    budget: float | None = None,
    seed: int = 0,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
) -> tuple[Classifier, Selection]:
    """Select heads on validation images; return the model with the selection in its weights, and the selection.

    The search logs an estimate of its duration (``logging.getLogger("clearhead")``, level INFO) once its first
    candidates have been timed.

    Args:
        model: the classifier; it runs where its parameters are.
        folder: validation images, of the shifted distribution if there are any; never the test images.
        search: ``exhaustive`` (one layer of at most 12 heads), ``greedy`` or ``importance``.
        layers: the layers to search; by default the last for exhaustive and all for the others.
        objective: ``accuracy``, ``worst-group`` (accuracy of the worst group) or ``relevance-mass`` (share of the
            relevance in the foreground). Default: worst-group with groups, else relevance-mass with masks, else
            accuracy.
        group_columns: metadata columns that make the groups, None for all.
        ablation: ``rescale`` scales the kept heads by H / kept; ``mean`` replaces the output of a removed head by its
            mean over images and tokens.
        uniform: only try candidates that keep as many heads in every layer; with ``importance``.
        limit: use at most so many images, drawn at random, as many per group (worst-group) or per class as possible.
        budget: seconds that the search may take. Where the first images show that it takes longer, it uses as many
            images as fit, drawn as for `limit`; a greedy search ends with the best heads so far.
        seed: random seed of `limit` and of the folds that estimate the optimism.
        batch_size: batch size.
        workers: processes that load images.
        progress: shows progress.

    Raises:
        NoAttentionError: if the model makes no attention call.
        ClearheadError: for a layer that does not exist, more than one layer or too many heads for an exhaustive search,
            a model whose heads cannot be folded; a budget in which fewer images fit than show anything.
        DataError: where the objective needs groups or masks that are missing.
    """
    if uniform and search != "importance":
        raise ClearheadError(f"uniform: only the search importance has candidates of one size, got {search}")
    started = time.perf_counter()
    if budget is not None and budget <= 0:
        raise ClearheadError(f"budget: got {budget:g}; a number of seconds above 0 is needed")
    if limit is not None and limit < 1:
        raise ClearheadError(f"limit: at least 1 image is needed, got {limit}")
    require_classes(folder, model.classes)
    labels = np.array([sample.label for sample in folder.samples])
    groups = np.array(group_labels(folder, group_columns))
    masked = np.array([sample.mask is not None for sample in folder.samples])
    has_groups = len(np.unique(groups)) > len(np.unique(labels))
    objective = objective or ("worst-group" if has_groups else "relevance-mass" if masked.any() else "accuracy")
    if objective == "worst-group" and not has_groups:
        raise DataError(
            "objective: worst-group needs groups, and no column of metadata.csv besides file and split (or of those "
            "named) divides the images of a class; choose accuracy"
        )
    if objective == "relevance-mass" and not masked.any():
        raise DataError("objective: relevance-mass needs images with masks; choose accuracy or worst-group")
    if limit is not None:
        usable = np.flatnonzero(masked) if objective == "relevance-mass" else np.arange(len(labels))
        strata = groups if objective == "worst-group" else labels
        chosen = usable[_draw_balanced(strata[usable], limit, seed)]
        folder = replace(folder, samples=tuple(folder.samples[i] for i in chosen))
        groups = groups[chosen]
    members = [np.arange(len(folder.samples))]
    if objective == "worst-group":
        members = [np.flatnonzero(groups == name) for name in np.unique(groups)]
    images = next(iter(loader(ImageDataset(folder, model.preprocess), min(2, len(folder.samples)), 0)))["image"]
    images = images.to(model.device)
    with evaluation_mode(model.module):
        default = "last" if search == "exhaustive" else "all"
        picked = pick_layers(attention_layers(model, images), default if layers is None else layers)
        every_head = {layer.name: HeadMask(torch.ones(1, layer.num_heads)) for layer in picked}
        fold_heads(model, every_head, images)  # raises now, rather than after the search
        problem = HeadSearch(
            model=model,
            folder=folder,
            example=images,
            runners=[head_mask_runner(model, layer, images) for layer in picked],
            objective=objective,
            groups=members,
            fills={},
            uniform=uniform,
            batch_size=batch_size,
            workers=workers,
            progress=progress,
            deadline=None if budget is None else started + budget,
        )
        if ablation == "mean":
            problem = replace(problem, fills=mean_outputs(problem))
        try:
            candidates = SEARCHES[search](problem)
        except OverBudget as over:
            left = max(0.0, started + (budget or 0.0) - time.perf_counter())
            fewer = min(int(0.8 * len(folder.samples) * left / over.seconds), len(folder.samples) - 1)
            least = MIN_GROUP * len(members)
            if fewer < least:
                raise ClearheadError(
                    f"budget: the search over heads takes about {duration(over.seconds)} on {len(folder.samples):,} "
                    f"images; {duration(left)} of the budget left are enough for {fewer:,}, and {least:,} are needed. "
                    "Give a larger budget, or use search importance, which tries fewer subsets"
                ) from over
            log.info("head search: the budget allows %s of %s images", f"{fewer:,}", f"{len(folder.samples):,}")
            selected, selection = select_heads(
                model,
                folder,
                search=search,
                layers=layers,
                objective=objective,
                group_columns=group_columns,
                ablation=ablation,
                uniform=uniform,
                limit=fewer,
                budget=left,
                seed=seed,
                batch_size=batch_size,
                workers=workers,
                progress=progress,
            )
            return selected, replace(selection, images_without_budget=len(folder.samples))
        best = candidates.best(members)
        subset = candidates.subsets[best]
        selection = Selection(
            search=search,
            objective=objective,
            kept_heads={name: list(keep) for name, keep in subset.items()},
            before=float(candidates.scores[candidates.subsets.index(problem.all_heads())]),
            after=float(candidates.scores[best]),
            optimism=_optimism(candidates, members, seed),
            tried=len(candidates.subsets),
            images=len(folder.samples),
            smallest=min(map(len, members)),
        )
        return fold_heads(model, problem.masks(subset), images), selection


def keep_heads(
    model: Classifier,
    train: ImageIndex | None,
    validation: ImageIndex,
    *,
    group_columns: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
    search: Search = "exhaustive",
    layers: Layers | None = None,
    objective: Objective | None = None,
    ablation: Literal["rescale", "mean"] = "rescale",
    prune: bool = False,
    limit: int | None = None,
    budget: float | None = None,
) -> tuple[Classifier, Selection]:
    """Select heads as a repair: as ``select_heads`` on the validation images; `train` is not used.

    `prune` removes the other heads from the architecture (``clearhead.heads.prune``), with the search ``importance``.
    """
    selected, selection = select_heads(
        model,
        validation,
        search=search,
        layers=layers,
        objective=objective,
        group_columns=None if group_columns is None else list(group_columns),
        ablation=ablation,
        uniform=prune,
        limit=limit,
        budget=budget,
        seed=seed,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
    return (prune_heads(selected, selection.kept_heads) if prune else selected), selection


def _draw_balanced(strata: npt.NDArray[np.generic], count: int, seed: int) -> npt.NDArray[np.intp]:
    """Return the positions of at most `count` images in order, drawn from each stratum (N) in turn."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(strata))
    turn: npt.NDArray[np.intp] = np.empty(len(strata), dtype=np.intp)
    for stratum in np.unique(strata):
        members = order[strata[order] == stratum]
        turn[members] = np.arange(len(members))
    return np.sort(order[np.argsort(turn[order], kind="stable")][:count])


def _optimism(candidates: Candidates, groups: Sequence[npt.NDArray[np.intp]], seed: int) -> float | None:
    """Return the best score minus its cross-validated value, over 20 random splits into five folds within each group.

    None without the predictions of each candidate.
    """
    if candidates.correct is None:
        return None
    rng, cross_validated = np.random.default_rng(seed), []
    fold = np.empty(candidates.correct.shape[1], dtype=int)
    for _ in range(_REPEATS):
        for group in groups:
            fold[group] = (rng.permutation(len(group)) + rng.integers(_FOLDS)) % _FOLDS
        correct = np.empty((1, len(fold)), dtype=bool)
        for held_out in range(_FOLDS):
            others = [rest for group in groups if len(rest := group[fold[group] != held_out])]
            tested = fold == held_out
            correct[0, tested] = candidates.correct[candidates.best(others), tested]
        cross_validated.append(group_accuracy(correct, groups).min(0)[0])
    return float(candidates.scores.max() - np.mean(cross_validated))
