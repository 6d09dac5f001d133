"""Estimate how long a repair takes, from a few measured batches, before it is started."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F

from clearhead.data.augment import augmentation
from clearhead.data.dataset import ImageIndex
from clearhead.data.loading import ImageDataset, loader
from clearhead.errors import ClearheadError
from clearhead.heads.head_masking import attention_layers
from clearhead.models import Classifier
from clearhead.models.classifier import copied, evaluation_mode
from clearhead.models.features import last_layer
from clearhead.repairs.interpolation import WEIGHTS as INTERPOLATED
from clearhead.repairs.registry import REPAIRS
from clearhead.training.config import TrainConfig
from clearhead.training.trainable import Trainable, with_trainable

_MEASURED_BATCHES = 2
"""The first batch warms up; the last one counts."""

_BATCH_SIZE = 32
"""Images per batch of forward passes."""

_HEAD_GRADIENTS = 1200
"""Gradients of the head's loss in all fits of AFR together, about; DFR takes a similar time."""


@dataclass(frozen=True)
class Speed:
    """What a machine takes for a model and some images, in seconds; loading of the images is included.

    Attributes:
        forward: per image of a forward pass.
        step: per image of a plain training step.
        head_gradient: per image of a gradient of the classifier head's loss, on features.
        heads: number of attention heads of each layer, in order.
    """

    forward: float
    step: float
    head_gradient: float
    heads: tuple[int, ...]


def measure_speed(model: Classifier, images: ImageIndex, config: TrainConfig, trainable: Trainable = "all") -> Speed:
    """Measure the speed on a few batches, on the model's device; the model is not changed."""
    device = model.device
    batches = loader(ImageDataset(images, model.preprocess), _BATCH_SIZE, 0)
    last: dict[str, Any] = {}

    def forward(batch: dict[str, Any]) -> None:
        last.update(batch)
        with torch.inference_mode(), evaluation_mode(model.module):
            model(batch["image"].to(device)).sum().item()

    forward_time = _seconds_per_image(batches, forward)
    trained = with_trainable(replace(model, module=copied(model.module)), trainable, config.seed)
    trained.module.train()
    parameters = [p for p in trained.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0) if parameters else None
    augment = augmentation(config.augment, config.min_crop_area)
    shuffled = loader(ImageDataset(images, model.preprocess, augment), config.batch_size, 0, shuffle=True)

    def step(batch: dict[str, Any]) -> None:
        loss = F.cross_entropy(trained(batch["image"].to(device)), batch["label"].to(device))
        if optimizer is not None:
            torch.autograd.backward(loss)
            optimizer.step()
        loss.item()

    step_time = _seconds_per_image(shuffled, step)
    try:
        heads = tuple(layer.num_heads for layer in attention_layers(model, last["image"].to(device)))
    except ClearheadError:  # the repair by heads reports it
        heads = ()
    return Speed(forward_time, step_time, _head_gradient_time(model), heads)


def _seconds_per_image(batches: Any, run: Callable[[dict[str, Any]], None]) -> float:
    """Return the time of loading and running the last of a few batches, divided by its images."""
    started, seconds = time.perf_counter(), 0.0
    for batch in islice(batches, _MEASURED_BATCHES):
        run(batch)
        now = time.perf_counter()
        started, seconds = now, (now - started) / len(batch["image"])
    return seconds


def _head_gradient_time(model: Classifier, images: int = 1024) -> float:
    layer = last_layer(model)
    if layer is None:
        return 0.0
    x, weight = torch.randn(images, layer.in_features), torch.zeros(layer.out_features, layer.in_features)
    labels = torch.zeros(images, dtype=torch.long)
    weight.requires_grad_(True)
    started = seconds = time.perf_counter()
    for _ in range(_MEASURED_BATCHES):
        torch.autograd.backward(F.cross_entropy(x @ weight.T, labels))
        started, seconds = time.perf_counter(), time.perf_counter() - started
    return seconds / images


def estimate(
    method: str,
    speed: Speed,
    config: TrainConfig,
    train: int,
    validation: int,
    *,
    has_features: bool = False,
    options: Mapping[str, Any] | None = None,
) -> float:
    """Return about how many seconds a repair takes.

    Args:
        method: a key of ``REPAIRS``.
        speed: of the model.
        config: how it is trained.
        train: number of training images.
        validation: number of validation images.
        has_features: whether the features of the images are there already.
        options: of the repair.
    """
    chosen, every = REPAIRS[method], speed.forward * (train + validation)
    passes = chosen.passes if chosen.passes is not None else float(chosen.function is not None)
    seconds = passes * every
    if chosen.shares_features:
        return seconds + _HEAD_GRADIENTS * speed.head_gradient * train - (every if has_features else 0.0)
    if chosen.function is not None:
        return seconds if chosen.trains else speed.forward * validation * _search_passes(speed, options or {})
    validations = config.epochs + 1 + (len(INTERPOLATED) if chosen.interpolate else 0)
    trained = speed.step * train * config.epochs + speed.forward * validation * validations
    return seconds + chosen.step_time * trained


def epochs_within(method: str, speed: Speed, config: TrainConfig, train: int, validation: int, seconds: float) -> int:
    """Return how many epochs of a fine-tuning fit into some seconds; 0 for a repair that does not fine-tune."""
    if REPAIRS[method].loss is None:
        return 0
    first, second = (estimate(method, speed, replace(config, epochs=n), train, validation) for n in (1, 2))
    return max(0, int(1 + (seconds - first) / max(second - first, 1e-9))) if seconds >= first else 0


def _search_passes(speed: Speed, options: Mapping[str, Any]) -> float:
    """Return about how many forward passes per image a search over heads takes."""
    if not speed.heads:
        return 1.0
    total = sum(speed.heads)
    if options.get("search") == "greedy":
        return total * (total + 1) / 4  # half a pass per candidate, since those before the layer are shared
    if options.get("search") == "importance":
        return 3 + total
    return 1.0 + 2.0 ** min(speed.heads[-1], 12) / len(speed.heads)
