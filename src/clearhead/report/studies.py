"""A study on the page: what changes with the amount of data, then a table for each test set."""

from collections.abc import Sequence

from clearhead.metrics.statistics import format_value
from clearhead.report import plots
from clearhead.report.page import Figure, Row, Section, Table
from clearhead.results import StudyResults
from clearhead.study.repairs import StudyRow


def study_sections(run: StudyResults) -> list[Section]:
    """Curves where samples or classes vary, and the tables."""
    sections: list[Section] = []
    tests = dict.fromkeys(row.test for row in run.rows)
    for across, fixed in (("samples", "classes"), ("classes", "samples")):
        if len({getattr(row, across) for row in run.rows}) > 1:
            for test in tests:
                rows = [row for row in run.rows if (row.test, row.measure) == (test, "accuracy")]
                sections.append(_curves(rows, test, across, fixed))
    for test in tests:
        rows = [row for row in run.rows if row.test == test]
        for title, measures, text in _TABLES:
            there = [measure for measure in measures if any(row.measure == measure for row in rows)]
            if there:
                sections.append(_table(f"{title} on {test}", rows, there, text))
    return sections


_TABLES = (
    (
        "Accuracy",
        ("accuracy", "accuracy, trained classes", "accuracy, other classes"),
        "After: mean ± standard deviation over the seeds. Then the change against the model as it was given, the "
        "seeds' mean for each image, with its 95% interval over images: of all, and of those of classes trained on or "
        "not.",
    ),
    (
        "Without the background",
        (
            *("accuracy, background removed", "accuracy, background swapped", "accuracy, background only"),
            "foreground relevance",
        ),
        "Changes likewise, on the images with masks. Background alone: lower means less reliance on it.",
    ),
)


def _curves(rows: Sequence[StudyRow], test: str, across: str, fixed: str) -> Figure:
    several = len({getattr(row, fixed) for row in rows}) > 1
    points: dict[str, list[tuple[float, float, float]]] = {}
    for row in sorted(rows, key=lambda row: getattr(row, across)):
        name = f"{row.name}, {_counted(getattr(row, fixed), fixed)}" if several else row.name
        points.setdefault(name, []).append((getattr(row, across), row.after, row.spread or 0.0))
    label = {"samples": "images a class", "classes": "classes"}[across]
    title = f"Accuracy on {test} by {label}"
    seeds = max(row.seeds for row in rows)
    text = f"Mean over {seeds} seeds; the bars are one standard deviation." if seeds > 1 else "One seed."
    return Figure(
        title, f"{text} Before: {format_value(rows[0].before, '%')}.", plots.lines(points, title, label, "accuracy")
    )


def _table(title: str, rows: Sequence[StudyRow], measures: Sequence[str], text: str) -> Table:
    cells: dict[tuple[str, int, int], dict[str, StudyRow]] = {}
    for row in rows:
        cells.setdefault((row.name, row.samples, row.classes), {})[row.measure] = row
    first = measures[0]
    told = []
    for (name, samples, classes), by_measure in cells.items():
        main = by_measure[first]
        parts = (samples, "samples"), (classes, "classes"), (main.seeds, "seeds")
        changes = [by_measure[measure].change if measure in by_measure else "" for measure in measures]
        note = "{} of {}, {}".format(*(_counted(*part) for part in parts))
        told.append(Row(name, [format_value(main.before, "%"), _spread(main), *changes], note))
    columns = [measure.removeprefix("accuracy, ") for measure in measures]
    return Table(title, ["before", "after", *columns], told, f"{text} Before and after: {first}.", names="method")


def _counted(count: int, what: str) -> str:
    one = {"samples": "image a class", "classes": "class", "seeds": "seed"}[what]
    many = {"samples": "images a class", "classes": "classes", "seeds": "seeds"}[what]
    return f"{count:,} {one if count == 1 else many}"


def _spread(row: StudyRow) -> str:
    after = format_value(row.after, "%")
    return after if row.spread is None else f"{after.removesuffix('%')} ± {format_value(row.spread, '%')}"
