"""Change contrast, elastic shape, resolution and JPEG quality and, of the extra types, saturation."""

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
def contrast(images: Tensor, factor: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Move each channel towards its mean. Nothing is random."""
    return torch.lerp(images.mean((2, 3), keepdim=True), images, factor)


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
    """Apply a random affine map, then random displacements smoothed by a Gaussian; bilinear, reflected at the border.

    `elastic`: amplitude and sigma of the displacements, and largest shift of the affine map's three points, in pixels
    (of 244, as published). OpenCV, used by the published code, rounds the affine map's coordinates to 1/32 px in some
    versions; here they are not rounded. The package imagecorruptions has no affine map and other constants.
    """
    amplitude, sigma, reach = elastic
    height, width = images.shape[2:]
    moves = (uniform(images, generators, 3, 2) * 2 - 1) * reach
    shifts = uniform(images, generators, 2, height, width).mul_(2).sub_(1)
    y, x = torch.meshgrid(
        torch.arange(height, device=images.device), torch.arange(width, device=images.device), indexing="ij"
    )

    # the three points after the shift, relative to the centre, and the inverse map
    third = min(height, width) // 3
    corners = moves.new_tensor([[third, third], [third, -third], [-third, -third]])
    shifted = torch.cat([corners + moves, torch.ones_like(moves[:, :, :1])], 2)
    inverse = torch.linalg.solve(shifted, corners.expand(len(images), -1, -1))
    centre = moves.new_tensor([height // 2, width // 2])  # in this order, as published
    pixels = torch.stack([x, y, torch.ones_like(x)], 2).float() - torch.cat([centre, centre.new_zeros(1)])
    positions = (pixels.flatten(0, 1) @ inverse + centre).view(-1, height, width, 2)
    warped = _sample(images, positions, align_corners=True)

    shifts = smooth(shifts.flatten(0, 1), sigma, "reflect", truncate=3).view_as(shifts) * amplitude
    return _sample(warped, torch.stack([x + shifts[:, 0], y + shifts[:, 1]], 3), align_corners=False)


def _sample(images: Tensor, positions: Tensor, align_corners: bool) -> Tensor:
    """Sample images at positions, B x H x W x 2 (x, y in pixels), bilinear.

    Beyond the border they are reflected: at the centre of the last pixel with `align_corners` (OpenCV's REFLECT_101),
    else at its outer edge (SciPy's reflect).
    """
    size = positions.new_tensor([images.shape[3], images.shape[2]])
    grid = 2 * positions / (size - 1).clamp_(min=1) - 1 if align_corners else (2 * positions + 1) / size - 1
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="reflection", align_corners=align_corners)


@corruption(imagenet=[0.6, 0.5, 0.4, 0.3, 0.25], cifar=[0.95, 0.9, 0.85, 0.75, 0.65], chunk=2**19)
def pixelate(images: Tensor, factor: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Downscale by box averaging and enlarge again by nearest neighbour. Nothing is random.

    Like Pillow's ``resize``: in 8 bits, rounded after the rows and after the columns.
    """
    pixels = images.mul(255).round_().short()
    for _ in range(2):
        pixels = _box_average(pixels.transpose(2, 3), factor)
    return pixels.to(images.dtype).div_(255)


def _box_average(pixels: Tensor, factor: float) -> Tensor:
    """Replace each pixel (int16) by the rounded mean of its box along the third axis; boxes are `factor` as many.

    A box averages the pixels whose centres lie in it. Positions are computed as in Pillow, ties included.
    """
    batch, channels, size, across = pixels.shape
    count = max(1, int(size * factor))
    scale = size / count
    centres = (np.arange(count) + 0.5) * scale
    first, last = (centres - scale / 2 + 0.5).astype(int), (centres + scale / 2 + 0.5).astype(int).clip(max=size)
    part = ((np.arange(size) + 0.5) * (count / size)).astype(int)

    rows = pixels.new_zeros(batch, channels, size + 1, across)
    rows[:, :, :size] = pixels  # one more row of zeros, for boxes that have a pixel less than others
    within = first + np.arange((last - first).max())[:, None]
    indices = torch.from_numpy(np.where(within < last, within, size)).to(pixels.device)
    total = rows.index_select(2, indices[0])
    for index in indices[1:]:
        total += rows.index_select(2, index)
    counts = torch.from_numpy(last - first).to(pixels.device).float()[:, None]
    means = (total / counts).add_(0.5).short()
    return means.index_select(2, torch.from_numpy(part).to(pixels.device))


@corruption(imagenet=[25, 18, 15, 10, 7], cifar=[80, 65, 58, 50, 40])
def jpeg_compression(images: Tensor, quality: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Encode as JPEG of a quality and decode, with Pillow's defaults, on the CPU. Nothing is random."""
    pixels = images.mul(255).round_().to(torch.uint8).permute(0, 2, 3, 1).cpu().contiguous().numpy()
    result = np.empty_like(pixels)
    for image, out in zip(pixels, result, strict=True):  # threads do not help, because Pillow holds the lock
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        out[:] = np.asarray(Image.open(file, formats=["JPEG"]))
    return torch.from_numpy(result).to(images.device).permute(0, 3, 1, 2).to(images.dtype).div_(255)


@corruption(
    imagenet=[(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)],
    cifar=[(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)],
)
def saturate(images: Tensor, change: tuple[float, float], generators: Sequence[torch.Generator]) -> Tensor:
    """Multiply and raise the saturation of HSV, with unchanged hue and value. Nothing is random.

    In closed form: a channel is value * (1 - saturation * depth), where the hue determines depth, 0 for the largest
    channel and 1 for the smallest. Grey has the hue of red in HSV and becomes reddish if the saturation is raised, as
    in the published images.
    """
    factor, offset = change
    value = images.amax(1, keepdim=True)
    spread = value - images.amin(1, keepdim=True)
    red = images.new_tensor([0, 1, 1]).view(3, 1, 1)
    depth = torch.where(spread > 0, (value - images) / spread, red)
    saturation = (spread / value).nan_to_num_(0).mul_(factor).add_(offset).clamp_(max=1)
    return value * (1 - saturation * depth)
