"""What a model relies on, in numbers: accuracy, groups, calibration, and where its relevance lies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from clearhead.errors import ClearheadError
from clearhead.metrics.calibration import Calibration, calibration
from clearhead.metrics.statistics import LEVEL, Estimate, by_group, mean, proportion, worst_group
from clearhead.prediction.predict import INTERVENTIONS, Predictions


@dataclass(frozen=True)
class Audit:
    """The numbers of one model on one folder; shares are in 0..1, losses in nats.

    Attributes:
        accuracy: top-1.
        balanced: mean of the accuracies of the classes that have images.
        classes: accuracy of each class that has images.
        groups: accuracy of each group; empty when the classes are all the groups there are.
        worst_group: name and accuracy of the worst group, if there are groups.
        calibration: how far its probabilities can be believed.
        relevance_mass: mean foreground relevance (relevance mass accuracy); None without masks.
        area: mean area of the masks, the relevance mass of a constant map; None without masks.
        interventions: accuracy under each intervention on the images with masks, with ``clean`` for the same images
            unchanged; empty without masks.
        method: the relevance method.
        lowest_relevance_mass: files with the lowest foreground relevance, the lowest first.
    """

    accuracy: Estimate
    balanced: Estimate
    classes: dict[str, Estimate]
    groups: dict[str, Estimate]
    worst_group: tuple[str, Estimate] | None
    calibration: Calibration
    relevance_mass: Estimate | None
    area: Estimate | None
    interventions: dict[str, Estimate]
    method: str
    lowest_relevance_mass: list[str]


def audit(predictions: Predictions, classes: Sequence[str], seed: int = 0, show: int = 8) -> Audit:
    """The numbers behind an audit, each with its 95% interval and count.

    Args:
        predictions: of one model on one folder.
        classes: the model's class names.
        seed: of the bootstrap.
        show: how many of the images of lowest foreground relevance to name.
    """
    correct, groups = predictions.correct, predictions.group.tolist()
    names = [classes[label] for label in predictions.label]
    grouped = len(set(groups)) > len(set(names))
    masked = ~np.isnan(predictions.relevance_mass)
    return Audit(
        accuracy=proportion(correct),
        balanced=balanced_accuracy(correct, predictions.label),
        classes=by_group(correct, names),
        groups=by_group(correct, groups) if grouped else {},
        worst_group=worst_group(correct, groups) if grouped else None,
        calibration=calibration(predictions.confidence, predictions.loss, predictions.brier, correct, seed),
        relevance_mass=mean(predictions.relevance_mass[masked], unit="%", seed=seed) if masked.any() else None,
        area=mean(predictions.area[masked], unit="%", seed=seed) if masked.any() else None,
        interventions=_intervened(predictions) if masked.any() else {},
        method=predictions.method,
        lowest_relevance_mass=predictions.file[masked][predictions.relevance_mass[masked].argsort(kind="stable")][
            :show
        ].tolist(),
    )


def balanced_accuracy(correct: np.ndarray, label: np.ndarray) -> Estimate:
    """The mean of the accuracies of the classes that have images, from N images' correctness and labels.

    The interval is Price and Bonett's (2004) for a sum of K proportions, each class given 2/K right and 2/K wrong
    images more, with variances that are unbiased for many classes of few images each: docs/statistics.md. Raises
    ValueError unless there is one label an image.
    """
    if len(correct) != len(label):
        raise ClearheadError(f"label: one an image is needed, got {len(label)} for {len(correct)} images")
    if not len(label):
        return Estimate(math.nan, math.nan, math.nan, 0, "%")
    _, index, images = np.unique(label, return_inverse=True, return_counts=True)
    right, classes = np.bincount(index, correct), len(images)
    value = float((right / images).mean())
    shares = (right + 2 / classes) / (images + 4 / classes)
    # the variance of a share of n is p (1 - p) / n; from the share itself, p (1 - p) / (n - 1), which one image has not
    variances = np.where(images > 1, shares * (1 - shares) / (images - 1 + 5 / classes), 0.25)
    half = norm.ppf(0.5 + LEVEL / 2) * math.sqrt(variances.sum()) / classes
    low, high = max(0.0, shares.mean() - half), min(1.0, shares.mean() + half)
    return Estimate(value, min(float(low), value), max(float(high), value), len(label), "%")


def _intervened(predictions: Predictions) -> dict[str, Estimate]:
    """Accuracy on the images with masks, as they are and under each intervention."""
    masked = predictions.interventions[INTERVENTIONS[0]] >= 0
    found = {"clean": proportion(predictions.correct[masked])}
    for name, predicted in predictions.interventions.items():
        made = predicted >= 0
        found[name] = proportion(predicted[made] == predictions.label[made])
    return found
