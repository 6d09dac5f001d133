"""Decode images and masks with Pillow, whatever their mode, bit depth or orientation."""

from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from clearhead.errors import ClearheadError


class DataError(ClearheadError):
    """Data that cannot be used at all."""


class ImageRef(Protocol):
    """An image stored in a larger file (``clearhead.data.image_refs``): small, comparable, hashable and picklable."""

    def open(self) -> Image.Image:
        """Open the image with Pillow. May raise any exception."""

    def __hash__(self) -> int: ...


def load_image(path: Path | ImageRef) -> Image.Image:
    """Return an image as RGB, with its EXIF orientation applied.

    Transparent pixels are blended with white. 16-bit grey is divided by 257 (full scale to full scale). 32-bit floats
    are read as 0..1, or as 0..255 if any exceeds 1. An animation gives its first frame. Raises DataError with the path.
    """
    try:
        with Image.open(path) if isinstance(path, Path) else path.open() as opened:
            return _to_rgb(_upright(opened))
    except Exception as error:  # Pillow's plugins raise nearly anything on broken files
        raise DataError(f"{path}: {_reason(error)}") from error


def load_mask(path: Path | ImageRef) -> Image.Image:
    """Return a mask as mode L: 255 where the file is nonzero (for a palette: the index) and opaque, 0 elsewhere.

    The EXIF orientation is applied. Raises DataError with the path.
    """
    try:
        with Image.open(path) if isinstance(path, Path) else path.open() as opened:
            image = _upright(opened)
            if image.mode in ("LA", "PA", "RGBA"):
                *colours, alpha = image.split()
                foreground = np.any([np.asarray(c) != 0 for c in colours], axis=0) & (np.asarray(alpha) != 0)
            else:
                values = np.asarray(image)
                foreground = (values != 0).any(axis=2) if values.ndim == 3 else values != 0
    except Exception as error:
        raise DataError(f"{path}: {_reason(error)}") from error
    return Image.fromarray(foreground.astype(np.uint8) * 255)


def _upright(image: Image.Image) -> Image.Image:
    """Return the image with its EXIF orientation applied; broken EXIF data counts as none."""
    image.load()  # applies the orientation of a TIFF file, so that it is not applied twice
    try:
        image.getexif()  # cached for exif_transpose, which without these entries does not encode the EXIF data again
        for key in ("exif", "Raw profile type exif"):
            image.info.pop(key, None)
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB by the rules of `load_image`."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        scaled = values * 255 if values.max() <= 1 else values
        image = Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    """Return Pillow's reason in one line, without the path."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, empty, or in a format that this Pillow cannot read"
    return " ".join(str(error).split()) or type(error).__name__


def format_size(size: tuple[int, int]) -> str:
    """Return width and height for a message, such as ``640 x 480``."""
    return f"{size[0]} x {size[1]}"
