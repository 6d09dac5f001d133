"""A comparison on the page: what changed, group by group and class by class, and the images it changed on."""

from pathlib import Path

from clearhead.analyses.audit import Audit
from clearhead.analyses.compare import Comparison
from clearhead.metrics.calibration import BINS
from clearhead.metrics.statistics import Estimate
from clearhead.report import plots
from clearhead.report.example_images import gallery, map_text
from clearhead.report.page import Figure, Row, Section, Table
from clearhead.results import ComparisonResults

MOST_CHANGED = 50
"""Tables of classes that changed show this many, as arXiv 2206.01161 does."""


def comparison_sections(run: ComparisonResults, folder: Path) -> list[Section]:
    """All that is told of a comparison, with the pictures of its folder."""
    c = run.comparison
    sections: list[Section] = [
        Figure("Before and after", MEASURES, plots.intervals(_pairs(c), "Before and after, with 95% intervals")),
        differences(c),
    ]
    if c.groups:
        sections.append(_group_table(c))
    sections += _class_tables(c)
    for title, text, examples in (
        ("Corrected", "Misclassified before, correct after; the largest change of loss first.", run.positive_flips),
        (
            "Newly misclassified",
            "Correct before, misclassified after; the largest change of loss first.",
            run.negative_flips,
        ),
        (
            "Most regressed classes",
            "The first newly misclassified images of each class, the worst class first.",
            run.first_negative_flips,
        ),
        ("Drawn at random", "A sample of all images, chosen by chance.", run.sample),
    ):
        if examples:
            sections.append(gallery(title, f"{text} {map_text(c.before)}", examples, folder))
    return sections


MEASURES = (
    "Worst group: the group of images with the lowest accuracy. Background removed: the object on the mean colour. "
    "Background swapped: the object on another image's background. Background only: the object's box cut out; a "
    "model that still predicts the class here relies on the background."
)


def _measures(audit: Audit) -> dict[str, Estimate]:
    """The measures of one model that are shares, in the order they are told."""
    found = {"worst-group accuracy": audit.worst_group[1]} if audit.worst_group else {}
    found["average accuracy"] = audit.accuracy
    found |= {f"accuracy, {name}": value for name, value in audit.interventions.items() if name != "clean"}
    if audit.relevance_mass:
        found["foreground relevance"] = audit.relevance_mass
    return found | {"ECE": audit.calibration.ece}


def _pairs(c: Comparison) -> list[tuple[str, list[tuple[str, Estimate]]]]:
    before, after = _measures(c.before), _measures(c.after)
    return [(name, [("before", before[name]), ("after", after[name])]) for name in before]


def differences(c: Comparison) -> Table:
    """Each measure before and after, the paired difference, and the flips."""
    before = _measures(c.before) | {"loss": c.before.calibration.loss}
    after = _measures(c.after) | {"loss": c.after.calibration.loss}
    rows = [
        Row(name, [before[name], after[name], c.differences.get(name, "")], _NOTES.get(name, "")) for name in before
    ]
    flips = c.mcnemar
    return Table(
        "What changed",
        ["before", "after", "difference"],
        rows,
        f"{flips.positive_flips:,} predictions corrected, {flips.negative_flips:,} newly wrong (exact McNemar test, "
        f"{_probability(flips.p_value)}). Non-inferiority margin: {100 * c.margin:g} pp.",
    )


_NOTES = {
    "loss": "nats; lower is better",
    "ECE": f"expected calibration error, {BINS} bins; lower is better",
    "accuracy, background only": "lower means less reliance on the background",
}


def _probability(p: float) -> str:
    return f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"


def _group_table(c: Comparison) -> Table:
    rows = [Row(name, [c.before.groups[name], c.after.groups[name], change]) for name, change in c.groups.items()]
    return Table("Group by group", ["before", "after", "difference"], rows, "Accuracy of each group of images.")


def _class_tables(c: Comparison) -> list[Section]:
    """The classes whose accuracy rose and fell most, for more than two classes."""
    found: list[Section] = []
    changed = sorted(c.classes.items(), key=lambda item: -item[1].value) if len(c.classes) > 2 else []
    for title, classes in (
        ("Most improved classes", [(name, d) for name, d in changed if d.value > 0]),
        ("Most regressed classes", [(name, d) for name, d in reversed(changed) if d.value < 0]),
    ):
        if classes:
            shown = classes[:MOST_CHANGED]
            rows = [Row(name, [c.before.classes[name], c.after.classes[name], d]) for name, d in shown]
            text = f"{len(classes):,} of {len(c.classes):,} classes{'; the first are shown' * (shown != classes)}. "
            text += "With few images a class, chance alone moves many; the intervals say how far."
            found.append(Table(title, ["before", "after", "difference"], rows, text))
    return found
