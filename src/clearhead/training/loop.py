"""The one training loop. What is minimised is a function of model and batch: cross-entropy, or a repair.

A loss is ``(model, batch) -> {"loss": total, ...}`` with a batch as ``clearhead.data.loading.Images`` makes it; other
entries are parts to log. The epoch kept is the one of lowest validation loss, over all images or in the worst group,
and the untouched model counts as epoch 0: training that never helps on the validation images gives back what it was
given.
"""

import copy
import json
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device, set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.swa_utils import update_bn

from clearhead.data.augment import augmentation, mixed
from clearhead.data.dataset import ImageIndex, shared_columns
from clearhead.data.loading import ImageDataset, SeededSampler, batch_mean, loader
from clearhead.distributed import mean_over_processes
from clearhead.errors import ClearheadError
from clearhead.models import Classifier
from clearhead.models.classifier import copied, require_device
from clearhead.runs import replace_folder, restore
from clearhead.training import optimizers
from clearhead.training.config import TrainConfig

Batch = Mapping[str, Any]
Loss = Callable[[Classifier, Batch], dict[str, Tensor]]
Progress = Callable[[Iterable, int, str], Iterable]
Monitor = Literal["loss", "worst_group_loss"]

_LOOK = 50
"""Steps after which the loss is looked at: to look at it is to wait for the device."""

_RENEW = 50
"""Batches that give batch norm its statistics at the average of a schedule-free optimizer's weights."""


class TrainingError(ClearheadError, RuntimeError):
    """Training that cannot go on; the message says why and what to try."""


class DivergedError(TrainingError):
    """A loss that is no longer finite; `history` has the epochs before."""

    def __init__(self, message: str, history: "list[Epoch]") -> None:
        super().__init__(message)
        self.history = history


@dataclass(frozen=True)
class Epoch:
    """Means over the images of an epoch: the parts of the loss, and the accuracy; epoch 0 has no training.

    The validation has two more: ``worst_group_loss``, the mean negative log-likelihood (nats) of the group of images
    where it is highest, whatever the loss that is trained on, and ``worst_group_accuracy``, that of the group where it
    is lowest. `seconds` is the time its training took, without the validation, and `images` how many it trained on.
    """

    number: int
    train: dict[str, float]
    validation: dict[str, float]
    seconds: float = field(default=0.0, compare=False)
    images: int = 0


OnEpochEnd = Callable[[list[Epoch], Classifier], bool | None]


def cross_entropy(model: Classifier, batch: Batch) -> dict[str, Tensor]:
    """Plain training: the mean negative log-likelihood of the labels, or the cross-entropy to a target, in nats."""
    logits, target = model(batch["image"]), batch.get("target", batch["label"])
    return {"loss": batch_mean(F.cross_entropy(logits, target, reduction="none"), batch), "logits": logits}


def fit(
    model: Classifier,
    loss: Loss,
    train: ImageIndex,
    validation: ImageIndex,
    config: TrainConfig,
    state: Path | None = None,
    progress: Progress | None = None,
    device: str | None = None,
    group_columns: list[str] | None = None,
    monitor: Monitor = "loss",
    balance_groups: bool = False,
    on_epoch_end: OnEpochEnd | None = None,
) -> tuple[Classifier, list[Epoch]]:
    """Train a copy of the model, and return it as it was after its best epoch, with the history.

    Args:
        model: where to start from; it is not changed.
        loss: what to minimise; its result holds ``loss`` and ``logits`` and any parts to log. One that has a
            ``state_dict`` and a ``load_state_dict`` is kept in `state` with the rest. Where the config make soft
            labels, training batches have ``target``, B x classes, which it has to aim at, as ``cross_entropy`` does.
        train: the training images.
        validation: the images that decide which epoch is kept.
        config: how to train.
        state: a folder to keep the state of the last epoch in; if it holds one, training goes on from there and ends
            with the same weights as if it had never stopped.
        progress: wraps an iterable to show progress: ``progress(batches, count, title)``.
        device: ``cpu`` to leave a GPU alone; else Accelerate chooses.
        group_columns: metadata columns that make the groups, None for all those that do in `train`.
        balance_groups: draw the training images group by group, each as often, in place of each image once an epoch.
        monitor: the mean over the validation images whose lowest value decides which epoch is kept.
        on_epoch_end: called after each epoch's validation, before training too (epoch 0), with the history and the
            model as it is then, which it must not change; True ends the training. It is called in each process.
            If the run is stopped in it or soon after, it is called for the same epoch again.

    Raises:
        DataError: for a group column that does not exist.
        ClearheadError: for another `monitor`, or an optimizer that cannot be had.
        TrainingError: if the loss is no longer finite (DivergedError), or the model has no parameter to train.
    """
    if monitor not in get_args(Monitor):
        raise ClearheadError(f"monitor: got {monitor!r}; there is {' and '.join(get_args(Monitor))}")
    require_device(device)
    if device is not None and torch.device(device).index is not None and torch.device(device).type == "cuda":
        torch.cuda.set_device(device)  # the one that accelerate takes
    AcceleratorState._reset_state()  # else a process can train at one precision only
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=device == "cpu")
    set_seed(config.seed)
    module = copied(model.module).to(accelerator.device)
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise TrainingError(f"{model.name} has no parameter that requires a gradient: nothing to train")
    optimizer: Any = optimizers.make(config.optimizer, module, config.lr, config.weight_decay)
    group_columns = shared_columns(train, validation) if group_columns is None else group_columns
    augmented = ImageDataset(train, model.preprocess, augmentation(config.augment, config.min_crop_area), group_columns)
    plain = ImageDataset(validation, model.preprocess, group_columns=group_columns)
    groups = sorted({*augmented.groups, *plain.groups})  # the same in all processes
    size, workers = config.batch_size, config.workers
    batches = loader(augmented, size, workers, shuffle=True, seed=config.seed, balanced=balance_groups, shared=True)
    held_out = loader(plain, size, workers, shared=True)
    order: SeededSampler = batches.batch_sampler.order  # type: ignore[union-attr]
    module, prepared = accelerator.prepare(module, optimizer)
    if accelerator.scaler is not None:
        optimizer = prepared  # else left alone: at each step it looks for packages that may be installed
    schedule = torch.optim.lr_scheduler.LambdaLR(prepared.optimizer, config.lr_lambda(len(batches)))
    accelerator.register_for_checkpointing(schedule)
    if _has_state(loss):
        accelerator.register_for_checkpointing(loss)
    trained = replace(model, module=module)
    measured = replace(model, module=accelerator.unwrap_model(module))  # no gradients to be shared

    def validated(title: str) -> dict[str, float]:
        return _validate(accelerator, measured, loss, held_out, groups, progress, title)

    def gradients(batch: Batch) -> dict[str, Tensor]:
        optimizer.zero_grad()
        parts = loss(trained, batch)
        accelerator.backward(parts["loss"])
        if config.max_grad_norm is not None:
            accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
        return parts

    def sharpness_aware_step(batch: Batch) -> dict[str, Tensor]:
        with optimizers.same_draws(accelerator.device), _same_state(loss):
            parts = gradients(batch)
        with optimizers.statistics_kept(module):
            optimizer.step(partial(gradients, batch))
        return parts

    def plain_step(batch: Batch) -> dict[str, Tensor]:
        parts = gradients(batch)
        optimizer.step()
        return parts

    step = sharpness_aware_step if optimizers.is_sharpness_aware(config.optimizer) else plain_step
    history, best, ended = _resume(accelerator, state)
    if not history:
        module.eval()
        history = [Epoch(0, {}, validated("before"))]
        best = _weights(accelerator, module)
        ended = bool(on_epoch_end and on_epoch_end(history, measured))
    while not ended and len(history) <= config.epochs:
        number = len(history)
        title = f"epoch {number}/{config.epochs}"
        order.set_epoch(number - 1)
        sums, began = _Means(accelerator), time.perf_counter()
        module.train()
        prepared.train()
        for i, batch in enumerate(_tracked(batches, progress, title)):
            batch = send_to_device(batch, accelerator.device, non_blocking=True)
            if config.has_soft_targets:
                batch = _softened(batch, len(model.classes), config, [config.seed, number, i])
            sums.add(step(batch), batch)
            schedule.step()
            if i % _LOOK == 0:
                _require_finite(sums.sums["loss"].item(), history, config)
        means = sums.means()
        _require_finite(means["loss"], history, config)
        module.eval()
        prepared.eval()
        if optimizers.is_schedule_free(config.optimizer):
            update_bn(_inputs(measured, batches, accelerator.device), measured.module)
        seconds = time.perf_counter() - began
        epoch = Epoch(number, means, validated(title), seconds, len(augmented))
        if epoch.validation[monitor] < min(e.validation[monitor] for e in history):
            best = _weights(accelerator, module)
        history.append(epoch)
        ended = bool(on_epoch_end and on_epoch_end(history, measured))
        _keep(accelerator, state, history, best, ended)
    chosen = copied(model.module)
    chosen.load_state_dict(best)
    return replace(model, module=chosen.eval()), history


def best_epoch(history: list[Epoch], monitor: Monitor = "loss") -> Epoch:
    """The epoch that is kept: lowest validation loss, or lowest in the worst group; the first of equals."""
    return min(history, key=lambda epoch: epoch.validation[monitor])


class _Means:
    """Means over images of the parts of a loss and of the accuracy, those of the worst group; over all processes."""

    def __init__(self, accelerator: Accelerator, groups: Sequence[str] = ()) -> None:
        self.accelerator = accelerator
        self.groups = {name: i for i, name in enumerate(groups)}
        self.of_groups = torch.zeros(3, len(groups), device=accelerator.device)  # images, losses, right answers
        self.sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))

    def add(self, parts: Mapping[str, Tensor], batch: Batch) -> None:
        """Take in one batch."""
        counts = batch["counts"].float()
        everywhere = mean_over_processes(counts.sum())  # the parts are shares of a mean over all processes' images
        for name, value in parts.items():
            if name != "logits":
                self.sums[name] += value.detach().float() * everywhere
        logits = parts["logits"].detach()
        correct = (logits.argmax(-1) == batch["label"]) * counts
        self.sums["accuracy"] += correct.sum()
        self.sums["images"] += counts.sum()
        if self.groups:
            group = torch.tensor([self.groups[name] for name in batch["group"]], device=logits.device)
            loss = F.cross_entropy(logits.float(), batch["label"], reduction="none")
            values = torch.stack([counts, loss * counts, correct])
            self.of_groups += values @ F.one_hot(group, len(self.groups)).float()  # index_add_ has no fixed order

    def means(self) -> dict[str, float]:
        """The means so far."""
        totals = {name: self.accelerator.reduce(value, "sum").item() for name, value in self.sums.items()}
        count = totals.pop("images")
        found = {name: value / count for name, value in totals.items()}
        if self.groups:
            images, losses, correct = self.accelerator.reduce(self.of_groups, "sum")
            there = images > 0
            found["worst_group_loss"] = (losses / images)[there].max().item()
            found["worst_group_accuracy"] = (correct / images)[there].min().item()
        return found


def _has_state(loss: Any) -> bool:
    return hasattr(loss, "state_dict") and hasattr(loss, "load_state_dict")


@contextmanager
def _same_state(loss: Any) -> Iterator[None]:
    """A block after which a loss that changes with training is as it was: two passes are one step to it."""
    state = copy.deepcopy(loss.state_dict()) if _has_state(loss) else None
    yield
    if state is not None:
        loss.load_state_dict(state)


@torch.no_grad()  # a loss that needs gradients switches them on
def _validate(
    accelerator: Accelerator,
    model: Classifier,
    loss: Loss,
    batches: Iterable,
    groups: Sequence[str],
    progress: Progress | None,
    title: str,
) -> dict[str, float]:
    sums = _Means(accelerator, groups)
    for batch in _tracked(batches, progress, f"{title}, validation"):
        batch = send_to_device(batch, accelerator.device)
        parts = loss(model, batch)
        sums.add(parts, batch)
    return sums.means()


def _softened(batch: Batch, classes: int, config: TrainConfig, seed: list[int]) -> Batch:
    """The batch with its ``target``, its images mixed where the config say so."""
    images, target = mixed(
        batch["image"],
        batch["label"],
        classes,
        mixup=config.mixup,
        cutmix=config.cutmix,
        label_smoothing=config.label_smoothing,
        seed=seed,
    )
    return {**batch, "image": images, "target": target}


def _inputs(model: Classifier, batches: Iterable, device: torch.device) -> Iterator[Tensor]:
    """Yield the normalised images of some batches; the loader is left alone until the first is asked for."""
    for batch in islice(batches, _RENEW):
        yield model.normalize(batch["image"].to(device))


def _require_finite(value: float, history: list[Epoch], config: TrainConfig) -> None:
    if not math.isfinite(value):
        raise DivergedError(
            f"the loss is {value} in epoch {len(history)}: try a smaller learning rate than {config.lr:g}"
            + ("" if config.mixed_precision == "no" else ", or mixed_precision no")
            + "; the state of the epoch before is kept",
            history,
        )


def _weights(accelerator: Accelerator, module: torch.nn.Module) -> dict[str, Tensor]:
    state = accelerator.unwrap_model(module).state_dict()
    return {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}


def _keep(
    accelerator: Accelerator, state: Path | None, history: list[Epoch], best: dict[str, Tensor], ended: bool
) -> None:
    """Put the state of all processes in place of the last one's, in one move."""
    if state is None:
        return
    unfinished = state.with_name(f".{state.name}.unfinished")
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        save_file(best, unfinished / "best.safetensors")
        (unfinished / "history.json").write_text(json.dumps([asdict(e) for e in history]), encoding="utf-8")
        if ended:
            (unfinished / "ended").touch()
        replace_folder(unfinished, state)
    accelerator.wait_for_everyone()


def _resume(accelerator: Accelerator, state: Path | None) -> tuple[list[Epoch], dict[str, Tensor], bool]:
    """The history, the best weights and whether it is to go no further; the rest goes where it came from."""
    if state is None:
        return [], {}, False
    if accelerator.is_main_process:
        restore(state)
    accelerator.wait_for_everyone()
    if not state.is_dir():
        return [], {}, False
    accelerator.load_state(str(state))
    history = json.loads((state / "history.json").read_text(encoding="utf-8"))
    return [Epoch(**epoch) for epoch in history], load_file(state / "best.safetensors"), (state / "ended").exists()


def _tracked(batches: Iterable, progress: Progress | None, title: str) -> Iterator:
    return iter(progress(batches, len(batches), title) if progress else batches)  # type: ignore[arg-type]
