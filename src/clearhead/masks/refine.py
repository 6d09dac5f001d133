"""From the patches of an object to its pixels.

The eigenvector says more than on which side a patch is: near the outline it goes through zero between two patches'
centres. Scaled up smoothly, its sign is a finer outline than that of the patches, at the cost of a resize. Methods that
look at the image as well (votes of superpixels, random walks, guided filters, colour models) were tried on photographs
of pets and gave less, or under a percentage point of IoU more at forty times the cost.
"""

import numpy as np
from PIL import Image

from clearhead.masks.tokencut import Cut


def refine(cut: Cut, size: tuple[int, int]) -> np.ndarray:
    """The object's pixels at an image's size (width, height), H x W, bool: where |y|, bicubic, is more its own.

    |y| counts for the object in its patches and against it elsewhere, each side divided by its mean: otherwise the side
    of fewer patches, whose |y| are larger, would grow.
    """
    if not cut.mask.any():
        return np.zeros(size[::-1], dtype=bool)
    values = np.abs(cut.values)
    signed = np.where(cut.mask, values / values[cut.mask].mean(), -values / values[~cut.mask].mean())
    return np.asarray(Image.fromarray(signed.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)) > 0


def patch_mask(cut: Cut, size: tuple[int, int]) -> np.ndarray:
    """The object's patches at an image's size (width, height), H x W, bool."""
    return np.asarray(Image.fromarray(cut.mask).resize(size, Image.Resampling.NEAREST))
