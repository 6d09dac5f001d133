"""All repairs by name: what each needs and costs, and the one function that runs them.

A repair is either a loss for ``clearhead.training.loop.fit`` or a function that returns a changed model. To add one,
write it in a module of its own and add a line to ``REPAIRS``.

    a loss       a callable that returns it; parameters called ``images`` and ``group_columns`` receive the training
                 images and the columns of the groups
    a function   ``(model, train, validation, *, group_columns, seed, batch_size, workers, progress, ...) ->
                 (Classifier, report)``, with a small dataclass as report (add its type to ``Report``)

All other parameters are the options of the repair.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from clearhead.data.dataset import ImageIndex
from clearhead.data.image_io import DataError
from clearhead.data.images import as_image_index
from clearhead.data.splits import VALIDATION_FRACTION, require_apart, split_off, train_and_validation
from clearhead.distributed import rank_and_size
from clearhead.errors import ClearheadError
from clearhead.models import Classifier, as_classifier
from clearhead.models.classifier import on_device
from clearhead.progress import Progress
from clearhead.repairs.dfr import RetrainedHead, retrain_head
from clearhead.repairs.group_losses import GroupDRO, Reweight
from clearhead.repairs.head_selection import Selection, keep_heads
from clearhead.repairs.input_gradient_losses import GradMaskLoss, RRRLoss
from clearhead.repairs.presets import default_config
from clearhead.repairs.relevance import RelevanceLoss
from clearhead.training.config import TrainConfig
from clearhead.training.history import Epoch, Monitor
from clearhead.training.loop import fit
from clearhead.training.losses import Loss

Report = Selection | RetrainedHead
"""What the functions among the repairs report."""


@dataclass(frozen=True)
class Repair:
    """A way to repair a model; exactly one of `loss` and `function` is set.

    Attributes:
        summary: what it does, in a few words.
        needs: what the data must have: foreground ``masks``, ``groups`` (columns of metadata.csv) or ``nothing``.
        cost: in words.
        loss: returns the loss to train with.
        function: returns the repaired model and a report; it runs in one process.
        trains: whether it uses training images; if not, it uses the validation images only.
        monitor: what selects the epoch.
        balance_groups: draw training images from groups drawn uniformly.
    """

    summary: str
    needs: Literal["masks", "groups", "nothing"]
    cost: str
    loss: Callable[..., Loss] | None = None
    function: Callable[..., tuple[Classifier, Report]] | None = None
    trains: bool = True
    monitor: Monitor = "loss"
    balance_groups: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """The names of its options."""
        return tuple(name for name in _parameters(self.loss or self.function) if name not in _COMMON)


_COMMON = {"images", "model", "train", "validation", "group_columns", "seed", "batch_size", "workers", "progress"}

REPAIRS: dict[str, Repair] = {
    "relevance": Repair(
        "move the relevance map to the foreground",
        "masks",
        "fine-tuning, at about 1.5 times the time of plain steps",
        RelevanceLoss,
    ),
    "gradmask": Repair(
        "penalise the gradient of the label's logit at the background",
        "masks",
        "fine-tuning, at 2 to 3 times the time of plain steps",
        GradMaskLoss,
    ),
    "rrr": Repair(
        "penalise the gradient of the log-probabilities at the background",
        "masks",
        "fine-tuning, at 2 to 3 times the time of plain steps",
        RRRLoss,
    ),
    "heads": Repair(
        "keep the attention heads that do best on validation images",
        "nothing",
        "no training; a search over subsets of heads",
        function=keep_heads,
        trains=False,
    ),
    "dfr": Repair(
        "retrain the classifier head on group-balanced images",
        "groups",
        "one forward pass of all images, then seconds",
        function=retrain_head,
    ),
    "groupdro": Repair(
        "minimise the loss of the worst group",
        "groups",
        "plain fine-tuning",
        GroupDRO.from_images,
        monitor="worst_group_loss",
        balance_groups=True,
    ),
    "reweight": Repair(
        "weight images by the inverse size of their group",
        "groups",
        "plain fine-tuning",
        Reweight.from_images,
        monitor="worst_group_loss",
    ),
}


@dataclass(frozen=True)
class RepairOutcome:
    """How a repair went.

    Attributes:
        method: its name.
        history: the epochs; empty for a repair that does not fine-tune.
        monitor: what selected the epoch.
        report: what a repair that does not fine-tune reports.
    """

    method: str
    history: list[Epoch] = field(default_factory=list)
    monitor: Monitor = "loss"
    report: Report | None = None


def repair(
    model: Classifier | nn.Module | str | Path,
    train: ImageIndex | str | Path | None,
    validation: ImageIndex | str | Path | None = None,
    *,
    method: str = "relevance",
    config: TrainConfig | None = None,
    group_columns: Sequence[str] | None = None,
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
        config: how to train (default: ``default_config()``, 10 epochs at 1e-5). A repair that does not fine-tune uses
            only its seed, batch size and workers.
        group_columns: metadata columns that define the groups together with the class; None for all columns.
        state: folder for the state of the last epoch, from which an interrupted training resumes.
        device: such as ``cpu`` or ``cuda``; by default a GPU where one is available.
        progress: shows progress (``clearhead.progress``).
        options: options of the repair (``REPAIRS[method].options``), such as the weights of a loss.

    Raises:
        ClearheadError: for an unknown method or option, or a config or model that the repair cannot use.
        DataError: for images that lack what the repair needs, or images that train and validate.
    """
    config = config or default_config()
    chosen = require_repair(method, config, options)
    classifier = as_classifier(model)
    train_images, validation_images = _images(train, validation, classifier, method, config.seed)
    if train_images is not None and train_images.root == validation_images.root:
        require_apart(training=train_images, validation=validation_images)
    if chosen.function is not None:
        repaired, report = chosen.function(
            on_device(classifier, device),
            train_images,
            validation_images,
            group_columns=group_columns,
            seed=config.seed,
            batch_size=config.batch_size,
            workers=config.workers,
            progress=progress,
            **options,
        )
        return repaired, RepairOutcome(method, report=report)
    assert train_images is not None
    repaired, history = fit(
        classifier,
        build_loss(method, train_images, group_columns, options),
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
    return repaired, RepairOutcome(method, history, chosen.monitor)


def require_repair(method: str, config: TrainConfig, options: Mapping[str, Any]) -> Repair:
    """Return a repair by its name. Raises ClearheadError for an unknown name, or a config or options it cannot use."""
    if method not in REPAIRS:
        raise ClearheadError(f"method: {method!r} is unknown; choose from {', '.join(REPAIRS)}")
    chosen = REPAIRS[method]
    if unknown := [name for name in options if name not in chosen.options]:
        known = f"choose from {', '.join(chosen.options)}" if chosen.options else "it has none"
        raise ClearheadError(f"{', '.join(unknown)}: not an option of the method {method}; {known}")
    if config.has_soft_targets:
        raise ClearheadError(f"label_smoothing, mixup, cutmix: unsupported by the method {method}; leave them out")
    if config.augment == "strong" and chosen.needs == "masks":
        raise ClearheadError(
            f"augment: strong changes images without their masks, which the method {method} needs; use crop or weak"
        )
    if chosen.function is not None and rank_and_size()[1] > 1:
        raise ClearheadError(f"method: {method} runs in one process; start it without torchrun or accelerate launch")
    return chosen


def build_loss(
    method: str,
    images: ImageIndex | None = None,
    group_columns: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Loss:
    """Return the loss of a repair for some training images.

    Raises:
        ClearheadError: for a repair without a loss, or invalid options.
        DataError: for images without the masks that the loss needs.
    """
    chosen = REPAIRS[method]
    if chosen.loss is None:
        raise ClearheadError(f"method: {method} has no loss")
    if chosen.needs == "masks" and images is not None and not any(sample.mask for sample in images.samples):
        unmasked = ", ".join(name for name, other in REPAIRS.items() if other.needs != "masks")
        raise DataError(
            f"{images.root}: {method} needs foreground masks, and none of its {len(images.samples):,} training images "
            "has one; put them in masks/<class>/<stem>.png (nonzero = object), make them with `clearhead data masks`, "
            f"or choose a method without masks: {unmasked}"
        )
    inputs = {"images": images, "group_columns": group_columns}
    return chosen.loss(**{k: v for k, v in inputs.items() if k in _parameters(chosen.loss)}, **(options or {}))


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


def _parameters(function: Callable[..., Any] | None) -> list[str]:
    return list(inspect.signature(function).parameters) if function else []
