"""A study on the page: what changes with the amount of data, then a table for each test set."""

from collections.abc import Sequence

from clearhead.evaluate.statistics import number
from clearhead.report import plots
from clearhead.report.page import Figure, Row, Section, Table
from clearhead.results import StudyResults
from clearhead.study import StudyRow

_SHORT = {"relevance in the foreground": "in the foreground"}


def study_sections(run: StudyResults) -> list[Section]:
    """Curves where samples or classes vary, and the tables."""
    sections: list[Section] = []
    tests = dict.fromkeys(row.test for row in run.rows)
    for across, fixed in (("samples", "classes"), ("classes", "samples")):
        if len({getattr(row, across) for row in run.rows}) > 1:
            for test in tests:
                rows = [row for row in run.rows if (row.test, row.measure) == (test, "accuracy")]
                sections.append(_curves(rows, test, across, fixed))
    return sections + [_table([row for row in run.rows if row.test == test], test) for test in tests]


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
        title, f"{text} Before: {number(rows[0].before, '%')}.", plots.lines(points, title, label, "accuracy")
    )


def _table(rows: Sequence[StudyRow], test: str) -> Table:
    measures = list(dict.fromkeys(row.measure for row in rows))
    cells: dict[tuple[str, int, int], dict[str, StudyRow]] = {}
    for row in rows:
        cells.setdefault((row.name, row.samples, row.classes), {})[row.measure] = row
    before = []
    for measure in measures:  # that of the classes trained on differs with their number
        found = {round(row.before, 6) for row in rows if row.measure == measure}
        before.append(number(found.pop(), "%") if len(found) == 1 else "")
    told = [Row("before", before)]
    for (name, samples, classes), by_measure in cells.items():
        for row in by_measure.values():
            seeds = row.seeds
        after = "; ".join(f"{_SHORT.get(m, m)} {_spread(row)}" for m, row in by_measure.items() if row.spread)
        note = f"{_counted(samples, 'samples')} of {_counted(classes, 'classes')}, {_counted(seeds, 'seeds')}"
        changes = [by_measure[m].change if m in by_measure else "" for m in measures]
        told.append(Row(name, changes, f"{note}{'; after: ' if after else ''}{after}"))
    text = (
        "The change against the model as it was given, the seeds' mean for each image, with its 95% interval over "
        "images; below each name the value after, mean ± standard deviation over the seeds."
    )
    return Table(f"{test}", [_SHORT.get(m, m) for m in measures], told, text, names="method")


def _counted(count: int, what: str) -> str:
    one = {"samples": "image a class", "classes": "class", "seeds": "seed"}[what]
    many = {"samples": "images a class", "classes": "classes", "seeds": "seeds"}[what]
    return f"{count:,} {one if count == 1 else many}"


def _spread(row: StudyRow) -> str:
    return f"{100 * row.after:.1f} ± {100 * (row.spread or 0):.1f}%"
