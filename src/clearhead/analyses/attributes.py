"""Show the gaps of accuracy between the values of attributes."""

from collections.abc import Sequence
from dataclasses import replace

from clearhead.data.dataset import format_names
from clearhead.metrics.attributes import OTHER_VALUES, AttributeGap, AttributeGaps
from clearhead.metrics.power import images_at_observed, images_for
from clearhead.metrics.statistics import Estimate, format_interval, format_value, simultaneous_level
from clearhead.metrics.verdict import Verdict
from clearhead.report.page import Row, Table


def gap_verdicts(attributes: AttributeGaps) -> list[Verdict]:
    """Return a verdict for each attribute: the largest gap that is shown, or that none is."""
    verdicts = {}
    for one in attributes.gaps:
        if one.is_shown and one.attribute not in verdicts:
            sentence = (
                f"Accuracy is {100 * -one.gap.value:.1f} points lower where {one.attribute} = {one.value} "
                f"({format_value(one.accuracy.value, '%')}) than {_baseline(one)} "
                f"({format_value(one.baseline_accuracy.value, '%')})."
            )
            basis = f"Difference {_text(one.gap)}; within classes {_text(one.within_classes)}. {GAP_RULE}"
            verdicts[one.attribute] = Verdict("gap", sentence, basis)
    names = list(dict.fromkeys(one.attribute for one in attributes.gaps if one.attribute not in verdicts))
    if names:
        sentence = f"No gap of accuracy is shown between the values of {format_names(names)}. "
        sentence += _images_for([one for one in attributes.gaps if one.attribute in names], len(attributes.gaps))
        verdicts[""] = Verdict("inconclusive", sentence.rstrip(), GAP_RULE)
    return list(verdicts.values())


def _images_for(gaps: Sequence[AttributeGap], compared: int) -> str:
    """Return how many images, of the same mixture, would show the gap that needs the fewest, if any does."""
    needed, level = [], simultaneous_level(compared)
    for one in gaps:
        total = one.accuracy.count + one.baseline_accuracy.count
        both = [replace(e, count=total) for e in (one.gap, one.within_classes) if e is not None and e.value < 0]
        images = [count for e in both if (count := images_at_observed(e, 0.0, level)) is not None]
        if len(images) == 2 and max(images) > total:
            gap = f"the gap of {one.attribute} = {one.value} ({format_value(one.gap.value, one.gap.unit)})"
            needed.append((max(images), gap, total))
    fewest, gap, total = min(needed, default=(0, "", 0))
    return images_for(gap, fewest, total) if gap else ""


GAP_RULE = "Shown: both 95% intervals below zero; they hold for all values compared simultaneously."


def _baseline(gap: AttributeGap) -> str:
    return "for all other values" if gap.baseline == OTHER_VALUES else f"where {gap.attribute} = {gap.baseline}"


def _text(estimate: Estimate | None) -> str:
    if estimate is None:
        return "unknown: no class has images of both"
    return f"{format_value(estimate.value, estimate.unit)} {format_interval(estimate)}, n = {estimate.count:,}"


def attribute_table(attributes: AttributeGaps) -> Table:
    """Return the accuracy at each value, the gap, and the attributes that are not compared."""
    rows = [
        Row(
            f"{one.attribute}: {one.value}",
            [one.accuracy, one.baseline_accuracy, one.gap, one.within_classes or "no class has both"],
            f"compared with {one.baseline}",
        )
        for one in attributes.gaps
    ]
    text = (
        "Columns of metadata.csv. Within classes: the same difference between images of one class, averaged over the "
        f"classes that have both; read it where classes are unevenly distributed over the values. {GAP_RULE}"
    )
    rows += [Row(name, ["", "", "", ""], f"not compared: {reason}") for name, reason in attributes.skipped.items()]
    columns = ["accuracy", "accuracy compared with", "difference", "within classes"]
    return Table("Attributes", columns, rows, text)
