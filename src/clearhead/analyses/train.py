"""Fine-tune a classifier, or fit a linear probe on its features."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from torch import nn

from clearhead.analyses.subject import Subject, subject_of
from clearhead.data.dataset import ImageIndex
from clearhead.data.splits import require_apart, train_and_validation
from clearhead.distributed import rank_and_size
from clearhead.errors import ClearheadError
from clearhead.heads import DiversityLoss
from clearhead.metrics.statistics import format_value
from clearhead.models import save_model
from clearhead.models.classifier import Classifier
from clearhead.models.errors import NoHeadError
from clearhead.models.source import ModelLike, ModelSource, as_classifier, display_names
from clearhead.options import BatchSize, Layers, Option, Precision, Seed, TrainSplit, ValidationSplit, Workers
from clearhead.progress import Progress
from clearhead.report import plots
from clearhead.report.page import Figure, Page, Row, Section, Table
from clearhead.storage import NotSaved
from clearhead.training.config import TrainConfig
from clearhead.training.linear_probe import LinearProbe, fit_linear_probe
from clearhead.training.loop import Epoch, Monitor, best_epoch, cross_entropy, fit

DISTRIBUTED = True
DECIDES = ("batch_size",)


@dataclass(frozen=True)
class TrainResult:
    """How a training went.

    Attributes:
        subject: the model it started from and the training images.
        validation: number of validation images.
        history: the epochs; empty for a linear probe.
        linear: how the linear probe was fitted.
        model: the trained classifier; in the run folder checkpoint/.
    """

    subject: Subject
    validation: int
    history: list[Epoch] = field(default_factory=list)
    linear: LinearProbe | None = None
    model: NotSaved = None


def measure(
    model: ModelLike,
    data: str | Path,
    *,
    epochs: Annotated[int, Option("Passes over the training images.", min=1)] = 10,
    lr: Annotated[float, Option("Highest learning rate.", min=0)] = 1e-4,
    batch_size: BatchSize = 32,
    optimizer: Annotated[
        str,
        Option(
            "adamw, adam, sgd (momentum 0.9), another of timm's (lion, muon, ...), schedulefree-adamw, "
            "schedulefree-sgd, or sam-BASE, asam-BASE (sam-sgd).",
            panel="Recipe",
        ),
    ] = "adamw",
    weight_decay: Annotated[float, Option("Weight decay of all parameters.", min=0, panel="Recipe")] = 0.05,
    schedule: Annotated[
        Literal["cosine", "steps", "decay", "constant"],
        Option("Learning-rate schedule: to 0, x 0.2 at 30, 60 and 80%, or x 0.85 every 2 epochs.", panel="Recipe"),
    ] = "cosine",
    warmup: Annotated[
        int | None, Option("Warm-up epochs. Default: a tenth of the epochs for cosine, else 0.", min=0, panel="Recipe")
    ] = None,
    max_grad_norm: Annotated[float | None, Option("Clip the gradient to this norm.", min=0, panel="Recipe")] = None,
    augment: Annotated[
        Literal["crop", "weak", "strong", "none"],
        Option("crop: random crop + flip; weak: shift + flip; strong: weak + RandAugment; none.", panel="Recipe"),
    ] = "crop",
    label_smoothing: Annotated[float, Option("Label smoothing.", 0, 1, panel="Recipe")] = 0.0,
    mixup: Annotated[float, Option("Mixup: parameter of the Beta distribution; 0 is off.", 0, panel="Recipe")] = 0.0,
    cutmix: Annotated[float, Option("CutMix: parameter of the Beta distribution; 0 is off.", 0, panel="Recipe")] = 0.0,
    mixed_precision: Precision = "no",
    save_epochs: Annotated[
        Sequence[int],
        Option("Epochs after which a checkpoint is saved in epochs/, comma-separated; 0: before training."),
    ] = (),
    diversity: Annotated[
        float, Option("Weight of the head-diversity loss; the paper's is 100 / heads²: 6.25 at 4 heads.", min=0)
    ] = 0.0,
    layers: Layers = "last",
    linear: Annotated[bool, Option("Fit a linear probe: only the classifier head, on frozen features.")] = False,
    pretrained: Annotated[bool, Option("Start from pretrained weights.")] = True,
    train_split: TrainSplit = "train",
    validation_split: ValidationSplit = "val",
    workers: Workers = 0,
    seed: Seed = 0,
    progress: Progress | None = None,
    state: Path | None = None,
    folder: Path | None = None,
) -> TrainResult:
    """Fine-tune a classifier by cross-entropy, with a fresh classifier head where the data has other classes.

    The checkpoint is that of the epoch with the lowest validation loss. A linear probe uses the batch size, the workers
    and the seed of these options only.

    Example:
        $ clearhead train timm:vit_small_patch16_224 DATA --epochs 10 --lr 1e-4

    Args:
        model: a name, or a classifier with the classes of the data.
        data: the images, with a validation split or without (then 20% of each class is held out).
        epochs: passes over the training images.
        lr: highest learning rate.
        batch_size: images per step, over all processes.
        optimizer: its name (``clearhead.training.optimizers``).
        weight_decay: of all parameters.
        schedule: of the learning rate.
        warmup: epochs in which the learning rate rises.
        max_grad_norm: clip the gradient to this norm.
        augment: augmentation of training images.
        label_smoothing: share of a label that is spread over all classes.
        mixup: parameter of the Beta distribution.
        cutmix: parameter of the Beta distribution.
        mixed_precision: of the forward pass.
        save_epochs: epochs whose checkpoints are saved below `folder`.
        diversity: weight of the head-diversity loss (arXiv 2308.16274).
        layers: the attention layers it is applied to.
        linear: fit a linear probe.
        pretrained: start from pretrained weights.
        train_split: split to train on.
        validation_split: split that selects the epoch.
        folder: where checkpoints of `save_epochs` are saved.

    The other arguments are described in ``clearhead.options``.

    Raises:
        DataError: for data that cannot be used.
        TrainingError: for a loss that is no longer finite, or a model without trainable parameters.
        ClearheadError: for options that contradict each other.
    """
    if linear and (save_epochs or diversity):
        raise ClearheadError("linear: a linear probe has no epochs and no heads; leave out save_epochs and diversity")
    if linear and rank_and_size()[1] > 1:
        raise ClearheadError("linear: a linear probe is fitted in one process; start it without torchrun")
    if missing := [epoch for epoch in save_epochs if not 0 <= epoch <= epochs]:
        raise ClearheadError(f"save_epochs: got {missing[0]}; choose from 0..{epochs}")
    config = TrainConfig(
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        optimizer=optimizer,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup=warmup,
        augment=augment,
        label_smoothing=label_smoothing,
        mixup=mixup,
        cutmix=cutmix,
        max_grad_norm=max_grad_norm,
        mixed_precision=mixed_precision,
        workers=workers,
        seed=seed,
    )
    if config.has_soft_targets and (diversity or linear):
        raise ClearheadError(
            "label_smoothing, mixup, cutmix: only for plain cross-entropy; leave out diversity and linear"
        )
    train, validation = train_and_validation(data, train=train_split, validation=validation_split, seed=seed)
    require_apart(training=train, validation=validation)
    classifier = _start(model, train, pretrained, seed)
    subject = _subject(model, train, validation, data, classifier)
    if linear:
        probed, how = fit_linear_probe(
            classifier, train, validation, batch_size=batch_size, workers=workers, progress=progress
        )
        return TrainResult(subject, len(validation.samples), linear=how, model=probed)

    def save_epoch(history: list[Epoch], current: Classifier) -> None:
        if folder is not None and history[-1].number in save_epochs and rank_and_size()[0] == 0:
            save_model(current, folder / "epochs" / str(history[-1].number))

    trained, history = fit(
        classifier,
        DiversityLoss(diversity, layers) if diversity else cross_entropy,
        train,
        validation,
        config,
        state,
        progress,
        model.device if isinstance(model, ModelSource) else None,
        on_epoch_end=save_epoch,
    )
    return TrainResult(subject, len(validation.samples), history, model=trained)


def _start(model: ModelLike, train: ImageIndex, pretrained: bool, seed: int) -> Classifier:
    """Return the classifier that training starts from, with a fresh head where its classes are not the data's."""
    if isinstance(model, Classifier | nn.Module):
        model = as_classifier(model)
        if model.classes != train.classes:
            raise ClearheadError(
                f"model: its classes are not the data's ({len(model.classes)} and {len(train.classes)}); give its "
                "name, so that it gets a fresh classifier head"
            )
        return model
    source = model if isinstance(model, ModelSource) else ModelSource(str(model))
    source = replace(source, options={**source.options, "pretrained": pretrained}, seed=seed)
    try:
        classifier = source.load()
        if classifier.classes == train.classes:
            return classifier
    except NoHeadError:  # a self-supervised backbone
        pass
    fresh = {"num_classes": len(train.classes), "classes": train.classes}
    return replace(source, options={**source.options, **fresh}).load()


def _subject(
    model: ModelLike, train: ImageIndex, validation: ImageIndex, data: str | Path, classifier: Classifier
) -> Subject:
    subject = subject_of(display_names([model]), train, data, None, classifier)
    return replace(subject, issues=list(dict.fromkeys([*train.issues, *validation.issues])))


def export(result: TrainResult, folder: Path) -> None:
    """Write the checkpoint."""
    save_model(result.model, folder / "checkpoint")


def page(result: TrainResult) -> Page:
    """Show the epochs and which one was selected, or the penalties of the linear probe."""
    sections: list[Section] = []
    if result.history:
        sections += [epoch_table(result.history, "loss"), history_figure(result.history, "loss")]
    if result.linear:
        sections.append(_linear_table(result.linear))
    counts = f"{result.subject.images:,} images of {result.subject.data}, {result.validation:,} for validation"
    return Page(f"{result.subject.model}: training", f"Trained on {counts}.", sections=sections)


MONITORED = {"loss": "validation loss", "worst_group_loss": "worst-group validation loss"}


def epoch_table(history: Sequence[Epoch], monitor: Monitor) -> Table:
    """Return the model before training and the selected epoch, side by side."""
    first, selected = history[0], best_epoch(list(history), monitor)
    columns = ["before training", f"epoch {selected.number}"]
    rows = [
        Row(MONITORED[monitor], [f"{epoch.validation[monitor]:.4f}" for epoch in (first, selected)]),
        Row("validation accuracy", [format_value(e.validation["accuracy"], "%") for e in (first, selected)]),
    ]
    text = f"Epoch {selected.number} of {len(history) - 1} was selected: the lowest {MONITORED[monitor]}."
    if selected.number == 0:
        text = f"No epoch lowered the {MONITORED[monitor]}: the checkpoint is the original model."
    return Table("Selected epoch", columns, rows, text)


def history_figure(history: Sequence[Epoch], monitor: Monitor) -> Figure:
    """Return the loss after each epoch."""
    selected = best_epoch(list(history), monitor).number
    lines = {
        "training": [epoch.train.get("loss", math.nan) for epoch in history],
        "validation": [epoch.validation["loss"] for epoch in history],
    }
    if monitor != "loss":
        lines["validation, worst group"] = [epoch.validation[monitor] for epoch in history]
    text = "The loss after each epoch; epoch 0 is the original model. The line marks the selected epoch."
    return Figure("Training", text, plots.curves(lines, "Loss after each epoch", "loss", chosen=selected, first=0))


def _linear_table(linear: LinearProbe) -> Table:
    rows = [
        Row(
            f"λ = {penalty:g}",
            [
                f"{loss:.4f}",
                format_value(linear.accuracy[penalty], "%"),
                "selected" if penalty == linear.chosen else "",
            ],
        )
        for penalty, loss in linear.loss.items()
    ]
    text = (
        "Only the classifier head, on frozen features: the minimum of the penalised cross-entropy on the training "
        "images. The penalty λ with the lowest loss on the validation images (shown here) was selected."
    )
    return Table("Linear probe", ["loss", "accuracy", ""], rows, text)
