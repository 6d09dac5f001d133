"""Weather of Hendrycks & Dietterich (arXiv 1903.12261): snow, frost, fog, brightness and, of the extra types, spatter.

Formulas and constants are those of the published code, hendrycks/robustness, ImageNet-C/create_c/make_imagenet_c.py
and make_cifar_c.py. They are in pixels and are applied as they stand to images of any size; where that code says 224
(or 32), the height and the width of the image stand here. It works in float64 and on 8 bits, here everything is
float32, rounded to 8 bits on the way where that code does.
"""

import functools
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clearhead.data.image_io import DataError
from clearhead.shifts.corruptions.blur import motion, zoomed
from clearhead.shifts.corruptions.edges import UNIT, canny, distance, levelled, weighted
from clearhead.shifts.corruptions.random_fields import normal, smooth, uniform
from clearhead.shifts.corruptions.severity import corruption


class Snow(NamedTuple):
    """Flakes are what of noise (mean, deviation) passes `threshold`, enlarged `zoom` times, then blurred in motion.

    Of the picture `keep` stays as it is, the rest is whitened.
    """

    mean: float
    deviation: float
    zoom: float
    threshold: float
    radius: int
    sigma: float
    keep: float


@corruption(
    imagenet=[
        Snow(0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        Snow(0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        Snow(0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        Snow(0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        Snow(0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ],
    cifar=[
        Snow(0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        Snow(0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        Snow(0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        Snow(0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        Snow(0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ],
)
def snow(images: Tensor, snow: Snow, generators: Sequence[torch.Generator]) -> Tensor:
    """A whitened picture with a layer of falling flakes, and the same layer turned upside down.

    The layer has 8 bits before and after its motion blur, at an angle drawn from -135..-45 degrees. ImageMagick blurs
    the published one; ``motion`` is its formula, as it is in the package imagecorruptions. That package cuts the layer
    to size after the blur and does not round before it, which the published code and we do.
    """
    layer = normal(images, generators, 1, *images.shape[2:]) * snow.deviation + snow.mean
    layer = zoomed(layer, snow.zoom)
    layer = torch.where(layer < snow.threshold, 0, layer).clamp_(0, 1).mul_(255).floor_()
    angles = uniform(images, generators).double() * 90 - 135
    layer = motion(layer, snow.radius, snow.sigma, angles.tolist()).round_().div_(255)
    grey = images[:, :1] * 0.299 + images[:, 1:2] * 0.587 + images[:, 2:] * 0.114
    white = torch.maximum(images, grey * 1.5 + 0.5)
    return torch.lerp(white, images, snow.keep) + (layer + layer.flip(2, 3))


@corruption(
    imagenet=[(1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)],
    cifar=[(1, 0.2, 5), (1, 0.3, 5), (0.9, 0.4, 5), (0.85, 0.4, 5), (0.75, 0.45, 5)],
)
def frost(images: Tensor, frost: tuple[float, float, int], generators: Sequence[torch.Generator]) -> Tensor:
    """The picture and a random piece of a random photograph of frost, weighted and added.

    The photographs, ``frost1.png``, ``frost2.png``, ``frost3.png``, ``frost4.jpg`` and ``frost5.jpg`` of the published
    code (its sixth is never drawn there, nor here), are taken from the folder that the environment variable
    CLEARHEAD_FROST names, or else from the package imagecorruptions-imaug. For CIFAR-C every fifth of their pixels is
    taken, which is what OpenCV's ``resize`` by 0.2 does.

    A photograph smaller than the picture, with which the published code fails, is enlarged to cover it with 10% to
    spare, as imagecorruptions does.

    Raises:
        DataError: a ValueError; the photographs are not there.
    """
    keep, add, thin = frost
    size = images.shape[2:]
    photographs = _photographs(frost_folder())
    pieces = torch.empty(images.shape, dtype=torch.uint8)
    for piece, (which, *place) in zip(pieces, uniform(images, generators, 3).tolist(), strict=True):
        photograph = photographs[int(which * len(photographs))]
        photograph = _covering(photograph[:, thin // 2 :: thin, thin // 2 :: thin], size)
        free = [max(1, have - need) for have, need in zip(photograph.shape[1:], size, strict=True)]
        top, left = (int(share * n) for share, n in zip(place, free, strict=True))
        piece.copy_(photograph[:, top : top + size[0], left : left + size[1]])
    return torch.add(images * keep, pieces.to(images.device), alpha=add / 255)


def frost_folder() -> Path:
    """Where the photographs of frost are. Raises DataError."""
    if folder := os.environ.get("CLEARHEAD_FROST"):
        return Path(folder)
    package = importlib.util.find_spec("imagecorruptions")  # found, not imported: that would want OpenCV and numba
    if package is None or not package.submodule_search_locations:
        raise DataError(
            "frost needs photographs that clearhead does not ship: `pip install --no-deps imagecorruptions-imaug`, or "
            "set the environment variable CLEARHEAD_FROST to a folder with frost1.png, frost2.png, frost3.png, "
            "frost4.jpg and frost5.jpg"
        )
    return Path(package.submodule_search_locations[0]) / "frost"


@functools.lru_cache(maxsize=2)
def _photographs(folder: Path) -> list[Tensor]:
    """The five photographs, 3 x H x W, uint8. Raises DataError with the path."""
    photographs = []
    for name in ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg"):
        try:
            with Image.open(folder / name) as image:
                photographs.append(_tensor(image.convert("RGB")))
        except OSError as error:
            raise DataError(
                f"frost: {folder / name} cannot be read ({error}); `pip install --no-deps imagecorruptions-imaug` "
                "brings it"
            ) from error
    return photographs


def _covering(photograph: Tensor, size: Sequence[int]) -> Tensor:
    """The photograph, enlarged if an image of the size does not fit into it."""
    factor = max(need / have for need, have in zip(size, photograph.shape[1:], strict=True))
    if factor <= 1:
        return photograph
    height, width = (int(np.ceil(n * factor * 1.1)) for n in photograph.shape[1:])
    picture = Image.fromarray(photograph.permute(1, 2, 0).contiguous().numpy())
    return _tensor(picture.resize((width, height), Image.Resampling.BICUBIC))


def _tensor(image: Image.Image) -> Tensor:
    """An RGB picture as 3 x H x W, uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


@corruption(
    imagenet=[(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
    cifar=[(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
)
def fog(images: Tensor, fog: tuple[float, float], generators: Sequence[torch.Generator]) -> Tensor:
    """A plasma fractal of an amplitude and a decay added to all channels, then scaled back to the image's maximum.

    The fractal is as large as the next power of two that covers the image (256 for 224 px, 32 for 32 px, as
    published), and cut to the image from its top left.
    """
    amplitude, decay = fog
    height, width = images.shape[2:]
    side = max(2, 1 << (max(height, width) - 1).bit_length())
    noise = uniform(images, generators, side * side - 1).mul_(2).sub_(1)
    most = images.amax((1, 2, 3), keepdim=True)
    layer = _plasma(noise, side, decay)[:, None, :height, :width]
    return (images + amplitude * layer) * (most / (most + amplitude))


def _plasma(noise: Tensor, side: int, decay: float) -> Tensor:
    """A height map by the diamond-square algorithm on a torus, B x side x side, lowest 0, highest 1.

    Args:
        noise: numbers in -1..1, B x (side² - 1): for each step, from the coarsest, the middles of the squares, then
            of their horizontal and their vertical sides, each in rows.
        side: a power of two, 2 at least.
        decay: what the noise is divided by, twice, with each halving of the step.
    """
    grid = noise.new_zeros(len(noise), side, side)
    step, wibble, used = side, 100.0, 0
    while step >= 2:
        half, count = step // 2, side // step
        blocks = noise[:, used : used + 3 * count**2].view(-1, 3, count, count) * wibble**2
        used += 3 * count**2
        corners = grid[:, ::step, ::step]
        rows = corners + corners.roll(-1, 1)
        middles = (rows + rows.roll(-1, 2)) / 4 + blocks[:, 0]
        grid[:, half::step, half::step] = middles
        grid[:, ::step, half::step] = (middles + middles.roll(1, 1) + corners + corners.roll(-1, 2)) / 4 + blocks[:, 1]
        grid[:, half::step, ::step] = (middles + middles.roll(1, 2) + corners + corners.roll(-1, 1)) / 4 + blocks[:, 2]
        step, wibble = half, wibble / decay
    grid -= grid.amin((1, 2), keepdim=True)
    return grid / grid.amax((1, 2), keepdim=True)


@corruption(imagenet=[0.1, 0.2, 0.3, 0.4, 0.5], cifar=[0.05, 0.1, 0.15, 0.2, 0.3])
def brightness(images: Tensor, more: float, generators: Sequence[torch.Generator]) -> Tensor:
    """The value of HSV, which is the largest channel, raised; hue and saturation stay. Nothing is random.

    With these two kept all channels grow in proportion, so no conversion is needed; black becomes grey.
    """
    value = images.amax(1, keepdim=True)
    raised = (value + more).clamp_(max=1)
    return torch.where(value > 0, images * (raised / value), raised)


class Spatter(NamedTuple):
    """Drops are what of noise (mean, deviation), smoothed with `sigma`, passes `threshold`.

    `strength` is how much water there is, or the sigma that softens the drops of mud.
    """

    mean: float
    deviation: float
    sigma: float
    threshold: float
    strength: float
    mud: bool


@corruption(
    imagenet=[
        Spatter(0.65, 0.3, 4, 0.69, 0.6, False),
        Spatter(0.65, 0.3, 3, 0.68, 0.6, False),
        Spatter(0.65, 0.3, 2, 0.68, 0.5, False),
        Spatter(0.65, 0.3, 1, 0.65, 1.5, True),
        Spatter(0.67, 0.4, 1, 0.65, 1.5, True),
    ],
    cifar=[
        Spatter(0.62, 0.1, 0.7, 0.7, 0.5, False),
        Spatter(0.65, 0.1, 0.8, 0.7, 0.5, False),
        Spatter(0.65, 0.3, 1, 0.69, 0.5, False),
        Spatter(0.65, 0.1, 0.7, 0.69, 0.6, True),
        Spatter(0.65, 0.1, 0.5, 0.68, 0.6, True),
    ],
    together=2**22,  # the distances are found row by row: small steps, so many images a step
)
def spatter(images: Tensor, spatter: Spatter, generators: Sequence[torch.Generator]) -> Tensor:
    """Drops of water (pale turquoise, brightest where they bulge) or, at severities 4 and 5, of mud.

    The shading of the water is OpenCV's Canny edges, chamfer distance and so on, step for step (``edges``); an image
    without a drop, which the published code divides by 0, stays as it is.
    """
    layer = normal(images, generators, *images.shape[2:]) * spatter.deviation + spatter.mean
    layer = smooth(layer, spatter.sigma, "nearest", truncate=4)
    if spatter.mud:
        drops = smooth((layer > spatter.threshold).float(), spatter.strength, "nearest", truncate=4)
        drops = torch.where(drops < 0.8, 0, drops)[:, None]
        return torch.lerp(images, _colour(images, 63, 42, 20), drops.to(images.dtype))
    layer = torch.where(layer < spatter.threshold, 0, layer).clamp_(0, 1).mul_(255).floor_()
    drops = (layer * _bulge(layer))[:, None]
    most = drops.amax((2, 3), keepdim=True).clamp_(min=1)
    return images + drops / most * spatter.strength * _colour(images, 175, 238, 238)


def _bulge(layer: Tensor) -> Tensor:
    """The shading of drops of water, B x H x W: lit from one side, by the distance to their edges."""
    mean = [[1, 1, 1]] * 3
    near = distance(canny(layer, 50, 150)).clamp_(max=20 * UNIT).float()
    near = levelled((weighted(near, mean) / (9 * UNIT)).floor_())
    lit = weighted(near, [[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]).clamp_(0, 255)
    return (weighted(lit, mean) / 9).round_()


def _colour(images: Tensor, *rgb: int) -> Tensor:
    """An 8-bit colour, 3 x 1 x 1 in 0..1."""
    return images.new_tensor(rgb).view(3, 1, 1) / 255
