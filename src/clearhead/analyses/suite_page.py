"""The page of models on shifted sets: the verdict over all sets, the accuracies, the curves, the numbers."""

import math
from collections import Counter
from collections.abc import Sequence

from clearhead.analyses.robustness import ALPHA, SetChange, SetRow, SuiteResult
from clearhead.metrics.power import asymptotic_images, images_for
from clearhead.metrics.statistics import format_value
from clearhead.metrics.verdict import Outcome, Verdict
from clearhead.report import plots
from clearhead.report.page import Cell, Figure, Page, Row, Section, Table
from clearhead.shifts.corruptions import CORRUPTIONS
from clearhead.shifts.sweeps import SWEEPS


def suite_page(result: SuiteResult) -> Page:
    """Return the page of a suite."""
    models = result.subject.models
    sections: list[Section] = [_overview(result)]
    single = [row for row in result.rows if not row.family]
    main = [row for row in single if row.scoring == _main(single, row.set)]
    if len(main) > len(models):
        rows = [
            (name, [(row.model, row.top1) for row in main if row.set == name])
            for name in dict.fromkeys(row.set for row in main)
        ]
        text = "Top-1 with its 95% interval (Wilson), each set by its main class mapping."
        sections.append(Figure("Accuracy on every set", text, plots.intervals(rows, "Top-1 accuracy")))
    sections += _families(result)
    for model in models[1:]:
        sections.append(_changes(result, [change for change in result.changes if change.model == model]))
    if result.seeds:
        sections.append(_seeds(result))
    for model in models:
        own = [row for row in single if row.model == model]
        sections.append(_sets(own, f": {model}" if len(models) > 1 else ""))
    return Page(
        f"{result.subject.listed()} on shifted data",
        f"{len({row.set for row in result.rows})} sets of {result.subject.data}.",
        verdicts(result),
        [(f"{row.model}, {row.set}", row.top1) for row in result.rows if row.set == result.reference][:4],
        sections,
    )


def verdicts(result: SuiteResult) -> list[Verdict]:
    """Return for each model except the first whether it improved or regressed, over all the sets."""
    judged = []
    for model in result.subject.models[1:]:
        own = [change for change in result.changes if change.model == model]
        worse, better = ([c for c in own if c.word == word] for word in ("regressed", "improved"))
        word: Outcome = "regressed" if worse else "improved" if better else "inconclusive"
        basis = f"Exact paired McNemar tests at {ALPHA:.0%}, corrected over all sets together (Holm)."
        parts = [
            f"{direction} on {len(some)} of {len(own)} sets ({_largest(some)})"
            for direction, some in (("worse", worse), ("better", better))
            if some
        ]
        sentence = f"{model} is {' and '.join(parts)} than {result.subject.model}."
        if not parts:
            sentence = (
                f"No difference between {model} and {result.subject.model} was detected on any of {len(own)} sets."
            )
            sentence += _images_for(own, len(result.changes))
        judged.append(Verdict(word, sentence, basis, result.subject.data))
    return judged


def _images_for(changes: Sequence[SetChange], tests: int) -> str:
    """Return a sentence on how many images would show one of the changes: the one that needs the fewest, if any does.

    By the normal approximation of the paired test, at the level of one of `tests` (Bonferroni).
    """
    needed = []
    for c in changes:
        variance = (c.positive_flips + c.negative_flips) / max(c.change.count, 1) - c.change.value**2
        images = asymptotic_images(abs(c.change.value), math.sqrt(max(variance, 0)), level=1 - ALPHA / tests)
        if images is not None:
            needed.append((max(images, c.change.count + 1), c.change.count, c))
    if not needed:
        return ""
    images, count, c = min(needed, key=lambda entry: entry[0])
    change = f"the change on {c.set} ({format_value(c.change.value, 'pp')})"
    return f" {images_for(change, images, count)}"


def _largest(changes: Sequence[SetChange], most: int = 3) -> str:
    """Name the sets of the largest changes."""
    largest = sorted(changes, key=lambda c: -abs(c.change.value))[:most]
    listed = ", ".join(f"{c.set} {format_value(c.change.value, 'pp')}" for c in largest)
    return listed + (f" and {len(changes) - most} more" if len(changes) > most else "")


def _main(rows: Sequence[SetRow], name: str) -> str:
    """Return the main class mapping of a set: its first."""
    return next(row.scoring for row in rows if row.set == name)


def _with_several_mappings(rows: Sequence[SetRow]) -> set[str]:
    return {row.set for row in rows if row.scoring != _main(rows, row.set)}


def _overview(result: SuiteResult) -> Table:
    """Top-1 accuracy of every model on every set, means over the levels of families, and metrics over several sets."""
    models = result.subject.models
    accuracy = {(row.model, row.set, row.scoring): row.top1 for row in result.rows}
    several = _with_several_mappings(result.rows)
    first = [row for row in result.rows if row.model == models[0]]
    levels = Counter(row.family for row in first if row.family)
    rows = [
        Row(
            row.set,
            [accuracy[model, row.set, row.scoring] for model in models],
            row.scoring if row.set in several else "",
        )
        for row in first
        if levels[row.family] < 2
    ]
    for family in (family for family, count in levels.items() if count > 1):
        values = [[r.top1.value for r in result.rows if (r.model, r.family) == (m, family)] for m in models]
        cells = [format_value(sum(of_model) / len(of_model), "%") for of_model in values]
        rows.append(Row(family.replace("_", " "), cells, f"mean of {levels[family]} levels"))
    names = list(dict.fromkeys(name for summary in result.summaries.values() for name in summary))
    rows += [Row(name, [result.summaries[model].get(name, "") for model in models]) for name in names]
    text = ["Top-1 accuracy.", *(_SUMMARIES[name] for name in names)]
    text += [f"Unavailable: {', '.join(result.absent)}."] if result.absent else []
    columns = models if len(models) > 1 else ["top-1"]
    return Table("Accuracy", columns, rows, " ".join(text), names="set")


_SUMMARIES = {
    "mean corruption accuracy": "Mean corruption accuracy: over 15 corruptions and 5 severities.",
    "mCE": "mCE: mean corruption error, percent of AlexNet's; lower is better.",
    "shape bias": "Shape bias: decisions for the shape among those for the shape or the texture.",
    "background gap": "Background gap: accuracy with a background of the same class - with that of another class.",
}


def _families(result: SuiteResult) -> list[Section]:
    """Show corruptions of one model as a table by severity, other families as curves."""
    sections: list[Section] = []
    families = list(dict.fromkeys(row.family for row in result.rows if row.family))
    corruptions = [family for family in families if family in CORRUPTIONS]
    if corruptions and len(result.subject.models) == 1:
        sections.append(_corruptions(result, corruptions))
    return sections + [_curve(result, family) for family in families if family not in corruptions]


def _corruptions(result: SuiteResult, families: Sequence[str]) -> Table:
    accuracy = {(row.family, row.level): row.top1.value for row in result.rows if row.family in families}
    severities = sorted({row.level or 0.0 for row in result.rows if row.family in families})
    rows = []
    for family in families:
        values = [accuracy.get((family, severity), math.nan) for severity in severities]
        rows.append(Row(family.replace("_", " "), [_plain(value, "%") for value in values]))
    text = "Top-1 accuracy; the intervals are in table.csv."
    columns = [f"severity {severity:g}" for severity in severities]
    return Table("Corruptions", columns, rows, text, names="corruption")


_AXES = {name: sweep.axis for name, sweep in SWEEPS.items()} | {"adversarial": "largest change of a pixel, in 255ths"}


def _curve(result: SuiteResult, family: str) -> Figure:
    points: dict[str, list[tuple[float, float, float]]] = {}
    for model in result.subject.models:
        rows = [row for row in result.rows if row.model == model and row.family == family]
        points[model] = sorted((row.level or 0.0, row.top1.value, (row.top1.high - row.top1.low) / 2) for row in rows)
    title = f"Accuracy by {family}"
    reference = [row for row in result.rows if row.set == result.reference]
    listed = ", ".join(f"{row.model} {format_value(row.top1.value, '%')}" for row in reference)
    text = f"Top-1 with half its 95% interval to each side; on {result.reference}: {listed}."
    return Figure(title, text, plots.lines(points, title, _AXES.get(family, family), "accuracy"))


def _changes(result: SuiteResult, changes: Sequence[SetChange]) -> Table:
    rows = []
    for c in changes:
        cells: list[Cell] = [c.change, f"{c.positive_flips:,}", f"{c.negative_flips:,}"]
        rows.append(Row(c.set, [*cells, format_value(c.p_value), format_value(c.adjusted), c.word]))
    baseline = result.subject.model
    text = (
        f"Accuracy minus that of {baseline} on the same images. Positive flips: corrected predictions; negative flips: "
        "newly wrong ones. p: exact McNemar test; Holm: the same corrected for all sets and models of this page, which "
        f"decides at {ALPHA:.0%}."
    )
    columns = ["change", "positive flips", "negative flips", "p", "Holm", ""]
    name = changes[0].model if changes else "No model"
    return Table(f"{name} compared with {baseline}", columns, rows, text, names="set")


def _seeds(result: SuiteResult) -> Table:
    rows = [
        Row(f"{row.label}, {row.set}", [row.top1, format_value(row.spread, "%")], row.scoring) for row in result.seeds
    ]
    text = "Mean over models of one label with Student's interval over them (n: models), and their standard deviation."
    return Table("Mean over seeds", ["top-1", "standard deviation"], rows, text, names="label and set")


def _sets(rows: Sequence[SetRow], suffix: str) -> Table:
    several = _with_several_mappings(rows)
    listed = []
    for row in rows:
        cells: list[Cell] = [row.top1, row.top5 or "", _plain(row.loss, ""), _plain(row.ece, "%")]
        notes = [row.scoring] if row.set in several else []
        notes += [f"{row.unreadable:,} unreadable"] if row.unreadable else []
        listed.append(Row(row.set, cells, ", ".join(notes)))
    text = "NLL in nats; ECE: expected calibration error, equal-width bins."
    return Table(f"Sets{suffix}", ["top-1", "top-5", "NLL", "ECE"], listed, text, names="set")


def _plain(value: float, unit: str) -> str:
    return "" if math.isnan(value) else format_value(value, unit)
