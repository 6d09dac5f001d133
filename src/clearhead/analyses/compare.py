"""Did a model improve or regress, and is the difference real? Two models on the same images, paired image by image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clearhead.analyses.audit import Audit, summarize
from clearhead.analyses.examples import SHOWN, View, draw_examples, map_note
from clearhead.analyses.subject import Subject, subject_of
from clearhead.data.images import DataLike, as_image_index
from clearhead.data.splits import sample_n
from clearhead.errors import ClearheadError
from clearhead.metrics.calibration import BINS
from clearhead.metrics.statistics import (
    Estimate,
    McNemar,
    accuracy_difference,
    in_large_groups,
    mcnemar,
    mean_difference,
    worst_group_difference,
)
from clearhead.metrics.verdict import Verdict, noninferiority_verdict
from clearhead.models.source import ModelLike, as_classifier, display_names, require_same_classes
from clearhead.options import BatchSize, Groups, Limit, Margin, Method, Seed, Split, Workers
from clearhead.prediction.predict import Predictions, predict
from clearhead.progress import Progress, prefixed
from clearhead.report import plots
from clearhead.report.page import ExampleImages, Figure, Gallery, Page, Row, Section, Table
from clearhead.storage import NotSaved, write_table

MOST_CHANGED = 50
"""Tables of classes that changed show this many, as arXiv 2206.01161 does."""


INTERVENTION_NOTE = (
    "Background removed: the object on the mean colour. Background swapped: the object on another image's background. "
    "Background only: the object's box cut out; a model that still predicts the class there relies on the background."
)


@dataclass(frozen=True)
class Comparison:
    """Model B against model A on one folder.

    Attributes:
        before: the audit of A.
        after: the audit of B.
        differences: B minus A by measure, in the order of the table; higher is better except for the loss.
        groups: difference of the accuracy of each group.
        classes: difference of the accuracy of each class that has images.
        mcnemar: positive and negative flips, and the exact p-value.
        verdict: from worst-group and average accuracy.
        margin: the loss of accuracy that is still no harm, in 0..1.
        positive_flips: files misclassified before and correct after, the largest change of loss first.
        negative_flips: files correct before and misclassified after, likewise.
        first_negative_flips: the first newly misclassified files of the classes whose accuracy fell most, the worst
            class first.
    """

    before: Audit
    after: Audit
    differences: dict[str, Estimate]
    groups: dict[str, Estimate]
    classes: dict[str, Estimate]
    mcnemar: McNemar
    verdict: Verdict
    margin: float
    positive_flips: list[str]
    negative_flips: list[str]
    first_negative_flips: dict[str, list[str]]


_WORST_CLASSES, _FIRST_FLIPS = 5, 3  # three flips of each of the worst classes, as arXiv 2206.01161 shows


@dataclass(frozen=True)
class ComparisonResult:
    """Two models on the same images.

    Attributes:
        subject: the two models and the images.
        comparison: the numbers.
        positive_flips: examples of corrected predictions.
        negative_flips: examples of newly misclassified images.
        first_negative_flips: the first newly misclassified images of the most regressed classes.
        sample: images drawn at random.
        predictions: of both models; in the run folder predictions-before.parquet and predictions-after.parquet.
        classes: the class names of both models.
    """

    subject: Subject
    comparison: Comparison
    positive_flips: list[ExampleImages]
    negative_flips: list[ExampleImages]
    first_negative_flips: list[ExampleImages]
    sample: list[ExampleImages]
    predictions: NotSaved = None
    classes: NotSaved = None


_WORST_CLASSES, _FIRST_FLIPS = 5, 3  # three flips of each of the worst classes, as arXiv 2206.01161 shows


def measure(
    before: ModelLike,
    after: ModelLike,
    data: DataLike,
    *,
    split: Split = None,
    groups: Groups = None,
    margin: Margin = 0.02,
    method: Method = None,
    limit: Limit = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> ComparisonResult:
    """Compare two models on the same images: did the second improve, did it regress, is the difference real?

    Example:
        $ clearhead compare timm:vit_small_patch16_224 runs/repair-... DATA --split test

    Args:
        before: the baseline: a classifier, module or name.
        after: the model to compare with it, with the same classes.
        data: the images: a folder, another source, or an index.
        groups: columns of metadata.csv that define groups with the class; all by default.
        margin: non-inferiority margin, the loss of accuracy that still counts as no regression.
        method: attribution method; ``gae`` for models with a token grid, else ``input-gradient``.

    The other arguments are described in ``clearhead.options``.

    Raises:
        DataError: for models of different classes, or data that cannot be used.
        ClearheadError: for an unknown method, or one that cannot explain a model; a margin that is not in 0..1.
    """
    names = display_names([before, after])
    classes = require_same_classes([before, after])
    models = [as_classifier(before), as_classifier(after)]
    index = sample_n(as_image_index(data, split=split, classes=classes), limit, seed)
    options: dict[str, Any] = {"group_columns": groups, "method": method, "seed": seed}
    options |= {"batch_size": batch_size, "workers": workers}
    captions = "before", "after"
    views = [
        View(caption, model, predict(model, index, **options, progress=prefixed(progress, caption)))
        for caption, model in zip(captions, models, strict=True)
    ]
    comparison = compare_predictions(views[0].predictions, views[1].predictions, classes, margin, seed)
    sample = np.random.default_rng(seed).permutation(views[0].predictions.file)[:SHOWN].tolist()
    first = [file for files in comparison.first_negative_flips.values() for file in files]
    listed = comparison.positive_flips, comparison.negative_flips, first, sample
    corrected, wrong, regressed, drawn = (draw_examples(views, index, files) for files in listed)
    return ComparisonResult(
        subject_of(names, index, data, split, models[1]),
        comparison,
        corrected,
        wrong,
        regressed,
        drawn,
        predictions={view.caption: view.predictions for view in views},
        classes=classes,
    )


def compare_predictions(
    before: Predictions,
    after: Predictions,
    classes: Sequence[str],
    margin: float = 0.02,
    seed: int = 0,
    shown: int = SHOWN,
) -> Comparison:
    """Compare two models' predictions of the same images.

    Args:
        before: predictions of the baseline.
        after: predictions of the other model for the same images in the same order.
        classes: the class names both models share.
        margin: non-inferiority margin: the loss of accuracy, in 0..1, that still counts as no regression.
        seed: of the bootstrap.
        shown: how many flipped images to list of each direction.

    Raises:
        ClearheadError: if the predictions are of different images or labels, or the margin is not in 0..1.
    """
    if not np.array_equal(before.file, after.file):
        raise ClearheadError("compare: the two sets of predictions belong to different images")
    if not np.array_equal(before.label, after.label):
        raise ClearheadError("compare: the two sets of predictions have different labels for the same images")
    if not 0 <= margin <= 1:
        raise ClearheadError(f"margin: got {margin}; give a share of the images in 0..1")
    a, b = summarize(before, classes, seed), summarize(after, classes, seed)
    was, now = before.correct, after.correct
    judged = {"average accuracy": accuracy_difference(was, now)}
    groups = {}
    if a.worst_group is not None:
        large = in_large_groups(before.group)
        worst = worst_group_difference(was[large], now[large], before.group[large])
        judged = {"worst-group accuracy": worst} | judged
        groups = {name: accuracy_difference(was[before.group == name], now[before.group == name]) for name in a.groups}
    names = np.array([classes[label] for label in before.label])
    by_class = {str(name): accuracy_difference(was[names == name], now[names == name]) for name in np.unique(names)}
    change = after.loss - before.loss
    return Comparison(
        before=a,
        after=b,
        differences=judged | _other_differences(before, after, seed),
        groups=groups,
        classes=by_class,
        mcnemar=mcnemar(was, now),
        verdict=noninferiority_verdict(judged, margin),
        margin=margin,
        positive_flips=_flipped(before.file, change, ~was & now, shown),
        negative_flips=_flipped(before.file, -change, was & ~now, shown),
        first_negative_flips={
            name: before.file[(names == name) & was & ~now][:_FIRST_FLIPS].tolist()
            for name, difference in sorted(by_class.items(), key=lambda item: item[1].value)[:_WORST_CLASSES]
            if difference.value < 0
        },
    )


def _other_differences(before: Predictions, after: Predictions, seed: int) -> dict[str, Estimate]:
    differences = {"loss": mean_difference(before.loss, after.loss, unit="nats", seed=seed)}
    masked = ~(np.isnan(before.relevance_mass) | np.isnan(after.relevance_mass))
    if before.method == after.method and masked.any():
        shares = before.relevance_mass[masked], after.relevance_mass[masked]
        differences["foreground relevance"] = mean_difference(*shares, unit="pp", seed=seed)
    for name in [name for name in before.interventions if name in after.interventions]:
        possible = (before.interventions[name] >= 0) & (after.interventions[name] >= 0)
        if possible.any():
            was, now = (p.interventions[name][possible] == p.label[possible] for p in (before, after))
            differences[f"accuracy, {name}"] = accuracy_difference(was, now)
    return differences


def _flipped(files: npt.NDArray[Any], change: npt.NDArray[Any], flipped: npt.NDArray[Any], shown: int) -> list[str]:
    """Return the files of the flipped images, those of the most negative change first."""
    first: list[str] = files[flipped][change[flipped].argsort(kind="stable")][:shown].tolist()
    return first


def export(result: ComparisonResult, folder: Path) -> None:
    """Write the predictions of both models, one row per image."""
    for caption, predictions in result.predictions.items():
        write_table(folder / f"predictions-{caption}.parquet", predictions.table(result.classes))


def page(result: ComparisonResult) -> Page:
    """Show the verdict, what changed by measure, group and class, and the images it changed on."""
    c, subject = result.comparison, result.subject
    note = f"Worst group: the group of images with the lowest accuracy. {INTERVENTION_NOTE}"
    plot = plots.intervals(_pairs(c), "Before and after, with 95% intervals")
    sections: list[Section] = [Figure("Before and after", note, plot), difference_table(c)]
    if c.groups:
        rows = [Row(n, [c.before.groups[n], c.after.groups[n], change]) for n, change in c.groups.items()]
        sections.append(Table("Groups", ["before", "after", "difference"], rows, "Accuracy of each group of images."))
    sections += _class_tables(c)
    for title, text, examples in (
        ("Corrected", "Misclassified before, correct after; the largest change of loss first.", result.positive_flips),
        ("Newly misclassified", "Correct before, misclassified after; likewise.", result.negative_flips),
        (
            "Most regressed classes",
            "The first newly misclassified images of each class, the worst class first.",
            result.first_negative_flips,
        ),
        ("Random sample", "Images drawn at random.", result.sample),
    ):
        if examples:
            sections.append(Gallery(title, f"{text} {map_note(c.before.method)}", examples))
    lead = (
        f"Both models on the same {c.before.accuracy.count:,} images of {subject.data}; every difference is paired, "
        "image by image."
    )
    return Page(
        f"{subject.models[1]} compared with {subject.models[0]}",
        lead,
        verdicts=[replace(c.verdict, data=subject.data)],
        headline=headline(c),
        sections=sections,
    )


def headline(comparison: Comparison | None) -> list[tuple[str, Estimate]]:
    """Return the accuracies above all other numbers."""
    if comparison is None:
        return []
    a, b = comparison.before, comparison.after
    numbers = [("average accuracy, before", a.accuracy), ("average accuracy, after", b.accuracy)]
    if a.worst_group and b.worst_group:
        worst = [("worst-group accuracy, before", a.worst_group[1]), ("worst-group accuracy, after", b.worst_group[1])]
        numbers = worst + numbers
    return numbers


def _measures(audit: Audit) -> dict[str, Estimate]:
    """Return the measures of one model that are fractions, in the order of the table."""
    measures = {"worst-group accuracy": audit.worst_group[1]} if audit.worst_group else {}
    measures["average accuracy"] = audit.accuracy
    measures |= {f"accuracy, {effect.name}": effect.accuracy for effect in audit.effects}
    if audit.relevance_mass:
        measures["foreground relevance"] = audit.relevance_mass
    return measures | {"ECE": audit.calibration.ece}


def _pairs(c: Comparison) -> list[tuple[str, list[tuple[str, Estimate]]]]:
    before, after = _measures(c.before), _measures(c.after)
    return [(name, [("before", before[name]), ("after", after[name])]) for name in before if name in after]


def difference_table(c: Comparison) -> Table:
    """Return each measure before and after, the paired difference, and the flips."""
    before = _measures(c.before) | {"loss": c.before.calibration.loss}
    after = _measures(c.after) | {"loss": c.after.calibration.loss}
    rows = [
        Row(name, [before[name], after[name], c.differences.get(name, "")], _NOTES.get(name, "")) for name in before
    ]
    flips = c.mcnemar
    return Table(
        "What changed",
        ["before", "after", "difference"],
        rows,
        f"{flips.positive_flips:,} predictions corrected, {flips.negative_flips:,} newly wrong (exact McNemar test, "
        f"{_probability(flips.p_value)}). Non-inferiority margin: {100 * c.margin:g} pp.",
    )


_NOTES = {
    "loss": "nats; lower is better",
    "ECE": f"expected calibration error, {BINS} bins; lower is better",
    "accuracy, background only": "lower means less reliance on the background",
}


def _probability(p: float) -> str:
    return f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"


def _class_tables(c: Comparison) -> list[Section]:
    """Return tables of the classes whose accuracy rose and fell most, for more than two classes."""
    tables: list[Section] = []
    changed = sorted(c.classes.items(), key=lambda item: -item[1].value) if len(c.classes) > 2 else []
    for title, classes in (
        ("Most improved classes", [(name, d) for name, d in changed if d.value > 0]),
        ("Most regressed classes", [(name, d) for name, d in reversed(changed) if d.value < 0]),
    ):
        if classes:
            shown = classes[:MOST_CHANGED]
            rows = [Row(name, [c.before.classes[name], c.after.classes[name], d]) for name, d in shown]
            text = f"{len(classes):,} of {len(c.classes):,} classes{'; the first are shown' * (shown != classes)}. "
            text += "With few images per class many change by chance alone; the intervals show by how much."
            tables.append(Table(title, ["before", "after", "difference"], rows, text))
    return tables
