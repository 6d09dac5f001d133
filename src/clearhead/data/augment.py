"""Augment images together with their masks before preprocessing, and mix batches of images after it."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import Mixup
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor

from clearhead.data.loading import Augment
from clearhead.errors import ClearheadError

Augmentation = Literal["crop", "weak", "strong", "none"]


def augmentation(name: Augmentation, crop: float = 0.5) -> Augment | None:
    """Return the augmentation: crop: random crop + flip; weak: shift + flip; strong: weak + RandAugment; or None.

    `crop` is the smallest crop as a fraction of the image's area. Raises ClearheadError for another name.
    """
    if name not in get_args(Augmentation):
        raise ClearheadError(f"augment: {name!r} is unknown; choose from {', '.join(get_args(Augmentation))}")
    makers: dict[str, Callable[[], Augment]] = {"weak": shift_and_flip, "strong": rand_augment}
    makers["crop"] = lambda: crop_and_flip(crop)
    return makers[name]() if name in makers else None


def crop_and_flip(min_area: float) -> Augment:
    """Return a random crop of `min_area`..1 of the image's area with its aspect ratio, flipped with probability 0.5."""

    def augment(
        image: Image.Image, mask: Image.Image | None, generator: torch.Generator
    ) -> tuple[Image.Image, Image.Image | None]:
        area, x, y, flip = torch.rand(4, generator=generator).tolist()
        side = math.sqrt(min_area + (1 - min_area) * area)
        width, height = max(1, round(side * image.width)), max(1, round(side * image.height))
        left, top = round(x * (image.width - width)), round(y * (image.height - height))

        def apply(image: Image.Image) -> Image.Image:
            crop = image.crop((left, top, left + width, top + height))
            return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip < 0.5 else crop

        return apply(image), apply(mask) if mask is not None else None

    return augment


def shift_and_flip() -> Augment:
    """Return a shift by up to 1/8 of each side (4 of 32 pixels), filled with black, flipped with probability 0.5."""

    def augment(
        image: Image.Image, mask: Image.Image | None, generator: torch.Generator
    ) -> tuple[Image.Image, Image.Image | None]:
        x, y, flip = torch.rand(3, generator=generator).tolist()
        max_x, max_y = image.width // 8, image.height // 8
        left, top = int(x * (2 * max_x + 1)) - max_x, int(y * (2 * max_y + 1)) - max_y

        def apply(image: Image.Image) -> Image.Image:
            shifted = image.crop((left, top, left + image.width, top + image.height))  # black beyond the edges
            return shifted.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip < 0.5 else shifted

        return apply(image), apply(mask) if mask is not None else None

    return augment


def rand_augment() -> Augment:
    """Return ``shift_and_flip`` followed by timm's RandAugment m9-n2-mstd1.0 (arXiv 1909.13719).

    RandAugment rotates and shears the image, so the result has no mask.
    """
    shift, transform = shift_and_flip(), rand_augment_transform("rand-m9-n2-mstd1.0")

    def augment(
        image: Image.Image, mask: Image.Image | None, generator: torch.Generator
    ) -> tuple[Image.Image, Image.Image | None]:
        shifted, _ = shift(image, None, generator)
        with seeded([int(torch.randint(2**32, (), generator=generator))]):
            return transform(shifted), None

    return augment


def mix_batch(
    images: Tensor,
    labels: Tensor,
    classes: int,
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    label_smoothing: float = 0.0,
    seed: Sequence[int] = (0,),
) -> tuple[Tensor, Tensor]:
    """Mix each image with another of the batch by timm's Mixup; return the images and their soft labels.

    The mixing weight is drawn once per batch: from Beta(`mixup`, `mixup`) for Mixup (arXiv 1710.09412), from
    Beta(`cutmix`, `cutmix`) for CutMix (arXiv 1905.04899), each with probability 0.5 if both are above 0.

    Args:
        images: B x C x H x W; may be overwritten. The last of an odd number is not mixed.
        labels: B class indices.
        classes: the number of classes.
        mixup: parameter of Mixup's Beta distribution; 0 disables it.
        cutmix: parameter of CutMix's Beta distribution; 0 disables it.
        label_smoothing: applied last, by ``smooth_labels``.
        seed: decides everything that is random.

    Returns:
        The images, and soft labels, B x classes, each row of sum 1.
    """
    target, even = F.one_hot(labels, classes).float(), len(images) // 2 * 2
    if even and (mixup or cutmix):
        mix = Mixup(mixup, cutmix, label_smoothing=0.0, num_classes=classes)
        with seeded(seed):
            images[:even], target[:even] = mix(images[:even], labels[:even])
    return images, smooth_labels(target, label_smoothing)


def smooth_labels(target: Tensor, smoothing: float) -> Tensor:
    """Spread a fraction `smoothing` of soft labels, B x classes, evenly over all classes (arXiv 1512.00567)."""
    return target * (1 - smoothing) + smoothing / target.shape[1]


@contextmanager
def seeded(seed: Sequence[int]) -> Iterator[None]:
    """Seed Python's and NumPy's global generators, which timm uses, for a block; restore them afterwards."""
    before, arrays = random.getstate(), np.random.get_state()
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(arrays)
