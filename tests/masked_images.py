"""Twenty noise images of five classes, most with masks; one metadata column implies the class, one is constant."""

import csv

import numpy as np
import pytest
from PIL import Image

from clearhead.data.dataset import ImageIndex
from clearhead.data.folder import read_folder
from tests import cases

SIDE = (cases.SIZE, cases.SIZE)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    root, rng = tmp_path_factory.mktemp("heads"), np.random.default_rng(0)
    rows = []
    for label in "abcde":
        (root / label).mkdir()
        (root / "masks" / label).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (*SIDE, 3), dtype=np.uint8)).save(root / label / f"{i}.png")
            if i < 3:
                mask = np.zeros(SIDE, np.uint8)
                mask[: 8 * (i + 1), :20] = 255
                Image.fromarray(mask).save(root / "masks" / label / f"{i}.png")
            rows.append([f"{label}/{i}.png", "train", {"a": "red", "b": "blue"}.get(label, "grey"), "one"])
    with (root / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "split", "colour", "constant"], *rows])
    return read_folder(root, classes=tuple("abcde"))
