"""All repairs by name: what each needs and costs, and the one function that runs them.

A repair is either a loss for ``clearhead.training.loop.fit`` or a function that returns a changed model. To add one,
write it in a module of its own and add a line to ``REPAIRS``.

    a loss       a callable that returns it; it receives those of ``LossInputs`` that are parameters of it: the original
                 model, the images, the columns of the groups, and so on
    a function   ``(model, train, validation, *, group_columns, seed, batch_size, workers, progress, ...) ->
                 (Classifier, report)``, with a small dataclass as report (add its type to ``Report``); one with a
                 parameter ``features`` can share the features of the images with others

All other parameters are the options of the repair.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from clearhead.data.dataset import DataIssue, ImageIndex
from clearhead.data.image_io import DataError
from clearhead.data.images import as_image_index
from clearhead.data.splits import VALIDATION_FRACTION, require_apart, split_off, train_and_validation
from clearhead.data.tags import TAG
from clearhead.distributed import rank_and_size
from clearhead.errors import ClearheadError
from clearhead.heads import DiversityLoss
from clearhead.models import Classifier, as_classifier
from clearhead.models.classifier import copied, on_device
from clearhead.progress import Progress
from clearhead.repairs.afr import ReweightedHead, reweight_head
from clearhead.repairs.counterfactual import CounterfactualLoss, background_swap
from clearhead.repairs.dfr import RetrainedHead, retrain_head
from clearhead.repairs.exmap import cluster_and_retrain
from clearhead.repairs.group_losses import GroupDRO, Reweight
from clearhead.repairs.head_selection import Selection, keep_heads
from clearhead.repairs.input_gradient_losses import GradMaskLoss, RRRLoss
from clearhead.repairs.interpolation import best_interpolation
from clearhead.repairs.jtt import JTTLoss
from clearhead.repairs.presets import default_config
from clearhead.repairs.relevance import RelevanceLoss
from clearhead.repairs.tagged import TagUse, read_tagged
from clearhead.training.config import TrainConfig
from clearhead.training.history import Epoch, Monitor
from clearhead.training.linear_head import Features
from clearhead.training.loop import fit
from clearhead.training.losses import Loss
from clearhead.training.trainable import Trainable, merged, with_trainable

Report = Selection | RetrainedHead | ReweightedHead
"""What the functions among the repairs report."""


@dataclass(frozen=True)
class Repair:
    """A way to repair a model; exactly one of `loss` and `function` is set.

    Attributes:
        summary: what it does, in a few words.
        needs: what the data must have besides labels: foreground ``masks``, ``groups`` (columns of metadata.csv) or
            ``nothing``.
        cost: in words.
        step_time: time of a training step, relative to that of a plain one; of one with features, passes over images.
        loss: returns the loss to train with.
        function: returns the repaired model and a report; it runs in one process.
        trains: whether it uses training images; if not, it uses the validation images only.
        monitor: what selects the epoch.
        balance_groups: draw training images from groups drawn uniformly.
        interpolate: average the weights with those of the original model; the validation loss selects how much.
        preset: key of ``PRESETS`` with the settings to train with by default; None for the general ones.
        source: the arXiv number of its paper, if there is one.
        note: what a reader of its result should know, if anything.
        tags: how it takes a tags file: it uses the tagged images only; all images, the untagged ones of a class as a
            group; or it takes none.
    """

    summary: str
    needs: Literal["masks", "groups", "nothing"]
    cost: str
    loss: Callable[..., Loss] | None = None
    function: Callable[..., tuple[Classifier, Report]] | None = None
    trains: bool = True
    monitor: Monitor = "loss"
    balance_groups: bool = False
    interpolate: bool = False
    preset: str | None = None
    source: str = ""
    note: str = ""
    tags: TagUse = "none"
    step_time: float = 1.0

    @property
    def shares_features(self) -> bool:
        """Whether it takes features of the images that were computed before."""
        return "features" in _parameters(self.function)

    @property
    def options(self) -> tuple[str, ...]:
        """The names of its options."""
        return tuple(name for name in _parameters(self.loss or self.function) if name not in _COMMON)


@dataclass(frozen=True)
class LossInputs:
    """What a loss can be made from.

    Attributes:
        model: a copy of the original model, in eval mode.
        images: the training images.
        validation: the validation images.
        group_columns: metadata columns that define the groups together with the class; None for all columns.
        seed: random seed.
        batch_size: images per batch.
        workers: number of processes that load images.
        progress: shows progress.
    """

    model: Classifier | None = None
    images: ImageIndex | None = None
    validation: ImageIndex | None = None
    group_columns: Sequence[str] | None = None
    seed: int = 0
    batch_size: int = 32
    workers: int = 0
    progress: Progress | None = None


_COMMON = {*(f.name for f in fields(LossInputs)), "train", "features"}

_WITHOUT_GROUPS = (
    "No step saw a group label, and the result can vary much with the images and the seed: repeat the repair with "
    "other seeds, and believe the comparison on test images."
)

REPAIRS: dict[str, Repair] = {
    "afr": Repair(
        "retrain the classifier head with more weight on images the model is unsure of",
        "nothing",
        "one forward pass over all images, then seconds",
        function=reweight_head,
        source="2306.11074",
        note=_WITHOUT_GROUPS,
    ),
    "dfr": Repair(
        "retrain the classifier head on group-balanced images",
        "groups",
        "one forward pass over all images, then seconds",
        function=retrain_head,
        source="2204.02937",
        tags="tagged images",
    ),
    "exmap": Repair(
        "retrain the classifier head on images balanced over clusters of their relevance maps",
        "nothing",
        "a map and a forward pass of all images, then seconds",
        function=cluster_and_retrain,
        step_time=8.0,
        source="2403.13870",
        note=_WITHOUT_GROUPS,
    ),
    "heads": Repair(
        "keep the attention heads that do best on validation images",
        "nothing",
        "no training; a search over subsets of heads",
        function=keep_heads,
        trains=False,
        source="1905.10650",
        tags="tagged images",
    ),
    "jtt": Repair(
        "give the images that the model misclassifies more weight",
        "nothing",
        "plain fine-tuning, and one forward pass over all images",
        loss=JTTLoss.from_mistakes,
        source="2107.09931",
        note=_WITHOUT_GROUPS,
    ),
    "counterfactual": Repair(
        "keep the original outputs under the changes of the shortcut battery",
        "nothing",
        "fine-tuning, at about 2.5 times the time of plain steps",
        loss=CounterfactualLoss.from_model,
        step_time=2.5,
        interpolate=True,
        preset="counterfactual",
    ),
    "background-swap": Repair(
        "keep the original outputs on another image's background",
        "masks",
        "fine-tuning, at about 2.5 times the time of plain steps",
        loss=background_swap,
        step_time=2.5,
        interpolate=True,
        preset="counterfactual",
    ),
    "reweight": Repair(
        "weight images by the inverse size of their group",
        "groups",
        "plain fine-tuning",
        loss=Reweight.from_images,
        monitor="worst_group_loss",
        tags="all images",
    ),
    "groupdro": Repair(
        "minimise the loss of the worst group",
        "groups",
        "plain fine-tuning",
        loss=GroupDRO.from_images,
        monitor="worst_group_loss",
        balance_groups=True,
        source="1911.08731",
        tags="all images",
    ),
    "diversity": Repair(
        "penalise heads whose input gradients are similar",
        "nothing",
        "fine-tuning, at 2 to 3 times the time of plain steps",
        loss=DiversityLoss,
        source="2308.16274",
    ),
    "relevance": Repair(
        "move the relevance map to the foreground",
        "masks",
        "fine-tuning, at about 1.5 times the time of plain steps",
        loss=RelevanceLoss,
        step_time=1.5,
        source="2206.01161",
    ),
    "gradmask": Repair(
        "penalise the gradient of the label's logit at the background",
        "masks",
        "fine-tuning, at 2 to 3 times the time of plain steps",
        loss=GradMaskLoss,
        step_time=2.5,
        source="1904.07478",
    ),
    "rrr": Repair(
        "penalise the gradient of the log-probabilities at the background",
        "masks",
        "fine-tuning, at 2 to 3 times the time of plain steps",
        loss=RRRLoss,
        step_time=2.5,
        source="1703.03717",
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
    if "model" in _parameters(chosen.loss):
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


def require_method(method: str) -> Repair:
    """Return a repair by its name. Raises ClearheadError for an unknown name."""
    if method not in REPAIRS:
        raise ClearheadError(f"method: {method!r} is unknown; choose from {', '.join(REPAIRS)}")
    return REPAIRS[method]


def require_repair(method: str, config: TrainConfig, options: Mapping[str, Any]) -> Repair:
    """Return a repair by its name. Raises ClearheadError for an unknown name, or a config or options it cannot use."""
    chosen = require_method(method)
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


def build_loss(method: str, inputs: LossInputs | None = None, options: Mapping[str, Any] | None = None) -> Loss:
    """Return the loss of a repair, made from a model and images where it needs them.

    Raises:
        ClearheadError: for a repair without a loss, or invalid options.
        DataError: for images without the masks that the loss needs.
    """
    chosen, inputs = REPAIRS[method], inputs or LossInputs()
    if chosen.loss is None:
        raise ClearheadError(f"method: {method} has no loss")
    images = inputs.images
    if chosen.needs == "masks" and images is not None and not any(sample.mask for sample in images.samples):
        unmasked = ", ".join(name for name, other in REPAIRS.items() if other.needs != "masks")
        raise DataError(
            f"{images.root}: {method} needs foreground masks, and none of its {len(images.samples):,} training images "
            "has one; put them in masks/<class>/<stem>.png (nonzero = object), make them with `clearhead data masks`, "
            f"or choose a method without masks: {unmasked}"
        )
    used = {f.name: getattr(inputs, f.name) for f in fields(inputs) if f.name in _parameters(chosen.loss)}
    return chosen.loss(**used, **(options or {}))


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
