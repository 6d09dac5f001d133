"""Sheets: captioned images of one sample side by side in one image file."""

import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from clearhead.attribution import overlay
from clearhead.report.svg import shorten

Pixels = npt.NDArray[np.uint8]

_SMALLEST = 224
"""Height in pixels that smaller images are enlarged to, by a whole factor, so that their pixels stay square."""

_GAP, _TEXT = 12, 14


def colour_bar(height: int, width: int) -> Pixels:
    """Return the colours that ``overlay`` gives relevance 1 (top) to 0 (bottom) on grey; height x width x 3."""
    heat = np.linspace(1, 0, height, dtype=np.float32)[:, None].repeat(width, 1)
    return overlay(np.full((height, width, 3), 128, np.uint8), heat)


def draw_sheet(images: Sequence[tuple[str, Pixels]], title: str, *, bar: bool = False) -> Pixels:
    """Draw captioned images of one size side by side.

    Args:
        images: caption and pixels, H x W x 3, of each.
        title: text above them.
        bar: add the colour bar of relevance maps.

    Returns:
        The sheet, H x W x 3.
    """
    height, width = images[0][1].shape[:2]
    factor = max(1, -(-_SMALLEST // height))
    height, width = factor * height, factor * width
    bar_width = 6 * _TEXT if bar else 0
    total = _GAP + len(images) * (width + _GAP) + bar_width
    lines = textwrap.wrap(" ".join(title.split()), max(20, (total - 2 * _GAP) * 2 // _TEXT))
    top = _GAP + len(lines) * (_TEXT + 4)
    sheet = Image.new("RGB", (total, top + height + _TEXT + 2 * _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        draw.text((_GAP, _GAP // 2 + i * (_TEXT + 4)), line, "black", _font())
    for i, (caption, pixels) in enumerate(images):
        left = _GAP + i * (width + _GAP)
        sheet.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), (left, top))
        draw.text((left, top + height + 4), shorten(caption, width // 8), "black", _font())
    if bar:
        left = total - bar_width
        sheet.paste(Image.fromarray(colour_bar(height, _TEXT)), (left, top))
        draw.text((left + _TEXT + 4, top - 2), "1", "black", _font())
        draw.text((left + _TEXT + 4, top + height - _TEXT), "0", "black", _font())
        draw.text((left, top + height + 4), "relevance", "black", _font())
    return np.asarray(sheet)


@cache
def _font() -> ImageFont.FreeTypeFont:
    """Return matplotlib's default font, which has the letters of most languages."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", _TEXT)
