"""Random changes of an image and its mask, alike, before the model's own preprocessing."""

import math

import torch
from PIL import Image

from clearhead.data.batches import Augment


def crop_and_flip(smallest: float) -> Augment:
    """A random window of `smallest`..1 of the image's area, of its shape, mirrored half of the time."""

    def augment(
        image: Image.Image, mask: Image.Image | None, generator: torch.Generator
    ) -> tuple[Image.Image, Image.Image | None]:
        area, across, down, flip = torch.rand(4, generator=generator).tolist()
        side = math.sqrt(smallest + (1 - smallest) * area)
        width, height = max(1, round(side * image.width)), max(1, round(side * image.height))
        left, top = round(across * (image.width - width)), round(down * (image.height - height))

        def change(picture: Image.Image) -> Image.Image:
            window = picture.crop((left, top, left + width, top + height))
            return window.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip < 0.5 else window

        return change(image), change(mask) if mask is not None else None

    return augment
