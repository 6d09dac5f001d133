"""Name the commands that follow from an audit, or from repairs that were not proven."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from clearhead.analyses.battery import ShortcutEffect
from clearhead.data.images import DataLike
from clearhead.data.splits import splits_of
from clearhead.metrics.attributes import AttributeGaps
from clearhead.models.source import ModelLike, ModelSource
from clearhead.repairs.advisor import Advice
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
    named_model, named_data = _model_name(model), str(data) if isinstance(data, str | Path) else "DATA"
    has_splits = named_data != "DATA" and split is not None and bool(splits_of(named_data))
    train = named_data if has_splits else TRAINING_DATA
    where = "" if has_splits else f" {TRAINING_DATA}: images that were not audited."
    steps = []
    gap = next((gap for gap in attributes.gaps if gap.is_shown), None)
    if gap is not None:
        command = _command("repair", named_model, train, "--method", "dfr", "--groups", gap.attribute)
        steps.append(Step(f"Balance the values of {gap.attribute}.{where}", command))
    shown = [effect for effect in effects if effect.is_shown and SHORTCUTS[effect.shortcut].keeps_object]
    if shown:
        command = _command("repair", named_model, train, "--method", "counterfactual", "--shortcuts", shown[0].shortcut)
        needs_masks = SHORTCUTS[shown[0].shortcut].needs_mask and not has_masks
        masks = " It needs masks: clearhead data masks makes some." if needs_masks else ""
        steps.append(Step(f"Train on images with this change: {shown[0].name}.{masks}{where}", command))
    if not attributes.gaps:
        steps.append(Step("Find groups: tag about 100 images.", _command("tag", named_model, train)))
    if limit is not None:
        audited = ["--split", split] if split else []
        steps.append(Step("Audit all images.", _command("audit", named_model, named_data, *audited)))
    return steps


def steps_after_repairs(advice: Advice, model: ModelLike, data: DataLike, test_split: str | None) -> list[Step]:
    """Return what may prove a repair where none is proven: held-out images, groups, masks, a larger budget."""
    named_model, named_data = _model_name(model), str(data) if isinstance(data, str | Path) else "DATA"
    again = ["repair", named_model, named_data, "--method", "auto"]
    steps = []
    if test_split is None and advice.selected is not None:
        reason = "Prove it on held-out images: a split that trained and selected nothing."
        steps.append(Step(reason, _command(*again, "--test-split", "test")))
    missing = {one.needs for one in advice.candidates if one.status == "unavailable"}
    if "groups" in missing:
        reason = "Groups for more repairs: tag about 100 images, then repair with --tags FILE."
        steps.append(Step(reason, _command("tag", named_model, named_data)))
    if "masks" in missing:
        reason = "Masks for more repairs, made with the model."
        steps.append(Step(reason, _command("data", "masks", named_data, "--model", named_model)))
    if late := [one for one in advice.candidates if one.status == "over budget"]:
        minutes = math.ceil((advice.seconds + sum(one.estimate or 0.0 for one in late)) / 60 + 1)
        reason = f"Try {', '.join(one.method for one in late)} too."
        steps.append(Step(reason, _command(*again, "--budget", f"{minutes}m")))
    return steps


def _command(*words: str) -> str:
    return shlex.join(["clearhead", *words])


def _model_name(model: ModelLike) -> str:
    if isinstance(model, ModelSource):
        return model.name
    return str(model) if isinstance(model, str | Path) else "MODEL"
