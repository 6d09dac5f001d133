"""What does a model rely on? Accuracy, attributes, groups, the shortcut battery, calibration, foreground relevance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from clearhead.analyses.attributes import attribute_table, gap_verdicts
from clearhead.analyses.battery import (
    UNREADABLE_ATTENTION,
    ExampleCollector,
    ShortcutEffect,
    battery_sections,
    battery_verdict,
    masked,
    shortcut_effects,
)
from clearhead.analyses.examples import SHOWN, View, draw_examples, map_note
from clearhead.analyses.head_scores import HeadScores
from clearhead.analyses.heads import head_sections, score_with_attributes
from clearhead.analyses.next_steps import next_steps
from clearhead.analyses.subject import Subject, subject_of
from clearhead.data.dataset import metadata_columns
from clearhead.data.images import DataLike, as_image_index
from clearhead.data.splits import require_apart, sample_n
from clearhead.errors import ClearheadError
from clearhead.masks.automatic import MasksMade
from clearhead.metrics.attributes import AttributeGaps, attribute_gaps
from clearhead.metrics.calibration import Calibration, TemperatureScaling, calibration, fit_temperature
from clearhead.metrics.statistics import (
    LEVEL,
    MIN_GROUP,
    Estimate,
    by_group,
    in_large_groups,
    mean,
    proportion,
    worst_group,
)
from clearhead.models.source import ModelLike, as_classifier, display_names
from clearhead.options import BatchSize, Groups, Limit, Masks, Method, Option, Seed, Split, Workers
from clearhead.prediction.predict import Predictions, logits_of, predict
from clearhead.progress import Progress, log
from clearhead.report.calibration import calibration_sections
from clearhead.report.page import ExampleImages, Gallery, Page, Row, Section, Step, Table
from clearhead.shifts.shortcuts import SHORTCUTS
from clearhead.storage import NotSaved, write_table

MOST_CLASSES = 20
"""The table of classes shows this many, those of lowest accuracy first."""


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
        effects: accuracy under each change of the shortcut battery that was measured, the largest drop first.
        method: the relevance method.
        lowest_relevance_mass: files with the lowest foreground relevance, the lowest first.
        confident_mistakes: files of the misclassified images, the highest confidence first.
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
    effects: list[ShortcutEffect]
    method: str
    lowest_relevance_mass: list[str]
    confident_mistakes: list[str]


@dataclass(frozen=True)
class AuditResult:
    """The audit of one model.

    Attributes:
        subject: the model and the images.
        audit: the numbers.
        attributes: gaps of accuracy between the values of columns of metadata.csv.
        changes: an image of each change of the battery.
        mistakes: the most confident mistakes, with their maps.
        examples: the images of lowest foreground relevance, with their maps.
        masks: the masks that the model made; None where it made none.
        steps: the commands that follow from the numbers.
        scaled: calibration at a temperature fitted on another split.
        heads: scores of the attention heads.
        predictions: of each image; in the run folder predictions.parquet.
        classes: the model's class names.
    """

    subject: Subject
    audit: Audit
    attributes: AttributeGaps
    changes: list[ExampleImages]
    mistakes: list[ExampleImages]
    examples: list[ExampleImages]
    masks: MasksMade | None
    steps: list[Step]
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
    battery: Annotated[bool, Option("Also run the shortcut battery, as clearhead battery does.")] = True,
    masks: Masks = "auto",
    limit: Limit = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> AuditResult:
    """Measure what a model relies on and how well it does: shortcuts, attributes, groups, calibration, mistakes.

    One forward pass per image and change of the battery; with masks of the data one backward pass.

    Example:
        $ clearhead audit timm:vit_small_patch16_224 DATA --split test

    Args:
        model: a classifier, module or name.
        data: the images: a folder, another source, or an index. Masks add foreground relevance, columns of
            metadata.csv add attributes and groups.
        groups: columns of metadata.csv that define groups with the class; all by default.
        method: attribution method; ``gae`` for models with a token grid, else ``input-gradient``.
        heads: score every attention head too.
        temperature: split to fit a temperature on.
        battery: run the shortcut battery.
        masks: ``auto`` makes masks for the battery with the model where the data has none.

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
    made, has_masks = None, any(sample.mask for sample in index.samples)
    if battery:
        index, made = masked(classifier, index, masks, seed, **loading)
    collector = ExampleCollector(classifier.classes, index)
    predictions = predict(
        classifier,
        index,
        group_columns=groups,
        method=method,
        seed=seed,
        temperature=fitted,
        shortcuts=list(SHORTCUTS) if battery else (),
        maps=made is None,  # masks from the model's own features are no reference for its maps
        observe=collector,
        **loading,
    )
    audit = summarize(predictions, classifier.classes, seed)
    attributes = attribute_gaps(metadata_columns(index, groups), predictions.correct, predictions.label)
    view = View("", classifier, predictions)
    lowest = draw_examples([view], index, audit.lowest_relevance_mass)
    try:
        mistakes = draw_examples([view], index, audit.confident_mistakes)
    except UNREADABLE_ATTENTION as error:
        if method is not None:
            raise
        log.info("the mistakes are not shown, because no map was made: %s", error)
        mistakes = []
    scaled = None
    if fitted is not None and fitting is not None:
        after = calibration(**predictions.scaled, correct=predictions.correct, seed=seed)
        scaled = TemperatureScaling(fitted, str(temperature), len(fitting.samples), after)
    return AuditResult(
        subject_of([name], index, data, split, classifier),
        audit,
        attributes,
        [collector.examples[effect.shortcut] for effect in audit.effects],
        mistakes,
        lowest,
        made,
        next_steps(model, data, audit.effects, attributes, limit, split, has_masks=has_masks),
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
        shown: how many images of lowest foreground relevance, and how many mistakes, to list.
    """
    correct, groups = predictions.correct, predictions.group
    names = [classes[label] for label in predictions.label]
    grouped = len(np.unique(groups)) > len(set(names))
    large = in_large_groups(groups) & grouped
    small = ~large & grouped
    has_mask = ~np.isnan(predictions.relevance_mass)
    lowest = predictions.relevance_mass[has_mask].argsort(kind="stable")[:shown]
    confident = (-predictions.confidence[~correct]).argsort(kind="stable")
    return Audit(
        accuracy=proportion(correct),
        balanced=balanced_accuracy(correct, predictions.label),
        classes=by_group(correct, names),
        groups=by_group(correct[large], groups[large]),
        small_groups=proportion(correct[small]) if small.any() else None,
        small_group_count=len(np.unique(groups[small])),
        worst_group=worst_group(correct[large], groups[large]) if len(np.unique(groups[large])) > 1 else None,
        calibration=calibration(predictions.confidence, predictions.loss, predictions.brier, correct, seed),
        relevance_mass=mean(predictions.relevance_mass[has_mask], unit="%", seed=seed) if has_mask.any() else None,
        area=mean(predictions.area[has_mask], unit="%", seed=seed) if has_mask.any() else None,
        effects=shortcut_effects(predictions),
        method=predictions.method,
        lowest_relevance_mass=predictions.file[has_mask][lowest].tolist(),
        confident_mistakes=predictions.file[~correct][confident][:shown].tolist(),
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


def export(result: AuditResult, folder: Path) -> None:
    """Write the predictions, one row per image."""
    write_table(folder / "predictions.parquet", result.predictions.table(result.classes))


def page(result: AuditResult) -> Page:
    """Show what the model relies on, its most confident mistakes, attributes, groups, classes, calibration, heads."""
    audit, subject = result.audit, result.subject
    verdicts = gap_verdicts(result.attributes)
    examples: list[Section] = []
    tables: list[Section] = []
    if audit.effects:
        verdicts.append(battery_verdict(audit.effects))
        gallery, table = battery_sections(audit.effects, result.changes, result.masks, subject)
        examples.append(gallery)
        tables.append(table)
    if result.mistakes:
        text = (
            f"The misclassified images with the highest confidence, by class and prediction. {map_note(audit.method)}"
        )
        examples.append(Gallery("Most confident mistakes", text, result.mistakes))
    if result.examples:
        text = f"The images with the smallest share of relevance on the object. {map_note(audit.method)}"
        examples.append(Gallery("Lowest foreground relevance", text, result.examples))
    if result.attributes.gaps or result.attributes.skipped:
        tables.append(attribute_table(result.attributes))
    if audit.groups or audit.small_groups:
        tables.append(_group_table(audit))
    tables.append(_class_table(audit))
    tables += calibration_sections(audit.calibration, result.scaled)
    tables += head_sections(result.heads) if result.heads else []
    return Page(
        f"{subject.model}: audit",
        f"{audit.accuracy.count:,} images of {subject.data}.",
        verdicts=verdicts,
        headline=_headline(result),
        steps=result.steps,
        sections=[*examples, *tables],
    )


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


def _group_table(audit: Audit) -> Table:
    rows = [Row(name, [accuracy]) for name, accuracy in audit.groups.items()]
    text = "The accuracy a user of the model can count on is that of the worst group." if audit.worst_group else ""
    if audit.small_groups:
        note = f"{audit.small_group_count:,} groups, together; no verdict on any of them"
        rows.append(Row(f"Groups of fewer than {MIN_GROUP} images", [audit.small_groups], note))
    return Table("Groups", ["accuracy"], rows, text)


def _class_table(audit: Audit) -> Table:
    large = {name: accuracy for name, accuracy in audit.classes.items() if accuracy.count >= MIN_GROUP}
    worst = sorted(large.items(), key=lambda item: (item[1].value, item[0]))
    shown = worst[:MOST_CLASSES]
    text = [] if len(shown) == len(worst) else [f"The {len(shown)} of lowest accuracy out of {len(worst)}."]
    if small := len(audit.classes) - len(large):
        text.append(f"{small:,} classes of fewer than {MIN_GROUP} images are not listed.")
    balanced = Row("Mean of the classes", [audit.balanced], "balanced accuracy: every class has the same weight")
    rows = [balanced, *(Row(name, [value]) for name, value in shown)]
    return Table("Classes", ["accuracy"], rows, " ".join(text))
