"""Did it help, did it harm, and is the difference real? Two models on the same images, always paired."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clearhead.analyses.audit import Audit, audit
from clearhead.errors import ClearheadError
from clearhead.metrics.statistics import (
    Estimate,
    McNemar,
    accuracy_difference,
    mcnemar,
    mean_difference,
    worst_group_difference,
)
from clearhead.metrics.verdict import Verdict, noninferiority_verdict
from clearhead.prediction.predict import INTERVENTIONS, Predictions


@dataclass(frozen=True)
class Comparison:
    """Model B against model A on one folder.

    Attributes:
        before: the audit of A.
        after: the audit of B.
        differences: B minus A by measure, in the order they are told; higher is better but for the loss.
        groups: difference of the accuracy of each group.
        classes: difference of the accuracy of each class that has images.
        mcnemar: positive and negative flips, and the exact p-value.
        verdict: from worst-group and average accuracy.
        margin: the loss of accuracy that is still no harm, in 0..1.
        positive_flips: files misclassified before and correct after, the largest change of loss first.
        negative_flips: files correct before and misclassified after, likewise.
        first_negative_flips: the first newly misclassified files of the classes whose accuracy fell most, the worst
            class first.
    """

    before: Audit
    after: Audit
    differences: dict[str, Estimate]
    groups: dict[str, Estimate]
    classes: dict[str, Estimate]
    mcnemar: McNemar
    verdict: Verdict
    margin: float
    positive_flips: list[str]
    negative_flips: list[str]
    first_negative_flips: dict[str, list[str]]


_WORST_CLASSES, _FIRST_FLIPS = 5, 3  # three flips of each of the worst classes, as arXiv 2206.01161 shows


def compare(
    before: Predictions, after: Predictions, classes: Sequence[str], margin: float = 0.02, seed: int = 0, show: int = 8
) -> Comparison:
    """Compare two models' predictions of the same images.

    Args:
        before: what the first model says.
        after: what the second says, of the same images in the same order.
        classes: the class names both models share.
        margin: the loss of accuracy, in 0..1, that counts as no harm.
        seed: of the bootstrap.
        show: how many flipped images to name of each kind.

    Raises:
        ClearheadError: if the predictions are of different images or labels, or the margin is not in 0..1.
    """
    if not np.array_equal(before.file, after.file):
        raise ClearheadError("compare: the two sets of predictions are of different images")
    if not np.array_equal(before.label, after.label):
        raise ClearheadError("compare: the two sets of predictions have different labels for the same images")
    if not 0 <= margin <= 1:
        raise ClearheadError(f"margin: a share of the images in 0..1 is needed, got {margin}")
    a, b = audit(before, classes, seed), audit(after, classes, seed)
    right, righted = before.correct, after.correct
    judged = {"average accuracy": accuracy_difference(right, righted)}
    groups = {}
    if a.worst_group is not None:
        worst = worst_group_difference(right, righted, before.group.tolist())
        judged = {"worst-group accuracy": worst} | judged
        groups = {
            name: accuracy_difference(right[before.group == name], righted[before.group == name]) for name in a.groups
        }
    names = np.array([classes[label] for label in before.label])
    by_class = {
        str(name): accuracy_difference(right[names == name], righted[names == name]) for name in np.unique(names)
    }
    change = after.loss - before.loss
    return Comparison(
        before=a,
        after=b,
        differences=judged | _other_differences(before, after, seed),
        groups=groups,
        classes=by_class,
        mcnemar=mcnemar(right, righted),
        verdict=noninferiority_verdict(judged, margin),
        margin=margin,
        positive_flips=_flipped(before.file, change, ~right & righted, show),
        negative_flips=_flipped(before.file, -change, right & ~righted, show),
        first_negative_flips={
            name: before.file[(names == name) & right & ~righted][:_FIRST_FLIPS].tolist()
            for name, difference in sorted(by_class.items(), key=lambda item: item[1].value)[:_WORST_CLASSES]
            if difference.value < 0
        },
    )


def _other_differences(before: Predictions, after: Predictions, seed: int) -> dict[str, Estimate]:
    found = {"loss": mean_difference(before.loss, after.loss, unit="nats", seed=seed)}
    masked = ~(np.isnan(before.relevance_mass) | np.isnan(after.relevance_mass))
    if before.method == after.method and masked.any():
        shares = before.relevance_mass[masked], after.relevance_mass[masked]
        found["foreground relevance"] = mean_difference(*shares, unit="pp", seed=seed)
    for name in INTERVENTIONS:
        made = (before.interventions[name] >= 0) & (after.interventions[name] >= 0)
        if made.any():
            right, righted = (p.interventions[name][made] == p.label[made] for p in (before, after))
            found[f"accuracy, {name}"] = accuracy_difference(right, righted)
    return found


def _flipped(files: np.ndarray, change: np.ndarray, flipped: np.ndarray, show: int) -> list[str]:
    """Files of the flipped images, those of the most negative change first."""
    return files[flipped][change[flipped].argsort(kind="stable")][:show].tolist()
