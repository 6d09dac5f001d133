"""The one training loop. What is minimised is a function of model and batch: cross-entropy, or a repair.

A loss is ``(model, batch) -> {"loss": total, ...}`` with a batch as ``clearhead.data.batches.Images`` makes it; other
entries are parts to log. The epoch kept is the one of lowest validation loss, over all images or in the worst group,
and the untouched model counts as epoch 0: training that never helps on the validation images gives back what it was
given.
"""

import copy
import json
import math
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device, set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor

from clearhead.data.augment import crop_and_flip
from clearhead.data.batches import Images, Shuffle, loader, over_images
from clearhead.data.folder import ImageFolder
from clearhead.models import Classifier
from clearhead.processes import mean_over_processes
from clearhead.runs import replace_folder, restore

Batch = Mapping[str, Any]
Loss = Callable[[Classifier, Batch], dict[str, Tensor]]
Track = Callable[[Iterable, int, str], Iterable]
ChooseBy = Literal["loss", "worst_group_loss"]


class TrainingError(RuntimeError):
    """Training that cannot go on; the message says why and what to try."""


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        epochs: passes over the training images.
        lr: highest learning rate.
        batch_size: images a step, over all processes.
        optimizer: AdamW, or SGD with momentum 0.9.
        weight_decay: of all parameters.
        schedule: ``cosine`` (a tenth of the steps of linear warm-up, then to 0), ``decay`` (x 0.85 every 2 epochs, the
            schedule of arXiv 2206.01161) or ``constant``.
        crop: smallest window of a training image, as a share of its area.
        mixed_precision: ``no``, ``bf16`` or ``fp16``.
        workers: processes that load images.
        seed: of order, augmentation and dropout.
    """

    epochs: int
    lr: float
    batch_size: int = 32
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "decay", "constant"] = "cosine"
    crop: float = 0.5
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    workers: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """Means over the images of an epoch: the parts of the loss, and the accuracy; epoch 0 has no training.

    The validation has two more: ``worst_group_loss``, the mean negative log-likelihood (nats) of the group of images
    where it is highest, whatever the loss that is trained on, and ``worst_group_accuracy``, that of the group where it
    is lowest.
    """

    number: int
    train: dict[str, float]
    validation: dict[str, float]


def cross_entropy(model: Classifier, batch: Batch) -> dict[str, Tensor]:
    """Plain training: the mean negative log-likelihood of the labels, in nats."""
    logits = model(batch["image"])
    return {"loss": over_images(F.cross_entropy(logits, batch["label"], reduction="none"), batch), "logits": logits}


def fit(
    model: Classifier,
    loss: Loss,
    train: ImageFolder,
    validation: ImageFolder,
    settings: Settings,
    state: Path | None = None,
    track: Track | None = None,
    device: str | None = None,
    group_columns: list[str] | None = None,
    choose_by: ChooseBy = "loss",
    balanced: bool = False,
) -> tuple[Classifier, list[Epoch]]:
    """Train a copy of the model, and return it as it was after its best epoch, with the history.

    Args:
        model: where to start from; it is not changed.
        loss: what to minimise; its result holds ``loss`` and ``logits`` and any parts to log. One that has a
            ``state_dict`` and a ``load_state_dict`` is kept in `state` with the rest.
        train: the training images.
        validation: the images that decide which epoch is kept.
        settings: how to train.
        state: a folder to keep the state of the last epoch in; if it holds one, training goes on from there and ends
            with the same weights as if it had never stopped.
        track: wraps an iterable to show progress: ``track(batches, count, title)``.
        device: ``cpu`` to leave a GPU alone; else Accelerate chooses.
        group_columns: metadata columns that make the groups, None for all.
        balanced: draw the training images group by group, each as often, in place of each image once an epoch.
        choose_by: the mean over the validation images whose lowest value decides which epoch is kept.

    Raises:
        DataError: for a group column that does not exist.
        ValueError: for another `choose_by`.
        TrainingError: if the loss is no longer finite, or the model has no parameter to train.
    """
    if choose_by not in get_args(ChooseBy):
        raise ValueError(f"choose_by: got {choose_by!r}; there is {' and '.join(get_args(ChooseBy))}")
    AcceleratorState._reset_state()  # else a process can train at one precision only
    accelerator = Accelerator(mixed_precision=settings.mixed_precision, cpu=device == "cpu")
    set_seed(settings.seed)
    module = copy.deepcopy(model.module).to(accelerator.device)
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise TrainingError(f"{model.name} has no parameter that requires a gradient: nothing to train")
    optimizer = _optimizer(parameters, settings)
    augmented = Images(train, model.preprocess, crop_and_flip(settings.crop), group_columns)
    plain = Images(validation, model.preprocess, group_columns=group_columns)
    groups = sorted({*augmented.groups, *plain.groups})  # the same in all processes
    size, workers = settings.batch_size, settings.workers
    batches = loader(augmented, size, workers, shuffle=True, seed=settings.seed, balanced=balanced, shared=True)
    held_out = loader(plain, size, workers, shared=True)
    order: Shuffle = batches.batch_sampler.order  # type: ignore[union-attr]
    module, optimizer = accelerator.prepare(module, optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, _schedule(settings, len(batches)))
    accelerator.register_for_checkpointing(schedule)
    if hasattr(loss, "state_dict") and hasattr(loss, "load_state_dict"):
        accelerator.register_for_checkpointing(loss)
    trained = replace(model, module=module)
    measured = replace(model, module=accelerator.unwrap_model(module))  # no gradients to be shared

    history, best = _resume(accelerator, state)
    if not history:
        module.eval()
        history = [Epoch(0, {}, _validate(accelerator, measured, loss, held_out, groups, track, "before"))]
        best = _weights(accelerator, module)
    for number in range(len(history), settings.epochs + 1):
        title = f"epoch {number}/{settings.epochs}"
        order.set_epoch(number - 1)
        sums = _Means(accelerator)
        module.train()
        for batch in _tracked(batches, track, title):
            batch = send_to_device(batch, accelerator.device)
            parts = loss(trained, batch)
            _require_finite(parts["loss"], number, settings)
            accelerator.backward(parts["loss"])
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            sums.add(parts, batch)
        module.eval()
        epoch = Epoch(number, sums.means(), _validate(accelerator, measured, loss, held_out, groups, track, title))
        if epoch.validation[choose_by] < min(e.validation[choose_by] for e in history):
            best = _weights(accelerator, module)
        history.append(epoch)
        _keep(accelerator, state, history, best)
    chosen = copy.deepcopy(model.module)
    chosen.load_state_dict(best)
    return replace(model, module=chosen.eval()), history


def best_epoch(history: list[Epoch], choose_by: ChooseBy = "loss") -> Epoch:
    """The epoch that is kept: lowest validation loss, or lowest in the worst group; the first of equals."""
    return min(history, key=lambda epoch: epoch.validation[choose_by])


def _optimizer(parameters: list[torch.nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, settings.lr, momentum=0.9, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(parameters, settings.lr, weight_decay=settings.weight_decay)


def _schedule(settings: Settings, steps: int) -> Callable[[int], float]:
    """Factor of the learning rate at each step of `steps` an epoch."""
    total = max(1, settings.epochs * steps)
    warm = max(1, total // 10)

    def factor(step: int) -> float:
        if settings.schedule == "cosine":
            return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * max(0, step - warm) / max(1, total - warm)))
        return 0.85 ** (step // steps // 2) if settings.schedule == "decay" else 1.0

    return factor


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


@torch.no_grad()  # a loss that needs gradients switches them on
def _validate(
    accelerator: Accelerator,
    model: Classifier,
    loss: Loss,
    batches: Iterable,
    groups: Sequence[str],
    track: Track | None,
    title: str,
) -> dict[str, float]:
    sums = _Means(accelerator, groups)
    for batch in _tracked(batches, track, f"{title}, validation"):
        batch = send_to_device(batch, accelerator.device)
        parts = loss(model, batch)
        sums.add(parts, batch)
    return sums.means()


def _require_finite(value: Tensor, number: int, settings: Settings) -> None:
    if not torch.isfinite(value):
        raise TrainingError(
            f"the loss is {value.item()} in epoch {number}: try a smaller learning rate than {settings.lr:g}"
            + ("" if settings.mixed_precision == "no" else ", or mixed_precision no")
            + "; the state of the epoch before is kept"
        )


def _weights(accelerator: Accelerator, module: torch.nn.Module) -> dict[str, Tensor]:
    state = accelerator.unwrap_model(module).state_dict()
    return {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}


def _keep(accelerator: Accelerator, state: Path | None, history: list[Epoch], best: dict[str, Tensor]) -> None:
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
        replace_folder(unfinished, state)
    accelerator.wait_for_everyone()


def _resume(accelerator: Accelerator, state: Path | None) -> tuple[list[Epoch], dict[str, Tensor]]:
    if state is None:
        return [], {}
    if accelerator.is_main_process:
        restore(state)
    accelerator.wait_for_everyone()
    if not state.is_dir():
        return [], {}
    accelerator.load_state(str(state))
    history = json.loads((state / "history.json").read_text(encoding="utf-8"))
    return [Epoch(**epoch) for epoch in history], load_file(state / "best.safetensors")


def _tracked(batches: Iterable, track: Track | None, title: str) -> Iterator:
    return iter(track(batches, len(batches), title) if track else batches)  # type: ignore[arg-type]
