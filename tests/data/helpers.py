"""Build small data sets for the tests of this room."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clearhead.data.dataset import DataIssue, ImageIndex


def save_image(path: Path, size: tuple[int, int] = (20, 12), colour: int = 90, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, colour // 2, 10)).save(path, **options)
    return path


def save_mask(path: Path, size: tuple[int, int] = (20, 12), foreground: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros(size[::-1], dtype=np.uint8)
    values[2:6, 3:9] = 255 * foreground
    Image.fromarray(values).save(path, format="PNG")
    return path


def save_noise(path: Path, size: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(256, size=(size, size, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def truncate(path: Path, fraction: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])


def write_metadata(root: Path, *lines: str) -> None:
    (root / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def only_issue(folder: ImageIndex) -> DataIssue:
    (issue,) = folder.issues
    return issue


class Pixels:
    """A preprocess: 6 x 10 pixels, 0..1."""

    def image(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image.resize((10, 6)), dtype=np.float32) / 255).permute(2, 0, 1)

    def mask(self, mask: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(mask.resize((10, 6), 0), dtype=np.float32) / 255)[None]


def speckle(
    image: Image.Image, mask: Image.Image | None, generator: torch.Generator
) -> tuple[Image.Image, Image.Image | None]:
    shade = int(torch.randint(256, (), generator=generator))
    return Image.new("RGB", image.size, (shade, 0, 0)), mask
