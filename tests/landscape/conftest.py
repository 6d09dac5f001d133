"""Ten images of 4 x 4 pixels in two classes."""

import numpy as np
import pytest
from PIL import Image

from clearhead.data.folder import read_folder


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.fromarray(rng.integers(0, 255, (4, 4, 3)).astype(np.uint8)).save(tmp_path / name / f"{i}.png")
    return read_folder(tmp_path)
