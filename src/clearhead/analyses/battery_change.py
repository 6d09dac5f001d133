"""The shortcut battery before and after a repair: repairing one shortcut can strengthen another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clearhead.analyses.battery import mask_note, masked
from clearhead.analyses.subject import Subject, subject_of
from clearhead.data.dataset import ImageIndex
from clearhead.data.splits import sample_n
from clearhead.masks.automatic import MasksMade
from clearhead.metrics.statistics import Estimate, accuracy_difference, proportion, simultaneous_level
from clearhead.models.classifier import Classifier
from clearhead.prediction.predict import predict
from clearhead.progress import Progress, prefixed
from clearhead.report.page import Row, Table
from clearhead.shifts.shortcuts import SHORTCUTS, table_name

IMAGES = 1000
"""Images of the battery, at most."""


@dataclass(frozen=True)
class ShortcutChange:
    """Accuracy under one change of the images, of the original and of the repaired model.

    Attributes:
        shortcut: the change, a key of ``SHORTCUTS``; ``clean`` for no change.
        before: of the original model.
        after: of the repaired model.
        difference: after - before, paired; the interval holds for all changes simultaneously.
    """

    shortcut: str
    before: Estimate
    after: Estimate
    difference: Estimate


@dataclass(frozen=True)
class BatteryChange:
    """The battery of two models on the same images.

    Attributes:
        subject: the images.
        changes: no change, then the battery, the most lost first.
        masks: the masks that the original model made; None where it made none.
    """

    subject: Subject
    changes: list[ShortcutChange]
    masks: MasksMade | None


def battery_change(
    models: Sequence[Classifier],
    index: ImageIndex,
    data: object,
    *,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> BatteryChange:
    """Run the battery for the original and the repaired model, on at most 1,000 images.

    Args:
        models: the original and the repaired model.
        index: the images; where they have no masks, the original model makes some if it can.
        data: what the images were read from, for the page.
        batch_size: images per batch.
        workers: number of processes that load images.
        seed: of the images, and of their order, which pairs images with backgrounds.
        progress: shows progress.
    """
    loading: dict[str, Any] = {"batch_size": batch_size, "workers": workers}
    index, made = masked(models[0], sample_n(index, IMAGES, seed), "auto", seed, progress=progress, **loading)
    before, after = (
        predict(
            model,
            index,
            shortcuts=list(SHORTCUTS),
            maps=False,
            group_columns=[],
            seed=seed,
            progress=prefixed(progress, f"battery, {caption}"),
            **loading,
        )
        for model, caption in zip(models, ("before", "after"), strict=True)
    )
    correct = {"clean": (before.correct, after.correct)}
    for name in SHORTCUTS:
        was, now = (predictions.interventions[table_name(name)] for predictions in (before, after))
        possible = was >= 0
        if possible.any():
            correct[name] = (was == before.label)[possible], (now == before.label)[possible]
    level = simultaneous_level(len(correct))
    changes = [
        ShortcutChange(name, proportion(was), proportion(now), accuracy_difference(was, now, level))
        for name, (was, now) in correct.items()
    ]
    changes[1:] = sorted(changes[1:], key=lambda change: change.difference.value)
    return BatteryChange(subject_of([model.name for model in models], index, data, None), changes, made)


def battery_change_table(change: BatteryChange, which: str) -> Table:
    """Return the accuracy under each change before and after the repair; `which` images, such as ``test``."""
    rows = [
        Row(
            table_name(one.shortcut),
            [one.before, one.after, one.difference],
            "no object is left: lower is better" if _removes_object(one.shortcut) else "",
        )
        for one in change.changes
    ]
    text = (
        f"Accuracy of the original and of the repaired model on {change.subject.images:,} {which} images under the "
        "changes of `clearhead battery`. Repairing one shortcut can strengthen another. The intervals of the "
        "differences hold for all rows simultaneously."
    )
    return Table(
        "Shortcut battery, before and after",
        ["before", "after", "difference"],
        rows,
        f"{text} {mask_note(change.masks, change.subject)}".rstrip(),
    )


def _removes_object(name: str) -> bool:
    return name in SHORTCUTS and not SHORTCUTS[name].keeps_object
