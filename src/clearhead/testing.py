"""Assertions on models for test suites: ``assert_not_reliant_on`` fails a test whose model relies on a shortcut."""

from dataclasses import replace
from itertools import count

from clearhead.data.images import DataLike, as_image_index
from clearhead.data.splits import sample_n
from clearhead.errors import ClearheadError
from clearhead.metrics.power import images_at_observed, round_images
from clearhead.metrics.statistics import Estimate, accuracy_difference, format_interval, format_value
from clearhead.models.source import ModelLike, as_classifier
from clearhead.prediction.predict import predict
from clearhead.shifts.shortcuts import SHORTCUTS, table_name


def assert_not_reliant_on(
    model: ModelLike,
    data: DataLike,
    shortcut: str,
    *,
    margin: float = 0.02,
    split: str | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
) -> Estimate:
    """Pass only if the accuracy that a model loses under a change of the images is shown to be within the margin.

    The rule: the whole 95% interval of the loss, paired image by image, is at most the margin. So a loss above the
    margin fails, and so do too few images to exclude one; the message names the loss, its interval and how many images
    would be enough. To fail for shown losses only, write ``assert accuracy_drop(...).low <= margin``.

    Args:
        model: a classifier, module or name.
        data: the images: a folder, another source, or an index. Changes of the background need masks.
        shortcut: a change of ``clearhead.shifts.shortcuts.SHORTCUTS``, such as ``watermark``, or the start of its name:
            ``background`` is ``background-swapped``, ``colour`` is ``colour-removed``.
        margin: the loss of accuracy that is acceptable, as a fraction (0.02 = two points).
        split: use only the images of this split.
        limit: use at most this many images, drawn at random.
        batch_size: images per batch.
        workers: data-loading processes.
        seed: of the order of the images, which pairs images with backgrounds, and of the limit.

    Returns:
        The loss of accuracy, as ``accuracy_drop`` returns it.

    Raises:
        AssertionError: if the loss is not shown to be within the margin.
        DataError: for data that cannot be used.
        ClearheadError: for an unknown change, one that removes the object, or one that needs masks where there are
            none; for a margin that is not in 0..1.
    """
    if not 0 <= margin <= 1:
        raise ClearheadError(f"margin: got {margin:g}; give a fraction of the images in 0..1, such as 0.02")
    options = {"split": split, "limit": limit, "batch_size": batch_size, "workers": workers, "seed": seed}
    drop = accuracy_drop(model, data, shortcut, **options)  # type: ignore[arg-type]
    if not drop.high <= margin:
        raise AssertionError(_explain(_name(shortcut), drop, margin))
    return drop


def accuracy_drop(
    model: ModelLike,
    data: DataLike,
    shortcut: str,
    *,
    split: str | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
) -> Estimate:
    """Return the accuracy that a model loses under a change of the images, with its paired 95% interval.

    Arguments and errors are those of ``assert_not_reliant_on``. The value is accuracy on the unchanged images minus
    that on the changed ones, as a fraction; the count is that of the images, with a change that needs masks that of the
    images with a mask.
    """
    name = _name(shortcut)
    change = SHORTCUTS[name]
    if not change.keeps_object:
        raise ClearheadError(
            f"shortcut: {name} removes the object, so that accuracy drops whatever the model relies on; choose from "
            f"{', '.join(key for key, value in SHORTCUTS.items() if value.keeps_object)}"
        )
    model = as_classifier(model)
    index = sample_n(as_image_index(data, classes=model.classes, split=split), limit, seed)
    if change.needs_mask:
        masked = tuple(sample for sample in index.samples if sample.mask is not None)
        if len(masked) < 2:
            raise ClearheadError(
                f"data: {name} needs foreground masks, and {len(masked)} of {len(index.samples):,} images have one; "
                "make them with clearhead data masks"
            )
        index = replace(index, samples=masked)
        batch_size = next(size for size in count(max(2, batch_size)) if len(masked) % size != 1)  # none alone: swapped
    options = {"batch_size": batch_size, "workers": workers, "seed": seed}
    predictions = predict(model, index, shortcuts=[name], maps=False, group_columns=[], **options)  # type: ignore[arg-type]
    changed = predictions.interventions[table_name(name)] == predictions.label
    return accuracy_difference(changed, predictions.correct)


def _name(shortcut: str) -> str:
    """Return the name of a change from its name or the start of it. Raises ClearheadError."""
    wanted = shortcut.strip().lower().replace(" ", "-").replace("_", "-")
    names = [name for name in SHORTCUTS if name == wanted] or [name for name in SHORTCUTS if name.startswith(wanted)]
    if not wanted or not names:
        raise ClearheadError(f"shortcut: {shortcut!r} is unknown; choose from {', '.join(SHORTCUTS)}")
    return names[0]


def _explain(name: str, drop: Estimate, margin: float) -> str:
    change, points = SHORTCUTS[name], f"{100 * margin:g} pp"
    loss = f"{format_value(-drop.value, 'pp')} {format_interval(_negative(drop))}, n = {drop.count:,}"
    if drop.low > margin:
        return f"{name}: the model relies on {change.reading}: accuracy changes by {loss}; the margin is {points}"
    message = f"{name}: a loss of accuracy above {points} is not excluded: accuracy changes by {loss}"
    images = images_at_observed(drop, margin) if drop.value < margin else None
    return message + (f"; about {round_images(images)} images would exclude it" if images else "")


def _negative(estimate: Estimate) -> Estimate:
    return Estimate(-estimate.value, -estimate.high, -estimate.low, estimate.count, estimate.unit)


__all__ = ["accuracy_drop", "assert_not_reliant_on"]
