"""Which heads to keep: a search that never sees the test images, and how much it flatters itself.

arXiv 2308.16274 masks a subset of the last layer's heads, chosen on images of the shifted distribution, and scales
those that stay by H / kept. Here

    exhaustive   every subset of one layer's heads (2^H - 1), from one pass (``clearhead.heads.head_masking``)
    greedy       from all heads of all layers, the one whose removal is best is removed, as long as that helps
    importance   the k heads of least importance (Michel et al., arXiv 1905.10650) are removed, for each k

The best of many candidates on few images looks better than it is. By how much is estimated by cross-validation of the
choice: each image is answered by the candidate that is best on the others. It knows the candidates that were tried, so
for greedy and importance, which chose what to try by the same images, it is a lower bound.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from clearhead.data.dataset import ImageIndex, group_labels, require_classes
from clearhead.data.image_io import DataError
from clearhead.data.loading import ImageDataset, loader
from clearhead.errors import ClearheadError
from clearhead.heads.fold import fold_heads
from clearhead.heads.gradients import Layers, pick
from clearhead.heads.head_masking import HeadMask, HeadMaskRunner, attention_layers, head_mask_runner
from clearhead.heads.scores import head_importance
from clearhead.models import Classifier
from clearhead.models.classifier import evaluation_mode, require_not_nan
from clearhead.prediction.predict import relevance_masses
from clearhead.tap import tap

Search = Literal["exhaustive", "greedy", "importance"]
Objective = Literal["accuracy", "worst-group", "relevance-mass"]
Progress = Callable[[Iterable, int, str], Iterable]

MOST_EXHAUSTIVE = 12
"""Heads of a layer whose every subset is tried."""
MOST_EXHAUSTIVE_BY_MAPS = 4
"""The same where each candidate takes a map of every image (relevance-mass)."""
_FOLDS, _REPEATS = 5, 20


@dataclass(frozen=True)
class Selection:
    """The heads that were chosen, and what the search saw.

    Attributes:
        search: how they were searched for.
        objective: what was to be highest.
        kept_heads: for each layer searched, by its module's name, whether each head is kept.
        before: the objective on the selection images with all heads.
        after: and with the kept ones.
        optimism: by how much `after` is expected to be too high; None where it was not estimated (relevance-mass).
        tried: number of candidates.
        images: number of images the choice was made on.
        smallest: number in the smallest group, where groups are the objective; else all of them.
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


Mask = dict[str, tuple[bool, ...]]
"""Whether each head of each layer searched is kept, by the layer's name."""


@dataclass(frozen=True)
class _Task:
    """What all searches need."""

    model: Classifier
    folder: ImageIndex
    first: Tensor
    runners: list[HeadMaskRunner]
    objective: Objective
    parts: list[np.ndarray]
    labels: np.ndarray
    fills: Mapping[str, Tensor]
    batch_size: int
    workers: int
    progress: Progress | None
    uniform: bool = False

    def heads(self, mask: Sequence[tuple[bool, ...]], name: str) -> HeadMask:
        """Candidates of one layer, S x H: kept heads scaled by H / kept, or with the mean output of the others."""
        kept = torch.tensor(mask, dtype=torch.float32)
        if name in self.fills:
            return HeadMask(kept, self.fills[name])
        return HeadMask(kept * kept.shape[1] / kept.sum(1, keepdim=True))

    def fixed(self, mask: Mask) -> dict[str, HeadMask]:
        """The layers in which a mask removes heads."""
        return {name: self.heads([keep], name) for name, keep in mask.items() if not all(keep)}

    def batches(self, title: str) -> Iterable:
        """The images in order, with progress."""
        found = loader(ImageDataset(self.folder, self.model.preprocess), self.batch_size, self.workers)
        return self.progress(found, len(found), title) if self.progress else found

    def score(self, correct: np.ndarray) -> np.ndarray:
        """The objective from what is right, S x N to S: the accuracy of the worst part."""
        return np.min([correct[:, part].mean(1) for part in self.parts], axis=0)

    def best(
        self, counts: np.ndarray, values: np.ndarray, correct: np.ndarray | None, seen: np.ndarray | None = None
    ) -> int:
        """The candidate chosen: highest objective, then highest mean over parts, then most heads, then the first.

        `counts` are the heads each keeps. With `seen` (N, bool), by those images alone. What is not better is not
        removed; the mean over the groups speaks where the worst one is too small to.
        """
        mean = np.zeros(len(counts))
        if correct is not None:
            parts = [part if seen is None else part[seen[part]] for part in self.parts]
            each = np.array([correct[:, part].mean(1) for part in parts if len(part)])
            values, mean = (each.min(0), each.mean(0)) if len(each) else (values, mean)
        # rounded, so that equal shares are equal; the last key decides first
        return int(np.lexsort((-np.arange(len(counts)), counts, mean.round(9), values.round(9)))[-1])


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
    seed: int = 0,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
) -> tuple[Classifier, Selection]:
    """Choose heads on the images of a folder; the model with the choice folded into its weights, and the choice.

    Args:
        model: the classifier; it runs where its parameters are.
        folder: images to choose by, of the shifted distribution if there are any; never the test images.
        search: ``exhaustive`` (one layer of at most 12 heads), ``greedy`` or ``importance``.
        layers: which; by default the last for exhaustive and all for the others.
        objective: ``accuracy``, ``worst-group`` (accuracy of the worst group) or ``relevance-mass`` (share of
            the relevance in the foreground); default: worst-group with groups, else relevance-mass with masks, else
            accuracy.
        group_columns: metadata columns that make the groups, None for all.
        ablation: ``rescale`` scales the kept heads by H / kept, ``mean`` puts the mean output of a removed head over
            images and tokens in its place.
        uniform: only candidates that keep as many heads in every layer; with ``importance``.
        seed: of the folds by which the optimism is estimated.
        batch_size: images a batch.
        workers: processes that load images.
        track: shows progress.

    Raises:
        NoAttentionError: if the model shows no attention.
        ClearheadError: for a layer that does not exist, more than one layer or too many heads to try every subset, a
        model
            whose heads cannot be folded.
        DataError: where the objective needs groups or masks that are not there.
    """
    groups = np.array(group_labels(folder, group_columns))
    labels = np.array([sample.label for sample in folder.samples])
    objective = objective or _default_objective(folder, groups, labels)
    if objective == "worst-group" and len(np.unique(groups)) == len(np.unique(labels)):
        raise DataError(
            "objective worst-group needs groups: no column of metadata.csv besides file and split (or of those named) "
            "divides the images of a class"
        )
    if objective == "relevance-mass" and not any(sample.mask for sample in folder.samples):
        raise DataError("objective relevance-mass needs images with masks; there is accuracy and worst-group besides")
    device = next(model.module.parameters()).device
    first = next(iter(loader(ImageDataset(folder, model.preprocess), min(2, len(folder.samples)), 0)))["image"].to(
        device
    )
    if uniform and search != "importance":
        raise ClearheadError(f"uniform: only the search importance has candidates of one size, got {search}")
    require_classes(folder, model.classes)
    with evaluation_mode(model.module):
        default = "last" if search == "exhaustive" else "all"
        chosen = pick(attention_layers(model, first), default if layers is None else layers)
        whole_layers = {layer.name: HeadMask(torch.ones(1, layer.num_heads)) for layer in chosen}
        fold_heads(model, whole_layers, first)  # refuses what could not be folded after the search
        runners = [head_mask_runner(model, layer, first) for layer in chosen]
        parts = [np.arange(len(labels))]
        if objective == "worst-group":
            parts = [np.flatnonzero(groups == name) for name in np.unique(groups)]
        task = _Task(
            model, folder, first, runners, objective, parts, labels, {}, batch_size, workers, progress, uniform
        )
        if ablation == "mean":
            task = replace(task, fills=_mean_outputs(task))
        masks, correct, values = _SEARCHES[search](task)
        counts = _counts(masks)
        best = task.best(counts, values, correct)
        whole = next(i for i, mask in enumerate(masks) if all(map(all, mask.values())))
        selection = Selection(
            search=search,
            objective=objective,
            kept_heads={name: list(keep) for name, keep in masks[best].items()},
            before=float(values[whole]),
            after=float(values[best]),
            optimism=None if correct is None else _optimism(task, counts, correct, seed),
            smallest=min(map(len, parts)),
            tried=len(masks),
            images=len(labels),
        )
        return fold_heads(model, task.fixed(masks[best]), first), selection


def _default_objective(folder: ImageIndex, groups: np.ndarray, labels: np.ndarray) -> Objective:
    if len(np.unique(groups)) > len(np.unique(labels)):
        return "worst-group"
    return "relevance-mass" if any(sample.mask for sample in folder.samples) else "accuracy"


def _count(mask: Mask) -> int:
    """The heads a mask keeps."""
    return sum(map(sum, mask.values()))


def _counts(masks: list[Mask]) -> np.ndarray:
    return np.array([_count(mask) for mask in masks])


Found = tuple[list[Mask], np.ndarray | None, np.ndarray]
"""Candidates, what each gets right (S x N, where it was measured), and the objective of each (S)."""


def _exhaustive(task: _Task) -> Found:
    if len(task.runners) > 1:
        raise ClearheadError(f"search exhaustive: one layer at a time, got {len(task.runners)}; greedy takes several")
    layer = task.runners[0].layer
    most = MOST_EXHAUSTIVE_BY_MAPS if task.objective == "relevance-mass" else MOST_EXHAUSTIVE
    if layer.num_heads > most:
        raise ClearheadError(
            f"search exhaustive: '{layer.name}' has {layer.num_heads} heads, and {2**layer.num_heads - 1} subsets are "
            f"too many to try by {task.objective} (at most {most} heads); take greedy or importance, or by accuracy"
        )
    heads = layer.num_heads
    subsets = [tuple(bool(i >> h & 1) for h in range(heads)) for i in range(1, 2**heads)]
    return _measured(task, [{layer.name: subset} for subset in subsets], "subsets")


def _greedy(task: _Task) -> Found:
    current = _all_heads(task)
    masks, correct, values = _measured(task, [current], "all heads")
    while candidates := _one_fewer(current):
        step, right, found = _measured(task, candidates, f"{_count(current) - 1} heads")
        masks, values = masks + step, np.concatenate([values, found])
        correct = np.concatenate([correct, right]) if correct is not None and right is not None else None
        best = masks[task.best(_counts(masks), values, correct)]
        if _count(best) != _count(current) - 1:
            break
        current = best
    return masks, correct, values


def _all_heads(task: _Task) -> Mask:
    return {b.layer.name: (True,) * b.layer.num_heads for b in task.runners}


def _one_fewer(mask: Mask) -> list[Mask]:
    """The masks with one head less that leave each layer one."""
    return [
        mask | {name: (*keep[:h], False, *keep[h + 1 :])}
        for name, keep in mask.items()
        for h in range(len(keep))
        if keep[h] and sum(keep) > 1
    ]


def _importance(task: _Task) -> Found:
    layers = [b.layer.index for b in task.runners]
    found = head_importance(task.model, task.folder, layers, task.batch_size, task.workers)
    # as Michel et al., by the length of a layer's importances: without it whole layers would go first
    ranked = sorted(
        (v / max(np.linalg.norm(of), 1e-30), name, h) for name, of in found.items() for h, v in enumerate(of)
    )
    current = _all_heads(task)
    masks = [current]
    if task.uniform:
        return _measured(task, _uniform(current, ranked), "fewer heads")
    for _, name, h in ranked:
        keep = current[name]
        if sum(keep) > 1:
            current = current | {name: (*keep[:h], False, *keep[h + 1 :])}
            masks.append(current)
    return _measured(task, masks, "fewer heads")


def _uniform(whole: Mask, ranked: Sequence[tuple[float, str, int]]) -> list[Mask]:
    """The masks without the k least important heads of each layer, for each k."""
    masks = []
    for k in range(min(map(len, whole.values()))):
        gone = {name: [h for _, of, h in ranked if of == name][:k] for name in whole}
        masks.append({name: tuple(h not in gone[name] for h in range(len(keep))) for name, keep in whole.items()})
    return masks


_SEARCHES: dict[Search, Callable[[_Task], Found]] = {
    "exhaustive": _exhaustive,
    "greedy": _greedy,
    "importance": _importance,
}


def _measured(task: _Task, masks: list[Mask], title: str) -> Found:
    """The candidates and their objective. Those that differ in one layer only share the passes before it."""
    if task.objective == "relevance-mass":
        tracked = task.progress(masks, len(masks), title) if task.progress else masks
        return masks, None, np.array([_foreground(task, mask) for mask in tracked])
    jobs = _jobs(task, masks)
    device = next(task.model.module.parameters()).device
    correct = np.zeros((len(masks), len(task.labels)), dtype=bool)
    for batch in task.batches(title):
        images, labels = batch["image"].to(device), batch["label"].to(device)
        for ready, members in jobs:
            heads = task.heads([masks[i][ready.layer.name] for i in members], ready.layer.name)
            right = require_not_nan(ready.logits(images, heads)).argmax(-1) == labels
            correct[np.ix_(members, batch["index"].numpy())] = right.cpu().numpy()
    return masks, correct, task.score(correct)


def _jobs(task: _Task, masks: list[Mask]) -> list[tuple[HeadMaskRunner, list[int]]]:
    """Candidates that differ in one layer only put together at that layer; those left over each for itself."""
    jobs: list[tuple[HeadMaskRunner, list[int]]] = []
    left = dict(enumerate(masks))
    for ready in reversed(task.runners):
        name = ready.layer.name
        alike: dict[tuple, list[int]] = {}
        for i, mask in left.items():
            alike.setdefault(tuple((n, keep) for n, keep in mask.items() if n != name), []).append(i)
        for others, members in alike.items():
            if len(members) > 1 or ready is task.runners[0]:
                jobs.append((replace(ready, others=task.fixed(dict(others))), members))
                left = {i: mask for i, mask in left.items() if i not in members}
    return jobs


def _foreground(task: _Task, mask: Mask) -> float:
    """Mean share of the foreground relevance with these heads."""
    model = fold_heads(task.model, task.fixed(mask), task.first)
    shares = relevance_masses(model, task.folder, task.batch_size, task.workers)
    masked = np.array([sample.mask is not None for sample in task.folder.samples])
    return float(np.nan_to_num(shares[masked]).mean())  # no relevance at all is none in the foreground


@torch.no_grad()
def _mean_outputs(task: _Task) -> dict[str, Tensor]:
    """The mean output of each head over images and tokens, H x d, of each layer searched."""
    device = next(task.model.module.parameters()).device
    sums: dict[str, Tensor] = {}
    rows: Counter[str] = Counter()
    for batch in task.batches("mean outputs"):
        with tap(task.model.module) as record:
            task.model(batch["image"].to(device))
        for ready in task.runners:
            output = record[ready.layer.index].output
            sums[ready.layer.name] = sums.get(ready.layer.name, torch.zeros(1, device=device)) + output.mean(-2).sum(0)
            rows[ready.layer.name] += len(output)
    return {name: total / rows[name] for name, total in sums.items()}


def _optimism(task: _Task, counts: np.ndarray, correct: np.ndarray, seed: int) -> float:
    """The best objective less the one by cross-validation: each image answered by the best candidate on the others.

    Five folds drawn anew twenty times, divided part by part.
    """
    rng, honest = np.random.default_rng(seed), []
    values = task.score(correct)
    for _ in range(_REPEATS):
        fold = np.empty(len(task.labels), dtype=int)
        for part in task.parts:
            fold[part] = (rng.permutation(len(part)) + rng.integers(_FOLDS)) % _FOLDS
        require_not_nan = np.empty((1, len(fold)), dtype=bool)
        for held_out in range(_FOLDS):
            seen = fold != held_out
            require_not_nan[0, ~seen] = correct[task.best(counts, values, correct, seen), ~seen]
        honest.append(task.score(require_not_nan)[0])
    return float(values.max() - np.mean(honest))
