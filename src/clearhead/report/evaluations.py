"""Sufficient input subsets on the page."""

from pathlib import Path

from clearhead.metrics.statistics import format_value
from clearhead.report import plots
from clearhead.report.example_images import gallery
from clearhead.report.page import Figure, Row, Section, Table
from clearhead.results import SufficientResults


def sufficient_sections(run: SufficientResults, folder: Path) -> list[Section]:
    """The pixels that are enough, the curve of each image, and the numbers."""
    enough = f"{100 * run.confidence:g}%"
    text = (
        f"From these pixels alone (grey: taken away) the model gives the label a probability of {enough}, or comes "
        "nearest to it. Under each the share of the pixels."
    )
    sections: list[Section] = [gallery("Pixels that are enough", text, run.examples, folder)]
    rows = []
    for strip, labels in zip(run.examples, run.images, strict=True):
        for i, found in enumerate(labels):
            kind = "predicted" if found.predicted else "another label"
            cells = [
                found.label,
                kind,
                format_value(found.whole, "%"),
                format_value(found.share, "%"),
                format_value(found.confidence, "%"),
            ]
            rows.append(Row(strip.title if i == 0 else "", [*cells, "yes" if found.reached else "no"]))
    columns = ["label", "", "whole image", "pixels kept", "from them alone", f"{enough} reached"]
    sections.append(Table("How few are enough", columns, rows, "Probabilities of the label.", names="image"))
    for strip, labels in zip(run.examples[:_MOST_CURVES], run.images, strict=False):
        points = {
            found.label: [(100 * x, y, 0.0) for x, y in zip(found.kept, found.curve, strict=True)] for found in labels
        }
        title = f"Confidence as pixels go: {strip.title}"
        plot = plots.lines(points, title, "percent of the pixels kept", "probability of the label", markers=False)
        sections.append(Figure(title, "Read from right to left.", plot))
    return sections


_MOST_CURVES = 6
