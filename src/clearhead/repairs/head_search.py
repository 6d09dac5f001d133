"""Evaluate subsets of heads, and three ways to go through them.

exhaustive
    Every subset of one layer's heads (2^H - 1), from one pass up to that layer (``head_masking``).
greedy
    From all heads of all layers, remove the head whose removal is best, for as long as the objective improves.
importance
    Remove the k heads of least importance (Michel et al., arXiv 1905.10650), for each k.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clearhead.attention_tap import tap
from clearhead.data.dataset import ImageIndex
from clearhead.data.loading import ImageDataset, loader
from clearhead.errors import ClearheadError
from clearhead.heads.fold import fold_heads
from clearhead.heads.head_masking import HeadMask, HeadMaskRunner
from clearhead.heads.importance import head_importance
from clearhead.models import Classifier
from clearhead.models.classifier import require_not_nan
from clearhead.prediction.predict import relevance_masses
from clearhead.progress import Progress, duration, log, track

Search = Literal["exhaustive", "greedy", "importance"]
Objective = Literal["accuracy", "worst-group", "relevance-mass"]

MAX_HEADS_EXHAUSTIVE = 12
"""Most heads of a layer for an exhaustive search by accuracy: 4,095 subsets."""
MAX_HEADS_EXHAUSTIVE_BY_RELEVANCE = 4
"""The same by relevance mass, where each candidate needs a map of every image."""

KeptHeads = dict[str, tuple[bool, ...]]
"""Whether each head of each searched layer is kept, by the layer's name."""


@dataclass(frozen=True)
class Candidates:
    """Evaluated subsets of heads.

    Attributes:
        subsets: S subsets.
        scores: the objective of each, S.
        correct: whether each classifies each image correctly, S x N; None where the objective is the relevance mass.
    """

    subsets: list[KeptHeads]
    scores: npt.NDArray[np.float64]
    correct: npt.NDArray[np.bool_] | None

    def __add__(self, other: "Candidates") -> "Candidates":
        correct = None
        if self.correct is not None and other.correct is not None:
            correct = np.concatenate([self.correct, other.correct])
        return Candidates(self.subsets + other.subsets, np.concatenate([self.scores, other.scores]), correct)

    def best(self, groups: Sequence[npt.NDArray[np.intp]]) -> int:
        """Return the position of the candidate with the highest accuracy in the worst of `groups` of images.

        Ties go to the highest mean over groups (it decides where the worst group is small), then to the most heads,
        then to the first: a head is removed only where that improves something. Without accuracies, or with no group,
        the highest `scores` decides.
        """
        worst, mean = self.scores, np.zeros(len(self.subsets))
        if self.correct is not None and groups:
            accuracy = group_accuracy(self.correct, groups)
            worst, mean = accuracy.min(0), accuracy.mean(0)
        sizes = np.array([number_kept(subset) for subset in self.subsets])
        # Rounded, so that equal accuracies are equal; the last key of lexsort decides first.
        return int(np.lexsort((-np.arange(len(sizes)), sizes, mean.round(9), worst.round(9)))[-1])


def group_accuracy(correct: npt.NDArray[np.bool_], groups: Sequence[npt.NDArray[np.intp]]) -> npt.NDArray[np.float64]:
    """Return the accuracy of each candidate (`correct`: S x N) on each group of images, groups x S."""
    return np.array([correct[:, group].mean(1) for group in groups])


def number_kept(subset: KeptHeads) -> int:
    """Return how many heads a subset keeps."""
    return sum(map(sum, subset.values()))


class OverBudget(Exception):
    """Subsets that would take too long: this many seconds; ``clearhead.repairs.head_selection`` handles it."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


@dataclass(frozen=True)
class HeadSearch:
    """What every search needs: the model, the images, and the objective.

    Attributes:
        model: the classifier, in eval mode.
        folder: the images to select on.
        example: a few of them as a tensor, to fold heads with.
        runners: one per searched layer, in call order.
        objective: what to maximise.
        groups: positions of the images of each group; the objective is the accuracy on the worst of them.
        fills: the mean output of each head (H x d) by layer name, for mean ablation; else empty.
        uniform: whether an importance search keeps as many heads in every layer.
        batch_size, workers, progress: for loading the images.
        deadline: ``time.perf_counter()`` by which the search is to end; None is no limit.
    """

    model: Classifier
    folder: ImageIndex
    example: Tensor
    runners: list[HeadMaskRunner]
    objective: Objective
    groups: Sequence[npt.NDArray[np.intp]]
    fills: Mapping[str, Tensor]
    uniform: bool
    batch_size: int
    workers: int
    progress: Progress | None
    deadline: float | None = None

    def all_heads(self) -> KeptHeads:
        """Return the subset that keeps every head."""
        return {runner.layer.name: (True,) * runner.layer.num_heads for runner in self.runners}

    def masks(self, subset: KeptHeads) -> dict[str, HeadMask]:
        """Return the head masks of a subset, for the layers in which it removes heads."""
        return {name: self._mask([keep], name) for name, keep in subset.items() if not all(keep)}

    def batches(self, description: str) -> Iterable[dict[str, Any]]:
        """Return the batches of images in order, with progress."""
        return track(
            loader(ImageDataset(self.folder, self.model.preprocess), self.batch_size, self.workers),
            self.progress,
            description,
        )

    def evaluate(self, subsets: list[KeptHeads], description: str, log_total: int | None = None) -> Candidates:
        """Return the objective of each subset; those that differ in one layer only share the passes before it.

        With `log_total`, the number of candidates of the whole search, the duration of the search is estimated and
        logged once the first of them has been timed. Raises OverBudget where these subsets would end past the deadline.
        """
        if self.objective == "relevance-mass":
            scores = []
            for subset in track(subsets, self.progress, description):
                started = time.perf_counter()
                scores.append(self._relevance_mass(subset))
                seconds = time.perf_counter() - started
                if log_total is not None and len(scores) == 1:
                    self._log_estimate(log_total, seconds * log_total)
                if len(scores) == 1:
                    self._require_time(seconds * len(subsets), seconds)
            return Candidates(subsets, np.array(scores), None)
        jobs = self._jobs(subsets)
        device = self.model.device
        correct = np.zeros((len(subsets), len(self.folder.samples)), dtype=bool)
        for number, batch in enumerate(self.batches(description)):
            started = time.perf_counter()
            images, labels = batch["image"].to(device), batch["label"].to(device)
            for runner, members in jobs:
                name = runner.layer.name
                masks = self._mask([subsets[i][name] for i in members], name)
                predicted = require_not_nan(runner.logits(images, masks)).argmax(-1)
                correct[np.ix_(members, batch["index"].numpy())] = (predicted == labels).cpu().numpy()
            passed = time.perf_counter() - started
            seconds = passed * len(self.folder.samples) / len(images)
            if log_total is not None and number == 0:
                self._log_estimate(log_total, seconds * log_total / len(subsets))
            if number == 0:
                self._require_time(seconds, passed)
        return Candidates(subsets, group_accuracy(correct, self.groups).min(0), correct)

    def _mask(self, keep: Sequence[tuple[bool, ...]], name: str) -> HeadMask:
        """Return S subsets of one layer's heads as a mask: kept heads scaled by H / kept, or others set to the mean."""
        scales = torch.tensor(keep, dtype=torch.float32)
        if name in self.fills:
            return HeadMask(scales, self.fills[name])
        return HeadMask(scales * scales.shape[1] / scales.sum(1, keepdim=True))

    def _require_time(self, seconds: float, passed: float) -> None:
        """Raise OverBudget if the rest of some seconds, of which a part has passed, ends after the deadline."""
        if self.deadline is not None and time.perf_counter() + seconds - passed > self.deadline:
            raise OverBudget(seconds)

    def _log_estimate(self, candidates: int, seconds: float) -> None:
        log.info(
            "head search: at most %s candidates x %s images, estimated at most %s; --limit N (limit=N in Python) uses "
            "fewer images",
            f"{candidates:,}",
            f"{len(self.folder.samples):,}",
            duration(seconds),
        )

    def _jobs(self, subsets: list[KeptHeads]) -> list[tuple[HeadMaskRunner, list[int]]]:
        """Group subsets that differ in one layer only, to run them at that layer; the others run one by one."""
        jobs: list[tuple[HeadMaskRunner, list[int]]] = []
        remaining = dict(enumerate(subsets))
        for runner in reversed(self.runners):
            same_elsewhere: dict[tuple[tuple[str, tuple[bool, ...]], ...], list[int]] = defaultdict(list)
            for i, subset in remaining.items():
                same_elsewhere[tuple((n, keep) for n, keep in subset.items() if n != runner.layer.name)].append(i)
            for others, members in same_elsewhere.items():
                if len(members) > 1 or runner is self.runners[0]:
                    jobs.append((replace(runner, others=self.masks(dict(others))), members))
                    for i in members:
                        del remaining[i]
        return jobs

    def _relevance_mass(self, subset: KeptHeads) -> float:
        """Return the mean share of the relevance in the foreground with these heads, over images with a mask."""
        model = fold_heads(self.model, self.masks(subset), self.example)
        masses = relevance_masses(model, self.folder, self.batch_size, self.workers)
        masked = np.array([sample.mask is not None for sample in self.folder.samples])
        return float(np.nan_to_num(masses[masked]).mean())  # no relevance at all is none in the foreground


@torch.no_grad()
def mean_outputs(search: HeadSearch) -> dict[str, Tensor]:
    """Return the mean output of each head over images and tokens, H x d, of each searched layer."""
    device = search.model.device
    sums: dict[str, Tensor] = {}
    rows: Counter[str] = Counter()
    for batch in search.batches("mean outputs"):
        with tap(search.model.module) as record:
            search.model(batch["image"].to(device))
        for runner in search.runners:
            output, name = record[runner.layer.index].output, runner.layer.name
            sums[name] = sums.get(name, torch.zeros(1, device=device)) + output.mean(-2).sum(0)
            rows[name] += len(output)
    return {name: total / rows[name] for name, total in sums.items()}


def _exhaustive(search: HeadSearch) -> Candidates:
    if len(search.runners) > 1:
        raise ClearheadError(
            f"layers: an exhaustive search takes one layer at a time, got {len(search.runners)}; greedy takes several"
        )
    layer = search.runners[0].layer
    by_relevance = search.objective == "relevance-mass"
    most = MAX_HEADS_EXHAUSTIVE_BY_RELEVANCE if by_relevance else MAX_HEADS_EXHAUSTIVE
    if layer.num_heads > most:
        raise ClearheadError(
            f"search: '{layer.name}' has {layer.num_heads} heads, and {2**layer.num_heads - 1:,} subsets are too many "
            f"for an exhaustive search by {search.objective} (at most {most} heads); choose search greedy or importance"
            + (", or objective accuracy" if by_relevance else "")
        )
    heads = range(layer.num_heads)
    subsets = [{layer.name: tuple(bool(i >> h & 1) for h in heads)} for i in range(1, 2**layer.num_heads)]
    return search.evaluate(subsets, "subsets of heads", len(subsets))


def _greedy(search: HeadSearch) -> Candidates:
    current = search.all_heads()
    heads, layers = number_kept(current), len(current)
    most = 1 + (heads * (heads + 1) - layers * (layers + 1)) // 2  # each step down to one head per layer
    candidates = search.evaluate([current], "all heads")
    while smaller := [_without(current, name, h) for name, keep in current.items() for h in _removable(keep)]:
        size = number_kept(current) - 1
        try:
            candidates += search.evaluate(smaller, f"{size} heads", most if size == heads - 1 else None)
        except OverBudget:
            if len(candidates.subsets) == 1:
                raise
            log.info("head search: the budget ends the search at %s of %s heads", size + 1, heads)
            break
        best = candidates.subsets[candidates.best(search.groups)]
        if number_kept(best) != size:
            break
        current = best
    return candidates


def _importance(search: HeadSearch) -> Candidates:
    layers = [runner.layer.index for runner in search.runners]
    importance = head_importance(
        search.model, search.folder, layers, search.batch_size, search.workers, search.progress
    )
    # Divided by the norm of the layer's importances, as Michel et al. do: else whole layers would go first.
    ranked = sorted(
        (value / max(np.linalg.norm(values), 1e-30), name, h)
        for name, values in importance.items()
        for h, value in enumerate(values)
    )
    current = search.all_heads()
    subsets = [current]
    if search.uniform:  # without the k least important heads of each layer
        order = {layer: [h for _, name, h in ranked if name == layer] for layer in current}
        for k in range(1, min(map(len, current.values()))):
            subsets.append({n: tuple(h not in order[n][:k] for h in range(len(keep))) for n, keep in current.items()})
    else:
        for _, name, h in ranked:
            if h in _removable(current[name]):
                current = _without(current, name, h)
                subsets.append(current)
    return search.evaluate(subsets, "fewer heads", len(subsets))


def _removable(keep: tuple[bool, ...]) -> list[int]:
    """Return the heads of a layer that can be removed, so that one remains."""
    return [h for h, is_kept in enumerate(keep) if is_kept] if sum(keep) > 1 else []


def _without(subset: KeptHeads, name: str, head: int) -> KeptHeads:
    keep = subset[name]
    return subset | {name: (*keep[:head], False, *keep[head + 1 :])}


SEARCHES: dict[Search, Callable[[HeadSearch], Candidates]] = {
    "exhaustive": _exhaustive,
    "greedy": _greedy,
    "importance": _importance,
}
