"""Compute Canny edges, distances and histogram equalisation exactly as OpenCV, in integers.

``spatter`` uses these. Its drops depend on single edge pixels, so that another edge detector would draw other drops.
Everything is batched, B x H x W; only connecting edge pixels to lines runs on the CPU.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor


def canny(images: Tensor, low: int, high: int) -> Tensor:
    """Return the edges of 8-bit images by Canny's method (1986), bool.

    Args:
        images: integers 0..255, B x H x W.
        low: |dx| + |dy| of the 3 x 3 Sobel filters that an edge pixel must exceed.
        high: what at least one pixel of a connected edge (8 neighbours) must exceed.
    """
    padded = F.pad(images[:, None].float(), (1, 1, 1, 1), mode="replicate")[:, 0].short()
    across = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    down = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    dx, dy = across[:, :, 2:] - across[:, :, :-2], down[:, 2:] - down[:, :-2]
    x, y = dx.abs(), dy.abs()
    size = x + y
    (a, b, c), (d, _, e), (f, g, h) = _neighbours(F.pad(size, (1, 1, 1, 1)))
    # OpenCV's tangents of 22.5 and 67.5 degrees, in units of 1 / 2^15
    rise, tangent = y.int() << 15, x.int() * 13573
    flat, steep = rise < tangent, rise > tangent + (x.int() << 16)
    rising = (dx ^ dy) < 0
    slanted = torch.where(rising, (size > c) & (size > f), (size > a) & (size > h))
    crest = torch.where(flat, (size > d) & (size >= e), torch.where(steep, (size > b) & (size >= g), slanted))
    weak = crest & (size > low)
    return _connected(weak, weak & (size > high))


def _connected(weak: Tensor, strong: Tensor) -> Tensor:
    """Return the connected groups of weak pixels (8 neighbours, within an image) that contain a strong one."""
    within = np.zeros((3, 3, 3), dtype=int)
    within[1] = 1
    groups, count = ndimage.label(weak.cpu().numpy(), within)
    has_strong = np.zeros(count + 1, dtype=bool)
    has_strong[groups[strong.cpu().numpy()]] = True
    return torch.from_numpy(has_strong[groups]).to(weak.device)


UNIT = 1 << 16
"""One pixel in the units of ``distance``."""


def distance(edges: Tensor) -> Tensor:
    """Return the distance of every pixel to the nearest edge pixel, int32 in units of 1 / 65,536 px.

    Along steps of 1, (1, 1) = 1.4 and (2, 1) = 2.1969 px, in two passes over the rows (Borgefors 1986, the 5 x 5
    mask); larger than the image if it has no edge.
    """
    side, diagonal, knight = UNIT, round(1.4 * UNIT), round(2.1969 * UNIT)
    _, height, width = edges.shape
    far = 2 * (height + width) * UNIT
    # rows first, so that each row of all images is contiguous
    field = torch.where(edges, 0, far).int().transpose(0, 1)
    ramp = torch.arange(width, dtype=torch.int32, device=edges.device) * side
    for _ in range(2):
        rows = F.pad(field, (2, 2, 0, 0, 2, 0), value=far)
        for y in range(2, height + 2):
            above, higher = rows[y - 1], rows[y - 2]
            step = torch.minimum(above[:, 1:-3], above[:, 3:-1]).add_(diagonal)
            leap = torch.minimum(above[:, :-4], above[:, 4:])
            leap = torch.minimum(leap, torch.minimum(higher[:, 1:-3], higher[:, 3:-1])).add_(knight)
            near = torch.minimum(torch.minimum(rows[y, :, 2:-2], above[:, 2:-2] + side), torch.minimum(step, leap))
            # along the row, d(x) = min over x' <= x of d(x') + x - x'
            rows[y, :, 2:-2] = (near - ramp).cummin(1).values + ramp
        field = rows[2:, :, 2:-2].flip(0, 2)
    return field.transpose(0, 1)


def equalize_histogram(images: Tensor) -> Tensor:
    """Equalise the histograms of 8-bit images (B x H x W, integers 0..255); return float32 integers."""
    first = torch.arange(len(images), device=images.device) * 256
    counts = torch.bincount((images.long() + first[:, None, None]).flatten(), minlength=256 * len(images)).view(-1, 256)
    lowest = (counts > 0).int().argmax(1, keepdim=True)
    under = counts.gather(1, lowest)
    rest = images[0].numel() - under
    scale = torch.full_like(rest, 255, dtype=torch.float32) / rest  # `255 / rest` would be a reciprocal, rounded twice
    table = ((counts.cumsum(1) - under) * scale).round()
    table = torch.where(rest == 0, lowest, table)  # an image of one value stays unchanged
    return table.gather(1, images.long().flatten(1)).view(images.shape)


def convolve(images: Tensor, weights: list[list[int]]) -> Tensor:
    """Return the weighted sum of each pixel's 3 x 3 neighbourhood; the image is reflected at the border."""
    views = _neighbours(F.pad(images[:, None], (1, 1, 1, 1), mode="reflect")[:, 0])
    total = torch.zeros_like(images)
    for row, row_weights in zip(views, weights, strict=True):
        for view, weight in zip(row, row_weights, strict=True):
            total.add_(view, alpha=weight)
    return total


def _neighbours(padded: Tensor) -> list[list[Tensor]]:
    """Return the 3 x 3 neighbours of every pixel as views of images with a border of 1 px: rows of three."""
    height, width = padded.shape[1] - 2, padded.shape[2] - 2
    return [[padded[:, y : y + height, x : x + width] for x in range(3)] for y in range(3)]
