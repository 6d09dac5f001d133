"""Robustness over many sets: accuracy on each, effective robustness, seeds of a training, paired tests."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t as student

from clearhead.analyses.subject import Subject
from clearhead.errors import ClearheadError
from clearhead.metrics.calibration import confidence_bins
from clearhead.metrics.statistics import Estimate, accuracy_difference, holm, mcnemar, proportion
from clearhead.prediction.suite_predictions import SuitePredictions


@dataclass(frozen=True)
class SetRow:
    """One model on one set under one class mapping.

    Attributes:
        model: its name.
        set: the set's name.
        scoring: the name of the class mapping.
        classes: number of classes of the set.
        images: number of images read.
        unreadable: number of images left out.
        top1: accuracy.
        top5: accuracy of the five most probable classes; None for sets of fewer than 20 classes.
        loss: mean negative log-likelihood, nats.
        ece: expected calibration error (equal-width bins).
        effective: effective robustness, where baselines are available.
        family: name of the curve that the set belongs to (``fog``), or empty.
        level: its level in that family (severity, angle, ...).
    """

    model: str
    set: str
    scoring: str
    classes: int
    images: int
    unreadable: int
    top1: Estimate
    top5: Estimate | None
    loss: float
    ece: float
    effective: Estimate | None = None
    family: str = ""
    level: float | None = None


@dataclass(frozen=True)
class SeedRow:
    """The models of one label (seeds of one training) on one set: mean accuracy, its t interval over the models."""

    label: str
    set: str
    scoring: str
    top1: Estimate
    spread: float


@dataclass(frozen=True)
class SetChange:
    """A model compared with the first on one set, paired.

    Attributes:
        model: its name.
        set: the set.
        scoring: the set's main class mapping.
        change: accuracy minus that of the first model.
        positive_flips: number of predictions corrected.
        negative_flips: number of predictions newly wrong.
        p_value: of the exact McNemar test.
        adjusted: the same with Holm's correction for all sets and models.
        word: improved or regressed where `adjusted` is below 0.05.
    """

    model: str
    set: str
    scoring: str
    change: Estimate
    positive_flips: int
    negative_flips: int
    p_value: float
    adjusted: float
    word: Literal["improved", "regressed", "no difference detected"]


@dataclass(frozen=True)
class SuiteResult:
    """Models on shifted sets.

    Attributes:
        subject: models and data; its issues include the images that could not be read. The first model is the baseline.
        reference: the set whose accuracy effective robustness is measured from.
        rows: one per model, set and class mapping.
        summaries: by model, metrics over several sets.
        seeds: means over models of one label.
        changes: the other models compared with the first, set by set.
        constants: of synthetic corruptions: ``imagenet`` or ``cifar``.
        seed: of the shifts.
        absent: sets of the suites that are unavailable.
    """

    subject: Subject
    reference: str
    rows: list[SetRow]
    summaries: dict[str, dict[str, Estimate]]
    seeds: list[SeedRow] = field(default_factory=list)
    changes: list[SetChange] = field(default_factory=list)
    constants: str = "imagenet"
    seed: int = 0
    absent: list[str] = field(default_factory=list)


ALPHA = 0.05

_FEW_CLASSES = 20  # top-5 of fewer is uninformative


def set_row(
    model: str,
    name: str,
    scoring: str,
    classes: int,
    predictions: SuitePredictions,
    family: str = "",
    level: float | None = None,
) -> SetRow:
    """Return the numbers of one model on one set."""
    return SetRow(
        model,
        name,
        scoring,
        classes,
        len(predictions.file),
        len(predictions.unreadable),
        proportion(predictions.correct),
        proportion(predictions.top5) if classes >= _FEW_CLASSES else None,
        float(predictions.loss.mean()) if len(predictions.loss) else math.nan,
        _ece(predictions),
        family=family,
        level=level,
    )


def _ece(predictions: SuitePredictions) -> float:
    """Return the expected calibration error; NaN without images."""
    bins = confidence_bins(predictions.confidence, predictions.correct)
    gaps = np.abs(np.subtract(bins.confidence, bins.accuracy))
    return float(np.average(gaps, weights=bins.counts)) if bins.counts else math.nan


def changes(pairs: Mapping[tuple[str, str, str], tuple[SuitePredictions, SuitePredictions]]) -> list[SetChange]:
    """Compare models on many sets; `pairs` has by model, set and class mapping (before, after) of the same images.

    All p-values together are corrected by Holm's step-down method, so that the probability of one false verdict in the
    whole table is at most ``ALPHA``. Raises ClearheadError where two predictions are of different images.
    """
    tests = []
    for (model, name, scoring), (before, after) in pairs.items():
        if not (np.array_equal(before.file, after.file) and np.array_equal(before.label, after.label)):
            raise ClearheadError(f"models: the predictions of {name} are of different images")
        if len(before.file):
            test = mcnemar(before.correct, after.correct)
            tests.append((model, name, scoring, accuracy_difference(before.correct, after.correct), test))
    adjusted = holm([test.p_value for *_, test in tests])
    rows = []
    for (model, name, scoring, change, test), p in zip(tests, adjusted, strict=True):
        word: Literal["improved", "regressed", "no difference detected"] = "no difference detected"
        if p < ALPHA:
            word = "improved" if change.value > 0 else "regressed"
        rows.append(
            SetChange(model, name, scoring, change, test.positive_flips, test.negative_flips, test.p_value, p, word)
        )
    return rows


def over_seeds(rows: Sequence[SetRow], labels: Mapping[str, str]) -> list[SeedRow]:
    """Return the mean accuracy of the models that share a label, for labels of several models.

    `labels` is the label of each model. The interval is Student's over the models: it holds for the accuracy of another
    seed on these images, not for other images.
    """
    accuracy: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        accuracy[labels[row.model], row.set, row.scoring].append(row.top1.value)
    result = []
    for (label, name, scoring), values in accuracy.items():
        if (count := len(values)) > 1:
            mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
            half = float(student.ppf(0.975, count - 1)) * spread / math.sqrt(count)
            result.append(SeedRow(label, name, scoring, Estimate(mean, mean - half, mean + half, count, "%"), spread))
    return result


def baseline_line(reference: Sequence[float], shifted: Sequence[float]) -> tuple[float, float] | None:
    """Return intercept and slope of the baselines' accuracy on a shifted set by that on the reference, both as logits.

    As in Taori et al. (arXiv 2007.00644), by least squares. A baseline with an accuracy of 0 or 1 has no logit and is
    left out; None where fewer than two of different accuracy on the reference are left.
    """
    x, y = np.asarray(reference, dtype=float), np.asarray(shifted, dtype=float)
    usable = (x > 0) & (x < 1) & (y > 0) & (y < 1)
    x, y = x[usable], y[usable]
    if len(x) < 2 or np.ptp(x) == 0:
        return None
    slope, intercept = np.polyfit(logit(x), logit(y), 1)
    return float(intercept), float(slope)


def effective_robustness(top1: Estimate, reference: float, line: tuple[float, float]) -> Estimate:
    """Return the accuracy on a shifted set minus what the baselines' line predicts from that on the reference set.

    The interval is that of the accuracy on the shifted set; the line is treated as exact.
    """
    intercept, slope = line
    clipped = min(max(reference, 1e-6), 1 - 1e-6)
    expected = float(expit(intercept + slope * logit(clipped)))
    return Estimate(top1.value - expected, top1.low - expected, top1.high - expected, top1.count, "pp")
