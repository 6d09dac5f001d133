"""Run a repair by its name, whatever it is: a loss to train with, or a function."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from clearhead.data.dataset import DataIssue, ImageIndex
from clearhead.data.image_io import DataError
from clearhead.data.images import as_image_index
from clearhead.data.splits import VALIDATION_FRACTION, require_apart, split_off, train_and_validation
from clearhead.data.tags import TAG
from clearhead.errors import ClearheadError
from clearhead.models import Classifier, as_classifier
from clearhead.models.classifier import copied, on_device
from clearhead.progress import Progress
from clearhead.repairs.interpolation import best_interpolation
from clearhead.repairs.presets import default_config
from clearhead.repairs.registry import REPAIRS, LossInputs, Report, build_loss, require_method, require_repair
from clearhead.repairs.tagged import read_tagged
from clearhead.training.config import TrainConfig
from clearhead.training.history import Epoch, Monitor
from clearhead.training.linear_head import Features
from clearhead.training.loop import fit
from clearhead.training.trainable import Trainable, merged, with_trainable


@dataclass(frozen=True)
class RepairOutcome:
    """How a repair went.

    Attributes:
        method: its name.
        history: the epochs; empty for a repair that does not fine-tune.
        monitor: what selected the epoch.
        report: what a repair that does not fine-tune reports.
        interpolation: validation loss of the weights' averages, by the repaired model's weight; the lowest was taken.
        tagged: number of tagged images in each group; empty without tags.
        tag_issues: rows of the tags file that were ignored.
    """

    method: str
    history: list[Epoch] = field(default_factory=list)
    monitor: Monitor = "loss"
    report: Report | None = None
    interpolation: dict[float, float] | None = None
    tagged: dict[str, int] = field(default_factory=dict)
    tag_issues: list[DataIssue] = field(default_factory=list)


def repair(
    model: Classifier | nn.Module | str | Path,
    train: ImageIndex | str | Path | None,
    validation: ImageIndex | str | Path | None = None,
    *,
    method: str = "relevance",
    config: TrainConfig | None = None,
    group_columns: Sequence[str] | None = None,
    tags: str | Path | None = None,
    features: Features | None = None,
    trainable: Trainable = "all",
    state: Path | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[Classifier, RepairOutcome]:
    """Return a repaired copy of a model, and how the repair went.

    Compare the result with the original model on images that neither trained nor selected anything
    (``clearhead.compare``): validation images reveal a regression, but prove no improvement.

    Args:
        model: a classifier, a module or a name, with the classes of the data.
        train: images to train on, or where to read them; may be None for a repair that only selects (``heads``).
        validation: images that select the epoch, the penalty or the heads. By default those of the split ``val`` where
            `train` is a data set with splits, else 20% of each class of `train`, held out at random.
        method: a key of ``REPAIRS``.
        config: how to train. Default: ``default_config`` with the repair's preset; without one, 10 epochs at 1e-5. A
            repair that does not fine-tune uses only its seed, batch size and workers.
        group_columns: metadata columns that define the groups together with the class; None for all columns.
        tags: a tags file (``clearhead.data.tags``), whose tags then define the groups in place of the columns. Tags of
            training and validation images are used together: ``dfr`` is fitted on the tagged images only and
            cross-validated, ``heads`` is selected on them, and for the losses of groups each group of tagged images is
            divided between training and validation.
        features: of the images, from ``clearhead.training.linear_head.read_features``, for the repairs of the
            classifier head (``afr``, ``dfr``); computed if None. Pass them to try several.
        trainable: what a repair that fine-tunes trains: ``all``, the ``head`` alone, or low-rank updates (``lora``),
            which are merged into the weights.
        state: folder for the state of the last epoch, from which an interrupted training resumes.
        device: such as ``cpu`` or ``cuda``; by default a GPU where one is available.
        progress: shows progress (``clearhead.progress``).
        options: options of the repair (``REPAIRS[method].options``), such as the weights of a loss.

    Raises:
        ClearheadError: for an unknown method or option, or a config or model that the repair cannot use.
        DataError: for images that lack what the repair needs, or images that train and validate.
    """
    config = config or default_config(require_method(method).preset)
    chosen = require_repair(method, config, options)
    classifier = as_classifier(model)
    train_images: ImageIndex | None
    validation_images: ImageIndex | None
    train_images, validation_images = _images(train, validation, classifier, method, config.seed)
    if train_images is not None and train_images.root == validation_images.root:
        require_apart(training=train_images, validation=validation_images)
    if trainable != "all" and chosen.function is not None:
        raise ClearheadError(f"trainable: got {trainable!r}, but the method {method} does not fine-tune; leave it out")
    outcome = RepairOutcome(method)
    if tags is not None:
        if group_columns is not None:
            raise ClearheadError("group_columns: the tags define the groups; leave one of the two out")
        if chosen.tags == "none":
            choices = ", ".join(name for name, other in REPAIRS.items() if other.tags != "none")
            raise ClearheadError(f"tags: the method {method} does not use tags; choose from {choices}")
        group_columns = (TAG,)
        used = read_tagged(train_images, validation_images, tags, chosen.tags, trains=chosen.trains, seed=config.seed)
        train_images, validation_images = used.train, used.validation
        outcome = replace(outcome, tagged=used.groups, tag_issues=used.issues)
    loading: dict[str, Any] = {"seed": config.seed, "batch_size": config.batch_size, "workers": config.workers}
    if chosen.function is not None:
        shared = {"features": features} if chosen.shares_features else {}
        repaired, report = chosen.function(
            on_device(classifier, device),
            train_images,
            validation_images,
            group_columns=group_columns,
            progress=progress,
            **loading,
            **shared,
            **options,
        )
        return repaired, replace(outcome, report=report)
    assert train_images is not None
    assert validation_images is not None
    original = None
    if chosen.takes("model"):
        original = on_device(replace(classifier, module=copied(classifier.module).eval()), device)
    inputs = LossInputs(original, train_images, validation_images, group_columns, progress=progress, **loading)
    loss = build_loss(method, inputs, options)
    repaired, history = fit(
        with_trainable(classifier, trainable, config.seed),
        loss,
        train_images,
        validation_images,
        config,
        state,
        progress,
        device,
        group_columns,
        chosen.monitor,
        chosen.balance_groups,
    )
    outcome = replace(outcome, history=history, monitor=chosen.monitor)
    repaired = merged(repaired, classifier)
    if not chosen.interpolate:
        return repaired, outcome
    repaired, losses = best_interpolation(
        classifier,
        repaired,
        loss,
        validation_images,
        group_columns=group_columns,
        batch_size=config.batch_size,
        workers=config.workers,
        progress=progress,
    )
    return repaired, replace(outcome, interpolation=losses)


def _images(
    train: ImageIndex | str | Path | None,
    validation: ImageIndex | str | Path | None,
    model: Classifier,
    method: str,
    seed: int,
) -> tuple[ImageIndex | None, ImageIndex]:
    """Return training and validation images, read or split off where needed."""
    if train is None:
        if REPAIRS[method].trains or validation is None:
            missing = "training" if REPAIRS[method].trains else "validation"
            raise DataError(f"the method {method} needs {missing} images; got None")
        return None, as_image_index(validation, classes=model.classes)
    if validation is None and not isinstance(train, ImageIndex):
        return train_and_validation(train, classes=model.classes, seed=seed)
    images = as_image_index(train, classes=model.classes)
    if validation is None:
        return split_off(images, VALIDATION_FRACTION, seed)
    return images, as_image_index(validation, classes=model.classes)
