"""Does the model know what it knows? Confidence against accuracy, and the one number that can mend it (Guo et al.,
arXiv 1706.04599)."""

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import softmax
from scipy.stats import bootstrap

from clearhead.errors import ClearheadError
from clearhead.metrics.statistics import Estimate, mean, proportion

BINS = 15

CONFIDENT = 0.9
"""Confidence above which a prediction counts as confident (Park and Kim, xxxnell/how-do-vits-work, ops/tests.py)."""

TEMPERATURES = 0.05, 20.0
"""Temperatures that are looked through."""


@dataclass(frozen=True)
class Bins:
    """Mean confidence, accuracy and number of images of each bin of confidence that is not empty, in order."""

    confidence: list[float]
    accuracy: list[float]
    counts: list[int]


@dataclass(frozen=True)
class Calibration:
    """How far the probabilities of one model on one folder can be believed.

    Attributes:
        ece: expected calibration error over ``BINS`` bins of equal width.
        overconfidence: mean confidence - accuracy; the signed version of the ECE, positive for an overconfident model.
        brier: mean Brier score: the squared distance of the probabilities from the truth, summed over classes; in 0..2.
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
    """A model whose logits are divided by a temperature: no prediction changes, only how sure it is.

    Attributes:
        temperature: fitted, above 1 for a model that is too sure; one of ``TEMPERATURES`` where the best lies beyond.
        split: fitted on, not that of `calibration`.
        images: how many it was fitted on.
        calibration: at that temperature.
    """

    temperature: float
    split: str
    images: int
    calibration: Calibration


def calibration(
    confidence: np.ndarray, loss: np.ndarray, brier: np.ndarray, correct: np.ndarray, seed: int = 0
) -> Calibration:
    """All numbers of calibration from four numbers an image, N each: see ``Predictions``; `seed` of the bootstrap."""
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


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T of lowest mean negative log-likelihood of softmax(logits / T), logits N x C, labels N.

    In 1 / T the likelihood is convex: its slope, Σ p z less the label's z averaged over images, is zero in one place,
    found in float64. Where all images are right by far (the best T is 0) or the logits tell less than nothing (it is
    infinite), the nearer end of ``TEMPERATURES``, with a warning. Raises ClearheadError for logits that are not
    finite, or
    labels that do not go with them.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ClearheadError(f"logits: N x C for N labels are needed, got {logits.shape} and labels {labels.shape}")
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
            warnings.warn(f"no temperature in {lowest:g}..{highest:g} is best: {end:g} is taken", stacklevel=2)
            return end
    return float(1 / brentq(slope, 1 / highest, 1 / lowest, xtol=1e-12))


def confidence_bins(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> Bins:
    """Images by the probability of their predicted class (N, in 0..1), in bins of equal width.

    Raises ClearheadError for a confidence outside 0..1.
    """
    index = _bin(confidence, bins)
    counts = np.bincount(index, minlength=bins)
    filled = counts > 0
    sure, right = (np.bincount(index, values, bins)[filled] / counts[filled] for values in (confidence, correct))
    return Bins(sure.tolist(), right.tolist(), counts[filled].tolist())


def expected_calibration_error(
    confidence: np.ndarray, correct: np.ndarray, bins: int = BINS, seed: int = 0
) -> Estimate:
    """Mean distance between confidence and accuracy over bins of equal width, weighted by their images.

    The error is biased upwards, the more so the fewer images there are: a calibrated model has one above zero too. The
    interval is the percentile interval of the bootstrap over images: it shows the spread, and inherits the bias. For
    a nearly calibrated model or few images it lies above the true error. Raises ClearheadError for a confidence outside
    0..1.
    """
    index, gap = _bin(confidence, bins), confidence.astype(np.float64) - correct

    def error(drawn: np.ndarray) -> float:
        return float(np.abs(np.bincount(index[drawn], gap[drawn], bins)).sum() / len(drawn))

    every = np.arange(len(gap))
    if len(gap) < 2:
        return mean(np.abs(gap), "%")
    found = bootstrap(
        (every,), error, vectorized=False, n_resamples=1000, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Estimate(error(every), float(found.low), float(found.high), len(gap), "%")


def _bin(confidence: np.ndarray, bins: int) -> np.ndarray:
    if len(confidence) and not (confidence.min() >= 0 and confidence.max() <= 1 + 1e-6):
        raise ClearheadError(
            f"confidence: probabilities in 0..1 are needed, got {confidence.min()}..{confidence.max()}"
        )
    return np.minimum((confidence * bins).astype(int), bins - 1)
