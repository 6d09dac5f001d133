"""What a model relies on, in numbers: accuracy, groups, calibration, and where its relevance lies."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clearhead.evaluate.calibration import Bins, confidence_bins, expected_calibration_error
from clearhead.evaluate.predict import INTERVENTIONS, Predictions
from clearhead.evaluate.statistics import Estimate, by_group, mean, proportion, worst_group


@dataclass(frozen=True)
class Audit:
    """The numbers of one model on one folder; shares are in 0..1, losses in nats.

    Attributes:
        accuracy: top-1.
        classes: accuracy of each class that has images.
        groups: accuracy of each group; empty when the classes are all the groups there are.
        worst_group: name and accuracy of the worst group, if there are groups.
        calibration_error: expected calibration error.
        loss: mean negative log-likelihood.
        bins: accuracy by confidence.
        foreground: mean share of relevance in the foreground, and `area`, the share a constant map would have; None
            without masks.
        intervened: accuracy under each intervention on the images with masks, and under ``as it is`` on the same
            images; empty without masks.
        method: the relevance method.
        least: files whose relevance lies least in the foreground, the worst first.
    """

    accuracy: Estimate
    classes: dict[str, Estimate]
    groups: dict[str, Estimate]
    worst_group: tuple[str, Estimate] | None
    calibration_error: Estimate
    loss: Estimate
    bins: Bins
    foreground: Estimate | None
    area: Estimate | None
    intervened: dict[str, Estimate]
    method: str
    least: list[str]


def audit(predictions: Predictions, classes: Sequence[str], seed: int = 0, show: int = 8) -> Audit:
    """The numbers behind an audit, each with its 95% interval and count.

    Args:
        predictions: of one model on one folder.
        classes: the model's class names.
        seed: of the bootstrap.
        show: how many of the images of least reliance to name.
    """
    correct, groups = predictions.correct, predictions.group.tolist()
    names = [classes[label] for label in predictions.label]
    grouped = len(set(groups)) > len(set(names))
    masked = ~np.isnan(predictions.foreground)
    return Audit(
        accuracy=proportion(correct),
        classes=by_group(correct, names),
        groups=by_group(correct, groups) if grouped else {},
        worst_group=worst_group(correct, groups) if grouped else None,
        calibration_error=expected_calibration_error(predictions.confidence, correct, seed=seed),
        loss=mean(predictions.loss, unit="nats", seed=seed),
        bins=confidence_bins(predictions.confidence, correct),
        foreground=mean(predictions.foreground[masked], unit="%", seed=seed) if masked.any() else None,
        area=mean(predictions.area[masked], unit="%", seed=seed) if masked.any() else None,
        intervened=_intervened(predictions) if masked.any() else {},
        method=predictions.method,
        least=predictions.file[masked][predictions.foreground[masked].argsort(kind="stable")][:show].tolist(),
    )


def _intervened(predictions: Predictions) -> dict[str, Estimate]:
    """Accuracy on the images with masks, as they are and under each intervention."""
    masked = predictions.intervened[INTERVENTIONS[0]] >= 0
    found = {"as it is": proportion(predictions.correct[masked])}
    for name, predicted in predictions.intervened.items():
        made = predicted >= 0
        found[name] = proportion(predicted[made] == predictions.label[made])
    return found
