"""How to train: epochs, optimizer, schedule and augmentation, checked when the record is made."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from clearhead.data.augment import Augmentation, augmentation
from clearhead.errors import ClearheadError
from clearhead.training import optimizers

Schedule = Literal["cosine", "steps", "decay", "constant"]


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: passes over the training images.
        lr: highest learning rate.
        batch_size: images per step, over all processes.
        optimizer: its name (``clearhead.training.optimizers``).
        weight_decay: of all parameters.
        schedule: of the learning rate after the warm-up: ``cosine`` (to 0), ``steps`` (x 0.2 after 30, 60 and 80% of
            the epochs), ``decay`` (x 0.85 every 2 epochs, as in arXiv 2206.01161) or ``constant``. Schedule-free
            optimizers always use ``constant``.
        warmup: epochs in which the learning rate rises linearly from 0; None is a tenth of the steps for ``cosine``,
            and no warm-up for the others.
        min_crop_area: smallest area of a random crop, as a fraction of the image, for ``augment="crop"``.
        augment: ``crop`` (random crop and flip), ``weak`` (shift by up to an eighth of the side, and flip), ``strong``
            (weak, then RandAugment m9-n2-mstd1.0; unsuitable for masks) or ``none``.
        label_smoothing: fraction of the target that is spread over all classes.
        mixup: parameter of the Beta distribution of the mixing weight; 0 disables mixup.
        cutmix: the same for the area of the pasted rectangle; 0 disables cutmix.
        max_grad_norm: gradients are clipped to this norm; None disables clipping.
        mixed_precision: ``no``, ``bf16`` or ``fp16``.
        workers: number of processes that load images.
        seed: random seed of order, augmentation and dropout.

    Raises ClearheadError for invalid values.
    """

    epochs: int
    lr: float
    batch_size: int = 32
    optimizer: str = "adamw"
    weight_decay: float = 1e-4
    schedule: Schedule = "cosine"
    warmup: int | None = None
    min_crop_area: float = 0.5
    augment: Augmentation = "crop"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    max_grad_norm: float | None = None
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        optimizers.require_optimizer(self.optimizer)
        augmentation(self.augment)
        if self.schedule not in get_args(Schedule):
            raise ClearheadError(f"schedule: {self.schedule!r} is unknown; choose from {', '.join(get_args(Schedule))}")
        if self.mixed_precision == "fp16" and optimizers.is_sharpness_aware(self.optimizer):
            raise ClearheadError(
                f"mixed_precision: fp16 scales the gradient that {self.optimizer} follows; use bf16 or no"
            )
        _require("warmup", self.warmup, self.warmup is None or 0 <= self.warmup <= self.epochs, f"0 to {self.epochs}")
        _require("lr", self.lr, 0 <= self.lr < math.inf, "a number of at least 0, such as 1e-4,")
        _require("batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        _require("min_crop_area", self.min_crop_area, 0 < self.min_crop_area <= 1, "a fraction above 0 and up to 1")
        smoothing = self.label_smoothing
        _require("label_smoothing", smoothing, 0 <= smoothing < 1, "a fraction below 1, such as 0.1,")
        for name in ("mixup", "cutmix"):
            value = getattr(self, name)
            _require(name, value, 0 <= value < math.inf, "a number of at least 0, such as 1.0,")
        norm = self.max_grad_norm
        _require("max_grad_norm", norm, norm is None or norm > 0, "a norm above 0, such as 5.0, or None")

    @property
    def has_soft_targets(self) -> bool:
        """Whether the target of an image is a distribution over classes."""
        return bool(self.label_smoothing or self.mixup or self.cutmix)

    def lr_lambda(self, steps_per_epoch: int) -> Callable[[int], float]:
        """Return the factor of the learning rate as a function of the step, from 0."""
        total = self.epochs * steps_per_epoch
        warmup = 0 if self.warmup is None else self.warmup * steps_per_epoch
        if self.warmup is None and self.schedule == "cosine":
            warmup = max(1, total // 10)
        schedule = "constant" if optimizers.is_schedule_free(self.optimizer) else self.schedule

        def factor(step: int) -> float:
            rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
            epoch = step // steps_per_epoch
            if schedule == "cosine":
                return rise * (0.5 + 0.5 * math.cos(math.pi * max(0, step - warmup) / max(1, total - warmup)))
            if schedule == "steps":
                return rise * 0.2 ** sum(10 * epoch >= tenths * self.epochs for tenths in (3, 6, 8))
            return rise * (0.85 ** (epoch // 2) if schedule == "decay" else 1.0)

        return factor


def _require(name: str, value: object, valid: bool, needed: str) -> None:
    if not valid:
        raise ClearheadError(f"{name}: got {value}; {needed} is needed")
