"""Add snow, frost, fog and brightness and, of the extra types, spatter."""

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
from clearhead.shifts.corruptions.edges import UNIT, canny, convolve, distance, equalize_histogram
from clearhead.shifts.corruptions.random_fields import normal, smooth, uniform
from clearhead.shifts.corruptions.severity import corruption


class Snow(NamedTuple):
    """Parameters of snow: noise (mean, deviation) above `threshold`, enlarged `zoom` times, then motion-blurred.

    `keep` is the weight of the image relative to its whitened version.
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
    """Whiten the image and add a layer of falling flakes, and the same layer rotated by 180 degrees.

    The layer is rounded to 8 bits before and after its motion blur, at a random angle in -135..-45 degrees. The
    published code uses ImageMagick; ``motion`` is its formula, as in the package imagecorruptions. That package crops
    the layer after the blur and does not round before it, unlike the published code and this function.
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
    """Add a random crop of a random photograph of frost, with weights.

    The photographs, ``frost1.png``, ``frost2.png``, ``frost3.png``, ``frost4.jpg`` and ``frost5.jpg`` of the published
    code (its sixth is never used), are read from the folder in the environment variable CLEARHEAD_FROST, or from the
    package imagecorruptions-imaug. CIFAR-C uses every fifth of their pixels, like OpenCV's ``resize`` by 0.2.

    A photograph smaller than the image, for which the published code fails, is enlarged to cover it with a margin of
    10%, as in imagecorruptions.

    Raises:
        DataError: if the photographs do not exist.
    """
    keep, add, thin = frost
    size = images.shape[2:]
    photographs = _photographs(frost_folder())
    crops = torch.empty(images.shape, dtype=torch.uint8)
    for crop, (choice, *corner) in zip(crops, uniform(images, generators, 3).tolist(), strict=True):
        photograph = photographs[int(choice * len(photographs))]
        photograph = _enlarge_to_cover(photograph[:, thin // 2 :: thin, thin // 2 :: thin], size)
        free = [max(1, have - need) for have, need in zip(photograph.shape[1:], size, strict=True)]
        top, left = (int(fraction * n) for fraction, n in zip(corner, free, strict=True))
        crop.copy_(photograph[:, top : top + size[0], left : left + size[1]])
    return torch.add(images * keep, crops.to(images.device), alpha=add / 255)


def frost_folder() -> Path:
    """Return the folder of the photographs of frost. Raises DataError."""
    if folder := os.environ.get("CLEARHEAD_FROST"):
        return Path(folder)
    package = importlib.util.find_spec("imagecorruptions")  # not imported, which would need OpenCV and numba
    if package is None or not package.submodule_search_locations:
        raise DataError(
            "frost needs photographs that clearhead does not have: `pip install --no-deps imagecorruptions-imaug`, or "
            "set the environment variable CLEARHEAD_FROST to a folder with frost1.png, frost2.png, frost3.png, "
            "frost4.jpg and frost5.jpg"
        )
    return Path(package.submodule_search_locations[0]) / "frost"


@functools.lru_cache(maxsize=2)
def _photographs(folder: Path) -> list[Tensor]:
    """Load the five photographs, 3 x H x W, uint8. Raises DataError with the path."""
    photographs = []
    for name in ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg"):
        try:
            with Image.open(folder / name) as image:
                photographs.append(_to_tensor(image.convert("RGB")))
        except OSError as error:
            raise DataError(
                f"frost: {folder / name} cannot be read ({error}); `pip install --no-deps imagecorruptions-imaug` "
                "provides it"
            ) from error
    return photographs


def _enlarge_to_cover(photograph: Tensor, size: Sequence[int]) -> Tensor:
    """Return the photograph, enlarged if it is smaller than an image of the size."""
    factor = max(need / have for need, have in zip(size, photograph.shape[1:], strict=True))
    if factor <= 1:
        return photograph
    height, width = (int(np.ceil(n * factor * 1.1)) for n in photograph.shape[1:])
    image = Image.fromarray(photograph.permute(1, 2, 0).contiguous().numpy())
    return _to_tensor(image.resize((width, height), Image.Resampling.BICUBIC))


def _to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as 3 x H x W, uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


@corruption(
    imagenet=[(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
    cifar=[(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
)
def fog(images: Tensor, fog: tuple[float, float], generators: Sequence[torch.Generator]) -> Tensor:
    """Add a plasma fractal of an amplitude and decay to all channels, then scale back to the image's maximum.

    The size of the fractal is the next power of two that covers the image (256 for 224 px, 32 for 32 px, as published);
    it is cropped from its top left.
    """
    amplitude, decay = fog
    height, width = images.shape[2:]
    side = max(2, 1 << (max(height, width) - 1).bit_length())
    noise = uniform(images, generators, side * side - 1).mul_(2).sub_(1)
    most = images.amax((1, 2, 3), keepdim=True)
    layer = _plasma(noise, side, decay)[:, None, :height, :width]
    return (images + amplitude * layer) * (most / (most + amplitude))


def _plasma(noise: Tensor, side: int, decay: float) -> Tensor:
    """Return a height map by the diamond-square algorithm on a torus, B x side x side, in 0..1.

    Args:
        noise: numbers in -1..1, B x (side² - 1): for each step, from the coarsest, the centres of the squares, then of
            their horizontal and their vertical sides, each row by row.
        side: a power of two, at least 2.
        decay: the noise is divided by its square with each halving of the step.
    """
    grid = noise.new_zeros(len(noise), side, side)
    step, amplitude, used = side, 100.0, 0
    while step >= 2:
        half, count = step // 2, side // step
        blocks = noise[:, used : used + 3 * count**2].view(-1, 3, count, count) * amplitude**2
        used += 3 * count**2
        corners = grid[:, ::step, ::step]
        rows = corners + corners.roll(-1, 1)
        centres = (rows + rows.roll(-1, 2)) / 4 + blocks[:, 0]
        grid[:, half::step, half::step] = centres
        grid[:, ::step, half::step] = (centres + centres.roll(1, 1) + corners + corners.roll(-1, 2)) / 4 + blocks[:, 1]
        grid[:, half::step, ::step] = (centres + centres.roll(1, 2) + corners + corners.roll(-1, 1)) / 4 + blocks[:, 2]
        step, amplitude = half, amplitude / decay
    grid -= grid.amin((1, 2), keepdim=True)
    return grid / grid.amax((1, 2), keepdim=True)


@corruption(imagenet=[0.1, 0.2, 0.3, 0.4, 0.5], cifar=[0.05, 0.1, 0.15, 0.2, 0.3])
def brightness(images: Tensor, offset: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Raise the value of HSV, which is the largest channel, with unchanged hue and saturation. Nothing is random.

    All channels then grow in proportion, so no conversion is needed; black becomes grey.
    """
    value = images.amax(1, keepdim=True)
    raised = (value + offset).clamp_(max=1)
    return torch.where(value > 0, images * (raised / value), raised)


class Spatter(NamedTuple):
    """Parameters of spatter: drops are noise (mean, deviation), smoothed with `sigma`, above `threshold`.

    `strength` is the amount of water, or the sigma that softens drops of mud.
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
    chunk=2**22,  # distances are computed row by row: small steps, so many images at a time
)
def spatter(images: Tensor, spatter: Spatter, generators: Sequence[torch.Generator]) -> Tensor:
    """Add drops of water (pale turquoise, brightest where they bulge) or, at severities 4 and 5, of mud.

    The shading of the water follows OpenCV's Canny edges, chamfer distance and so on, step by step (``edges``). An
    image without drops, for which the published code divides by 0, stays unchanged.
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
    """Return the shading of drops of water, B x H x W: lit from one side, by the distance to their edges."""
    mean = [[1, 1, 1]] * 3
    near = distance(canny(layer, 50, 150)).clamp_(max=20 * UNIT).float()
    near = equalize_histogram((convolve(near, mean) / (9 * UNIT)).floor_())
    lit = convolve(near, [[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]).clamp_(0, 255)
    return (convolve(lit, mean) / 9).round_()


def _colour(images: Tensor, *rgb: int) -> Tensor:
    """Return an 8-bit colour as 3 x 1 x 1 in 0..1."""
    return images.new_tensor(rgb).view(3, 1, 1) / 255
