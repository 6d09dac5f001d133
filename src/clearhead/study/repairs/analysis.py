"""A grid of repairs as an analysis: what changes with the number of images and classes, and a table per test set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clearhead.analyses.subject import Subject
from clearhead.data.images import source_name
from clearhead.inputs import model_name
from clearhead.metrics.statistics import format_value
from clearhead.options import Jobs
from clearhead.progress import Progress
from clearhead.report import plots
from clearhead.report.page import Figure, Page, Row, Section, Table
from clearhead.study.repairs.plan import read_plan
from clearhead.study.repairs.run import StudyRow, run_study

GROWS = True


@dataclass(frozen=True)
class RepairStudy:
    """A grid of repairs of one model, measured on test sets."""

    subject: Subject
    rows: list[StudyRow]


def measure(
    plan: Path, *, jobs: Jobs = 1, folder: Path = Path(), device: str | None = None, progress: Progress | None = None
) -> RepairStudy:
    """Train a grid of repairs from one file (methods, images per class, classes, seeds) and measure each on test sets.

    What is finished is not run again, so the plan may grow. The page shows what the plan names.

    Example:
        $ clearhead study repairs plan.yaml --jobs 4

    Args:
        plan: YAML file (``clearhead.study.repairs.plan``).
        jobs: number of parallel processes.
        folder: where the trainings are; one folder each.
        device: where to train and measure; by default a GPU where there is one.
        progress: shows progress.

    Raises:
        StudyError: for a plan that cannot be run, or a folder of another one.
        DataError: for data that cannot be read.
    """
    read = read_plan(plan)
    rows = run_study(read, folder, jobs=jobs, device=device, progress=progress)
    return RepairStudy(Subject([model_name(read.model)], source_name(read.data)), rows)


def page(result: RepairStudy) -> Page:
    """Show curves where the number of images or classes varies, and a table per test set."""
    curves: list[Section] = []
    tables: list[Section] = []
    tests = dict.fromkeys(row.test for row in result.rows)
    for x, fixed in (("samples", "classes"), ("classes", "samples")):
        if len({getattr(row, x) for row in result.rows}) > 1:
            for test in tests:
                rows = [row for row in result.rows if (row.test, row.measure) == (test, "accuracy")]
                curves.append(_curves(rows, test, x, fixed))
    for test in tests:
        rows = [row for row in result.rows if row.test == test]
        for title, measures, text in _TABLES:
            measured = [measure for measure in measures if any(row.measure == measure for row in rows)]
            if measured:
                tables.append(_table(f"{title} on {test}", rows, measured, text))
    subject = result.subject
    lead = f"Repairs on parts of {subject.data}, measured on images that nothing was selected on."
    return Page(f"{subject.model}: study of repairs", lead, sections=[*curves, *tables])


_TABLES = (
    (
        "Accuracy",
        ("accuracy", "accuracy, trained classes", "accuracy, other classes"),
        "After: mean ± standard deviation over the seeds. Then the change from the original model, the seeds' mean for "
        "each image, with its 95% interval over images: of all images, and of those of classes trained on or not.",
    ),
    (
        "Without the background",
        (
            *("accuracy, background removed", "accuracy, background swapped", "accuracy, background only"),
            "foreground relevance",
        ),
        "The same changes, on the images with masks. Background only: lower means less reliance on the background.",
    ),
)


def _curves(rows: Sequence[StudyRow], test: str, x: str, fixed: str) -> Figure:
    several = len({getattr(row, fixed) for row in rows}) > 1
    points: dict[str, list[tuple[float, float, float]]] = {}
    for row in sorted(rows, key=lambda row: float(getattr(row, x))):
        name = f"{row.name}, {_counted(getattr(row, fixed), fixed)}" if several else row.name
        points.setdefault(name, []).append((getattr(row, x), row.after, row.spread or 0.0))
    label = {"samples": "images per class", "classes": "classes"}[x]
    title = f"Accuracy on {test} by {label}"
    seeds = max(row.seeds for row in rows)
    text = f"Mean over {seeds} seeds; bars are one standard deviation." if seeds > 1 else "One seed."
    plot = plots.lines(points, title, label, "accuracy")
    return Figure(title, f"{text} Before: {format_value(rows[0].before, '%')}.", plot)


def _table(title: str, rows: Sequence[StudyRow], measures: Sequence[str], text: str) -> Table:
    cells: dict[tuple[str, int, int], dict[str, StudyRow]] = {}
    for row in rows:
        cells.setdefault((row.name, row.samples, row.classes), {})[row.measure] = row
    first = measures[0]
    lines = []
    for (name, samples, classes), by_measure in cells.items():
        main = by_measure[first]
        parts = (samples, "samples"), (classes, "classes"), (main.seeds, "seeds")
        changes = [by_measure[measure].change if measure in by_measure else "" for measure in measures]
        note = "{} of {}, {}".format(*(_counted(*part) for part in parts))
        lines.append(Row(name, [format_value(main.before, "%"), _spread(main), *changes], note))
    columns = [measure.removeprefix("accuracy, ") for measure in measures]
    return Table(title, ["before", "after", *columns], lines, f"{text} Before and after: {first}.", names="method")


def _counted(count: int, unit: str) -> str:
    singular = {"samples": "image per class", "classes": "class", "seeds": "seed"}[unit]
    plural = {"samples": "images per class", "classes": "classes", "seeds": "seeds"}[unit]
    return f"{count:,} {singular if count == 1 else plural}"


def _spread(row: StudyRow) -> str:
    after = format_value(row.after, "%")
    return after if row.spread is None else f"{after.removesuffix('%')} ± {format_value(row.spread, '%')}"
