"""The training loop. What is minimised is a function of model and batch: cross-entropy, or a repair.

The result is the epoch with the lowest validation loss, over all images or in the worst group. The untouched model
counts as epoch 0: training that never improves on the validation images returns the original model.
"""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device, set_seed
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from clearhead.data.augment import augmentation, mix_batch
from clearhead.data.dataset import ImageIndex, shared_columns
from clearhead.data.images import as_image_index
from clearhead.data.loading import ImageDataset, SeededSampler, loader
from clearhead.errors import ClearheadError
from clearhead.models import Classifier, as_classifier
from clearhead.models.classifier import copied, require_device
from clearhead.progress import Progress, log, track
from clearhead.training import optimizers
from clearhead.training.config import TrainConfig
from clearhead.training.history import Epoch, Monitor, best_epoch, epoch_line
from clearhead.training.losses import Batch, Loss, cross_entropy
from clearhead.training.running_means import RunningMeans
from clearhead.training.state import TrainingState, load_state, save_state, weights_on_cpu

__all__ = [
    "DivergedError",
    "Epoch",
    "Loss",
    "Monitor",
    "TrainConfig",
    "TrainingError",
    "best_epoch",
    "cross_entropy",
    "fit",
]

OnEpochEnd = Callable[[list[Epoch], Classifier], bool | None]

_STEPS_PER_LOSS_CHECK = 50
"""Reading the loss waits for the device, so it is read once in this many steps."""

_BATCHES_FOR_BATCH_NORM = 50
"""Batches from which batch norm takes its statistics at a schedule-free optimizer's averaged weights."""


class TrainingError(ClearheadError, RuntimeError):
    """Training cannot go on; the message says why and what to try."""


class DivergedError(TrainingError):
    """The loss is not finite; `history` has the epochs before."""

    def __init__(self, message: str, history: list[Epoch]) -> None:
        super().__init__(message)
        self.history = history


def fit(
    model: Classifier | nn.Module | str | Path,
    loss: Loss,
    train: ImageIndex | str | Path,
    validation: ImageIndex | str | Path,
    config: TrainConfig,
    state: Path | None = None,
    progress: Progress | None = None,
    device: str | None = None,
    group_columns: Sequence[str] | None = None,
    monitor: Monitor = "loss",
    balance_groups: bool = False,
    on_epoch_end: OnEpochEnd | None = None,
) -> tuple[Classifier, list[Epoch]]:
    """Train a copy of the model; return it with the weights of its best epoch, and the history.

    Logs one line per epoch to ``logging.getLogger("clearhead")`` at level INFO.

    Args:
        model: the model to start from: a classifier, a module or a name. It is not changed.
        loss: what to minimise: returns ``loss``, ``logits`` and any parts to record. If it has ``state_dict`` and
            ``load_state_dict``, its state is saved in `state` too. Where the config has soft targets, training batches
            have a ``target`` (B x classes), which the loss has to use, as ``cross_entropy`` does.
        train: the training images, or where to read them.
        validation: the images that select the epoch, or where to read them.
        config: optimizer, schedule, augmentation and so on.
        state: a folder for the state of the last epoch. If it has one, training resumes, and ends with the same weights
            as an uninterrupted training.
        progress: shows progress (``clearhead.progress``), with the current loss.
        device: such as ``cpu``; by default Accelerate chooses.
        group_columns: metadata columns that define the groups together with the class, None for all columns that both
            sets of images have.
        monitor: the mean over the validation images whose lowest value selects the epoch.
        balance_groups: draw each training image from a group drawn uniformly, instead of each image once per epoch.
        on_epoch_end: called after each epoch's validation, also before training (epoch 0), in every process, with the
            history and the current model, which it must not change. Training ends if it returns True. If training is
            interrupted in it or soon after, it is called again for the same epoch.

    Raises:
        DataError: for images that cannot be read, or have other classes, or a group column that does not exist.
        ClearheadError: for an unknown `monitor`, or an optimizer that is unavailable.
        TrainingError: if the loss is not finite (DivergedError), or the model has no parameter to train.
    """
    if monitor not in get_args(Monitor):
        raise ClearheadError(f"monitor: {monitor!r} is unknown; choose from {', '.join(get_args(Monitor))}")
    model = as_classifier(model)
    train, validation = (as_image_index(images, classes=model.classes) for images in (train, validation))
    accelerator = _accelerator(device, config)
    set_seed(config.seed)
    module = copied(model.module).to(accelerator.device)
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise TrainingError(f"model: {model.name} has no parameter that requires a gradient, so it cannot be trained")
    optimizer: Any = optimizers.make_optimizer(config.optimizer, module, config.lr, config.weight_decay)
    group_columns = shared_columns(train, validation) if group_columns is None else group_columns
    augment = augmentation(config.augment, config.min_crop_area)
    train_set = ImageDataset(train, model.preprocess, augment, group_columns)
    validation_set = ImageDataset(validation, model.preprocess, group_columns=group_columns)
    groups = sorted({*train_set.groups, *validation_set.groups})  # the same in all processes
    size, workers = config.batch_size, config.workers
    batches = loader(train_set, size, workers, shuffle=True, seed=config.seed, balanced=balance_groups, shared=True)
    validation_batches = loader(validation_set, size, workers, shared=True)
    order: SeededSampler = batches.batch_sampler.order  # type: ignore[union-attr]
    module, prepared = accelerator.prepare(module, optimizer)
    if accelerator.scaler is not None:
        optimizer = prepared  # otherwise unused: at each step it looks for packages that may be installed
    schedule = torch.optim.lr_scheduler.LambdaLR(prepared.optimizer, config.lr_lambda(len(batches)))
    accelerator.register_for_checkpointing(schedule)
    if _has_state(loss):
        accelerator.register_for_checkpointing(loss)
    trained = replace(model, module=module)
    current = replace(model, module=accelerator.unwrap_model(module))  # for evaluation: shares no gradients
    if not accelerator.is_main_process:
        progress = None

    @torch.no_grad()  # a loss that needs gradients enables them
    def validate(title: str) -> dict[str, float]:
        means = RunningMeans(accelerator, groups)
        for batch in track(validation_batches, progress, f"{title}, validation"):
            batch = send_to_device(batch, accelerator.device)
            means.add(loss(current, batch), batch)
        return means.means()

    def backward(batch: Batch) -> dict[str, Tensor]:
        optimizer.zero_grad()
        parts = loss(trained, batch)
        accelerator.backward(parts["loss"])
        if config.max_grad_norm is not None:
            accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
        return parts

    def step(batch: Batch) -> dict[str, Tensor]:
        if not optimizers.is_sharpness_aware(config.optimizer):
            parts = backward(batch)
            optimizer.step()
            return parts
        with optimizers.repeat_random_numbers(accelerator.device), _unchanged_state(loss):
            parts = backward(batch)
        with optimizers.fixed_batch_norm_statistics(module):
            optimizer.step(partial(backward, batch))
        return parts

    def train_epoch(number: int, title: str) -> dict[str, float]:
        order.set_epoch(number - 1)
        means, current_loss = RunningMeans(accelerator), ""

        def description() -> str:
            return title + current_loss

        module.train()
        prepared.train()
        for i, batch in enumerate(track(batches, progress, description)):
            batch = send_to_device(batch, accelerator.device, non_blocking=True)
            if config.has_soft_targets:
                batch = _with_soft_targets(batch, len(model.classes), config, [config.seed, number, i])
            means.add(step(batch), batch)
            schedule.step()
            if i % _STEPS_PER_LOSS_CHECK == 0:
                value = means.loss()
                _require_finite(value, record.history, config)
                current_loss = f", loss {value:.3f}"
        averages = means.means()
        _require_finite(averages["loss"], record.history, config)
        module.eval()
        prepared.eval()
        if optimizers.is_schedule_free(config.optimizer):
            update_bn(_inputs(current, batches, accelerator.device), current.module)
        return averages

    def log_epoch(seconds: float = 0.0, remaining: float = 0.0) -> None:
        if accelerator.is_main_process:
            last_step = record.history[-1].number * len(batches) - 1
            lr = config.lr * config.lr_lambda(len(batches))(last_step)
            log.info(epoch_line(record.history[-1], config.epochs, monitor, lr, seconds, remaining))

    def stops() -> bool:
        return bool(on_epoch_end and on_epoch_end(record.history, current))

    resumed = load_state(accelerator, state)
    if resumed is None:
        module.eval()
        record = TrainingState([Epoch(0, {}, validate("before training"))], weights_on_cpu(accelerator, module))
        log_epoch()
        record.stopped = stops()
    else:
        record = resumed
        if accelerator.is_main_process:
            log.info("resuming after epoch %s/%s", record.history[-1].number, config.epochs)
    first, started = len(record.history), time.perf_counter()
    while not record.stopped and len(record.history) <= config.epochs:
        number, epoch_started = len(record.history), time.perf_counter()
        title = f"epoch {number}/{config.epochs}"
        averages = train_epoch(number, title)
        seconds = time.perf_counter() - epoch_started
        epoch = Epoch(number, averages, validate(title), seconds, len(train_set))
        if epoch.validation[monitor] < best_epoch(record.history, monitor).validation[monitor]:
            record.best = weights_on_cpu(accelerator, module)
        record.history.append(epoch)
        now = time.perf_counter()
        log_epoch(now - epoch_started, (now - started) / (number - first + 1) * (config.epochs - number))
        record.stopped = stops()
        save_state(accelerator, state, record)
    best = copied(model.module)
    best.load_state_dict(record.best)
    return replace(model, module=best.eval()), record.history


def _accelerator(device: str | None, config: TrainConfig) -> Accelerator:
    require_device(device)
    if device is not None and torch.device(device).index is not None and torch.device(device).type == "cuda":
        torch.cuda.set_device(device)  # the device that Accelerate takes
    AcceleratorState._reset_state()  # otherwise a process can train at one precision only
    return Accelerator(mixed_precision=config.mixed_precision, cpu=device == "cpu")


def _has_state(loss: Any) -> bool:
    return hasattr(loss, "state_dict") and hasattr(loss, "load_state_dict")


@contextmanager
def _unchanged_state(loss: Any) -> Iterator[None]:
    """Restore the state of a loss after the block, so that two passes count as one step."""
    state = copy.deepcopy(loss.state_dict()) if _has_state(loss) else None
    yield
    if state is not None:
        loss.load_state_dict(state)


def _with_soft_targets(batch: Batch, classes: int, config: TrainConfig, seed: list[int]) -> Batch:
    """Return the batch with its soft ``target``, its images mixed where the config has mixup or cutmix."""
    images, target = mix_batch(
        batch["image"],
        batch["label"],
        classes,
        mixup=config.mixup,
        cutmix=config.cutmix,
        label_smoothing=config.label_smoothing,
        seed=seed,
    )
    return {**batch, "image": images, "target": target}


def _inputs(model: Classifier, batches: Iterable[Batch], device: torch.device) -> Iterator[Tensor]:
    """Yield the normalised images of some batches; the loader starts at the first request."""
    for batch in islice(batches, _BATCHES_FOR_BATCH_NORM):
        yield model.normalize(batch["image"].to(device))


def _require_finite(value: float, history: list[Epoch], config: TrainConfig) -> None:
    if not math.isfinite(value):
        raise DivergedError(
            f"the loss is {value} in epoch {len(history)}: try a smaller learning rate than {config.lr:g}"
            + ("" if config.mixed_precision == "no" else ", or mixed_precision no")
            + "; the state of the previous epoch is saved",
            history,
        )
