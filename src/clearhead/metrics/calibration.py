"""Measure calibration (confidence compared with accuracy), fit temperature scaling (Guo et al., arXiv 1706.04599)."""

import math
import warnings
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import softmax

from clearhead.errors import ClearheadError
from clearhead.metrics.statistics import Array, Estimate, bootstrap_interval, mean, proportion

BINS = 15

CONFIDENT = 0.9
"""Confidence above which a prediction counts as confident (Park and Kim, xxxnell/how-do-vits-work, ops/tests.py)."""

TEMPERATURES = 0.05, 20.0
"""Bounds of the search for a temperature."""


@dataclass(frozen=True)
class Bins:
    """Mean confidence, accuracy and image count of each non-empty confidence bin, in increasing order."""

    confidence: list[float]
    accuracy: list[float]
    counts: list[int]


@dataclass(frozen=True)
class Calibration:
    """The calibration of one model on one data set.

    Attributes:
        ece: expected calibration error over ``BINS`` bins of equal width.
        overconfidence: mean confidence - accuracy; the signed version of the ECE, positive for an overconfident model.
        brier: mean Brier score: squared distance of the probabilities from the one-hot label, in 0..2.
        loss: mean negative log-likelihood in nats.
        confident: share of the images with a confidence above ``CONFIDENT`` (Freq-90).
        confident_accuracy: accuracy on those (Acc-90).
        unconfident_errors: share of the errors with at most that confidence (Unc-90): a threshold detects them.
        bins: accuracy by confidence.
    """

    ece: Estimate
    overconfidence: Estimate
    brier: Estimate
    loss: Estimate
    confident: Estimate
    confident_accuracy: Estimate
    unconfident_errors: Estimate
    bins: Bins


@dataclass(frozen=True)
class TemperatureScaling:
    """Calibration after dividing the logits by a temperature, which changes the confidence but no prediction.

    Attributes:
        temperature: the fitted value, above 1 for an overconfident model; one of the bounds ``TEMPERATURES`` if the
            optimum lies beyond it.
        split: the split it was fitted on, which differs from that of `calibration`.
        images: number of images it was fitted on.
        calibration: at that temperature.
    """

    temperature: float
    split: str
    images: int
    calibration: Calibration


def calibration(confidence: Array, loss: Array, brier: Array, correct: Array, seed: int = 0) -> Calibration:
    """Return the calibration from per-image numbers as in ``Predictions``, N each; `seed` seeds the bootstrap."""
    confident = confidence > CONFIDENT
    return Calibration(
        ece=expected_calibration_error(confidence, correct, seed=seed),
        overconfidence=mean(confidence.astype(np.float64) - correct, "pp", seed),
        brier=mean(brier, "", seed),
        loss=mean(loss, "nats", seed),
        confident=proportion(confident),
        confident_accuracy=proportion(correct[confident]),
        unconfident_errors=proportion(~confident[~correct]),
        bins=confidence_bins(confidence, correct),
    )


def fit_temperature(logits: Array, labels: Array) -> float:
    """Return the temperature T that minimises the mean negative log-likelihood of softmax(logits / T).

    The loss is convex in 1 / T: its slope, the mean over images of Σ p z - z_label with z the logits, has one root,
    which is found in float64. If all images are classified correctly by a wide margin (the optimum is 0), or the logits
    are worse than uninformative (it is infinite), the nearer bound of ``TEMPERATURES`` is returned with a warning.

    Args:
        logits: N x C.
        labels: N class indices.

    Raises:
        ClearheadError: if a logit is not finite, or shapes or labels do not match the logits.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ClearheadError(
            f"logits: got shape {logits.shape} for labels of shape {labels.shape}; give N x C for N labels"
        )
    if not np.isfinite(logits).all():
        raise ClearheadError("logits: all must be finite")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ClearheadError(
            f"labels: {labels.min()}..{labels.max()}; the logits have classes 0..{logits.shape[1] - 1}"
        )
    z = logits - logits[np.arange(len(labels)), labels][:, None]

    def slope(inverse: float) -> float:
        return float((softmax(inverse * z, axis=1) * z).sum(1).mean())

    lowest, highest = TEMPERATURES
    for end, beyond in ((highest, slope(1 / highest) >= 0), (lowest, slope(1 / lowest) <= 0)):
        if beyond:
            warnings.warn(f"the optimal temperature is outside {lowest:g}..{highest:g}: using {end:g}", stacklevel=2)
            return end
    return float(1 / brentq(slope, 1 / highest, 1 / lowest, xtol=1e-12))


def confidence_bins(confidence: Array, correct: Array, bins: int = BINS) -> Bins:
    """Return confidence and accuracy in bins of equal width of the confidence (N, in 0..1).

    Raises:
        ClearheadError: if a confidence is outside 0..1.
    """
    index = _bin(confidence, bins)
    counts = np.bincount(index, minlength=bins)
    filled = counts > 0
    means = (np.bincount(index, values, bins)[filled] / counts[filled] for values in (confidence, correct))
    mean_confidence, accuracy = (values.tolist() for values in means)
    return Bins(mean_confidence, accuracy, counts[filled].tolist())


def expected_calibration_error(confidence: Array, correct: Array, bins: int = BINS, seed: int = 0) -> Estimate:
    """Return the ECE: mean distance between confidence and accuracy over bins of equal width, weighted by image count.

    The estimate is biased upward, more so for fewer images: even a perfectly calibrated model has an ECE above zero.
    The interval is a percentile bootstrap over images: it shows the spread and inherits the bias. For a nearly
    calibrated model or few images it lies above the true value.

    Raises:
        ClearheadError: if a confidence is outside 0..1.
    """
    index, gap = _bin(confidence, bins), confidence.astype(np.float64) - correct

    def error(rows: Array) -> float:
        return float(np.abs(np.bincount(index[rows], gap[rows], bins)).sum() / len(rows))

    all_rows = np.arange(len(gap))
    value = error(all_rows) if len(gap) else math.nan
    return Estimate(value, *bootstrap_interval(all_rows, error, seed, 1000, vectorized=False), len(gap), "%")


def _bin(confidence: Array, bins: int) -> Array:
    if len(confidence) and not (confidence.min() >= 0 and confidence.max() <= 1 + 1e-6):
        raise ClearheadError(f"confidence: got {confidence.min()}..{confidence.max()}; give probabilities in 0..1")
    index: Array = np.minimum((confidence * bins).astype(int), bins - 1)
    return index
