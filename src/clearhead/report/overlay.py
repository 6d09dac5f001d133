"""Pictures for people: a relevance map over its image, a mask's outline, an image as a data URI."""

import base64
import io

import numpy as np
from matplotlib import colormaps
from PIL import Image

from clearhead.errors import ClearheadError

_LARGEST_SIDE = 320
_SMALL_SIDE = 96


def overlay(image: np.ndarray, heat: np.ndarray, strength: float = 0.7) -> np.ndarray:
    """Lay a map over its image: the more relevant, the less transparent and the warmer; at 0 the image shows.

    The image is first drained of half its colour, so that colour speaks of the map.

    Args:
        image: H x W x 3, uint8.
        heat: h x w, float in 0..1 (scaling is the caller's choice); enlarged to H x W if smaller.
        strength: opacity in 0..1 at relevance 1.

    Returns:
        H x W x 3, uint8.
    """
    _check_image(image)
    if heat.ndim != 2:
        raise ClearheadError(f"heat must be H x W, got shape {heat.shape}: give one map at a time")
    if not (np.isfinite(heat).all() and heat.min() >= 0 and heat.max() <= 1):
        raise ClearheadError(
            f"heat must lie in 0..1, got {heat.min():.3g}..{heat.max():.3g}: scale it, for instance heat / heat.max()"
        )
    height, width = image.shape[:2]
    enlarged = Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    relevance = np.clip(np.asarray(enlarged), 0, 1)
    grey = image.mean(axis=2, keepdims=True)
    ground = 0.5 * image + 0.5 * grey
    warm = 255 * colormaps["inferno"](0.35 + 0.55 * relevance)[..., :3]
    alpha = strength * (relevance**0.8)[..., None]
    return np.rint((1 - alpha) * ground + alpha * warm).astype(np.uint8)


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
