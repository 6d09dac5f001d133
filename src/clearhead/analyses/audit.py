"""What does a model rely on? Accuracy, groups, calibration, foreground relevance, accuracy without image parts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from clearhead.analyses.examples import SHOWN, View, draw_examples, map_note
from clearhead.analyses.head_scores import HeadScores
from clearhead.analyses.heads import head_sections, score_with_attributes
from clearhead.analyses.subject import Subject, subject_of
from clearhead.data.dataset import format_names, metadata_columns
from clearhead.data.images import DataLike, as_image_index
from clearhead.data.interventions import INTERVENTIONS
from clearhead.data.splits import require_apart, sample_n
from clearhead.errors import ClearheadError
from clearhead.metrics.attributes import OTHER_VALUES, AttributeGap, AttributeGaps, attribute_gaps
from clearhead.metrics.calibration import Calibration, TemperatureScaling, calibration, fit_temperature
from clearhead.metrics.statistics import (
    LEVEL,
    MIN_GROUP,
    Estimate,
    by_group,
    format_interval,
    format_value,
    in_large_groups,
    mean,
    proportion,
    worst_group,
)
from clearhead.metrics.verdict import Verdict
from clearhead.models.source import ModelLike, as_classifier, display_names
from clearhead.options import BatchSize, Groups, Limit, Method, Option, Seed, Split, Workers
from clearhead.prediction.predict import Predictions, logits_of, predict
from clearhead.progress import Progress
from clearhead.report.calibration import calibration_sections
from clearhead.report.page import ExampleImages, Gallery, Page, Row, Section, Table
from clearhead.storage import NotSaved, write_table

MOST_CLASSES = 20
"""The table of classes shows this many, those of lowest accuracy first."""

INTERVENTION_NOTE = (
    "Background removed: the object on the mean colour. Background swapped: the object on another image's background. "
    "Background only: the object's box cut out; a model that still predicts the class there relies on the background."
)


@dataclass(frozen=True)
class Audit:
    """The numbers of one model on one folder; shares are in 0..1, losses in nats.

    Attributes:
        accuracy: top-1.
        balanced: mean of the accuracies of the classes that have images.
        classes: accuracy of each class that has images.
        groups: accuracy of each group of at least ``MIN_GROUP`` images; empty when the classes are all the groups there
            are.
        small_groups: accuracy on the images of all smaller groups together; None without any.
        small_group_count: how many smaller groups there are.
        worst_group: name and accuracy of the worst of the large groups, if there are several.
        calibration: how far its probabilities can be believed.
        relevance_mass: mean foreground relevance (relevance mass accuracy); None without masks.
        area: mean area of the masks, the relevance mass of a constant map; None without masks.
        interventions: accuracy under each intervention on the images with masks, with ``clean`` for the same images
            unchanged; empty without masks.
        method: the relevance method.
        lowest_relevance_mass: files with the lowest foreground relevance, the lowest first.
    """

    accuracy: Estimate
    balanced: Estimate
    classes: dict[str, Estimate]
    groups: dict[str, Estimate]
    small_groups: Estimate | None
    small_group_count: int
    worst_group: tuple[str, Estimate] | None
    calibration: Calibration
    relevance_mass: Estimate | None
    area: Estimate | None
    interventions: dict[str, Estimate]
    method: str
    lowest_relevance_mass: list[str]


@dataclass(frozen=True)
class AuditResult:
    """The audit of one model.

    Attributes:
        subject: the model and the images.
        audit: the numbers.
        attributes: gaps of accuracy between the values of columns of metadata.csv.
        examples: the images of lowest foreground relevance, with their maps.
        scaled: calibration at a temperature fitted on another split.
        heads: scores of the attention heads.
        predictions: of each image; in the run folder predictions.parquet.
        classes: the model's class names.
    """

    subject: Subject
    audit: Audit
    attributes: AttributeGaps
    examples: list[ExampleImages]
    scaled: TemperatureScaling | None = None
    heads: HeadScores | None = None
    predictions: NotSaved = None
    classes: NotSaved = None


def measure(
    model: ModelLike,
    data: DataLike,
    *,
    split: Split = None,
    groups: Groups = None,
    method: Method = None,
    heads: Annotated[bool, Option("Also score every attention head, as clearhead heads does.")] = False,
    temperature: Annotated[
        str | None,
        Option("Split to fit a temperature on, not the audited one: calibration without and with it."),
    ] = None,
    limit: Limit = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> AuditResult:
    """Measure what a model relies on and how well it does: groups, calibration, foreground relevance, interventions.

    One forward pass per image; with masks one backward and three more forward passes.

    Example:
        $ clearhead audit timm:vit_small_patch16_224 DATA --split test

    Args:
        model: a classifier, module or name.
        data: the images: a folder, another source, or an index. Masks add foreground relevance and interventions,
            columns of metadata.csv add groups.
        groups: columns of metadata.csv that define groups with the class; all by default.
        method: attribution method; ``gae`` for models with a token grid, else ``input-gradient``.
        heads: score every attention head too.
        temperature: split to fit a temperature on.

    The other arguments are described in ``clearhead.options``.

    Raises:
        DataError: for data that cannot be used, or a temperature split that shares images with the audited ones.
        ClearheadError: for an unknown method, or one that cannot explain this model; for outputs that are NaN.
    """
    if temperature is not None and split in (None, temperature):
        raise ClearheadError(
            f"temperature: fitted on the split {temperature!r}, it must be judged on another; got split {split!r}, "
            "give another --split, such as test"
        )
    (name,), classifier = display_names([model]), as_classifier(model)
    index = sample_n(as_image_index(data, split=split, classes=classifier.classes), limit, seed)
    loading: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
    fitted, fitting = None, None
    if temperature is not None:
        fitting = as_image_index(data, split=temperature, classes=classifier.classes)
        require_apart(temperature=fitting, audit=index)
        logits = logits_of(classifier, fitting, **loading)
        fitted = fit_temperature(logits, np.array([sample.label for sample in fitting.samples]))
    predictions = predict(
        classifier, index, group_columns=groups, method=method, seed=seed, temperature=fitted, **loading
    )
    audit = summarize(predictions, classifier.classes, seed)
    scaled = None
    if fitted is not None and fitting is not None:
        after = calibration(**predictions.scaled, correct=predictions.correct, seed=seed)
        scaled = TemperatureScaling(fitted, str(temperature), len(fitting.samples), after)
    return AuditResult(
        subject_of([name], index, data, split, classifier),
        audit,
        attribute_gaps(metadata_columns(index, groups), predictions.correct, predictions.label),
        draw_examples([View("", classifier, predictions)], index, audit.lowest_relevance_mass),
        scaled,
        score_with_attributes(classifier, data, index, **loading) if heads else None,
        predictions,
        classifier.classes,
    )


def summarize(predictions: Predictions, classes: Sequence[str], seed: int = 0, shown: int = SHOWN) -> Audit:
    """Return the numbers of an audit, each with its 95% interval and count.

    Args:
        predictions: of one model on one data set.
        classes: the model's class names.
        seed: of the bootstrap.
        shown: how many images of lowest foreground relevance to list.
    """
    correct, groups = predictions.correct, predictions.group
    names = [classes[label] for label in predictions.label]
    grouped = len(np.unique(groups)) > len(set(names))
    large = in_large_groups(groups) & grouped
    small = ~large & grouped
    masked = ~np.isnan(predictions.relevance_mass)
    lowest = predictions.relevance_mass[masked].argsort(kind="stable")[:shown]
    return Audit(
        accuracy=proportion(correct),
        balanced=balanced_accuracy(correct, predictions.label),
        classes=by_group(correct, names),
        groups=by_group(correct[large], groups[large]),
        small_groups=proportion(correct[small]) if small.any() else None,
        small_group_count=len(np.unique(groups[small])),
        worst_group=worst_group(correct[large], groups[large]) if len(np.unique(groups[large])) > 1 else None,
        calibration=calibration(predictions.confidence, predictions.loss, predictions.brier, correct, seed),
        relevance_mass=mean(predictions.relevance_mass[masked], unit="%", seed=seed) if masked.any() else None,
        area=mean(predictions.area[masked], unit="%", seed=seed) if masked.any() else None,
        interventions=_interventions(predictions) if masked.any() else {},
        method=predictions.method,
        lowest_relevance_mass=predictions.file[masked][lowest].tolist(),
    )


def balanced_accuracy(correct: npt.NDArray[Any], label: npt.NDArray[Any]) -> Estimate:
    """Return the mean of the accuracies of the classes that have images, from N images' correctness and labels.

    The interval is Price and Bonett's (2004) for a sum of K proportions, each class given 2/K correct and 2/K
    wrong images more, with variances that are unbiased for many classes of few images each: docs/statistics.md.
    Raises ClearheadError unless there is one label per image.
    """
    if len(correct) != len(label):
        raise ClearheadError(f"label: got {len(label)} labels for {len(correct)} images; give one per image")
    if not len(label):
        return Estimate(math.nan, math.nan, math.nan, 0, "%")
    _, index, images = np.unique(label, return_inverse=True, return_counts=True)
    correct_per_class, classes = np.bincount(index, correct), len(images)
    value = float((correct_per_class / images).mean())
    shares = (correct_per_class + 2 / classes) / (images + 4 / classes)
    # the variance of a share of n is p (1 - p) / n; from the share itself, p (1 - p) / (n - 1), which one image has not
    variances = np.where(images > 1, shares * (1 - shares) / (images - 1 + 5 / classes), 0.25)
    half = norm.ppf(0.5 + LEVEL / 2) * math.sqrt(variances.sum()) / classes
    low, high = max(0.0, shares.mean() - half), min(1.0, shares.mean() + half)
    return Estimate(value, min(float(low), value), max(float(high), value), len(label), "%")


def _interventions(predictions: Predictions) -> dict[str, Estimate]:
    """Return the accuracy on the images with masks, unchanged and under each intervention."""
    masked = predictions.interventions[INTERVENTIONS[0]] >= 0
    accuracy = {"clean": proportion(predictions.correct[masked])}
    for name, predicted in predictions.interventions.items():
        possible = predicted >= 0
        accuracy[name] = proportion(predicted[possible] == predictions.label[possible])
    return accuracy


def export(result: AuditResult, folder: Path) -> None:
    """Write the predictions, one row per image."""
    write_table(folder / "predictions.parquet", result.predictions.table(result.classes))


def page(result: AuditResult) -> Page:
    """Show what the model relies on, its groups and classes, calibration, examples and heads."""
    audit, subject = result.audit, result.subject
    sections: list[Section] = []
    if audit.relevance_mass and audit.area:
        sections.append(_reliance_table(audit))
    if result.attributes.gaps or result.attributes.skipped:
        sections.append(_attribute_table(result.attributes))
    if audit.groups or audit.small_groups:
        sections.append(_group_table(audit))
    sections.append(_class_table(audit))
    sections += calibration_sections(audit.calibration, result.scaled)
    if result.examples:
        text = f"The images with the smallest share of relevance on the object. {map_note(audit.method)}"
        sections.append(Gallery("Lowest foreground relevance", text, result.examples))
    sections += head_sections(result.heads) if result.heads else []
    lead = f"{audit.accuracy.count:,} images of {subject.data}."
    verdicts = gap_verdicts(result.attributes)
    return Page(f"{subject.model}: audit", lead, verdicts=verdicts, headline=_headline(result), sections=sections)


def _headline(result: AuditResult) -> list[tuple[str, Estimate]]:
    audit = result.audit
    numbers = [("accuracy", audit.accuracy), ("balanced accuracy", audit.balanced)]
    if audit.worst_group:
        numbers.append((f"worst-group accuracy ({audit.worst_group[0]})", audit.worst_group[1]))
    numbers.append(("ECE", audit.calibration.ece))
    if result.scaled:
        numbers.append((f"ECE at temperature {result.scaled.temperature:.3g}", result.scaled.calibration.ece))
    if audit.relevance_mass and audit.area:
        numbers += [("foreground relevance", audit.relevance_mass), ("mask area", audit.area)]
    return numbers


def gap_verdicts(attributes: AttributeGaps) -> list[Verdict]:
    """Return a verdict for each attribute: the largest gap that is shown, or that none is."""
    verdicts = {}
    for one in attributes.gaps:
        if one.is_shown and one.attribute not in verdicts:
            sentence = (
                f"Accuracy is {100 * -one.gap.value:.1f} points lower where {one.attribute} = {one.value}: "
                f"{_text(one.accuracy)}, against {_text(one.baseline_accuracy)} {_baseline(one)}."
            )
            basis = f"Difference {_text(one.gap)}, within classes {_text(one.within_classes)}. {GAP_RULE}"
            verdicts[one.attribute] = Verdict("gap", sentence, basis)
    names = list(dict.fromkeys(one.attribute for one in attributes.gaps if one.attribute not in verdicts))
    if names:
        sentence = f"No gap of accuracy is shown between the values of {format_names(names)}."
        verdicts[""] = Verdict("inconclusive", sentence, GAP_RULE)
    return list(verdicts.values())


GAP_RULE = "Shown: both 95% intervals below zero; they hold for all values compared simultaneously."


def _baseline(gap: AttributeGap) -> str:
    return "for all other values" if gap.baseline == OTHER_VALUES else f"where {gap.attribute} = {gap.baseline}"


def _text(estimate: Estimate | None) -> str:
    if estimate is None:
        return "unknown: no class has images of both"
    return f"{format_value(estimate.value, estimate.unit)} {format_interval(estimate)}, n = {estimate.count:,}"


def _attribute_table(attributes: AttributeGaps) -> Table:
    rows = [
        Row(
            f"{one.attribute}: {one.value}",
            [one.accuracy, one.baseline_accuracy, one.gap, one.within_classes or "no class has both"],
            f"compared with {one.baseline}",
        )
        for one in attributes.gaps
    ]
    text = (
        "Columns of metadata.csv. Within classes: the same difference between images of one class, averaged over the "
        f"classes that have both; read it where classes are unevenly distributed over the values. {GAP_RULE}"
    )
    rows += [Row(name, ["", "", "", ""], f"not compared: {reason}") for name, reason in attributes.skipped.items()]
    columns = ["accuracy", "accuracy compared with", "difference", "within classes"]
    return Table("Attributes", columns, rows, text)


def _group_table(audit: Audit) -> Table:
    rows = [Row(name, [accuracy]) for name, accuracy in audit.groups.items()]
    text = "The accuracy a user of the model can count on is that of the worst group." if audit.worst_group else ""
    if audit.small_groups:
        note = f"{audit.small_group_count:,} groups, together; no verdict on any of them"
        rows.append(Row(f"Groups of fewer than {MIN_GROUP} images", [audit.small_groups], note))
    return Table("Groups", ["accuracy"], rows, text)


def _reliance_table(audit: Audit) -> Table:
    rows = [
        Row("Foreground relevance", [audit.relevance_mass or "", ""], f"map: {audit.method}, of the predicted class"),
        Row("Mask area", [audit.area or "", ""], "the foreground relevance of a constant map"),
    ]
    rows += [Row(f"Accuracy, {name}", ["", value]) for name, value in audit.interventions.items()]
    chance = f" Chance level: {100 / len(audit.classes):.3g}% for {len(audit.classes):,} classes with images."
    return Table("What it relies on", ["share", "accuracy"], rows, INTERVENTION_NOTE + chance)


def _class_table(audit: Audit) -> Table:
    worst = sorted(audit.classes.items(), key=lambda item: (item[1].value, item[0]))
    shown = worst[:MOST_CLASSES]
    text = "" if len(shown) == len(worst) else f"The {len(shown)} of lowest accuracy out of {len(worst)} with images."
    balanced = Row("Mean of the classes", [audit.balanced], "balanced accuracy: every class has the same weight")
    return Table("Classes", ["accuracy"], [balanced, *(Row(name, [value]) for name, value in shown)], text)
