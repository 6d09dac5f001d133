"""The one number on validation images that selects between repairs.

- The accuracy of the worst group, where a class has two or more groups of ``MIN_GROUP`` images or more; smaller groups
  do not count.
- Else the mean of the accuracies on the clean images and under changes of the shortcut battery that leave the object as
  it is: those under which the original model loses accuracy, or all if it is shown to lose it under none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from clearhead.data.dataset import ImageIndex, group_labels
from clearhead.metrics.statistics import (
    Estimate,
    accuracy_difference,
    in_large_groups,
    mean,
    mean_difference,
    simultaneous_level,
    worst_group,
)
from clearhead.prediction.predict import Predictions
from clearhead.shifts.shortcuts import SHORTCUTS, table_name

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Objective:
    """What selects a repair.

    Attributes:
        measure: accuracy of the worst group, or mean accuracy on clean and changed images.
        shortcuts: the changes, keys of ``SHORTCUTS``; empty for groups.
        images: number of validation images.
        groups: number of images of each group that counts; empty for changes.
        small_groups: number of groups that are too small to count.
    """

    measure: Literal["worst-group accuracy", "mean accuracy under changes"]
    shortcuts: list[str]
    images: int
    groups: dict[str, int]
    small_groups: int


def group_objective(validation: ImageIndex, group_columns: Sequence[str]) -> Objective | None:
    """Return the objective of groups; None if no class has two groups that are large enough.

    Raises DataError for a column that does not exist.
    """
    groups = np.array(group_labels(validation, group_columns))
    labels = np.array([sample.label for sample in validation.samples])
    large = in_large_groups(groups)
    names, counts = np.unique(groups[large], return_counts=True)
    if len(names) <= len(np.unique(labels[large])):
        return None
    sizes = dict(zip(names.tolist(), counts.tolist(), strict=True))
    return Objective("worst-group accuracy", [], len(labels), sizes, len(np.unique(groups[~large])))


def usable_changes(validation: ImageIndex) -> list[str]:
    """Return the changes that leave the object as it is and apply to the images."""
    masked = any(sample.mask for sample in validation.samples)
    return [
        name
        for name, one in SHORTCUTS.items()
        if one.keeps_object and not one.changes_object and (masked or not one.needs_mask)
    ]


def change_objective(before: Predictions, shortcuts: Sequence[str], least_drop: float) -> Objective:
    """Return the objective of changes: those that cost the original model accuracy, else all.

    Args:
        before: predictions of the original model under these changes.
        shortcuts: the changes.
        least_drop: a smaller drop does not count; the drop is shown by an interval that holds for all simultaneously.
    """
    level = simultaneous_level(len(shortcuts))
    costly = []
    for name in shortcuts:
        predicted = before.interventions[table_name(name)]
        possible = predicted >= 0
        if possible.any():
            correct = (predicted == before.label)[possible]
            drop = accuracy_difference(before.correct[possible], correct, level)
            costly += [name] if drop.high < 0 and drop.value <= -least_drop else []
    return Objective("mean accuracy under changes", costly or list(shortcuts), len(before.label), {}, 0)


def objective_value(predictions: Predictions, objective: Objective) -> Estimate:
    """Return the objective of a model, from its predictions of the images that the objective is of."""
    if objective.measure == "mean accuracy under changes":
        return mean(_scores(predictions, objective), "%")
    counted = np.isin(predictions.group, list(objective.groups))
    return worst_group(predictions.correct[counted], predictions.group[counted])[1]


def difference_under_changes(before: Predictions, after: Predictions, objective: Objective) -> Estimate:
    """Return the paired difference of the mean accuracy under changes, on any images."""
    return mean_difference(_scores(before, objective), _scores(after, objective), "pp")


def _scores(predictions: Predictions, objective: Objective) -> Array:
    """Return the share of clean and changed versions of each image that are classified correctly, N."""
    changed = [predictions.interventions[table_name(name)] for name in objective.shortcuts]
    correct = [np.where(one < 0, np.nan, one == predictions.label) for one in changed]
    return np.asarray(np.nanmean([predictions.correct.astype(float), *correct], axis=0))
