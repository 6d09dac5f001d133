"""Try the repairs that the data allows, cheapest first within a budget, and select the best one on validation images.

A repair is selected only if its objective (``clearhead.repairs.objective``) is higher than that of the original model;
with the objective of changed images, only if it is not shown to lose more than a margin of the accuracy on clean ones
(the paired interval lies below -margin). The best of several looks better on the images that selected it than it is, so
nothing is proven here: compare the one selected repair with the original model on other images. As it is one
comparison, it needs no correction for the number of repairs tried.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from clearhead.data.dataset import ImageIndex, group_labels, shared_columns
from clearhead.data.tags import read_tags
from clearhead.distributed import rank_and_size
from clearhead.errors import ClearheadError
from clearhead.metrics.statistics import Estimate, accuracy_difference, proportion
from clearhead.models import Classifier, load_model, save_model
from clearhead.models.classifier import on_device
from clearhead.prediction.predict import Predictions, predict
from clearhead.progress import Progress, duration, log, prefixed
from clearhead.repairs.estimates import epochs_within, estimate, measure_speed
from clearhead.repairs.objective import Objective, change_objective, group_objective, objective_value, usable_changes
from clearhead.repairs.presets import default_config
from clearhead.repairs.registry import REPAIRS
from clearhead.repairs.run import RepairOutcome, repair
from clearhead.storage import from_plain, read_json, to_plain, write_json
from clearhead.training.config import TrainConfig
from clearhead.training.linear_head import Features, read_features
from clearhead.training.trainable import Trainable

Status = Literal["tried", "failed", "over budget", "unavailable"]


@dataclass(frozen=True)
class Candidate:
    """A repair, and how it did on the validation images.

    Attributes:
        method: a key of ``REPAIRS``, or ``original model``.
        needs: what the data must have for it.
        status: whether it was tried, failed, did not fit into the budget, or needs what the data does not have.
        reason: why it was not tried or failed; else empty.
        estimate: seconds estimated before it was started; None where it is unavailable.
        seconds: measured, with the predictions of the validation images.
        objective: its value; None unless it was tried.
        average: accuracy on the clean validation images, likewise.
        difference: average - that of the original model, paired.
        outcome: how the repair went.
    """

    method: str
    needs: str
    status: Status
    reason: str = ""
    estimate: float | None = None
    seconds: float = 0.0
    objective: Estimate | None = None
    average: Estimate | None = None
    difference: Estimate | None = None
    outcome: RepairOutcome | None = None


@dataclass(frozen=True)
class Advice:
    """The repairs that were tried, and the selected one.

    Attributes:
        objective: what selected it.
        original: the original model on the same images.
        candidates: those tried or failed in the order in which they ran, then the others.
        selected: the method with the highest objective; None if none is better than the original model.
        budget: in seconds.
        seconds: what was used of it.
        margin: largest loss of clean accuracy with the objective ``mean accuracy under changes``.
    """

    objective: Objective
    original: Candidate
    candidates: list[Candidate]
    selected: str | None
    budget: float
    seconds: float
    margin: float

    @property
    def outcome(self) -> RepairOutcome | None:
        """How the selected repair went."""
        return self.candidate(self.selected).outcome if self.selected else None

    def candidate(self, method: str) -> Candidate:
        """Return the candidate of a method."""
        return next(one for one in self.candidates if one.method == method)


def advise(
    model: Classifier,
    train: ImageIndex,
    validation: ImageIndex,
    *,
    budget: float,
    configs: Mapping[str, TrainConfig] | None = None,
    group_columns: Sequence[str] | None = None,
    tags: str | Path | None = None,
    trainable: Trainable = "all",
    margin: float = 0.02,
    options: Mapping[str, Any] | None = None,
    state: Path | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> tuple[Classifier | None, Advice]:
    """Return the repaired model that is best on validation images, and all repairs that were tried.

    A repair is not started if its estimated time exceeds what is left of the budget. The estimates come from a few
    measured batches; those of fine-tunings are scaled by the last one's measured time. One that is started is not
    stopped. Estimates are logged (``logging.getLogger("clearhead")``, level INFO). A repair that fails is listed with
    its reason, and the others go on.

    Args:
        model: the classifier.
        train: the training images.
        validation: the images that select within the repairs and between them.
        budget: in seconds.
        configs: how each repair is trained, by method; the default is that of its preset.
        group_columns: metadata columns that define the groups together with the class; None for all columns.
        tags: a tags file, which then defines the groups of the repairs by groups. As they use tagged validation images,
            the untagged ones select between repairs.
        trainable: what repairs that fine-tune train.
        margin: accuracy on clean images that a repair may lose, with the objective of changed images; also the smallest
            drop under a change that counts.
        options: of repairs; each gets those that it has.
        state: folder in which finished repairs are saved, from which an interrupted call with the same arguments
            continues; the model is one that ``load_model`` can read then.
        device: such as ``cpu`` or ``cuda``; by default a GPU where one is available.
        progress: shows progress.

    Returns:
        The repaired model, None if no repair is better than the original model on validation images; and the advice.

    Raises:
        ClearheadError: for a budget that is too small for any repair, or data that allows none.
        DataError: for images or tags that cannot be used.
    """
    if rank_and_size()[1] > 1:
        raise ClearheadError("method: auto runs in one process; start it without torchrun or accelerate launch")
    started = time.perf_counter()
    if configs is None:
        configs = {name: default_config(one.preset) for name, one in REPAIRS.items()}
    options = dict(options or {})
    original = on_device(model, device)
    tagged = set(read_tags(tags)) if tags is not None else set()
    judged = replace(validation, samples=tuple(s for s in validation.samples if s.file not in tagged))
    columns = shared_columns(train, validation) if group_columns is None else list(group_columns)
    if not judged.samples:
        raise ClearheadError(
            f"tags: all {len(validation.samples):,} validation images are tagged; selection needs untagged ones"
        )
    objective = group_objective(judged, columns)
    changes = [] if objective else list(options.get("shortcuts") or usable_changes(judged))
    has_groups = tags is not None or len(set(group_labels(train, columns))) > len({s.label for s in train.samples})
    if not has_groups:
        options.setdefault("objective", "accuracy")  # of the heads: relevance takes far longer
    missing = _missing(has_groups, has_masks=any(sample.mask for sample in train.samples))
    allowed = {name: one for name, one in REPAIRS.items() if one.needs not in missing}
    unavailable = [
        Candidate(name, one.needs, "unavailable", missing[one.needs])
        for name, one in REPAIRS.items()
        if one.needs in missing
    ]
    if not allowed:
        raise ClearheadError(f"method: auto has no repair for this data: {'; '.join(sorted(missing.values()))}")
    saved, general = _saved(state), configs[next(iter(allowed))]
    speed = measure_speed(original, train, general, trainable)
    sizes = len(train.samples), len(validation.samples)
    judging = speed.forward * len(judged.samples) * (1 + len(changes))

    def estimated(method: str, has_features: bool) -> float:
        by_tags = tagged and REPAIRS[method].tags == "tagged images"
        images = (len(tagged), 0) if by_tags else sizes
        shared = has_features and not by_tags
        return judging + estimate(method, speed, configs[method], *images, has_features=shared, options=options)

    order = sorted(allowed, key=lambda name: estimated(name, False))
    first = judging + estimated(order[0], False)
    if not saved and time.perf_counter() - started + first > budget:
        raise ClearheadError(
            f"budget: got {duration(budget)}; the cheapest repair of this model and data and the predictions before it "
            f"take about {duration(first)}; give at least {round(1.2 * first) + 2} seconds"
        )

    def judge(classifier: Classifier, caption: str, shortcuts: Sequence[str]) -> Predictions:
        shown = prefixed(progress, caption)
        return predict(
            classifier,
            judged,
            group_columns=columns,
            shortcuts=shortcuts,
            maps=False,
            workers=general.workers,
            seed=general.seed,
            progress=shown,
        )

    before = judge(original, "original model", changes)
    objective = objective or change_objective(before, changes, margin)
    baseline = Candidate(
        "original model", "", "tried", objective=objective_value(before, objective), average=proportion(before.correct)
    )
    features: Features | None = None

    def attempt(method: str, left: float, folder: Path | None) -> tuple[Classifier, RepairOutcome]:
        nonlocal features
        chosen = REPAIRS[method]
        by_tags = tags is not None and chosen.tags != "none"
        shown = prefixed(progress, method)
        if chosen.shares_features and not by_tags and features is None:
            features = read_features(original, train, validation, workers=general.workers, progress=shown)
        own = {name: value for name, value in options.items() if name in chosen.options}
        return repair(
            original,
            train if chosen.trains or by_tags else None,
            validation,
            method=method,
            config=configs[method],
            group_columns=None if by_tags else group_columns,
            tags=tags if by_tags else None,
            features=None if by_tags else features,
            trainable=trainable if chosen.loss else "all",
            state=None if folder is None else folder / "training",
            device=device,
            progress=shown,
            **own | ({"budget": left} if "budget" in chosen.options else {}),
        )

    tried, used = list(saved.values()), sum(one.seconds for one in saved.values())
    best: Classifier | None = None
    ratio = 1.0  # of the measured time of the last fine-tuning to its estimate
    for method in (name for name in order if name not in saved):
        chosen, began = REPAIRS[method], time.perf_counter()
        left = budget - used - (began - started)
        needed = estimated(method, features is not None) * (ratio if chosen.loss else 1.0)
        if needed > left:
            reason = f"estimated {duration(needed)}, {duration(max(0.0, left))} of the budget left"
            if epochs := epochs_within(method, speed, configs[method], *sizes, left / ratio - judging):
                reason += f"; --epochs {epochs} would fit"
            log.info("%s: not started: %s", method, reason)
            unavailable.append(Candidate(method, chosen.needs, "over budget", reason, needed))
            continue
        log.info("%s: estimated %s, %s of the budget left", method, duration(needed), duration(left))
        folder = None if state is None else state / "candidates" / method
        candidate = Candidate(method, chosen.needs, "tried", estimate=needed)
        try:
            repaired, outcome = attempt(method, left, folder)
            after = judge(on_device(repaired, device), method, objective.shortcuts)
        except Exception as error:  # the others go on; what a user cannot mend keeps its traceback in the log
            reason = str(error) if isinstance(error, ClearheadError) else f"{type(error).__name__}: {error}"
            log.warning("%s: failed: %s", method, reason, exc_info=not isinstance(error, ClearheadError))
            candidate = replace(candidate, status="failed", reason=reason, seconds=time.perf_counter() - began)
        else:
            seconds = time.perf_counter() - began
            ratio = ratio * seconds / needed if chosen.loss else ratio
            candidate = replace(
                candidate,
                seconds=seconds,
                objective=objective_value(after, objective),
                average=proportion(after.correct),
                difference=accuracy_difference(before.correct, after.correct),
                outcome=outcome,
            )
            if method == _best([*tried, candidate], baseline, objective, margin):
                best = repaired
                if folder is not None:
                    save_model(repaired, folder / "checkpoint")
        tried.append(candidate)
        if folder is not None:
            write_json(folder / "candidate.json", to_plain(candidate, folder))
    selected = _best(tried, baseline, objective, margin)
    if selected in saved and state is not None:  # nothing since was better
        checkpoint = state / "candidates" / str(selected) / "checkpoint"
        best = on_device(replace(original, module=load_model(checkpoint).module), device)
    seconds = used + time.perf_counter() - started
    return best, Advice(objective, baseline, [*tried, *unavailable], selected, budget, seconds, margin)


def _missing(has_groups: bool, has_masks: bool) -> dict[str, str]:
    """Return what the data lacks, with how to get it."""
    reasons = {}
    if not has_masks:
        reasons["masks"] = "no training image has a foreground mask (clearhead data masks makes some)"
    if not has_groups:
        reasons["groups"] = "metadata.csv has no groups of training images (clearhead tag makes tags to use as groups)"
    return reasons


def _saved(state: Path | None) -> dict[str, Candidate]:
    """Return the candidates that an interrupted call has finished, in the order in which they ran."""
    files = [] if state is None else (state / "candidates").glob("*/candidate.json")
    ordered = sorted(files, key=lambda file: file.stat().st_mtime_ns)
    candidates = [from_plain(read_json(file), Candidate, file.parent) for file in ordered]
    return {one.method: one for one in candidates}


def _best(tried: Sequence[Candidate], baseline: Candidate, objective: Objective, margin: float) -> str | None:
    """Return the method with the highest objective, of equals that of the highest average, then the first by name."""
    eligible = [one for one in tried if is_eligible(one, baseline, objective, margin)]
    ordered = sorted(eligible, key=lambda one: one.method)
    return max(ordered, key=lambda one: (_value(one.objective), _value(one.average))).method if ordered else None


def is_eligible(candidate: Candidate, baseline: Candidate, objective: Objective, margin: float) -> bool:
    """Whether a repair may be selected: a higher objective than the original model's, without a shown loss."""
    if candidate.status != "tried" or not _value(candidate.objective) > _value(baseline.objective):
        return False
    shown_loss = candidate.difference is not None and candidate.difference.high < -margin
    return objective.measure == "worst-group accuracy" or not shown_loss


def _value(estimate: Estimate | None) -> float:
    return float("-inf") if estimate is None else estimate.value
