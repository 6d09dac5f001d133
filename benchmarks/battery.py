"""What the shortcut battery costs, against the forward passes that it needs.

    python benchmarks/battery.py --model timm:deit_tiny_patch16_224@FILE --data nips17

The floor: one forward pass per image and change on images that are already in memory, and one for the clean image. The
battery also reads, decodes and changes the images; each is read for it one time. With masks of a central square, so
that all changes are made.
"""

import argparse
import io
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from timing import seconds, table

from clearhead.analyses import battery
from clearhead.data.image_io import load_image
from clearhead.data.image_refs import InMemoryImage
from clearhead.data.images import read_images
from clearhead.data.loading import ImageDataset, loader
from clearhead.data.splits import sample_n
from clearhead.models import load_model
from clearhead.shifts.shortcuts import SHORTCUTS


def main(name: str, data: str, images: int, rounds: int) -> None:
    model = load_model(name)
    index = sample_n(read_images(data, classes=model.classes), images, 0)
    index = replace(index, samples=tuple(replace(s, mask=square(load_image(s.path).size)) for s in index.samples))
    batches = [batch["image"] for batch in loader(ImageDataset(index, model.preprocess), 32, 0)]

    @torch.inference_mode()
    def forward_passes() -> None:
        for _ in range(1 + len(SHORTCUTS)):
            for batch in batches:
                model(batch)

    candidates = {"forward passes": forward_passes, "battery": lambda: battery.measure(model, index)}
    table(seconds(candidates, rounds), "forward passes", len(index.samples))


def square(size: tuple[int, int]) -> InMemoryImage:
    """A mask of the middle quarter of an image of a size (width, height)."""
    width, height = size
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height - height // 4, width // 4 : width - width // 4] = 255
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return InMemoryImage("a square", buffer.getvalue())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    main(arguments.model, arguments.data, arguments.images, arguments.rounds)
