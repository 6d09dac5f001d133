"""Files to pixels: images and masks as Pillow pictures, whatever their mode, depth or orientation."""

from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from clearhead.errors import ClearheadError


class DataError(ClearheadError):
    """Data that cannot be used at all; the message says what was found and what would work."""


class ImageRef(Protocol):
    """A picture that is no file of its own (``clearhead.data.shards``): small, comparable and picklable."""

    def open(self) -> Image.Image:
        """As ``Image.open`` gives it; raises what it likes."""

    def __hash__(self) -> int: ...


def load_image(path: Path | ImageRef) -> Image.Image:
    """An image as RGB, turned as its EXIF orientation says.

    Transparency is laid on white; 16-bit grey is divided by 257 (full scale to full scale), 32-bit floats are taken
    as 0..1 or, when they pass 1, as 0..255; of an animation the first frame. Raises DataError with the path.
    """
    try:
        with Image.open(path) if isinstance(path, Path) else path.open() as opened:
            return _rgb(_upright(opened))
    except Exception as error:  # Pillow's plugins raise nearly anything on broken files
        raise DataError(f"{path}: {_why(error)}") from error


def load_mask(path: Path) -> Image.Image:
    """A mask as mode L, 255 where the file is nonzero (of a palette: the index) and not transparent, 0 elsewhere.

    Turned as its EXIF orientation says. Raises DataError with the path.
    """
    try:
        with Image.open(path) as opened:
            image = _upright(opened)
            if image.mode in ("LA", "PA", "RGBA"):
                *colours, alpha = image.split()
                foreground = np.any([np.asarray(c) != 0 for c in colours], axis=0) & (np.asarray(alpha) != 0)
            else:
                values = np.asarray(image)
                foreground = (values != 0).any(axis=2) if values.ndim == 3 else values != 0
    except Exception as error:
        raise DataError(f"{path}: {_why(error)}") from error
    return Image.fromarray(foreground.astype(np.uint8) * 255)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation, None where the EXIF data is missing or broken."""
    try:
        return image.getexif().get(0x0112)
    except Exception:  # broken EXIF data says nothing about the pixels
        return None


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says."""
    image.load()  # which turns a TIFF, and only then is its orientation what is left to do
    turn = _TURNS.get(_orientation(image) or 1)
    return image.transpose(turn) if turn is not None else image


def _rgb(image: Image.Image) -> Image.Image:
    """An image of any of Pillow's modes as RGB, by the rules of `load_image`."""
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


def _why(error: Exception) -> str:
    """Pillow's reason in one line, without the path it repeats."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or empty, or of a format this Pillow cannot read"
    return " ".join(str(error).split()) or type(error).__name__


def by(size: tuple[int, int]) -> str:
    """Width x height for a message."""
    return f"{size[0]} x {size[1]}"
