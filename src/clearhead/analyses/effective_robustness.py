"""Effective robustness: accuracy on shifted sets beyond what baselines of the same accuracy have.

After Taori et al. (arXiv 2007.00644). It works from a finished run of ``evaluate``; no model runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clearhead.analyses.evaluate import read_suite
from clearhead.analyses.robustness import SetRow, baseline_line, effective_robustness
from clearhead.analyses.subject import Subject
from clearhead.analyses.suite_tables import read_baselines, write_tables
from clearhead.data.image_io import DataError
from clearhead.report.page import Page, Row, Table


@dataclass(frozen=True)
class EffectiveRobustnessResult:
    """Effective robustness of the models of a suite.

    Attributes:
        subject: models and data of the run.
        reference: the set whose accuracy it is measured from.
        rows: those of the run, with `effective` where the baselines have the set.
    """

    subject: Subject
    reference: str
    rows: list[SetRow]


def measure(run: Path, table: Path) -> EffectiveRobustnessResult:
    """Measure effective robustness: accuracy beyond that expected from baselines of the same accuracy.

    Example:
        $ clearhead effective-robustness runs/evaluate-vit baselines.csv

    Args:
        run: folder of a finished run of ``evaluate``.
        table: accuracy of baselines on the same sets: the ``table.csv`` of another run of ``evaluate``.

    Raises:
        DataError: for a table without these columns, or without the reference set.
        ClearheadError: for a folder of another run.
    """
    result = read_suite("run", run)
    rows = with_effective_robustness(result.rows, result.reference, read_baselines(table))
    return EffectiveRobustnessResult(result.subject, result.reference, rows)


def with_effective_robustness(
    rows: Sequence[SetRow], reference: str, baselines: Mapping[tuple[str, str], dict[str, float]]
) -> list[SetRow]:
    """Return the rows with effective robustness where the baselines have the set and the reference."""
    references = {row.model: row for row in reversed(rows) if row.set == reference}
    on_reference = baselines.get((reference, next(iter(references.values())).scoring))
    if on_reference is None:
        sets = ", ".join(dict.fromkeys(name for name, _ in baselines))
        raise DataError(f"table: it has no row of the reference set {reference!r}, only of {sets or 'no set'}")
    result = []
    for row in rows:
        on_set = baselines.get((row.set, row.scoring))
        if row.set != reference and on_set:
            both = [model for model in on_set if model in on_reference]
            line = baseline_line([on_reference[m] for m in both], [on_set[m] for m in both])
            if line:
                top1 = references[row.model].top1.value
                row = replace(row, effective=effective_robustness(row.top1, top1, line))
        result.append(row)
    return result


def export(result: EffectiveRobustnessResult, folder: Path) -> None:
    """Write the table of the run with effective robustness: table.csv, table.parquet, table.md and table.tex."""
    write_tables(result.rows, folder)


def page(result: EffectiveRobustnessResult) -> Page:
    """Show effective robustness beside accuracy."""
    several = len(result.subject.models) > 1
    rows = [
        Row(f"{row.model}, {row.set}" if several else row.set, [row.top1, row.effective or ""], row.scoring)
        for row in result.rows
    ]
    text = (
        f"Effective robustness: accuracy minus that expected from the accuracy on {result.reference}, by the line of "
        "the baselines (linear in logits); its interval treats the line as exact. Sets of fewer than two usable "
        "baselines have none."
    )
    columns = ["top-1", "effective robustness"]
    return Page(
        f"{result.subject.listed()}: effective robustness",
        f"Sets of {result.subject.data}.",
        sections=[Table("Effective robustness", columns, rows, text, names="set")],
    )
