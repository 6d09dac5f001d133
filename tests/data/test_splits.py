"""Splits: training and validation images, and subsets."""

from dataclasses import replace
from pathlib import Path

import pytest

from clearhead.data.folder import read_folder
from clearhead.data.image_io import DataError
from clearhead.data.splits import require_apart


def test_parts_that_share_images_raise_an_error(root: Path) -> None:
    folder = read_folder(root)
    half = replace(folder, samples=folder.samples[: len(folder.samples) // 2])
    rest = replace(folder, samples=folder.samples[len(folder.samples) // 2 :])
    require_apart(training=half, validation=rest, test=None)
    with pytest.raises(DataError, match=rf"{len(half.samples)} images are for training and for test, such as "):
        require_apart(training=half, validation=rest, test=folder)
