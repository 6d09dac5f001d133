"""Measure the gap of accuracy between the values of an attribute, such as photographs with and without a watermark."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from clearhead.metrics.statistics import (
    MIN_GROUP,
    Array,
    Estimate,
    independent_difference,
    proportion,
    simultaneous_level,
    stratified_difference,
)

MOST_VALUES = 20
"""An attribute with more values is not compared."""

OTHER_VALUES = "all other values"


@dataclass(frozen=True)
class AttributeGap:
    """The accuracy at one value of an attribute compared with the images of its other values.

    Attributes:
        attribute: its name.
        value: the value.
        baseline: the other value, or ``OTHER_VALUES``.
        accuracy: at the value.
        baseline_accuracy: on the images compared with.
        gap: accuracy - baseline_accuracy, over all classes; Newcombe's interval.
        within_classes: the same within classes (``stratified_difference``); None if no class has images of both.
    """

    attribute: str
    value: str
    baseline: str
    accuracy: Estimate
    baseline_accuracy: Estimate
    gap: Estimate
    within_classes: Estimate | None

    @property
    def is_shown(self) -> bool:
        """Whether the gap is shown: lower accuracy over all classes and within them, both intervals below zero."""
        return self.gap.high < 0 and self.within_classes is not None and self.within_classes.high < 0


@dataclass(frozen=True)
class AttributeGaps:
    """The gaps of all attributes.

    Attributes:
        gaps: the largest loss of accuracy first. An attribute of two values has one, from its better value to its
            worse; one of more values has one for each value of at least ``MIN_GROUP`` images.
        skipped: attributes that are not compared, with the reason.
    """

    gaps: list[AttributeGap]
    skipped: dict[str, str]


def attribute_gaps(attributes: Mapping[str, Array], correct: Array, label: Array) -> AttributeGaps:
    """Return the gaps of accuracy between the values of attributes.

    The 95% intervals of the gaps hold for all of them simultaneously (Bonferroni), since the largest is selected.

    Args:
        attributes: the values of N images, by attribute.
        correct: whether each image is classified correctly, N.
        label: its class, N.
    """
    skipped = {name: reason for name, values in attributes.items() if (reason := _reason_to_skip(values))}
    pairs = [
        (name, *pair)
        for name, values in attributes.items()
        if name not in skipped
        for pair in _compared_values(values, correct)
    ]
    level = simultaneous_level(len(pairs))
    gaps = []
    for name, value, baseline in pairs:
        at_value = attributes[name] == value
        others = ~at_value
        gaps.append(
            AttributeGap(
                name,
                value,
                baseline,
                proportion(correct[at_value]),
                proportion(correct[others]),
                independent_difference(correct[others], correct[at_value], level),
                stratified_difference(correct, at_value, label, level),
            )
        )
    return AttributeGaps(sorted(gaps, key=lambda gap: gap.gap.value), skipped)


def _compared_values(values: Array, correct: Array) -> list[tuple[str, str]]:
    """Return the values to compare, each with its baseline."""
    names, images = np.unique(values, return_counts=True)
    if len(names) == 2:
        better, worse = sorted(names.tolist(), key=lambda name: -float(correct[values == name].mean()))
        return [(worse, better)]
    large = (images >= MIN_GROUP) & (len(values) - images >= MIN_GROUP)
    return [(name, OTHER_VALUES) for name in names[large].tolist()]


def _reason_to_skip(values: Array) -> str:
    """Return why an attribute is not compared; empty if it is."""
    names, images = np.unique(values, return_counts=True)
    if len(names) == 1:
        return f"all images have one value ({names[0]})"
    if len(names) > MOST_VALUES:
        return f"{len(names):,} different values; at most {MOST_VALUES} are compared: bin numbers, leave out names"
    if np.sort(images)[-2] < MIN_GROUP:
        return f"at most one of its {len(names)} values has {MIN_GROUP} images or more"
    return ""
