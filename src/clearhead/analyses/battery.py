"""What does a model rely on? Accuracy on a user's own images under changes of the image: the shortcut battery.

Each change removes, adds or replaces one property and needs no labels of it. The drop of accuracy, paired on the same
images, shows how far the model relies on that property. ``clearhead.shifts.shortcuts`` lists the changes and their
sources.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from clearhead.analyses.subject import Subject, subject_of
from clearhead.attention_tap import CompiledModelError, NoAttentionError
from clearhead.data.dataset import ImageIndex
from clearhead.data.images import DataLike, as_image_index
from clearhead.data.splits import sample_n
from clearhead.errors import ClearheadError
from clearhead.masks.automatic import MasksMade, add_masks
from clearhead.metrics.power import images_at_observed, images_for
from clearhead.metrics.statistics import (
    Estimate,
    accuracy_difference,
    format_interval,
    format_value,
    proportion,
    simultaneous_level,
)
from clearhead.metrics.verdict import Verdict
from clearhead.models.classifier import Classifier
from clearhead.models.preprocessing import to_uint8
from clearhead.models.source import ModelLike, as_classifier, display_names
from clearhead.options import BatchSize, Limit, Masks, Option, Seed, Split, Workers
from clearhead.prediction.predict import Changed, Predictions, predict
from clearhead.progress import Progress, log
from clearhead.report.page import ExampleImages, Gallery, Page, Row, Section, Table
from clearhead.shifts.shortcuts import SHORTCUTS, require_shortcuts, table_name
from clearhead.storage import NotSaved, write_table

UNREADABLE_ATTENTION = NoAttentionError, CompiledModelError
"""An audit of a model whose attention cannot be read goes on without masks and maps."""

LEAST_DROP = 0.02
"""A smaller drop of accuracy is no reliance worth a verdict, even if it is shown."""


@dataclass(frozen=True)
class ShortcutEffect:
    """The accuracy of a model under one change.

    Attributes:
        shortcut: the change, a key of ``SHORTCUTS``.
        clean: accuracy on the same images, unchanged.
        accuracy: accuracy under the change.
        difference: accuracy - clean, paired; the interval holds for all changes simultaneously.
        chance: accuracy of always predicting the most frequent class of these images.
        above_chance: whether the accuracy under the change is above that, at the same simultaneous level.
    """

    shortcut: str
    clean: Estimate
    accuracy: Estimate
    difference: Estimate
    chance: float
    above_chance: bool

    @property
    def name(self) -> str:
        """The name in tables."""
        return table_name(self.shortcut)

    @property
    def is_shown(self) -> bool:
        """Whether reliance on something other than the object is shown."""
        shortcut = SHORTCUTS[self.shortcut]
        if not shortcut.keeps_object:
            return self.above_chance
        return not shortcut.changes_object and self.difference.high < 0 and self.difference.value <= -LEAST_DROP


@dataclass(frozen=True)
class BatteryResult:
    """The shortcut battery of one model.

    Attributes:
        subject: the model and the images.
        effects: by change, the largest drop first; changes that leave no object come last.
        masks: the masks that the model made; None where it made none.
        examples: an image of each change, in the same order.
        predictions: of each image; in the run folder predictions.parquet.
        classes: the model's class names.
    """

    subject: Subject
    effects: list[ShortcutEffect]
    masks: MasksMade | None
    examples: list[ExampleImages]
    predictions: NotSaved = None
    classes: NotSaved = None


def measure(
    model: ModelLike,
    data: DataLike,
    *,
    split: Split = None,
    shortcuts: Annotated[Sequence[str] | None, Option("Changes to test, comma-separated. Default: all.")] = None,
    masks: Masks = "auto",
    limit: Limit = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> BatteryResult:
    """Measure what a model relies on: accuracy with a watermark, another background, without colour and more.

    One forward pass per image and change, and one for the unchanged image. Labels of the class are all that is needed.

    Example:
        $ clearhead battery timm:vit_small_patch16_224 DATA --split test

    Args:
        model: a classifier, module or name.
        data: the images: a folder, another source, or an index.
        shortcuts: changes to test, keys of ``clearhead.shifts.shortcuts.SHORTCUTS``; all by default.
        masks: ``auto`` makes masks with the model where the data has none (``clearhead.masks.automatic``).

    The other arguments are described in ``clearhead.options``.

    Raises:
        DataError: for data that cannot be used.
        ClearheadError: for an unknown change; for changes that need masks where there are none; for outputs that are
            NaN.
    """
    names = require_shortcuts(shortcuts)
    (name,), classifier = display_names([model]), as_classifier(model)
    index = sample_n(as_image_index(data, split=split, classes=classifier.classes), limit, seed)
    loading: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
    made = None
    if _needing_masks(names):
        index, made = masked(classifier, index, masks, seed, **loading)
    needing = _needing_masks(names)
    if shortcuts and needing and not any(sample.mask for sample in index.samples):
        why = "TokenCut finds no object" if made else f"none are made with {classifier.name} (--masks {masks})"
        raise ClearheadError(
            f"shortcuts: {needing[0]} needs foreground masks; {index.root} has none and {why}; clearhead data masks "
            "makes masks with another model or from annotations"
        )
    collector = ExampleCollector(classifier.classes, index)
    predictions = predict(
        classifier, index, shortcuts=names, maps=False, observe=collector, group_columns=[], seed=seed, **loading
    )
    effects = shortcut_effects(predictions)
    return BatteryResult(
        subject_of([name], index, data, split, classifier),
        effects,
        made,
        [collector.examples[effect.shortcut] for effect in effects],
        predictions,
        classifier.classes,
    )


def _needing_masks(names: Sequence[str]) -> list[str]:
    return [name for name in names if SHORTCUTS[name].needs_mask]


def masked(
    model: Classifier, index: ImageIndex, masks: str, seed: int, **loading: Any
) -> tuple[ImageIndex, MasksMade | None]:
    """Return the index with masks made by the model, where it has none, `masks` is ``auto`` and the model can."""
    if masks == "none" or model.grid is None or any(sample.mask for sample in index.samples):
        return index, None
    try:
        return add_masks(model, index, seed=seed, **loading)
    except UNREADABLE_ATTENTION as error:
        log.info("no masks were made: %s", error)
        return index, None


def shortcut_effects(predictions: Predictions) -> list[ShortcutEffect]:
    """Return the effect of each change that was measured, the largest drop first."""
    correct, label = predictions.correct, predictions.label
    measured = {
        shortcut: predictions.interventions[table_name(shortcut)]
        for shortcut in SHORTCUTS
        if (predictions.interventions.get(table_name(shortcut), np.array([-1])) >= 0).any()
    }
    level = simultaneous_level(len(measured))
    effects = []
    for shortcut, predicted in measured.items():
        possible = predicted >= 0
        before, after = correct[possible], (predicted == label)[possible]
        chance = float(np.bincount(label[possible]).max() / possible.sum())
        effects.append(
            ShortcutEffect(
                shortcut,
                proportion(before),
                proportion(after),
                accuracy_difference(before, after, level),
                chance,
                proportion(after, level).low > chance,
            )
        )
    return sorted(effects, key=lambda effect: (not SHORTCUTS[effect.shortcut].keeps_object, effect.difference.value))


@dataclass
class ExampleCollector:
    """Collect an example image of each change while a model predicts: the first one that shows the reliance.

    That is an image whose prediction becomes wrong; for a change that leaves no object, one that is still classified
    correctly. Without any, it is the first image.

    Attributes:
        classes: the model's class names.
        index: the images.
        examples: by key of ``SHORTCUTS``.
    """

    classes: Sequence[str]
    index: ImageIndex
    examples: dict[str, ExampleImages] = field(default_factory=dict)
    _finished: set[str] = field(default_factory=set)

    def __call__(self, changed: Changed) -> None:
        """Look for an example in a batch."""
        if changed.shortcut in self._finished:
            return
        before, after = (logits.argmax(-1) == changed.label for logits in (changed.logits_before, changed.logits_after))
        is_example = before & ~after if SHORTCUTS[changed.shortcut].keeps_object else after
        if is_example.any():
            self._finished.add(changed.shortcut)
        elif changed.shortcut in self.examples:
            return
        row = int(is_example.int().argmax())
        sample = self.index.samples[int(changed.index[row])]
        images, texts = [], []
        for pixels, logits in ((changed.before, changed.logits_before), (changed.after, changed.logits_after)):
            confidence, predicted = logits[row].softmax(-1).max(-1)
            texts.append(f"{self.classes[int(predicted)]} ({100 * float(confidence):.0f}%)")
            images.append(to_uint8(pixels[row]))
        name = table_name(changed.shortcut)
        captions = f"original: {texts[0]}", f"{name}: {texts[1]}"
        text = f"class {self.classes[sample.label]}; {sample.file}"
        self.examples[changed.shortcut] = ExampleImages(list(zip(captions, images, strict=True)), name, text)


def export(result: BatteryResult, folder: Path) -> None:
    """Write the predictions, one row per image."""
    write_table(folder / "predictions.parquet", result.predictions.table(result.classes))


def page(result: BatteryResult) -> Page:
    """Show what the model relies on, an example of each change, and the numbers."""
    subject = result.subject
    sections = battery_sections(result.effects, result.examples, result.masks, subject)
    verdicts = [battery_verdict(result.effects)]
    return Page(f"{subject.model}: shortcut battery", battery_lead(subject), verdicts=verdicts, sections=sections)


def battery_lead(subject: Subject) -> str:
    """Return the sentence below the title of a page."""
    return f"{subject.images:,} images of {subject.data}."


def battery_verdict(effects: Sequence[ShortcutEffect]) -> Verdict:
    """Return what the model is shown to rely on, the largest drop first."""
    shown = [effect for effect in effects if effect.is_shown]
    rule = (
        f"A finding: accuracy falls by {100 * LEAST_DROP:g} points or more though the object is unchanged, or is above "
        "the chance level without the object. 95% intervals that hold for all changes simultaneously."
    )
    if not shown:
        sentence = f"No reliance on anything but the object is shown. {_images_for(effects)}".rstrip()
        candidates = [effect for effect in effects if not SHORTCUTS[effect.shortcut].changes_object]
        if candidates and candidates[0].difference.value < 0:
            largest = candidates[0].difference
            drop = f"{format_value(largest.value, 'pp')} {format_interval(largest)}, n = {largest.count:,}"
            rule = f"The largest drop: {candidates[0].name} {drop}. {rule}"
        return Verdict("inconclusive", sentence, rule)
    named = [f"{SHORTCUTS[effect.shortcut].reading} ({_finding(effect)})" for effect in shown[:3]]
    named += [f"{len(shown) - 3} more"] if len(shown) > 3 else []
    sentence = f"Relies on {', '.join(named[:-1])}{' and ' if named[1:] else ''}{named[-1]}."
    drops = [
        f"{effect.name} {format_value(effect.difference.value, 'pp')} {format_interval(effect.difference)}"
        for effect in shown
        if SHORTCUTS[effect.shortcut].keeps_object
    ]
    return Verdict("reliance", sentence, f"{', '.join(drops)}. {rule}" if drops else rule)


def _images_for(effects: Sequence[ShortcutEffect]) -> str:
    """Return how many images would show the drop that needs the fewest, of those that would be a finding."""
    level = simultaneous_level(len(effects))
    needed = []
    for effect in effects:
        change, drop = SHORTCUTS[effect.shortcut], effect.difference
        if change.keeps_object and not change.changes_object and drop.value <= -LEAST_DROP:
            images = images_at_observed(drop, 0.0, level)
            claim = f"the drop under {effect.name} ({format_value(drop.value, 'pp')})"
            needed += [(images, claim, drop.count)] if images is not None else []
    images, claim, count = min(needed, default=(0, "", 0))
    return images_for(claim, images, count) if claim else ""


def _finding(effect: ShortcutEffect) -> str:
    if not SHORTCUTS[effect.shortcut].keeps_object:
        after, chance = format_value(effect.accuracy.value, "%"), format_value(effect.chance, "%")
        return f"{effect.name}: {after}, chance level {chance}"
    return f"{effect.name}: {format_value(effect.difference.value, 'pp')}"


def battery_sections(
    effects: Sequence[ShortcutEffect], examples: Sequence[ExampleImages], masks: MasksMade | None, subject: Subject
) -> list[Section]:
    """Return the examples and the table of the battery."""
    gallery = Gallery(
        "The changes",
        "For each change one image that it makes the model misclassify, if there is one; for the background only, one "
        "that the model still classifies correctly.",
        examples,
    )
    return [gallery, battery_table(effects, masks, subject)]


def battery_table(effects: Sequence[ShortcutEffect], masks: MasksMade | None, subject: Subject) -> Table:
    """Return the accuracy under each change with the paired difference, and the chance level."""
    rows = [
        Row(
            effect.name,
            [
                effect.clean,
                effect.accuracy,
                effect.difference if SHORTCUTS[effect.shortcut].keeps_object else "",
                format_value(effect.chance, "%"),
                "reliance" if effect.is_shown else "" if SHORTCUTS[effect.shortcut].changes_object else "not shown",
            ],
            _row_note(effect),
        )
        for effect in effects
    ]
    text = (
        "Difference: accuracy under the change - accuracy on the same images without it; paired, with intervals that "
        "hold for all rows simultaneously. Chance level: always predicting the most frequent class. A finding is a "
        "drop where the change leaves the object as it is."
    )
    columns = ["clean", "changed", "difference", "chance level", "finding"]
    return Table("What this model relies on", columns, rows, f"{text} {mask_note(masks, subject)}".rstrip())


def _row_note(effect: ShortcutEffect) -> str:
    shortcut = SHORTCUTS[effect.shortcut]
    if not shortcut.keeps_object:
        return f"{shortcut.reading}: no object is left, accuracy above the chance level shows the reliance"
    return shortcut.reading + (" (the object's too)" if shortcut.changes_object else "")


def mask_note(masks: MasksMade | None, subject: Subject) -> str:
    """Return where the masks come from; empty for masks of the data for all images."""
    if masks is not None:
        return (
            f"The masks were made by TokenCut with this model, of {masks.images:,} images; the {masks.masks:,} that "
            "satisfy its limits are used. Check some of them with clearhead data masks."
        )
    if not subject.masks:
        return "No image has a mask, so the rows of the background are missing: see clearhead data masks."
    return "" if subject.masks == subject.images else f"{subject.masks:,} of {subject.images:,} images have a mask."
