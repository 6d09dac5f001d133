"""The sections of an audit."""

from pathlib import Path

from clearhead.analyses.audit import Audit
from clearhead.analyses.heads import head_sections
from clearhead.report.calibration import calibration_sections
from clearhead.report.comparisons import MEASURES
from clearhead.report.example_images import gallery, map_text
from clearhead.report.page import Row, Section, Table
from clearhead.results import AuditResults

MOST_CLASSES = 20
"""Tables of classes show this many, those of lowest accuracy first."""


def audit_sections(run: AuditResults, folder: Path, of: str) -> list[Section]:
    """What the model relies on, its groups and classes, calibration, the images of least relevance, its heads."""
    audit = run.audit
    sections: list[Section] = []
    if audit.relevance_mass and audit.area:
        sections.append(_reliance(audit, of))
    if audit.groups:
        text = "The worst group is what a model can be counted on for." + _caution(audit)
        sections.append(Table(f"Groups{of}", ["accuracy"], [Row(n, [e]) for n, e in audit.groups.items()], text))
    sections.append(_classes(audit, of))
    sections += calibration_sections(audit.calibration, run.rescaled, of)
    if run.lowest_relevance_mass:
        text = f"The images with the smallest share of relevance on the object. {map_text(audit)}"
        sections.append(gallery(f"Lowest foreground relevance{of}", text, run.lowest_relevance_mass, folder))
    return sections + (head_sections(run.heads, of) if run.heads else [])


def _caution(audit: Audit) -> str:
    small = [name for name, e in audit.groups.items() if e.count < 30]
    return f" {len(small)} of them have fewer than 30 images: read those with care." if small else ""


def _reliance(audit: Audit, of: str) -> Table:
    rows = [
        Row("Foreground relevance", [audit.relevance_mass or "", ""], f"map: {audit.method}, of the predicted class"),
        Row("Mask area", [audit.area or "", ""], "the foreground relevance of a constant map"),
    ]
    rows += [Row(f"Accuracy, {name}", ["", value]) for name, value in audit.interventions.items()]
    return Table(f"What it relies on{of}", ["share", "accuracy"], rows, MEASURES.split(". ", 1)[1])


def _classes(audit: Audit, of: str) -> Table:
    worst = sorted(audit.classes.items(), key=lambda item: (item[1].value, item[0]))
    shown = worst[:MOST_CLASSES]
    text = "" if len(shown) == len(worst) else f"The {len(shown)} of lowest accuracy out of {len(worst)} with images."
    balanced = Row("Mean of the classes", [audit.balanced], "balanced accuracy: each class counts alike")
    return Table(f"Classes{of}", ["accuracy"], [balanced, *(Row(name, [value]) for name, value in shown)], text)
