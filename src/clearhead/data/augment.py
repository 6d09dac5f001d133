"""Random changes of an image and its mask, alike, before the model's own preprocessing; mixtures of images after it."""

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
    """The change of an image by name: ``crop_and_flip(crop)``, ``shift_and_flip()``, ``rand_augment()`` or none.

    Raises ClearheadError for another name.
    """
    if name not in get_args(Augmentation):
        raise ClearheadError(f"augment: {name!r} is unknown; there is {', '.join(get_args(Augmentation))}")
    changes: dict[str, Callable[[], Augment]] = {"weak": shift_and_flip, "strong": rand_augment}
    changes["crop"] = lambda: crop_and_flip(crop)
    return changes[name]() if name in changes else None


def crop_and_flip(smallest: float) -> Augment:
    """A random window of `smallest`..1 of the image's area, of its shape, mirrored half of the time."""

    def augment(
        image: Image.Image, mask: Image.Image | None, generator: torch.Generator
    ) -> tuple[Image.Image, Image.Image | None]:
        area, across, down, flip = torch.rand(4, generator=generator).tolist()
        side = math.sqrt(smallest + (1 - smallest) * area)
        width, height = max(1, round(side * image.width)), max(1, round(side * image.height))
        left, top = round(across * (image.width - width)), round(down * (image.height - height))

        def change(picture: Image.Image) -> Image.Image:
            window = picture.crop((left, top, left + width, top + height))
            return window.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip < 0.5 else window

        return change(image), change(mask) if mask is not None else None

    return augment


def shift_and_flip() -> Augment:
    """The image moved by up to an eighth of its sides (4 of 32 pixels) onto black, mirrored half of the time."""

    def augment(
        image: Image.Image, mask: Image.Image | None, generator: torch.Generator
    ) -> tuple[Image.Image, Image.Image | None]:
        across, down, flip = torch.rand(3, generator=generator).tolist()
        most_left, most_up = image.width // 8, image.height // 8
        left, top = int(across * (2 * most_left + 1)) - most_left, int(down * (2 * most_up + 1)) - most_up

        def change(picture: Image.Image) -> Image.Image:
            window = picture.crop((left, top, left + picture.width, top + picture.height))  # black beyond the edges
            return window.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip < 0.5 else window

        return change(image), change(mask) if mask is not None else None

    return augment


def rand_augment() -> Augment:
    """``shift_and_flip``, then timm's RandAugment m9-n2-mstd1.0 (arXiv 1909.13719).

    It turns and shears the image, so there is no mask of the outcome.
    """
    shift, change = shift_and_flip(), rand_augment_transform("rand-m9-n2-mstd1.0")

    def augment(
        image: Image.Image, mask: Image.Image | None, generator: torch.Generator
    ) -> tuple[Image.Image, Image.Image | None]:
        moved, _ = shift(image, None, generator)
        with drawn_from([int(torch.randint(2**32, (), generator=generator))]):
            return change(moved), None

    return augment


def mixed(
    images: Tensor,
    labels: Tensor,
    classes: int,
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    label_smoothing: float = 0.0,
    seed: Sequence[int] = (0,),
) -> tuple[Tensor, Tensor]:
    """Images, B x C x H x W, each mixed with another of the batch by timm's Mixup; what each is, B x classes, sums 1.

    One share a batch, drawn from Beta(`mixup`, `mixup`), or with a cut-out window from Beta(`cutmix`, `cutmix`), each
    half of the time where both are above 0 (arXiv 1710.09412, 1905.04899). The last of an odd number stays. `images`
    may be overwritten. `label_smoothing`, last, as ``smoothed`` does. All is decided by `seed`.
    """
    target, even = F.one_hot(labels, classes).float(), len(images) // 2 * 2
    if even and (mixup or cutmix):
        mix = Mixup(mixup, cutmix, label_smoothing=0.0, num_classes=classes)
        with drawn_from(seed):
            images[:even], target[:even] = mix(images[:even], labels[:even])
    return images, smoothed(target, label_smoothing)


def smoothed(target: Tensor, smoothing: float) -> Tensor:
    """Labels, B x classes, with a share of `smoothing` spread over all classes (arXiv 1512.00567)."""
    return target * (1 - smoothing) + smoothing / target.shape[1]


@contextmanager
def drawn_from(seed: Sequence[int]) -> Iterator[None]:
    """A block in which Python's and NumPy's global generators, which timm draws from, are decided by a seed."""
    before, arrays = random.getstate(), np.random.get_state()
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(arrays)
