"""Refine an object's mask from patches to pixels.

The eigenvector does not only assign each patch to a side: near the outline it crosses zero between two patch centres.
Upsampled smoothly, its sign gives a finer outline than the patches, for the cost of a resize. Methods that also use the
image (superpixel votes, random walks, guided filters, colour models) were tested on photographs of pets: they gave a
lower IoU, or less than one percentage point more at forty times the cost.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

from clearhead.masks.tokencut import Cut


def refine(cut: Cut, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the object's pixels at an image's size (width, height): H x W.

    |y|, negated outside the object's patches, is upsampled (bicubic); the object is where it is positive. Each side is
    divided by its mean first, because otherwise the side with fewer patches, whose |y| are larger, would grow.
    """
    if not cut.mask.any():
        return np.zeros(size[::-1], dtype=bool)
    values = np.abs(cut.values)
    signed = np.where(cut.mask, values / values[cut.mask].mean(), -values / values[~cut.mask].mean())
    return np.asarray(Image.fromarray(signed.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)) > 0


def patch_mask(cut: Cut, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the object's patches at an image's size (width, height): H x W."""
    return np.asarray(Image.fromarray(cut.mask).resize(size, Image.Resampling.NEAREST))
