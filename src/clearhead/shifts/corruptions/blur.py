"""Blur images: defocus, glass, motion, zoom and, of the extra types, Gaussian blur.

In the dtype of the images: float32 differs from the published float64 by less than 1e-5 unless stated otherwise.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor

from clearhead.shifts.corruptions.random_fields import smooth, uniform
from clearhead.shifts.corruptions.severity import corruption


class Glass(NamedTuple):
    """Parameters of glass blur: sigma of both Gaussians, largest displacement in pixels, number of passes."""

    sigma: float
    reach: int
    times: int


@corruption(
    imagenet=[(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
    cifar=[(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
)
def defocus_blur(images: Tensor, lens: tuple[float, float], generators: Sequence[torch.Generator]) -> Tensor:
    """Convolve with a soft-edged disk of a radius in pixels; edges are reflected. Nothing is random.

    The published code filters with OpenCV (``filter2D``, border ``REFLECT_101``). Here it is a product of spectra,
    whose cost does not depend on the radius.
    """
    kernel = torch.from_numpy(_disk(*lens)).to(images)
    reach = len(kernel) // 2
    height, width = images.shape[-2:]
    rows, columns = (torch.from_numpy(np.pad(np.arange(n), reach, mode="reflect")) for n in (height, width))
    padded = images[:, :, rows.to(images.device)][..., columns.to(images.device)]
    size = [next_fast_len(n + 2 * reach, real=True) for n in (height, width)]
    spectrum = torch.fft.rfft2(padded, s=size).mul_(torch.fft.rfft2(kernel, s=size))
    blurred: Tensor = torch.fft.irfft2(spectrum, s=size)
    return blurred[..., 2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width]


@corruption(
    imagenet=[Glass(0.7, 1, 2), Glass(0.9, 2, 1), Glass(1, 2, 3), Glass(1.1, 3, 2), Glass(1.5, 4, 2)],
    cifar=[Glass(0.05, 1, 1), Glass(0.25, 1, 1), Glass(0.4, 1, 1), Glass(0.25, 1, 2), Glass(0.4, 1, 2)],
)
def glass_blur(images: Tensor, glass: Glass, generators: Sequence[torch.Generator]) -> Tensor:
    """Apply a Gaussian blur, truncate to 8 bits, overwrite pixels with nearby ones, apply a Gaussian blur.

    The published code is meant to swap pixels, one after the other, ``x[h, w], x[h', w'] = x[h', w'], x[h, w]``. In
    NumPy this reads the first pixel after overwriting it: x[h, w] becomes x[h', w'], which does not change. The
    published images were made like this, and so are these. ``_sources`` does it without a loop over pixels.

    When truncating, a value less than 1e-4 of a grey level below a level counts as that level (float rounding).
    """
    height, width = images.shape[-2:]
    blurred = _gaussian(images, glass.sigma).mul_(255).add_(1e-4).floor_().div_(255)
    if min(height, width) > 2 * glass.reach:
        shape = (2, height - 2 * glass.reach, width - 2 * glass.reach)
        source = torch.arange(len(images) * height * width, device=images.device)
        for _ in range(glass.times):
            moves = torch.empty(len(images), *shape, dtype=torch.long, device=images.device)
            for offsets, generator in zip(moves, generators, strict=True):
                offsets.random_(-glass.reach, glass.reach, generator=generator)
            source = source.index_select(0, _sources(moves, glass.reach, height, width))
        displaced = blurred.transpose(0, 1).flatten(1).index_select(1, source)
        blurred = displaced.view(3, len(images), height, width).transpose(0, 1)
    return _gaussian(blurred, glass.sigma)


@corruption(
    imagenet=[(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
    cifar=[(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
)
def motion_blur(images: Tensor, streak: tuple[int, float], generators: Sequence[torch.Generator]) -> Tensor:
    """Blur along a line of a radius and sigma in pixels, at a random angle in -45..45 degrees.

    The published code uses ImageMagick on 8 bits, which rounds the result; see ``motion``.
    """
    angles = uniform(images, generators).double() * 90 - 45
    return motion(images, *streak, angles.tolist())


@corruption(
    imagenet=[np.arange(1, *limit) for limit in [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)]],
    cifar=[np.arange(1, limit, 0.01) for limit in (1.06, 1.11, 1.16, 1.21, 1.26)],
)
def zoom_blur(images: Tensor, factors: np.ndarray, generators: Sequence[torch.Generator]) -> Tensor:
    """Average the image and enlargements about its centre. Nothing is random."""
    total = images.clone()
    for factor in factors:
        total += zoomed(images, float(factor))
    return total.div_(len(factors) + 1)


@corruption(imagenet=[1, 2, 3, 4, 6], cifar=[0.4, 0.6, 0.7, 0.8, 1])
def gaussian_blur(images: Tensor, sigma: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Apply a Gaussian blur; edges are replicated. Nothing is random."""
    return _gaussian(images, sigma)


def motion(images: Tensor, radius: int, sigma: float, angles: Sequence[float]) -> Tensor:
    """Apply ImageMagick's motion blur: half a Gaussian along a line, each tap at the nearest pixel, edges replicated.

    Tap i of 0..2 radius has weight exp(-i² / 2 sigma²), normalised, and is at x + ceil(i cos - 1/2),
    y + ceil(i sin - 1/2) (MotionBlurImage and GetMotionBlurKernel of ImageMagick's effect.c).

    Args:
        images: B x C x H x W.
        radius: in pixels.
        sigma: in pixels.
        angles: B angles in degrees; 0 points right, 90 down.
    """
    taps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).tolist()
    radians = np.radians(angles)[:, None]
    dx, dy = (np.ceil(taps * component(radians) - 0.5).astype(int) for component in (np.cos, np.sin))
    left, top = -dx.min(initial=0), -dy.min(initial=0)
    height, width = images.shape[-2:]
    padded = F.pad(images, (left, dx.max(initial=0), top, dy.max(initial=0)), mode="replicate")
    blurred = torch.zeros_like(images)
    for out, image, xs, ys in zip(blurred, padded, (dx + left).tolist(), (dy + top).tolist(), strict=True):
        for weight, x, y in zip(weights, xs, ys, strict=True):
            out.add_(image[:, y : y + height, x : x + width], alpha=weight)
    return blurred


def zoomed(images: Tensor, factor: float) -> Tensor:
    """Enlarge the centre of images, B x C x H x W, to their size, bilinear: ``clipped_zoom`` of the published code.

    The published function is for squares; here each axis is cropped by its own length. As there, a result that is
    larger than the image by rounding is cropped.
    """
    window, sizes, trims = [], [], []
    for size in images.shape[-2:]:
        part = math.ceil(size / factor)
        start = (size - part) // 2
        window.append(slice(start, start + part))
        sizes.append(round(part * factor))
        trims.append(slice((sizes[-1] - size) // 2, (sizes[-1] - size) // 2 + size))
    cut = images[..., window[0], window[1]]
    large = F.interpolate(cut, size=sizes, mode="bilinear", align_corners=True)
    return large[..., trims[0], trims[1]]


def _gaussian(images: Tensor, sigma: float) -> Tensor:
    """Apply scikit-image's Gaussian as in the published code: truncated at 4 sigma, edges replicated."""
    return smooth(images.flatten(0, 1), sigma, "nearest", 4).view(images.shape)


def _disk(radius: float, softness: float) -> npt.NDArray[np.float64]:
    """Return the defocus kernel: a disk of sum 1, blurred by a small Gaussian (OpenCV's, with reflected border)."""
    reach = 8 if radius <= 8 else int(radius)
    line = np.arange(-reach, reach + 1)
    disk = (line[:, None] ** 2 + line**2 <= radius**2).astype(np.float64)
    disk /= disk.sum()
    small = np.arange(3 if radius <= 8 else 5) - (1 if radius <= 8 else 2)
    weights = np.exp(-(small**2) / (2 * softness**2))
    weights /= weights.sum()
    for axis in (0, 1):
        padded = np.pad(disk, [(len(small) // 2,) * 2 if a == axis else (0, 0) for a in (0, 1)], mode="reflect")
        disk = np.apply_along_axis(np.convolve, axis, padded, weights, mode="valid")
    return disk


def _sources(moves: Tensor, reach: int, height: int, width: int) -> Tensor:
    """Return the source of each pixel's value after one pass of glass blur: indices into the flattened images, B H W.

    The pass goes over rows and columns from the last (H - reach, W - reach) down to ``reach + 1`` and copies to each
    pixel the current value of a neighbour at the offset `moves` (B x 2 x h x w: x, y). A neighbour that is visited
    later, or never, still has its own value; otherwise it has the value of a pixel visited before it. Sources therefore
    form chains, whose ends are found by pointer jumping: the number of jumps is the logarithm of the longest chain.
    """
    count, pixels = len(moves), height * width
    inside = torch.zeros(height, width, dtype=torch.bool, device=moves.device)
    part = slice(reach + 1, height - reach + 1), slice(reach + 1, width - reach + 1)
    inside[part] = True
    source = torch.arange(count * pixels, device=moves.device)
    near = source.view(count, height, width).clone()
    near[:, *part] += moves[:, 1] * width + moves[:, 0]
    near = near.flatten()
    overwritten = inside.repeat(count, 1, 1).flatten().index_select(0, near).logical_and_(near > source)
    source = near
    active = overwritten.nonzero()[:, 0]
    while len(active):
        following = source.index_select(0, active)
        target, unfinished = source.index_select(0, following), overwritten.index_select(0, following)
        source[active], overwritten[active] = target, unfinished
        active = active[unfinished]
    return source
