"""How to train: epochs, optimizer, schedule, augmentation, as one small record that is checked when it is made."""

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
        batch_size: images a step, over all processes.
        optimizer: its name (``clearhead.training.optimizers``).
        weight_decay: of all parameters.
        schedule: of the learning rate, after the warm-up: ``cosine`` (to 0), ``steps`` (x 0.2 after 30, 60 and 80% of
            the epochs), ``decay`` (x 0.85 every 2 epochs, the schedule of arXiv 2206.01161) or ``constant``, which a
            schedule-free optimizer always has.
        warmup: epochs in which the learning rate rises from 0 in a line; None is a tenth of the steps for ``cosine``,
            none for the others.
        min_crop_area: smallest window of a training image, as a share of its area, for ``augment="crop"``.
        augment: ``crop`` (random windows), ``weak`` (moved by up to an eighth of the side), both with mirroring;
            ``strong`` (weak, then RandAugment m9-n2-mstd1.0; without masks) or ``none``.
        label_smoothing: share of a label that is spread over all classes.
        mixup: parameter of the Beta distribution that decides how two images are mixed; 0 is no mixing.
        cutmix: the same for windows cut from one image and put into another.
        max_grad_norm: largest norm of the gradient; None leaves it.
        mixed_precision: ``no``, ``bf16`` or ``fp16``.
        workers: processes that load images.
        seed: of order, augmentation and dropout.

    Raises ClearheadError for values that cannot be.
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
        optimizers.require(self.optimizer)
        augmentation(self.augment)
        if self.schedule not in get_args(Schedule):
            raise ClearheadError(f"schedule: {self.schedule!r} is unknown; there is {', '.join(get_args(Schedule))}")
        if self.warmup is not None and not 0 <= self.warmup <= self.epochs:
            raise ClearheadError(
                f"warmup: got {self.warmup}; 0 to {self.epochs} epochs can be warm-up of {self.epochs}"
            )
        if not 0 <= self.lr < math.inf:
            raise ClearheadError(f"lr: got {self.lr}; a number of at least 0 is needed, such as 1e-4")
        if self.batch_size < 1:
            raise ClearheadError(f"batch_size: got {self.batch_size}; at least 1 is needed")
        if not 0 < self.min_crop_area <= 1:
            raise ClearheadError(f"min_crop_area: got {self.min_crop_area}; a fraction above 0 and up to 1 is needed")
        if not 0 <= self.label_smoothing < 1:
            raise ClearheadError(f"label_smoothing: got {self.label_smoothing}; a share below 1 is needed, such as 0.1")
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ClearheadError(
                    f"{name}: got {getattr(self, name)}; a number of at least 0 is needed, such as 1.0"
                )
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ClearheadError(
                f"max_grad_norm: got {self.max_grad_norm}; a norm above 0 is needed, such as 5.0, or None"
            )
        if self.mixed_precision == "fp16" and optimizers.is_sharpness_aware(self.optimizer):
            raise ClearheadError(
                f"mixed_precision: fp16 scales the gradient that {self.optimizer} follows; give bf16 or no"
            )

    @property
    def has_soft_targets(self) -> bool:
        """Whether an image may be of several classes: its target is then a distribution."""
        return bool(self.label_smoothing or self.mixup or self.cutmix)

    def lr_lambda(self, steps: int) -> Callable[[int], float]:
        """Factor of the learning rate at each step, of `steps` an epoch."""
        total = self.epochs * steps
        warm = 0 if self.warmup is None else self.warmup * steps
        if self.warmup is None and self.schedule == "cosine":
            warm = max(1, total // 10)
        schedule = "constant" if optimizers.is_schedule_free(self.optimizer) else self.schedule

        def factor(step: int) -> float:
            rise = min(1.0, (step + 1) / warm) if warm else 1.0
            epoch = step // steps
            if schedule == "cosine":
                return rise * (0.5 + 0.5 * math.cos(math.pi * max(0, step - warm) / max(1, total - warm)))
            if schedule == "steps":
                return rise * 0.2 ** sum(10 * epoch >= tenths * self.epochs for tenths in (3, 6, 8))
            return rise * (0.85 ** (epoch // 2) if schedule == "decay" else 1.0)

        return factor
