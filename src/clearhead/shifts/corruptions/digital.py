"""Digital faults of Hendrycks & Dietterich (arXiv 1903.12261): contrast, elastic, pixelate, JPEG and, extra, saturate.

Formulas and constants are those of the published code, hendrycks/robustness, ImageNet-C/create_c/make_imagenet_c.py
and make_cifar_c.py. They are in pixels and are applied as they stand to images of any size; where that code says 224
(or 32), the height and the width of the image stand here. It works in float64, here everything is float32.
"""

import io
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clearhead.shifts.corruptions.random_fields import smooth, uniform
from clearhead.shifts.corruptions.severity import corruption


@corruption(imagenet=[0.4, 0.3, 0.2, 0.1, 0.05], cifar=[0.75, 0.5, 0.4, 0.3, 0.15])
def contrast(images: Tensor, share: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Each channel drawn towards its mean. Nothing is random."""
    return torch.lerp(images.mean((2, 3), keepdim=True), images, share)


@corruption(
    imagenet=[
        (244 * 2, 244 * 0.7, 244 * 0.1),
        (244 * 2, 244 * 0.08, 244 * 0.2),
        (244 * 0.05, 244 * 0.01, 244 * 0.02),
        (244 * 0.07, 244 * 0.01, 244 * 0.02),
        (244 * 0.12, 244 * 0.01, 244 * 0.02),
    ],
    cifar=[
        (0, 0, 32 * 0.08),
        (32 * 0.05, 32 * 0.2, 32 * 0.07),
        (32 * 0.08, 32 * 0.06, 32 * 0.06),
        (32 * 0.1, 32 * 0.04, 32 * 0.05),
        (32 * 0.1, 32 * 0.03, 32 * 0.03),
    ],
)
def elastic_transform(
    images: Tensor, elastic: tuple[float, float, float], generators: Sequence[torch.Generator]
) -> Tensor:
    """A random affine map, then random displacements smoothed by a Gaussian; bilinear, mirrored at the border.

    `elastic`: the displacements' amplitude, their sigma and how far the affine map moves its three points, in pixels
    (of 244, as published). OpenCV, of the published code, rounds the affine map's coordinates to 1/32 px in some of
    its versions; here they are not rounded. The package imagecorruptions leaves the affine map out and has other
    constants.
    """
    amplitude, sigma, reach = elastic
    height, width = images.shape[2:]
    moves = (uniform(images, generators, 3, 2) * 2 - 1) * reach
    shifts = uniform(images, generators, 2, height, width).mul_(2).sub_(1)
    y, x = torch.meshgrid(
        torch.arange(height, device=images.device), torch.arange(width, device=images.device), indexing="ij"
    )

    # where the three points have come to, from the centre; the map that leads back
    third = min(height, width) // 3
    corners = moves.new_tensor([[third, third], [third, -third], [-third, -third]])
    moved = torch.cat([corners + moves, torch.ones_like(moves[:, :, :1])], 2)
    back = torch.linalg.solve(moved, corners.expand(len(images), -1, -1))
    centre = moves.new_tensor([height // 2, width // 2])  # in this order, as published
    pixels = torch.stack([x, y, torch.ones_like(x)], 2).float() - torch.cat([centre, centre.new_zeros(1)])
    places = (pixels.flatten(0, 1) @ back + centre).view(-1, height, width, 2)
    turned = _sampled(images, places, whole=True)

    shifts = smooth(shifts.flatten(0, 1), sigma, "reflect", truncate=3).view_as(shifts) * amplitude
    return _sampled(turned, torch.stack([x + shifts[:, 0], y + shifts[:, 1]], 3), whole=False)


def _sampled(images: Tensor, places: Tensor, whole: bool) -> Tensor:
    """The images at `places`, B x H x W x 2 (x, y in pixels), bilinear.

    Beyond the border they are mirrored: at the middle of the last pixel with `whole` (OpenCV's REFLECT_101), else at
    its outer edge (SciPy's reflect).
    """
    size = places.new_tensor([images.shape[3], images.shape[2]])
    grid = 2 * places / (size - 1).clamp_(min=1) - 1 if whole else (2 * places + 1) / size - 1
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="reflection", align_corners=whole)


@corruption(imagenet=[0.6, 0.5, 0.4, 0.3, 0.25], cifar=[0.95, 0.9, 0.85, 0.75, 0.65], together=2**19)
def pixelate(images: Tensor, share: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Box-averaged to a share of the size and enlarged again, pixels staying square. Nothing is random.

    As Pillow's ``resize`` does it: on 8 bits, rounded after the rows and after the columns.
    """
    pixels = images.mul(255).round_().short()
    for _ in range(2):
        pixels = _steps(pixels.transpose(2, 3), share)
    return pixels.to(images.dtype).div_(255)


def _steps(pixels: Tensor, share: float) -> Tensor:
    """The third axis of pixels (int16) in `share` times as many equal parts, each pixel the rounded mean of its part.

    A part's mean is of the pixels whose middles lie in it. Places are computed as Pillow computes them, ties included.
    """
    batch, channels, size, across = pixels.shape
    count = max(1, int(size * share))
    scale = size / count
    middles = (np.arange(count) + 0.5) * scale
    first, last = (middles - scale / 2 + 0.5).astype(int), (middles + scale / 2 + 0.5).astype(int).clip(max=size)
    part = ((np.arange(size) + 0.5) * (count / size)).astype(int)

    rows = pixels.new_zeros(batch, channels, size + 1, across)
    rows[:, :, :size] = pixels  # the row after them is 0: a part with a pixel less than others adds it
    within = first + np.arange((last - first).max())[:, None]
    places = torch.from_numpy(np.where(within < last, within, size)).to(pixels.device)
    total = rows.index_select(2, places[0])
    for place in places[1:]:
        total += rows.index_select(2, place)
    counts = torch.from_numpy(last - first).to(pixels.device).float()[:, None]
    means = (total / counts).add_(0.5).short()
    return means.index_select(2, torch.from_numpy(part).to(pixels.device))


@corruption(imagenet=[25, 18, 15, 10, 7], cifar=[80, 65, 58, 50, 40])
def jpeg_compression(images: Tensor, quality: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Written as JPEG of a quality and read again, by Pillow, with its defaults. On the CPU; nothing is random."""
    pixels = images.mul(255).round_().to(torch.uint8).permute(0, 2, 3, 1).cpu().contiguous().numpy()
    result = np.empty_like(pixels)
    for picture, out in zip(pixels, result, strict=True):  # threads gain nothing: Pillow holds the lock
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        out[:] = np.asarray(Image.open(file, formats=["JPEG"]))
    return torch.from_numpy(result).to(images.device).permute(0, 3, 1, 2).to(images.dtype).div_(255)


@corruption(
    imagenet=[(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)],
    cifar=[(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)],
)
def saturate(images: Tensor, change: tuple[float, float], generators: Sequence[torch.Generator]) -> Tensor:
    """The saturation of HSV multiplied and raised; hue and value stay. Nothing is random.

    In closed form: a channel is value * (1 - saturation * depth), where depth, 0 for the largest channel and 1 for
    the smallest, is what the hue says. Grey has the hue of red in HSV, and turns reddish where the saturation is
    raised, as in the published images.
    """
    factor, more = change
    value = images.amax(1, keepdim=True)
    spread = value - images.amin(1, keepdim=True)
    red = images.new_tensor([0, 1, 1]).view(3, 1, 1)
    depth = torch.where(spread > 0, (value - images) / spread, red)
    saturation = (spread / value).nan_to_num_(0).mul_(factor).add_(more).clamp_(max=1)
    return value * (1 - saturation * depth)
