"""Compare a repaired model with the original one on validation or test images."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from clearhead.analyses.compare import Comparison, compare_predictions, difference_table
from clearhead.data.dataset import ImageIndex
from clearhead.metrics.verdict import noninferiority_verdict
from clearhead.models.classifier import Classifier
from clearhead.prediction.predict import BACKGROUND, predict
from clearhead.progress import Progress, prefixed
from clearhead.repairs.objective import Objective, difference_under_changes
from clearhead.report.page import Table


def check_repair(
    models: Sequence[Classifier],
    index: ImageIndex,
    which: str,
    *,
    groups: Sequence[str] | None,
    margin: float,
    seed: int,
    workers: int,
    progress: Progress | None,
    objective: Objective | None = None,
) -> Comparison:
    """Return the comparison of a repaired model with the original one on some images, `which` in the progress.

    Without groups, an objective of changed images is judged beside the average accuracy.
    """
    changes = objective.shortcuts if objective else []
    shortcuts = list(dict.fromkeys([*BACKGROUND, *changes]))
    options: dict[str, Any] = {"group_columns": groups, "workers": workers, "seed": seed, "shortcuts": shortcuts}
    before, after = (
        predict(one, index, **options, progress=prefixed(progress, f"{which}: {caption}"))
        for one, caption in zip(models, ("before", "after"), strict=True)
    )
    comparison = compare_predictions(before, after, models[0].classes, margin, seed)
    if objective is None or not changes or comparison.before.worst_group:
        return comparison
    judged = {
        objective.measure: difference_under_changes(before, after, objective),
        "average accuracy": comparison.differences["average accuracy"],
    }
    verdict = noninferiority_verdict(judged, margin)
    return replace(comparison, differences=judged | comparison.differences, verdict=verdict)


def comparison_table(comparison: Comparison, title: str, note: str) -> Table:
    """Return the measures with a paired difference; the note comes before the explanation of the numbers."""
    table = difference_table(comparison)
    rows = [row for row in table.rows if row.cells[2] != ""]
    return Table(title, table.columns, rows, f"{note} {table.text}")
