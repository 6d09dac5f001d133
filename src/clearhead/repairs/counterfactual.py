"""Counterfactual augmentation: the output must not follow what has nothing to do with the object.

Each change of the shortcut battery (``clearhead.shifts.shortcuts``) that leaves the object in the image is a
counterfactual: the same object with a watermark, on another background, without colour. With f the model, f₀ a frozen
copy of the original one, x an image and x' the image under a change drawn at random for each image::

    consistency KL(f₀(x) || f(x')) + clean KL(f₀(x) || f(x)) + classification (CE(f(x'), y) + CE(f(x), y)) / 2

The targets are the original model's outputs on the clean images: they cannot be memorised as labels can, need no labels
at all, and the second term guards against harm on clean images. The labels are left out by default.

Backgrounds are those of some training images, of another class where there is one: neighbours in a batch would not do,
since validation images come class by class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clearhead.data.dataset import ImageIndex
from clearhead.data.image_io import DataError
from clearhead.data.loading import ImageDataset, batch_mean
from clearhead.errors import ClearheadError
from clearhead.models import Classifier
from clearhead.models.classifier import evaluation_mode
from clearhead.repairs.loss_inputs import is_training
from clearhead.shifts.shortcuts import SHORTCUTS
from clearhead.training.losses import Batch

COUNTERFACTUALS = tuple(name for name, shortcut in SHORTCUTS.items() if shortcut.keeps_object)
"""The changes that leave the object in the image."""

_SWAPPED = "background-swapped"

_POOL = 256
"""Images whose backgrounds are used: 48 MB at 224 pixels."""


@dataclass(frozen=True, eq=False)
class CounterfactualLoss:
    """The loss ``(model, batch) -> parts`` on images in 0..1.

    Attributes:
        teacher: the original model, in eval mode; it is not trained.
        shortcuts: names of the changes, from ``COUNTERFACTUALS``. Those that need a mask are drawn for images that have
            one; an image to which none applies is not changed.
        pool: images whose backgrounds ``background-swapped`` uses: image (K x 3 x H x W) and mask (K x 1 x H x W), both
            0..255, and label (K).
        consistency: weight of the distance from the teacher's output on the clean image, on the changed image.
        clean: weight of the distance from it on the clean image.
        classification: weight of the cross-entropy with the labels, over changed and clean images.

    Raises ClearheadError for a change that is unknown or removes the object, none at all, or a negative weight.
    """

    teacher: Classifier = field(repr=False)
    shortcuts: tuple[str, ...] = COUNTERFACTUALS
    pool: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    consistency: float = 1.0
    clean: float = 1.0
    classification: float = 0.0

    def __post_init__(self) -> None:
        if not self.shortcuts:
            raise ClearheadError(f"shortcuts: got none; choose from {', '.join(COUNTERFACTUALS)}")
        for name in self.shortcuts:
            if name not in COUNTERFACTUALS:
                reason = "removes the object, so its label does not apply" if name in SHORTCUTS else "is unknown"
                raise ClearheadError(f"shortcuts: {name!r} {reason}; choose from {', '.join(COUNTERFACTUALS)}")
        for name in ("consistency", "clean", "classification"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ClearheadError(f"{name}: got {value}; a weight of at least 0 is needed")
        if _SWAPPED in self.shortcuts and not self.pool:
            raise ClearheadError("pool: background-swapped needs images with masks, as ``from_model`` takes them")
        if self.consistency == self.classification == 0:
            raise ClearheadError("consistency, classification: one of them must be above 0, or nothing is repaired")

    @classmethod
    def from_model(
        cls,
        model: Classifier,
        images: ImageIndex,
        *,
        shortcuts: Sequence[str] | None = None,
        consistency: float = 1.0,
        clean: float = 1.0,
        classification: float = 0.0,
        seed: int = 0,
    ) -> Self:
        """Take the model as the teacher; by default all changes that can be applied to the images.

        Raises:
            ClearheadError: for invalid values.
            DataError: for a change that needs masks where no image has one.
        """
        masked = any(sample.mask for sample in images.samples)
        if shortcuts is None:
            shortcuts = [name for name in COUNTERFACTUALS if masked or not SHORTCUTS[name].needs_mask]
        if needing := [name for name in shortcuts if name in SHORTCUTS and SHORTCUTS[name].needs_mask and not masked]:
            raise DataError(
                f"{images.root}: the shortcuts {', '.join(needing)} need foreground masks, and none of the "
                f"{len(images.samples):,} training images has one; put them in masks/<class>/<stem>.png (nonzero = "
                "object), make them with `clearhead data masks`, or choose other shortcuts"
            )
        pool = _pool(model, images, seed) if _SWAPPED in shortcuts else {}
        return cls(model, tuple(shortcuts), pool, consistency, clean, classification)

    def __call__(self, model: Classifier, batch: Batch) -> dict[str, Tensor]:
        """Return the total under ``loss``, its parts, in nats, and the ``logits`` of the clean images.

        The parts are ``consistency``, ``clean`` and ``classification``. In training mode the changes follow torch's
        global random generator, in eval mode they are the same at each call.

        Args:
            model: the classifier that is trained.
            batch: image, label, mask and has_mask, as in ``clearhead.repairs.loss_inputs``.
        """
        images = batch["image"]
        changed = self.changed(images, batch, random=is_training(model))
        if self.teacher.device != images.device:
            self.teacher.to(images.device)
        with torch.no_grad(), evaluation_mode(self.teacher.module):
            target = self.teacher(images).softmax(-1)
        clean_logits, changed_logits = model(torch.cat([images, changed])).chunk(2)

        def distance(logits: Tensor) -> Tensor:
            return batch_mean(F.kl_div(logits.log_softmax(-1), target, reduction="none").sum(-1), batch)

        parts = {"consistency": distance(changed_logits), "clean": distance(clean_logits)}
        both = [F.cross_entropy(logits, batch["label"], reduction="none") for logits in (clean_logits, changed_logits)]
        parts["classification"] = batch_mean((both[0] + both[1]) / 2, batch)
        total = sum(getattr(self, name) * part for name, part in parts.items() if getattr(self, name))
        return {"loss": torch.as_tensor(total), "logits": clean_logits} | parts

    def changed(self, images: Tensor, batch: Batch, random: bool) -> Tensor:
        """Return the images, each under one of the changes; in fixed order and form if not `random`."""
        fill = self.teacher.preprocess.mean
        count = len(images)
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())) if random else 0)
        has_mask = batch["has_mask"].cpu() if "has_mask" in batch else torch.full((count,), "mask" in batch)
        allowed = torch.tensor(
            [[bool(has_mask[i]) or not SHORTCUTS[n].needs_mask for n in self.shortcuts] for i in range(count)]
        )
        drawn = torch.rand(allowed.shape, generator=generator).masked_fill(~allowed, -1)
        choice = drawn.argmax(1).masked_fill(~allowed.any(1), -1)
        result = images.clone()
        for number, name in enumerate(self.shortcuts):
            rows = (choice == number).nonzero()[:, 0].to(images.device)
            if not len(rows):
                continue
            x = images[rows]
            masks = batch["mask"].reshape(count, 1, *images.shape[-2:])[rows].to(x) if "mask" in batch else x[:, :1]
            if name == _SWAPPED:  # the background of each image is that of the one before it
                others, other_masks = self._backgrounds(batch["label"][rows], generator)
                x, masks = _interleaved(others.to(x), x), _interleaved(other_masks.to(x), masks)
                result[rows] = SHORTCUTS[name].random(x, masks, fill, generator)[1::2]
            else:
                result[rows] = SHORTCUTS[name].random(x, masks, fill, generator)
        return result

    def _backgrounds(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw for each label an image of the pool with another one, where there is one; and its mask, both in 0..1."""
        other = self.pool["label"][None] != labels.cpu()[:, None]
        other[~other.any(1)] = True
        drawn = torch.multinomial(other.float(), 1, generator=generator)[:, 0]
        return self.pool["image"][drawn] / 255, self.pool["mask"][drawn] / 255


def _interleaved(first: Tensor, second: Tensor) -> Tensor:
    """Return first[0], second[0], first[1], second[1], ..."""
    return torch.stack([first, second], 1).flatten(0, 1)


def _pool(model: Classifier, images: ImageIndex, seed: int) -> dict[str, Tensor]:
    """Load at most ``_POOL`` of the images with masks, drawn at random."""
    masked = [i for i, sample in enumerate(images.samples) if sample.mask]
    drawn = np.random.default_rng(seed).permutation(masked)[:_POOL]
    items = [ImageDataset(images, model.preprocess)[int(i)] for i in sorted(drawn)]
    pool = {name: torch.stack([(255 * item[name]).round().byte() for item in items]) for name in ("image", "mask")}
    return pool | {"label": torch.tensor([item["label"] for item in items])}


def background_swap(
    model: Classifier,
    images: ImageIndex,
    *,
    consistency: float = 1.0,
    clean: float = 1.0,
    classification: float = 0.0,
    seed: int = 0,
) -> CounterfactualLoss:
    """Return the loss whose only change is another image's background; raises as ``from_model``."""
    return CounterfactualLoss.from_model(
        model,
        images,
        shortcuts=[_SWAPPED],
        consistency=consistency,
        clean=clean,
        classification=classification,
        seed=seed,
    )
