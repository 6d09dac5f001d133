"""Changes that remove, add or replace what a classifier may rely on in place of the object: the shortcut battery.

Each is a function of the model's input view (B x 3 x H x W, pixels in 0..1), so it needs no labels. The drop of
accuracy under a change measures how far a model relies on what was changed; the same change, drawn at random on
training images, is a counterfactual augmentation.

The watermark is that of ImageNet-W (Li et al. 2023, "A Whac-A-Mole Dilemma", arXiv 2212.04825), the changes of the
background are those of ``clearhead.data.interventions``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from imagenet_w import AddWatermark
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import functional as pixels

from clearhead.data.interventions import remove_background, remove_object, swap_backgrounds
from clearhead.errors import ClearheadError
from clearhead.shifts.sweeps import patch_shuffle

Change = Callable[[Tensor, Tensor, Sequence[float]], Tensor]
"""(images B x 3 x H x W, masks B x 1 x H x W, the model's mean colour) to the changed images."""

RandomChange = Callable[[Tensor, Tensor, Sequence[float], torch.Generator], Tensor]


@dataclass(frozen=True)
class Shortcut:
    """A change of images, and what a drop of accuracy under it means.

    Attributes:
        change: the change, the same for every image and every call; a swapped background is that of the previous image
            in the batch. Changes without ``needs_mask`` ignore the masks.
        reading: what a model that loses accuracy relies on.
        needs_mask: whether it needs foreground masks.
        keeps_object: False where the object is removed: then accuracy above the chance level shows the reliance.
        changes_object: whether it changes the object too: a drop then shows what a model uses, which may well be the
            object.
        draw: the change with random strength, position or content, for half of the training images; the others, and all
            by default, are under `change`.
    """

    change: Change
    reading: str
    needs_mask: bool = False
    keeps_object: bool = True
    changes_object: bool = False
    draw: RandomChange | None = None

    def random(self, images: Tensor, masks: Tensor, fill: Sequence[float], generator: torch.Generator) -> Tensor:
        """Return the images under the change or, half of them, a random form of it; arguments as of ``Change``.

        The change itself is what was found to matter, its random forms keep a model from learning it by heart.
        """
        changed = self.change(images, masks, fill)
        if self.draw is None:
            return changed
        drawn = self.draw(images, masks, fill, generator)
        itself = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
        return torch.where(itself.to(images.device), changed, drawn)


def watermark(images: Tensor, _masks: Tensor, _fill: Sequence[float]) -> Tensor:
    """Draw the half-transparent white text of ImageNet-W across the images; B x 3 x H x W."""
    height, width = images.shape[-2:]
    opacity = _text(width, height, AddWatermark().text, _watermark_size(height), 0.01, 0.4).to(images)
    return torch.lerp(images, torch.ones_like(images), 0.5 * opacity)


def _random_watermark(images: Tensor, _masks: Tensor, _fill: Sequence[float], generator: torch.Generator) -> Tensor:
    """Draw another text at another place in each image: 3 to 9 Chinese or Latin characters, opacity 0.25 to 0.8."""
    height, width = images.shape[-2:]
    changed = []
    for image in images:
        numbers = torch.rand(7, generator=generator).tolist()
        alphabet = _CHINESE if numbers[0] < 0.6 else _LATIN
        letters = torch.randint(len(alphabet), (3 + int(7 * numbers[1]),), generator=generator).tolist()
        size = round(_watermark_size(height) * (0.55 + 1.1 * numbers[2]))
        text = "".join(alphabet[i] for i in letters)
        opacity = _draw_text(width, height, text, size, 0.45 * numbers[3] - 0.05, 0.92 * numbers[4] - 0.02).to(image)
        colour = 1.0 if numbers[5] < 0.75 else (numbers[5] - 0.75) / 0.25
        changed.append(torch.lerp(image, torch.full_like(image, colour), (0.25 + 0.55 * numbers[6]) * opacity))
    return torch.stack(changed)


_CHINESE = [chr(code) for code in range(0x4E00, 0x5E00)]
_LATIN = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")


def _watermark_size(height: int) -> int:
    """Return the font size of ImageNet-W: 36 pixels for an image of 224."""
    return {224: 36, 384: 62, 512: 82, 518: 84}.get(height, max(4, int(height / 6.22)))


def _draw_text(width: int, height: int, text: str, size: int, x: float, y: float) -> Tensor:
    """Return where a text covers an image, H x W in 0..1; x and y are fractions of the image's sides."""
    layer = Image.new("L", (width, height))
    font = _font(size)
    ImageDraw.Draw(layer).text((x * width, y * height), text, fill=255, font=font)
    return torch.from_numpy(np.asarray(layer, dtype=np.float32) / 255)


_text = cache(_draw_text)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(AddWatermark().font.path), size)


def patches_shuffled(images: Tensor, _masks: Tensor, _fill: Sequence[float]) -> Tensor:
    """Shuffle the patches of a 4 x 4 grid, in one order for all images; B x 3 x H x W."""
    generators = [torch.Generator().manual_seed(0) for _ in images]
    return patch_shuffle(images, generators, 4)


def high_frequencies_removed(images: Tensor, _masks: Tensor, _fill: Sequence[float]) -> Tensor:
    """Blur the images with a Gaussian whose standard deviation is 1/75 of their height (3 of 224 pixels)."""
    return _blurred(images)


def low_frequencies_removed(images: Tensor, _masks: Tensor, _fill: Sequence[float]) -> Tensor:
    """Subtract the blurred images and add their mean colour, clipped to 0..1; B x 3 x H x W."""
    return (images - _blurred(images) + images.mean((2, 3), keepdim=True)).clamp(0, 1)


def _blurred(images: Tensor) -> Tensor:
    """Blur columns, then rows, each by one matrix: torchvision's blur applies the whole square and is slower."""
    sigma = images.shape[-2] / 75
    down, across = (_blur_matrix(side, sigma).to(images) for side in images.shape[-2:])
    return down @ images @ across.mT


@cache
def _blur_matrix(side: int, sigma: float) -> Tensor:
    """Return the matrix that blurs a line of pixels, reflected at its ends; side x side."""
    reach = min(max(1, round(3 * sigma)), side - 1)
    with torch.inference_mode(False):  # it is cached
        offsets = torch.arange(-reach, reach + 1)
        weights = torch.exp(-(offsets**2) / (2 * sigma**2))
        sources = (torch.arange(side)[:, None] + offsets).abs()
        sources = side - 1 - (side - 1 - sources).abs()
        return torch.zeros(side, side).scatter_add_(1, sources, (weights / weights.sum()).expand(side, -1))


def colour_removed(images: Tensor, _masks: Tensor, _fill: Sequence[float]) -> Tensor:
    """Replace colours with their luminance; B x 3 x H x W."""
    grey: Tensor = pixels.rgb_to_grayscale(images, 3)
    return grey


def sticker(images: Tensor, _masks: Tensor, _fill: Sequence[float]) -> Tensor:
    """Put a magenta square with a side of 1/7 of the image into the upper right corner; B x 3 x H x W."""
    return _with_square(images, 1.0, 0.0, (1.0, 0.0, 0.7))


def _random_sticker(images: Tensor, _masks: Tensor, _fill: Sequence[float], generator: torch.Generator) -> Tensor:
    numbers = torch.rand(len(images), 5, generator=generator).tolist()
    return torch.cat(
        [_with_square(image[None], x, y, colour) for image, (x, y, *colour) in zip(images, numbers, strict=True)]
    )


def _with_square(images: Tensor, x: float, y: float, colour: Sequence[float]) -> Tensor:
    """Put a square into the images; (0, 0) is the upper left corner, (1, 1) the lower right one."""
    height, width = images.shape[-2:]
    side = max(1, round(min(height, width) / 7))
    top, left = round(y * (height - side)), round(x * (width - side))
    changed = images.clone()
    changed[..., top : top + side, left : left + side] = images.new_tensor(colour)[:, None, None]
    return changed


def date_stamp(images: Tensor, _masks: Tensor, _fill: Sequence[float]) -> Tensor:
    """Print a date in orange into the lower right corner, as cameras do; B x 3 x H x W."""
    return _with_date(images, "14/02/05", 0.52, 0.86)


def _random_date_stamp(images: Tensor, _masks: Tensor, _fill: Sequence[float], generator: torch.Generator) -> Tensor:
    changed = []
    for image in images:
        day, month, year = (int(torch.randint(low, high, (), generator=generator)) for low, high in _DATES)
        x, y = torch.rand(2, generator=generator).tolist()
        changed.append(_with_date(image[None], f"{day:02}/{month:02}/{year:02}", 0.55 * x, 0.88 * y))
    return torch.cat(changed)


_DATES = (1, 29), (1, 13), (0, 100)


def _with_date(images: Tensor, text: str, x: float, y: float) -> Tensor:
    height, width = images.shape[-2:]
    opacity = _draw_text(width, height, text, max(4, round(height / 9)), x, y).to(images)
    return torch.lerp(images, images.new_tensor((1.0, 0.55, 0.1))[:, None, None].expand_as(images), opacity)


SHORTCUTS: dict[str, Shortcut] = {
    "watermark": Shortcut(watermark, "the absence of text over the image", draw=_random_watermark),
    "background-swapped": Shortcut(swap_backgrounds, "the background", needs_mask=True),
    "background-removed": Shortcut(remove_background, "the presence of a background", needs_mask=True),
    "background-only": Shortcut(
        remove_object, "the background without the object", needs_mask=True, keeps_object=False
    ),
    "patches-shuffled": Shortcut(patches_shuffled, "the arrangement of the parts", changes_object=True),
    "high-frequencies-removed": Shortcut(high_frequencies_removed, "fine texture and edges", changes_object=True),
    "low-frequencies-removed": Shortcut(low_frequencies_removed, "colours of large areas", changes_object=True),
    "colour-removed": Shortcut(colour_removed, "colour", changes_object=True),
    "sticker": Shortcut(sticker, "small objects beside the main one", draw=_random_sticker),
    "date-stamp": Shortcut(date_stamp, "small text in a corner", draw=_random_date_stamp),
}
"""The battery, by the names on the command line; in tables with spaces for hyphens (``table_name``)."""


def table_name(shortcut: str) -> str:
    """Return the name of a shortcut in tables and of its column of predictions: with spaces for hyphens."""
    return shortcut.replace("-", " ")


def require_shortcuts(names: Sequence[str] | None) -> list[str]:
    """Return the names of shortcuts, all for None. Raises ClearheadError for one that is unknown."""
    if unknown := [name for name in names or [] if name not in SHORTCUTS]:
        raise ClearheadError(f"shortcuts: {unknown[0]!r} is unknown; choose from {', '.join(SHORTCUTS)}")
    return list(dict.fromkeys(SHORTCUTS if names is None else names))
