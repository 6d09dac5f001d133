"""A training or a repair on the page: how it went, what was chosen, and the checks."""

import math

from clearhead.analyses.compare import Comparison
from clearhead.metrics.statistics import format_value
from clearhead.repairs import RetrainedHead
from clearhead.repairs.head_selection import Selection
from clearhead.report import plots
from clearhead.report.comparisons import differences
from clearhead.report.page import Figure, Row, Section, Table
from clearhead.results import TrainingResults
from clearhead.training.linear_probe import LinearProbe
from clearhead.training.loop import best_epoch


def training_sections(run: TrainingResults) -> list[Section]:
    """All that is told of a training."""
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
    history, kept = run.history, best_epoch(run.history, run.monitor)
    lines = {
        "training": [epoch.train.get("loss", math.nan) for epoch in history],
        "validation": [epoch.validation["loss"] for epoch in history],
    }
    if run.monitor != "loss":
        lines["validation, worst group"] = [epoch.validation[run.monitor] for epoch in history]
    text = (
        f"The loss after each epoch; epoch 0 is the model as it was given. Epoch {kept.number} has the lowest "
        f"{CHOSEN_BY[run.monitor]}, and its weights were kept."
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
    heads = max(map(len, found.kept_heads.values()))
    kept = [
        Row(name, ["kept" if h < len(keep) and keep[h] else "" for h in range(heads)])
        for name, keep in found.kept_heads.items()
        if not all(keep)
    ]
    sections: list[Section] = [Table("Heads kept: what they do", ["all heads", "kept heads"], rows, text)]
    if kept:
        text = "Layers in which no head was removed are left out."
        sections.append(Table("Heads kept", [str(h) for h in range(heads)], kept, text, names="layer"))
    return sections


def _percent(value: float) -> str:
    return format_value(value, "%")


def _last_layer(found: RetrainedHead) -> Table:
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


def _linear(found: LinearProbe) -> Table:
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
    table = differences(comparison)
    rows = [row for row in table.rows if row.cells[2] != ""]
    return Table(title, table.columns, rows, note + table.text)
