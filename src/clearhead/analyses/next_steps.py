"""Name the commands that follow from an audit."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from clearhead.analyses.battery import ShortcutEffect
from clearhead.data.images import DataLike
from clearhead.data.splits import splits_of
from clearhead.metrics.attributes import AttributeGaps
from clearhead.models.source import ModelLike, ModelSource
from clearhead.report.page import Step
from clearhead.shifts.shortcuts import SHORTCUTS

TRAINING_DATA = "TRAINING_DATA"
"""Stands for images that were not audited."""


def next_steps(
    model: ModelLike,
    data: DataLike,
    effects: Sequence[ShortcutEffect],
    attributes: AttributeGaps,
    limit: int | None = None,
    split: str | None = None,
    *,
    has_masks: bool = False,
) -> list[Step]:
    """Return the commands that follow from an audit, the most useful first.

    Args:
        model: the audited model, as the user named it.
        data: the images, as the user named them.
        effects: of the shortcut battery.
        attributes: the gaps of the attributes.
        limit: the largest number of images, if the audit had one.
        split: the audited split.
        has_masks: whether the data has masks of its own.
    """
    named_model, named_data = typed_model(model), typed_data(data)
    has_splits = named_data != "DATA" and split is not None and bool(splits_of(named_data))
    train = named_data if has_splits else TRAINING_DATA
    where = "" if has_splits else f" {TRAINING_DATA}: images that were not audited."
    steps = []
    gap = next((gap for gap in attributes.gaps if gap.is_shown), None)
    if gap is not None:
        repair = command("repair", named_model, train, "--method", "dfr", "--groups", gap.attribute)
        steps.append(Step(f"Balance the values of {gap.attribute}.{where}", repair))
    shown = [effect for effect in effects if effect.is_shown and SHORTCUTS[effect.shortcut].keeps_object]
    if shown:
        repair = command("repair", named_model, train, "--method", "counterfactual", "--shortcuts", shown[0].shortcut)
        needs_masks = SHORTCUTS[shown[0].shortcut].needs_mask and not has_masks
        masks = " It needs masks: clearhead data masks makes some." if needs_masks else ""
        steps.append(Step(f"Train on images with this change: {shown[0].name}.{masks}{where}", repair))
    if not attributes.gaps:
        steps.append(Step("Find groups: tag about 100 images.", command("tag", named_model, train)))
    if limit is not None:
        audited = ["--split", split] if split else []
        steps.append(Step("Audit all images.", command("audit", named_model, named_data, *audited)))
    return steps


def command(*words: str) -> str:
    """Return a command of clearhead as it is typed in a shell."""
    return shlex.join(["clearhead", *words])


def typed_model(model: ModelLike) -> str:
    """Return a model as a user types it; ``MODEL`` for one that has no name."""
    if isinstance(model, ModelSource):
        return model.name
    return str(model) if isinstance(model, str | Path) else "MODEL"


def typed_data(data: DataLike) -> str:
    """Return data as a user types them; ``DATA`` for an index."""
    return str(data) if isinstance(data, str | Path) else "DATA"
