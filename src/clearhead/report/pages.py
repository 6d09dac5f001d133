"""Finished runs to one page: the verdict first, then the numbers, then the pictures."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clearhead.data.folder import Problem
from clearhead.evaluate.audit import Audit
from clearhead.evaluate.compare import Comparison
from clearhead.evaluate.statistics import Estimate, number
from clearhead.heads.selection import Selection
from clearhead.linear import LinearLayer
from clearhead.repair import LastLayer
from clearhead.report import plots
from clearhead.report.heads import head_sections
from clearhead.report.page import Figure, Gallery, Page, Picture, Row, Section, Table, Verdict, write
from clearhead.results import AuditResults, ComparisonResults, HeadsResults, Results, Strip, TrainingResults
from clearhead.train import best_epoch

MOST_CLASSES = 20
"""Tables of classes show this many, those of lowest accuracy first."""

MOST_CHANGED = 50
"""Tables of classes that changed show this many, as arXiv 2206.01161 does."""


def write_page(runs: Sequence[tuple[Results, Path]], path: Path, title: str = "") -> None:
    """Write `page` to a file."""
    write(page(runs, title), path)


def page(runs: Sequence[tuple[Results, Path]], title: str = "") -> Page:
    """The page of runs and the folders their pictures are in.

    Its verdicts, headline and title come from the comparisons, or the first audit where there is no comparison.
    """
    comparisons = [run for run, _ in runs if isinstance(run, ComparisonResults)]
    several = len(runs) > 1
    sections: list[Section] = []
    for run, folder in sorted(runs, key=lambda pair: not isinstance(pair[0], ComparisonResults)):
        sections += _sections(run, folder, several)
    main = comparisons[0] if comparisons else runs[0][0]
    facts: dict[str, str] = {}
    for run, _ in runs:
        facts |= {
            (f"{name}, {run.kind}" if several and name != "versions" else name): v for name, v in run.facts.items()
        }
    return Page(
        title=title or _title(main),
        lead=_lead(main),
        verdicts=[Verdict(c.judgement.word, data, c.judgement.sentence) for c, data in _judged([r for r, _ in runs])],
        headline=_headline(main),
        sections=sections,
        facts=facts,
    )


def _judged(runs: Sequence[Results]) -> list[tuple[Comparison, str]]:
    """What has a verdict: comparisons, and repairs that were compared on test images, with the name of the images."""
    found = [(run.comparison, run.data) for run in runs if isinstance(run, ComparisonResults)]
    return found + [
        (run.test, f"{run.data}, test images") for run in runs if isinstance(run, TrainingResults) and run.test
    ]


def _title(run: Results) -> str:
    if isinstance(run, ComparisonResults):
        return f"{run.after} against {run.before}"
    if isinstance(run, TrainingResults):
        return f"{run.model}: {'training' if run.method == 'train' else 'repair'}"
    return f"{run.model}: {'audit' if isinstance(run, AuditResults) else 'attention heads'}"


def _lead(run: Results) -> str:
    if isinstance(run, ComparisonResults):
        count = run.comparison.before.accuracy.count
        return f"Both models on the same {count:,} images of {run.data}; every difference is paired, image by image."
    if isinstance(run, AuditResults | HeadsResults):
        return f"{_accuracy(run).count:,} images of {run.data}."
    if isinstance(run, TrainingResults) and run.method != "train":
        return f"Repaired on {run.data}, by {'keeping heads' if run.method == 'heads' else run.method}."
    return f"Trained on {run.data}."


def _headline(run: Results) -> list[tuple[str, Estimate]]:
    comparison = run.comparison if isinstance(run, ComparisonResults) else None
    if isinstance(run, TrainingResults):
        comparison = run.test
    if comparison:
        a, b = comparison.before, comparison.after
        shown = [("Average accuracy, before", a.accuracy), ("Average accuracy, after", b.accuracy)]
        if a.worst_group and b.worst_group:
            worst = [
                ("Worst-group accuracy, before", a.worst_group[1]),
                ("Worst-group accuracy, after", b.worst_group[1]),
            ]
            shown = worst + shown
        return shown
    if isinstance(run, AuditResults):
        audit = run.audit
        shown = [("Accuracy", audit.accuracy)]
        if audit.worst_group:
            shown.append(("Worst-group accuracy", audit.worst_group[1]))
        if audit.foreground:
            shown.append(("Relevance in the foreground", audit.foreground))
        if "background alone" in audit.intervened:
            shown.append(("Accuracy on the background alone", audit.intervened["background alone"]))
        return shown
    if isinstance(run, HeadsResults):
        return [("Accuracy, all heads", run.scores.accuracy)]
    return []


def _accuracy(run: AuditResults | HeadsResults) -> Estimate:
    return run.scores.accuracy if isinstance(run, HeadsResults) else run.audit.accuracy


def _sections(run: Results, folder: Path, several: bool) -> list[Section]:
    if isinstance(run, ComparisonResults):
        sections = _comparison_sections(run, folder)
    elif isinstance(run, AuditResults):
        sections = _audit_sections(run, folder, f": {run.model}" if several else "")
    elif isinstance(run, HeadsResults):
        sections = head_sections(run.scores, f": {run.model}" if several else "")
    else:
        sections = _training_sections(run)
    return sections + ([_problems(run.problems)] if run.problems else [])


# --- a comparison ----------------------------------------------------------------------------------------------------


def _comparison_sections(run: ComparisonResults, folder: Path) -> list[Section]:
    c = run.comparison
    sections: list[Section] = [
        Figure("Before and after", _MEASURES, plots.intervals(_pairs(c), "Before and after, with 95% intervals")),
        _differences(c),
    ]
    if c.groups:
        sections.append(_group_table(c))
    sections += _class_tables(c)
    for title, text, strips in (
        ("Put right", "Wrong before, right after; the greatest change of loss first.", run.gained),
        ("Made wrong", "Right before, wrong after; the greatest change of loss first.", run.lost),
        ("Classes that lost most", "The first images made wrong of each, the worst class first.", run.first_lost),
        ("Drawn at random", "A sample of all images, chosen by chance.", run.sample),
    ):
        if strips:
            sections.append(_gallery(title, f"{text} {_map_text(c.before)}", strips, folder))
    return sections


_MEASURES = (
    "Worst group: the group of images with the lowest accuracy. Background removed: the object on the mean colour. "
    "Background shuffled: the object on another image's background. Background alone: the object's box cut out; a "
    "model that still knows the class here reads the background."
)


def _measures(audit: Audit) -> dict[str, Estimate]:
    """The measures of one model that are shares, in the order they are told."""
    found = {"worst-group accuracy": audit.worst_group[1]} if audit.worst_group else {}
    found["average accuracy"] = audit.accuracy
    found |= {f"accuracy, {name}": value for name, value in audit.intervened.items() if name != "as it is"}
    if audit.foreground:
        found["relevance in the foreground"] = audit.foreground
    return found | {"calibration error": audit.calibration_error}


def _pairs(c: Comparison) -> list[tuple[str, list[tuple[str, Estimate]]]]:
    before, after = _measures(c.before), _measures(c.after)
    return [(name, [("before", before[name]), ("after", after[name])]) for name in before]


def _differences(c: Comparison) -> Table:
    before = _measures(c.before) | {"loss": c.before.loss}
    after = _measures(c.after) | {"loss": c.after.loss}
    rows = [
        Row(name, [before[name], after[name], c.differences.get(name, "")], _NOTES.get(name, "")) for name in before
    ]
    flips = c.mcnemar
    return Table(
        "What changed",
        ["before", "after", "difference"],
        rows,
        f"{flips.gained:,} images were put right and {flips.lost:,} made wrong; if neither model were better, flips as "
        f"uneven as these would come with probability {_probability(flips.p_value)} (exact McNemar test). A loss of "
        f"accuracy of up to {100 * c.margin:g} points was set to count as no harm.",
    )


_NOTES = {
    "loss": "nats; lower is better",
    "calibration error": "confidence against accuracy; lower is better",
    "accuracy, background alone": "lower means less reliance on the background",
}


def _probability(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 else "below 0.0001"


def _group_table(c: Comparison) -> Table:
    rows = [Row(name, [c.before.groups[name], c.after.groups[name], change]) for name, change in c.groups.items()]
    return Table("Group by group", ["before", "after", "difference"], rows, "Accuracy of each group of images.")


def _class_tables(c: Comparison) -> list[Section]:
    """The classes whose accuracy rose and fell most, for more than two classes."""
    found: list[Section] = []
    changed = sorted(c.classes.items(), key=lambda item: -item[1].value) if len(c.classes) > 2 else []
    for title, classes in (
        ("Classes most helped", [(name, d) for name, d in changed if d.value > 0]),
        ("Classes most harmed", [(name, d) for name, d in reversed(changed) if d.value < 0]),
    ):
        if classes:
            shown = classes[:MOST_CHANGED]
            rows = [Row(name, [c.before.classes[name], c.after.classes[name], d]) for name, d in shown]
            text = f"{len(classes):,} of {len(c.classes):,} classes{'; the first are shown' * (shown != classes)}. "
            text += "With few images a class, chance alone moves many; the intervals say how far."
            found.append(Table(title, ["before", "after", "difference"], rows, text))
    return found


# --- an audit --------------------------------------------------------------------------------------------------------


def _audit_sections(run: AuditResults, folder: Path, of: str) -> list[Section]:
    audit = run.audit
    sections: list[Section] = []
    if audit.foreground and audit.area:
        sections.append(_reliance(audit, of))
    if audit.groups:
        text = "The worst group is what a model can be counted on for." + _caution(audit)
        sections.append(Table(f"Groups{of}", ["accuracy"], [Row(n, [e]) for n, e in audit.groups.items()], text))
    sections.append(_classes(audit, of))
    sections.append(_calibration(audit, of))
    if run.least:
        text = f"The images whose relevance lies least on the object. {_map_text(audit)}"
        sections.append(_gallery(f"Least on the object{of}", text, run.least, folder))
    return sections + (head_sections(run.heads, of) if run.heads else [])


def _caution(audit: Audit) -> str:
    small = [name for name, e in audit.groups.items() if e.count < 30]
    return f" {len(small)} of them have fewer than 30 images: read those with care." if small else ""


def _reliance(audit: Audit, of: str) -> Table:
    rows = [
        Row(
            "Relevance in the foreground", [audit.foreground or "", ""], f"map: {audit.method}, of the predicted class"
        ),
        Row("Area of the foreground", [audit.area or "", ""], "what a map that is the same everywhere would score"),
    ]
    rows += [Row(f"Accuracy, {name}", ["", value]) for name, value in audit.intervened.items()]
    return Table(f"What it relies on{of}", ["share", "accuracy"], rows, _MEASURES.split(". ", 1)[1])


def _classes(audit: Audit, of: str) -> Table:
    worst = sorted(audit.classes.items(), key=lambda item: (item[1].value, item[0]))
    shown = worst[:MOST_CLASSES]
    text = "" if len(shown) == len(worst) else f"The {len(shown)} of lowest accuracy out of {len(worst)} with images."
    return Table(f"Classes{of}", ["accuracy"], [Row(name, [value]) for name, value in shown], text)


def _calibration(audit: Audit, of: str) -> Figure:
    bins = audit.bins
    plot = plots.reliability(bins.confidence, bins.accuracy, bins.counts, f"Reliability{of}")
    error = f"{100 * audit.calibration_error.value:.1f} points"
    text = (
        f"How often the model is right, by how sure it says it is. The expected calibration error, the mean distance "
        f"from the diagonal, is {error}; the mean negative log-likelihood {audit.loss.value:.3f} nats."
    )
    return Figure(f"Calibration{of}", text, plot)


# --- a training ------------------------------------------------------------------------------------------------------


def _training_sections(run: TrainingResults) -> list[Section]:
    sections: list[Section] = []
    if run.history:
        sections.append(_history(run))
    if run.selection:
        sections += _selection(run.selection)
    if run.last_layer:
        sections.append(_last_layer(run.last_layer))
    if run.linear:
        sections.append(_linear(run.linear))
    if run.test:
        note = "Nothing was trained or chosen on these images. "
        sections.append(_check(run.test, "Test images", note))
    if run.check:
        note = "These images chose what was kept, so this finds harm early but proves no gain. "
        sections.append(_check(run.check, "Check on the validation images", note))
    return sections


def _history(run: TrainingResults) -> Figure:
    history, kept = run.history, best_epoch(run.history, run.choose_by)
    lines = {
        "training": [epoch.train.get("loss", math.nan) for epoch in history],
        "validation": [epoch.validation["loss"] for epoch in history],
    }
    if run.choose_by != "loss":
        lines["validation, worst group"] = [epoch.validation[run.choose_by] for epoch in history]
    text = (
        f"The loss after each epoch; epoch 0 is the model as it was given. Epoch {kept.number} has the lowest "
        f"{CHOSEN_BY[run.choose_by]}, and its weights were kept."
    )
    return Figure("Training", text, plots.curves(lines, "Loss after each epoch", "loss", chosen=kept.number, first=0))


CHOSEN_BY = {"loss": "validation loss", "worst_group_loss": "loss of the worst group on the validation images"}


def _selection(found: Selection) -> list[Section]:
    rows = [Row(found.objective, [_percent(found.before), _percent(found.after)])]
    if found.optimism is not None:
        most = "" if found.search == "exhaustive" else "at most: these images made the candidates too; "
        expected = _percent(found.after - found.optimism)
        rows.append(Row("expected on other images", ["", expected], f"{most}by cross-validation"))
    small = f" ({found.smallest:,} in the smallest group)" if found.objective == "worst-group" else ""
    text = (
        f"Of {found.tried:,} candidates ({found.search}) this choice has the highest {found.objective} on the "
        f"{found.images:,} validation images{small}. Chosen on them, it looks better there than it is."
    )
    heads = max(map(len, found.kept.values()))
    kept = [
        Row(name, ["kept" if h < len(keep) and keep[h] else "" for h in range(heads)])
        for name, keep in found.kept.items()
        if not all(keep)
    ]
    sections: list[Section] = [Table("Heads kept: what they do", ["all heads", "kept heads"], rows, text)]
    if kept:
        text = "Layers in which no head was removed are left out."
        sections.append(Table("Heads kept", [str(h) for h in range(heads)], kept, text, names="layer"))
    return sections


def _percent(value: float) -> str:
    return number(value, "%")


def _last_layer(found: LastLayer) -> Table:
    rows = [
        Row(f"C = {c:g}", [_percent(value), "used" if c == found.chosen else ""])
        for c, value in found.worst_group_accuracy.items()
    ]
    sizes = found.groups.values()
    counts = f"{len(sizes)} groups of {min(sizes):,} to {max(sizes):,} images"
    text = (
        f"The last layer anew, by logistic regressions on group-balanced subsets of the training images ({counts}). "
        "The inverse penalty C is chosen by the worst group on the validation images."
    )
    return Table("The last layer", ["worst-group accuracy", ""], rows, text)


def _linear(found: LinearLayer) -> Table:
    rows = [
        Row(f"λ = {penalty:g}", [f"{loss:.4f}", _percent(found.accuracy[penalty]), "used" * (penalty == found.chosen)])
        for penalty, loss in found.loss.items()
    ]
    text = (
        "The last layer alone, on the features as they are: the minimum of the penalised cross-entropy on the training "
        "images. The penalty λ is chosen by the loss on the validation images, which the table shows."
    )
    return Table("The last layer", ["loss", "accuracy", ""], rows, text)


def _check(comparison: Comparison, title: str, note: str) -> Table:
    table = _differences(comparison)
    rows = [row for row in table.rows if row.cells[2] != ""]
    return Table(title, table.columns, rows, note + table.text)


# --- all of them -----------------------------------------------------------------------------------------------------


def _map_text(audit: Audit) -> str:
    return f"Maps: {audit.method}, of the class each model predicts; the line is the mask."


def _gallery(title: str, text: str, strips: Sequence[Strip], folder: Path) -> Gallery:
    def picture(strip: Strip) -> Picture:
        images = [(caption, np.asarray(Image.open(folder / "pictures" / file))) for caption, file in strip.pictures]
        return Picture(images, strip.title, strip.text)

    return Gallery(title, text, [picture(strip) for strip in strips])


def _problems(problems: Sequence[Problem], most: int = 20) -> Table:
    rows = [Row(p.file, [p.kind, p.action, p.detail]) for p in problems[:most]]
    text = f"{len(problems):,} in all, the first {most} are shown." if len(problems) > most else ""
    return Table("Problems with the data", ["kind", "what was done", "detail"], rows, text, names="file")
