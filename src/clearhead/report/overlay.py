"""Images for pages: the outline of a mask, an image as a data URI."""

import base64
import io

import numpy as np
from PIL import Image

from clearhead.errors import ClearheadError

_LARGEST_SIDE = 320
_SMALL_SIDE = 96


def outline(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Draw a mask's contour, white between dark lines so that it shows on any ground; H x W x 3, uint8.

    Args:
        image: H x W x 3, uint8.
        mask: H x W, true (or non-zero) inside.
    """
    _check_image(image)
    if mask.shape != image.shape[:2]:
        raise ClearheadError(f"mask must be H x W like the image, got {mask.shape} for an image of {image.shape[:2]}")
    inside = mask.astype(bool)
    width = max(1, round(min(mask.shape) / 100))
    line = inside & _grown(~inside, width)
    halo = _grown(line, width) & ~line
    drawn = image.copy()
    drawn[halo] = (0.35 * drawn[halo]).astype(np.uint8)
    drawn[line] = 255
    return drawn


def data_uri(image: np.ndarray) -> str:
    """A WebP of an H x W x 3 uint8 image as a data URI: at most 320 pixels a side, lossless where tiny."""
    _check_image(image)
    picture = Image.fromarray(image)
    tiny = max(picture.size) <= _SMALL_SIDE
    picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=80, lossless=tiny)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _check_image(image: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ClearheadError(f"image must be H x W x 3 of uint8, got shape {image.shape} of {image.dtype}")


def _grown(mask: np.ndarray, steps: int) -> np.ndarray:
    """A boolean mask widened by single pixels up, down, left and right."""
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask
