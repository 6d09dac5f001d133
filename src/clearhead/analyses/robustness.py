"""From answers to the one table: accuracy on every set, effective robustness, seeds, paired tests over many sets."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t as student

from clearhead.errors import ClearheadError
from clearhead.metrics.calibration import confidence_bins
from clearhead.metrics.statistics import Estimate, accuracy_difference, holm, mcnemar, proportion
from clearhead.prediction.suite_predictions import SuitePredictions


@dataclass(frozen=True)
class SetRow:
    """One model on one set under one scoring.

    Attributes:
        model: its name.
        set: the set's name, `family` and `level` where it is one of a curve.
        scoring: the name of the scoring.
        classes: how many classes the set has.
        images: images read.
        unreadable: images left out.
        top1: accuracy.
        top5: the same for the first five; None for sets of so few classes that it says nothing.
        loss: mean negative log-likelihood, nats.
        ece: expected calibration error.
        effective: effective robustness, where there is a line of baselines.
        family: see `set`.
        level: see `set`.
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
    """A model against the first on one set, paired.

    Attributes:
        model: its name.
        set: the set.
        scoring: the set's main one.
        change: accuracy minus that of the first model.
        positive_flips: images misclassified before and correct after.
        negative_flips: images correct before and misclassified after.
        p_value: McNemar's, exact.
        adjusted: the same after Holm's correction for all the sets of the table.
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


ALPHA = 0.05

_FEW_CLASSES = 20  # top-5 of fewer says little


def set_row(
    model: str,
    name: str,
    scoring: str,
    classes: int,
    answers: SuitePredictions,
    family: str = "",
    level: float | None = None,
) -> SetRow:
    """The numbers of one model on one set."""
    return SetRow(
        model,
        name,
        scoring,
        classes,
        len(answers.file),
        len(answers.unreadable),
        proportion(answers.correct),
        proportion(answers.top5) if classes >= _FEW_CLASSES else None,
        float(answers.loss.mean()) if len(answers.loss) else math.nan,
        _ece(answers),
        family=family,
        level=level,
    )


def _ece(answers: SuitePredictions) -> float:
    """Expected calibration error; NaN without images."""
    bins = confidence_bins(answers.confidence, answers.correct)
    gaps = np.abs(np.subtract(bins.confidence, bins.accuracy))
    return float(np.average(gaps, weights=bins.counts)) if bins.counts else math.nan


def changes(pairs: Mapping[tuple[str, str, str], tuple[SuitePredictions, SuitePredictions]]) -> list[SetChange]:
    """Models against another on many sets, by model, set and scoring: (before, after) of the same images.

    All p-values together are corrected by Holm's step-down rule, so that the probability of one false verdict in the
    whole table is at most ``ALPHA``. Raises ClearheadError where two predictions are of different images.
    """
    found = []
    for (model, name, scoring), (before, after) in pairs.items():
        if not (np.array_equal(before.file, after.file) and np.array_equal(before.label, after.label)):
            raise ClearheadError(f"compare: the models were asked about different images of {name}")
        if len(before.file):
            test = mcnemar(before.correct, after.correct)
            found.append((model, name, scoring, accuracy_difference(before.correct, after.correct), test))
    adjusted = holm([test.p_value for *_, test in found])
    rows = []
    for (model, name, scoring, change, test), p in zip(found, adjusted, strict=True):
        word: Literal["improved", "regressed", "no difference detected"] = "no difference detected"
        if p < ALPHA:
            word = "improved" if change.value > 0 else "regressed"
        rows.append(
            SetChange(model, name, scoring, change, test.positive_flips, test.negative_flips, test.p_value, p, word)
        )
    return rows


def over_seeds(rows: Sequence[SetRow], labels: Mapping[str, str]) -> list[SeedRow]:
    """Mean accuracy of the models that share a label, for labels of several models.

    `labels` gives the label of each model. The interval is Student's over the models: for another seed's accuracy on
    these images on average, not for other images.
    """
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        found[labels[row.model], row.set, row.scoring].append(row.top1.value)
    result = []
    for (label, name, scoring), values in found.items():
        if (count := len(values)) > 1:
            mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
            half = float(student.ppf(0.975, count - 1)) * spread / math.sqrt(count)
            result.append(SeedRow(label, name, scoring, Estimate(mean, mean - half, mean + half, count, "%"), spread))
    return result


def baseline_line(reference: Sequence[float], shifted: Sequence[float]) -> tuple[float, float] | None:
    """Intercept and slope of the baselines' accuracy on a shifted set by that on the reference, both as logits.

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
    """Accuracy beyond what the baselines' line gives a model of such an accuracy on the reference set.

    The interval is that of the accuracy on the shifted set; the line is taken as given.
    """
    intercept, slope = line
    clipped = min(max(reference, 1e-6), 1 - 1e-6)
    expected = float(expit(intercept + slope * logit(clipped)))
    return Estimate(top1.value - expected, top1.low - expected, top1.high - expected, top1.count, "pp")
