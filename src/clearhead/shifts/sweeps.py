"""Shift images by an adjustable amount: noise frequency, occlusion, patch order, rotation, scale, location.

A sweep's function is called as ``function(images, generators, level)``; with its level fixed it is a ``Shift``. Each
image has its own generator, so its result does not depend on the batch, and levels share random numbers: the patches
dropped at 0.2 are among those dropped at 0.3.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as geometry

from clearhead.data.dataset import ImageIndex
from clearhead.errors import ClearheadError
from clearhead.shifts.sets import ClassMapping, ShiftedDataset

PIXEL_EPS = 0.16
"""+-0.7 on normalised images as pixels in 0..1: 0.7 times ImageNet's standard deviation, 0.226."""


def frequency_noise(
    images: Tensor,
    generators: Sequence[torch.Generator],
    level: float,
    *,
    eps: float = PIXEL_EPS,
    rms: float | None = None,
    spread: float = 0.2,
) -> Tensor:
    """Add noise of one frequency: random signs of size `eps`, band-passed to a square ring; B x 3 x H x W.

    The pass band is the frequencies w (radians per pixel) with pi level - spread <= max(|w_x|, |w_y|) < pi level +
    spread. The ring grows with its frequency, so about 4 level spread / pi of the noise's energy passes: the RMS is
    0.16 eps at level 0.1 and 0.48 eps at 0.9. With `rms`, each image's noise is scaled to this root mean square.

    Pixels are in 0..1, and the sum is clipped to it. The published code adds the noise to normalised images and does
    not clip; its `eps` is 0.007 by default and 0.7 in the author's example of its use. In pixels the latter is
    0.7 x 0.226 = 0.16, the default here. Also, its ring is off centre by one frequency.

    Source: Park & Kim 2022 (arXiv 2202.06709), figure 2b; xxxnell/how-do-vits-work, ops/adversarial.py and issue 44.
    Raises ClearheadError if the image has no such frequency.
    """
    height, width = images.shape[-2:]
    w_y = torch.fft.fftfreq(height, dtype=torch.float64).abs()[:, None] * 2 * math.pi
    w_x = torch.fft.rfftfreq(width, dtype=torch.float64)[None] * 2 * math.pi
    w = torch.maximum(w_y, w_x)
    ring = (w >= math.pi * level - spread) & (w < math.pi * level + spread)
    if not ring.any():
        raise ClearheadError(
            f"level: an image of {width} x {height} pixels has no frequency {level:g} pi +- {spread:g}; "
            "levels lie in 0..1, small images need a wider spread"
        )
    uniform = [torch.rand(images.shape[1:], generator=g, device=g.device) for g in generators]
    spectrum = torch.fft.rfft2((torch.stack(uniform) - 0.5).sign()) * ring.to(images.device)
    noise: Tensor = torch.fft.irfft2(spectrum, s=(height, width))
    size = eps if rms is None else rms / noise.square().mean((1, 2, 3), keepdim=True).sqrt()
    return (images + size * noise).clamp(0, 1)


def occlusion(
    images: Tensor, generators: Sequence[torch.Generator], level: float, *, side: int = 14, fill: float = 0.0
) -> Tensor:
    """Set random patches of a side x side grid to `fill`: a fraction `level` of them, rounded down; B x 3 x H x W.

    Source: Naseer et al. 2021 (arXiv 2105.10497), Random PatchDrop; Muzammal-Naseer/IPViT, evaluate.py: grid 14 x 14,
    black before normalisation, fractions 0 to 0.9, the same patches for the whole batch. Raises ClearheadError.
    """
    if not 0 <= level <= 1:
        raise ClearheadError(f"level: got {level:g}; a fraction of the patches in 0..1 is needed")
    height, width = images.shape[-2:]
    count = math.floor(level * side * side + 1e-9)  # a fraction such as 0.7 is not exact
    dropped = torch.zeros(len(images), side * side, dtype=torch.bool, device=images.device)
    dropped.scatter_(1, _permutations(generators, side * side)[:, :count], True)
    rows = torch.arange(height, device=images.device) * side // height
    columns = torch.arange(width, device=images.device) * side // width
    hidden = dropped.view(-1, side, side)[:, None, rows[:, None], columns]
    return images.masked_fill(hidden, fill)


def patch_shuffle(images: Tensor, generators: Sequence[torch.Generator], level: float) -> Tensor:
    """Shuffle the patches of a level x level grid; B x 3 x H x W.

    If `level` does not divide a side, the rows below and the columns right of the grid stay unchanged.

    Source: Naseer et al. 2021 (arXiv 2105.10497); Muzammal-Naseer/IPViT, evaluate.py and, for the levels,
    scripts/evaluate_shuffle.sh, with one order for the whole batch and an error for sides that cannot be divided.
    Raises ClearheadError.
    """
    height, width = images.shape[-2:]
    n = int(level)
    if n != level or not 1 <= n <= min(height, width):
        raise ClearheadError(
            f"level: got {level:g}; an integer number of patches per side in 1..{min(height, width)} is needed"
        )
    size = (height // n, width // n)
    grid = images[..., : n * size[0], : n * size[1]].reshape(*images.shape[:2], n, size[0], n, size[1])
    patches = grid.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # B x n^2 x 3 x h x w
    batch = torch.arange(len(images), device=images.device)[:, None]
    shuffled = patches[batch, _permutations(generators, n * n)]
    shuffled = shuffled.view(len(images), n, n, -1, *size).permute(0, 3, 1, 4, 2, 5)
    result = images.clone()
    result[..., : n * size[0], : n * size[1]] = shuffled.flatten(4, 5).flatten(2, 3)
    return result


def rotation(images: Tensor, generators: Sequence[torch.Generator], level: float, *, fill: float = 0.0) -> Tensor:
    """Rotate the images about their centres by `level` degrees, anticlockwise, bilinear; B x 3 x H x W.

    Corners from outside the image are `fill`. Nothing is random. Source: Engstrom et al. 2019 (arXiv 1712.02779).
    SI-Score (arXiv 2104.04191) rotates only the object on a background: its numbers are not comparable.
    """
    if level % 360 == 0:
        return images  # bilinear interpolation would only add rounding errors
    rotated: Tensor = geometry.rotate(images - fill, level, InterpolationMode.BILINEAR)
    return (rotated + fill).clamp(0, 1)


def scale(images: Tensor, generators: Sequence[torch.Generator], level: float, *, fill: float = 0.0) -> Tensor:
    """Scale the images by the factor `level` about their centres, bilinear with antialiasing; B x 3 x H x W.

    Below 1, the image is padded with `fill`; above 1, it is cropped to its centre. Sizes are rounded to whole pixels.
    Nothing is random. Raises ClearheadError for a factor that leaves no pixel.
    """
    height, width = images.shape[-2:]
    small = level < 1
    size = [round(side * level) if small else round(side / level) for side in (height, width)] if level > 0 else [0]
    if min(size) < 1:
        raise ClearheadError(f"level: got {level:g}, which leaves nothing of {width} x {height} pixels")
    if size == [height, width]:
        return images
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    inner = (..., slice(top, top + size[0]), slice(left, left + size[1]))
    if not small:
        enlarged: Tensor = geometry.resize(images[inner], [height, width], InterpolationMode.BILINEAR, antialias=True)
        return enlarged.clamp(0, 1)
    result = torch.full_like(images, fill)
    result[inner] = geometry.resize(images, size, InterpolationMode.BILINEAR, antialias=True).clamp(0, 1)
    return result


def location(images: Tensor, generators: Sequence[torch.Generator], level: float, *, fill: float = 0.0) -> Tensor:
    """Shift each image by a fraction `level` of its width in a random direction; B x 3 x H x W.

    By whole pixels, so that nothing is blurred; pixels from outside are `fill`. A fraction of 0.11 is the 24 of 224
    pixels of Engstrom et al. 2019 (arXiv 1712.02779), who also fill with black.
    """
    height, width = images.shape[-2:]
    angle = torch.stack([torch.rand((), generator=g, device=g.device) for g in generators]) * 2 * math.pi
    dy, dx = (level * width * angle.sin()).round().long(), (level * width * angle.cos()).round().long()
    rows = torch.arange(height, device=images.device) - dy[:, None]
    columns = torch.arange(width, device=images.device) - dx[:, None]
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None]
    batch = torch.arange(len(images), device=images.device)[:, None, None, None]
    channels = torch.arange(images.shape[1], device=images.device)[:, None, None]
    shifted = images[
        batch, channels, rows.clamp(0, height - 1)[:, None, :, None], columns.clamp(0, width - 1)[:, None, None]
    ]
    return shifted.masked_fill(~inside, fill)


def _permutations(generators: Sequence[torch.Generator], n: int) -> Tensor:
    """Return a random permutation of n numbers per generator, B x n."""
    return torch.stack([torch.randperm(n, generator=g, device=g.device) for g in generators])


@dataclass(frozen=True)
class Sweep:
    """A shift with adjustable level.

    Attributes:
        function: the shift at a level, ``function(images, generators, level)``.
        levels: the default levels.
        axis: label of a plot's axis: what the level is, with its unit.
        unchanged: the level at which nothing changes, if any.
    """

    function: Callable[..., Tensor]
    levels: tuple[float, ...]
    axis: str
    unchanged: float | None


_FREQUENCIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

SWEEPS: dict[str, Sweep] = {
    "frequency noise": Sweep(frequency_noise, _FREQUENCIES, "frequency of the noise (pi radians per pixel)", None),
    "equal-energy noise": Sweep(
        functools.partial(frequency_noise, rms=0.06),  # about that of the published form at 0.5 pi
        _FREQUENCIES,
        "frequency of the noise (pi radians per pixel), RMS 0.06",
        None,
    ),
    "occlusion": Sweep(occlusion, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), "fraction of patches dropped", 0.0),
    "patch shuffle": Sweep(patch_shuffle, (2, 4, 8, 14, 16), "patches per side, shuffled", 1),
    "rotation": Sweep(rotation, (15, 30, 45, 60, 90, 135, 180), "rotation (degrees, anticlockwise)", 0),
    "scale": Sweep(scale, (0.25, 0.35, 0.5, 0.7, 1.4, 2.0, 2.8), "scale factor", 1.0),
    "location": Sweep(location, (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5), "shift (fraction of the width)", 0.0),
}
"""Sweeps by their names in tables."""


def sweep_sets(
    folder: ImageIndex, class_mappings: Mapping[str, ClassMapping], name: str, levels: Sequence[float] | None = None
) -> list[ShiftedDataset]:
    """Return the data sets of one sweep: ``rotation 15``, ``rotation 30``, ...; by default at the sweep's levels.

    Raises ClearheadError for a name that is not in ``SWEEPS``.
    """
    if name not in SWEEPS:
        raise ClearheadError(f"name: {name!r} is unknown; choose from {', '.join(SWEEPS)}")
    sweep = SWEEPS[name]
    return [
        ShiftedDataset(
            name=f"{name} {level:g}",
            folder=folder,
            class_mappings=class_mappings,
            shift=functools.partial(sweep.function, level=level),
            family=name,
            level=level,
        )
        for level in (sweep.levels if levels is None else levels)
    ]
