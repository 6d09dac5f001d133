"""A map is worth optimising only if it is faithful: check that before relevance fine-tuning, and propose another."""

from dataclasses import dataclass
from typing import Any, get_args

from clearhead.analyses.faithfulness import faithfulness
from clearhead.attribution import list_methods
from clearhead.data.dataset import ImageIndex
from clearhead.data.splits import sample_n
from clearhead.metrics.statistics import Estimate, format_interval, format_value
from clearhead.models import Classifier
from clearhead.progress import Progress, log, prefixed
from clearhead.repairs.relevance import DifferentiableAttribution
from clearhead.report.page import Row, Table

IMAGES = 100
"""Validation images that the maps are tested on, which takes a minute or less."""


@dataclass(frozen=True)
class MapCheck:
    """Faithfulness of the map that a repair optimises, of the original model on validation images.

    Attributes:
        attribution: the method.
        gaps: faithfulness gap (LIF AUC - MIF AUC) by method; of the others only where that of `attribution` is not
            shown to be above 0, the gap of an uninformative map.
        images: number of images.
    """

    attribution: str
    gaps: dict[str, Estimate]
    images: int

    @property
    def is_faithful(self) -> bool:
        """Whether the map ranks pixels better than chance."""
        return self.gaps[self.attribution].low > 0

    @property
    def best(self) -> str | None:
        """The method with the largest gap among those shown to be above 0; selected on these images."""
        shown = {name: gap.value for name, gap in self.gaps.items() if gap.low > 0}
        return max(shown, key=shown.__getitem__) if shown else None


def check_map(
    model: Classifier,
    validation: ImageIndex,
    attribution: str,
    *,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> MapCheck:
    """Measure how faithful a map is on at most 100 images, and the others where it is not shown to beat chance.

    Logs a warning in that case. Raises as ``clearhead.faithfulness``.
    """
    index = sample_n(validation, IMAGES, seed)
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "seed": seed}

    def gaps(methods: list[str]) -> dict[str, Estimate]:
        measured = faithfulness(model, index, methods, progress=prefixed(progress, "check of the map"), **options)
        return {name: one.gap for name, one in measured.methods.items()}

    check = MapCheck(attribution, gaps([attribution]), len(index.samples))
    if check.is_faithful:
        return check
    supported = list_methods(model)
    others = [name for name in get_args(DifferentiableAttribution) if name in supported and name != attribution]
    check = MapCheck(attribution, check.gaps | gaps(others), check.images)
    log.warning(warning(check))
    return check


def warning(check: MapCheck) -> str:
    """Return what to do about a map that is not shown to be faithful."""
    gap = check.gaps[check.attribution]
    text = (
        f"the map of {check.attribution} is not shown to rank pixels better than chance on this model (faithfulness "
        f"gap {format_value(gap.value, 'pp')} {format_interval(gap)} on {check.images:,} validation images), so "
        "optimising it need not change what the model relies on"
    )
    if check.best is None:
        return f"{text}. No other map is either; use a repair without a map, such as background-swap"
    best = check.gaps[check.best]
    return f"{text}. Use --attribution {check.best} ({format_value(best.value, 'pp')} {format_interval(best)})"


def check_table(check: MapCheck) -> Table:
    """Return the gaps, the largest first."""
    ordered = sorted(check.gaps.items(), key=lambda entry: -entry[1].value)
    rows = [Row(name, [gap, "optimised" if name == check.attribution else ""]) for name, gap in ordered]
    text = (
        f"Faithfulness gap (LIF AUC - MIF AUC) of the original model's maps on {check.images:,} validation images; an "
        "uninformative map has 0."
    )
    if not check.is_faithful:
        sentence = warning(check)
        text = f"{text} {sentence[0].upper()}{sentence[1:]}."
    return Table("Is the map faithful?", ["faithfulness gap", ""], rows, text)
