"""Does the model know what it knows? Confidence against accuracy (Guo et al., arXiv 1706.04599)."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

from clearhead.evaluate.statistics import Estimate, mean

BINS = 15


@dataclass(frozen=True)
class Bins:
    """Mean confidence, accuracy and number of images of each bin of confidence that is not empty, in order."""

    confidence: list[float]
    accuracy: list[float]
    counts: list[int]


def confidence_bins(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> Bins:
    """Images by the probability of their predicted class (N, in 0..1), in bins of equal width.

    Raises ValueError for a confidence outside 0..1.
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
    a nearly calibrated model or few images it lies above the true error. Raises ValueError for a confidence outside
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
        raise ValueError(f"confidence: probabilities in 0..1 are needed, got {confidence.min()}..{confidence.max()}")
    return np.minimum((confidence * bins).astype(int), bins - 1)
