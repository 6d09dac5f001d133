"""Making a model rely on the right thing, with its ordinary checkpoint as the result."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from clearhead.errors import ClearheadError
from clearhead.repairs.dfr import RetrainedHead, retrain_head
from clearhead.repairs.group_losses import GroupDRO, Reweight
from clearhead.repairs.head_selection import Selection, select_heads
from clearhead.repairs.input_gradient_losses import GradMaskLoss, RRRLoss
from clearhead.repairs.presets import PRESETS, Preset, preset_named
from clearhead.repairs.relevance import RelevanceLoss, relevance_maps

__all__ = [
    "MASK_LOSSES",
    "PRESETS",
    "GradMaskLoss",
    "GroupDRO",
    "MaskLoss",
    "Preset",
    "RRRLoss",
    "RelevanceLoss",
    "RetrainedHead",
    "Reweight",
    "Selection",
    "mask_loss",
    "preset_named",
    "relevance_maps",
    "retrain_head",
    "select_heads",
]

MaskLoss = RelevanceLoss | GradMaskLoss | RRRLoss

MASK_LOSSES: dict[str, type[MaskLoss]] = {"relevance": RelevanceLoss, "gradmask": GradMaskLoss, "rrr": RRRLoss}
"""The repairs by foreground masks: each a loss for ``clearhead.training.loop.fit``."""


def mask_loss(method: str, terms: Mapping[str, Any]) -> MaskLoss | None:
    """The loss of a method with the terms that are not None; None for a method without masks.

    Raises ClearheadError for a term that the method has not.
    """
    given = {name: value for name, value in terms.items() if value is not None}
    kind = MASK_LOSSES.get(method)
    known = [field.name for field in fields(kind)] if kind else []
    if unknown := [name for name in given if name not in known]:
        there = f"it has {', '.join(known)}" if known else f"only {', '.join(MASK_LOSSES)} have any"
        raise ClearheadError(f"{', '.join(unknown)}: not a term of the method {method}; {there}")
    return kind(**given) if kind else None
