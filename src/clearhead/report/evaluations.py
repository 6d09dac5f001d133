"""An evaluation on the page: how true the maps are, how well they are segmentations, how well the features part.

And sufficient input subsets.
"""

from pathlib import Path

from clearhead.metrics.statistics import format_value
from clearhead.report import plots
from clearhead.report.example_images import gallery
from clearhead.report.page import Figure, Row, Section, Table
from clearhead.results import EvaluationResults, SufficientResults


def evaluation_sections(run: EvaluationResults) -> list[Section]:
    """All that was evaluated; each model's tables bear its name where there are several."""
    sections: list[Section] = []
    for model, methods in run.segmentation.items():
        measures = list(next(iter(methods.values())))
        rows = [Row(method, [numbers[m] for m in measures]) for method, numbers in methods.items()]
        left = ", ".join(f"{count:,} with {why}" for why, count in run.left_out[model].items() if count)
        text = f"{_SEGMENTATION}{f' Left out: {left}.' if left else ''}"
        sections.append(Table(f"Maps as segmentations{_of(run, model)}", measures, rows, text, names="method"))
    if run.knn:
        sections.append(_knn(run))
    return sections


_SEGMENTATION = (
    "A map is foreground above its own mean. IoU: mean of foreground and background, all pixels together; mAP: average "
    "precision of the map's values for the foreground, mean over images; pooled, with the background's beside it."
)


def _of(run: EvaluationResults, model: str) -> str:
    return f": {model}" if len(run.models) > 1 else ""


def _knn(run: EvaluationResults) -> Table:
    rows = [Row(model, list(by_k.values())) for model, by_k in run.knn.items()]
    rows += [Row(f"{model} less {run.models[0]}", list(by_k.values())) for model, by_k in run.knn_change.items()]
    columns = [f"k = {k}" for k in next(iter(run.knn.values()))]
    text = (
        "Share of the images that have the class of most of their k nearest neighbours, by the cosine of the features. "
        "The classes are the folder's own; nothing is trained."
    )
    return Table("Nearest neighbours", columns, rows, text, names="model")


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
