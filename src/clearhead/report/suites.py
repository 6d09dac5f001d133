"""Models on shifted sets on the page: the verdict over all sets, the accuracies, the curves, the numbers."""

import math
from collections.abc import Collection, Sequence

from clearhead.analyses.robustness import ALPHA, SetChange, SetRow
from clearhead.metrics.statistics import Estimate, format_value
from clearhead.metrics.verdict import Outcome, Verdict
from clearhead.report import plots
from clearhead.report.page import Figure, Row, Section, Table
from clearhead.results import SuiteResults
from clearhead.shifts.corruptions import CORRUPTIONS
from clearhead.shifts.sweeps import SWEEPS


def suite_sections(run: SuiteResults) -> list[Section]:
    """All that is told of a suite."""
    sections: list[Section] = []
    single = [row for row in run.rows if not row.family]
    shown = [row for row in single if row.scoring == _main(single, row.set)]
    if len(shown) > len(run.models):
        rows = [
            (name, [(row.model, row.top1) for row in shown if row.set == name])
            for name in dict.fromkeys(row.set for row in shown)
        ]
        sections.append(Figure("Accuracy on every set", _ACCURACY, plots.intervals(rows, "Top-1 accuracy")))
    sections += _families(run)
    if any(run.summaries.values()):
        sections.append(_summaries(run))
    for model in run.models[1:]:
        sections.append(_changes(run, [change for change in run.changes if change.model == model]))
    if run.seeds:
        sections.append(_seeds(run))
    for model in run.models:
        mine = [row for row in single if row.model == model]
        sections.append(_table(mine, f": {model}" if len(run.models) > 1 else "", run))
    return sections


_ACCURACY = "Top-1 with its 95% interval (Wilson), each set by its main scoring."


def verdicts(run: SuiteResults) -> list[Verdict]:
    """Return for each model except the first whether it improved or regressed, over all the sets."""
    found = []
    for model in run.models[1:]:
        mine = [change for change in run.changes if change.model == model]
        worse, better = ([c for c in mine if c.word == word] for word in ("regressed", "improved"))
        word: Outcome = "regressed" if worse else "improved" if better else "inconclusive"
        basis = f"Exact paired McNemar tests at {ALPHA:.0%}, corrected over all sets together (Holm)."
        parts = [
            f"{direction} on {len(some)} of {len(mine)} sets ({_named(some)})"
            for direction, some in (("worse", worse), ("better", better))
            if some
        ]
        sentence = f"{model} is {' and '.join(parts)} than {run.models[0]}."
        if not parts:
            sentence = f"No difference between {model} and {run.models[0]} was detected on any of {len(mine)} sets."
        found.append(Verdict(word, sentence, basis, run.data))
    return found


def _named(changes: Sequence[SetChange], most: int = 3) -> str:
    """The sets of the largest changes."""
    largest = sorted(changes, key=lambda c: -abs(c.change.value))[:most]
    told = ", ".join(f"{c.set} {format_value(c.change.value, 'pp')}" for c in largest)
    return told + (f" and {len(changes) - most} more" if len(changes) > most else "")


def _of_many_scorings(rows: Sequence[SetRow]) -> set[str]:
    return {row.set for row in rows if row.scoring != _main(rows, row.set)}


def _main(rows: Sequence[SetRow], name: str) -> str:
    """The main scoring of a set: its first."""
    return next(row.scoring for row in rows if row.set == name)


def _families(run: SuiteResults) -> list[Section]:
    """Corruptions as one table, other families as a curve each."""
    sections: list[Section] = []
    families = list(dict.fromkeys(row.family for row in run.rows if row.family))
    graded = [family for family in families if family in CORRUPTIONS]
    if graded:
        sections.append(_corruptions(run, graded))
    for family in families:
        if family not in graded:
            sections.append(_curve(run, family))
    return sections


def _corruptions(run: SuiteResults, families: Sequence[str]) -> Table:
    """Severities side by side for one model, models side by side for several."""
    found: dict[tuple[str, str], dict[float, float]] = {}
    for row in run.rows:
        if row.family in families:
            found.setdefault((row.model, row.family), {})[row.level or 0.0] = row.top1.value
    severities = sorted({level for by_level in found.values() for level in by_level})
    text = "Top-1 accuracy; the intervals are in table.csv."
    if len(run.models) > 1:
        rows = [
            Row(family.replace("_", " "), [_mean(found[model, family].values()) for model in run.models])
            for family in families
        ]
        levels = ", ".join(f"{level:g}" for level in severities)
        return Table("Corruptions", run.models, rows, f"{text} Mean over the severities {levels}.", names="corruption")
    rows = []
    for family in families:
        by_level = found[run.models[0], family]
        cells = [_plain(by_level.get(severity, math.nan), "%") for severity in severities]
        rows.append(Row(family.replace("_", " "), [*cells, _mean(by_level.values())]))
    columns = [*(f"severity {level:g}" for level in severities), "mean"]
    return Table("Corruptions", columns, rows, text, names="corruption")


def _mean(values: Collection[float]) -> str:
    return format_value(sum(values) / len(values), "%")


_AXES = {name: sweep.axis for name, sweep in SWEEPS.items()} | {"adversarial": "largest change of a pixel, in 255ths"}


def _curve(run: SuiteResults, family: str) -> Figure:
    points: dict[str, list[tuple[float, float, float]]] = {}
    for model in run.models:
        rows = [row for row in run.rows if row.model == model and row.family == family]
        points[model] = sorted((row.level or 0.0, row.top1.value, (row.top1.high - row.top1.low) / 2) for row in rows)
    title = f"Accuracy by {family}"
    before = [row for row in run.rows if row.set == run.reference]
    told = ", ".join(f"{row.model} {format_value(row.top1.value, '%')}" for row in before)
    text = f"Top-1 with half its 95% interval to each side; on {run.reference}: {told}."
    return Figure(title, text, plots.lines(points, title, _AXES.get(family, family), "accuracy"))


def _summaries(run: SuiteResults) -> Table:
    names = list(dict.fromkeys(name for found in run.summaries.values() for name in found))
    rows = [Row(model, [run.summaries[model].get(name, "") for name in names]) for model in run.models]
    return Table("Over several sets", names, rows, " ".join(_SUMMARIES[name] for name in names), names="model")


_SUMMARIES = {
    "mean corruption accuracy": "Mean corruption accuracy: over 15 corruptions and 5 severities.",
    "mCE": "mCE: mean corruption error, percent of AlexNet's; lower is better.",
    "shape bias": "Shape bias: decisions for the shape among those for the shape or the texture.",
    "background gap": "Background gap: accuracy with a background of the same class less that with another's.",
}


def _changes(run: SuiteResults, changes: Sequence[SetChange]) -> Table:
    rows = [
        Row(
            c.set,
            [
                c.change,
                f"{c.positive_flips:,}",
                f"{c.negative_flips:,}",
                format_value(c.p_value),
                format_value(c.adjusted),
                c.word,
            ],
        )
        for c in changes
    ]
    text = (
        f"Accuracy minus that of {run.models[0]} on the same images. Positive flips: corrected predictions; negative "
        "flips: newly wrong ones. p: McNemar's exact test; Holm: the same corrected for all sets and models of this "
        f"page, which decides at {ALPHA:.0%}."
    )
    columns = ["change", "positive flips", "negative flips", "p", "Holm", ""]
    return Table(f"{changes[0].model} against {run.models[0]}", columns, rows, text, names="set")


def _seeds(run: SuiteResults) -> Table:
    rows = [Row(f"{row.label}, {row.set}", [row.top1, format_value(row.spread, "%")], row.scoring) for row in run.seeds]
    text = "Mean over models of one label with Student's interval over them (n: models), and their standard deviation."
    return Table("Over seeds", ["top-1", "spread"], rows, text, names="label and set")


def _table(rows: Sequence[SetRow], of: str, run: SuiteResults) -> Table:
    robust = any(row.effective for row in rows)
    several = _of_many_scorings(rows)
    columns = ["top-1", "top-5", "NLL", "ECE", *(["effective robustness"] if robust else [])]
    told = []
    for row in rows:
        cells: list[Estimate | str] = [row.top1, row.top5 or ""]
        cells += [_plain(row.loss, ""), _plain(row.ece, "%")]
        cells += [row.effective or ""] if robust else []
        notes = [row.scoring] if row.set in several else []
        notes += [f"{row.unreadable:,} unreadable"] if row.unreadable else []
        told.append(Row(row.set, cells, ", ".join(notes)))
    text = "NLL in nats; ECE: expected calibration error."
    if robust:
        text += (
            f" Effective robustness: accuracy beyond what the baselines' line gives for that on {run.reference}; none "
            "where fewer than two baselines can be used."
        )
    if run.absent:
        text += f" Not there: {', '.join(run.absent)}."
    return Table(f"Sets{of}", columns, told, text, names="set")


def _plain(value: float, unit: str) -> str:
    return "" if math.isnan(value) else format_value(value, unit)
