"""Draw the outline of a mask; encode an image as a data URI."""

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from clearhead.errors import ClearheadError

Array = npt.NDArray[Any]

_LARGEST_SIDE = 320
_SMALL_SIDE = 96


def outline(image: Array, mask: Array) -> Array:
    """Draw a mask's contour, white between dark lines so that it is visible on any background; H x W x 3, uint8.

    Args:
        image: H x W x 3, uint8.
        mask: H x W, true (or non-zero) inside.

    Raises:
        ClearheadError: if the image is not H x W x 3 of uint8, or the mask has another size.
    """
    _check_image(image)
    if mask.shape != image.shape[:2]:
        raise ClearheadError(f"mask must be H x W like the image, got {mask.shape} for an image of {image.shape[:2]}")
    inside = mask.astype(bool)
    width = max(1, round(min(mask.shape) / 100))
    line = inside & _dilated(~inside, width)
    halo = _dilated(line, width) & ~line
    drawn = image.copy()
    drawn[halo] = (0.35 * drawn[halo]).astype(np.uint8)
    drawn[line] = 255
    return drawn


def data_uri(image: Array, largest: int = _LARGEST_SIDE) -> str:
    """Return an H x W x 3 uint8 image as a WebP data URI: at most `largest` pixels per side, lossless up to 96."""
    _check_image(image)
    encoded = Image.fromarray(image)
    encoded.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    encoded.save(buffer, format="WEBP", quality=80, lossless=is_tiny(image))
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def is_tiny(image: Array) -> bool:
    """Return whether an image is so small that its pixels are to be seen as squares."""
    return bool(max(image.shape[:2]) <= _SMALL_SIDE)


def _check_image(image: Array) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ClearheadError(f"image must be H x W x 3 of uint8, got shape {image.shape} of {image.dtype}")


def _dilated(mask: Array, steps: int) -> Array:
    """Return a boolean mask dilated by `steps` pixels up, down, left and right."""
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask
