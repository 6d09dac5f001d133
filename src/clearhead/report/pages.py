"""Finished runs to one page: the verdict first, then the numbers, then the pictures."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clearhead.analyses.compare import Comparison
from clearhead.data.dataset import DataIssue
from clearhead.report.page import Page, Row, Section, Table, write
from clearhead.report.renderers import KINDS
from clearhead.results import ComparisonResults, Results, TrainingResults, once


def write_page(runs: Sequence[tuple[Results, Path]], path: Path, title: str = "") -> None:
    """Write `page` to a file."""
    write(page(runs, title), path)


def page(runs: Sequence[tuple[Results, Path]], title: str = "") -> Page:
    """The page of runs and the folders their pictures are in.

    Its verdicts, headline and title come from the comparisons, or the first audit where there is no comparison.
    """
    several = len(runs) > 1
    sections: list[Section] = []
    for run, folder in sorted(runs, key=lambda pair: not isinstance(pair[0], ComparisonResults)):
        sections += KINDS[type(run)].sections(
            run, folder, f": {run.model}" if several and hasattr(run, "model") else ""
        )
        sections += [_problems(run.issues)] if run.issues else []
    main = next((run for run, _ in runs if isinstance(run, ComparisonResults)), runs[0][0])
    kind = KINDS[type(main)]
    provenance: dict[str, str] = {}
    for kind_of, (run, _) in zip(once([run.kind for run, _ in runs]), runs, strict=True):
        provenance |= {
            (f"{name}, {kind_of}" if several and name != "versions" else name): v for name, v in run.provenance.items()
        }
    return Page(
        title=title or kind.title(main),
        lead=kind.lead(main),
        verdicts=[replace(c.verdict, data=data) for c, data in _judged([r for r, _ in runs])],
        headline=kind.headline(main),
        sections=sections,
        provenance=provenance,
    )


def _judged(runs: Sequence[Results]) -> list[tuple[Comparison, str]]:
    """What has a verdict: comparisons, and repairs that were compared on test images, with the name of the images."""
    found = [(run.comparison, run.data) for run in runs if isinstance(run, ComparisonResults)]
    return found + [
        (run.test, f"{run.data}, test images") for run in runs if isinstance(run, TrainingResults) and run.test
    ]


def _problems(issues: Sequence[DataIssue], most: int = 20) -> Table:
    rows = [Row(p.file, [p.category, p.action, p.detail]) for p in issues[:most]]
    text = f"{len(issues):,} in all, the first {most} are shown." if len(issues) > most else ""
    return Table("Problems with the data", ["kind", "what was done", "detail"], rows, text, names="file")
