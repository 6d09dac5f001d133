"""Splits: training and validation images, and subsets."""

from dataclasses import replace
from pathlib import Path

import pytest

from clearhead.data.folder import read_folder
from clearhead.data.image_io import DataError
from clearhead.data.splits import require_apart


def test_parts_that_share_images_are_refused(root: Path) -> None:
    found = read_folder(root)
    half = replace(found, samples=found.samples[: len(found.samples) // 2])
    rest = replace(found, samples=found.samples[len(found.samples) // 2 :])
    require_apart(training=half, validation=rest, test=None)
    with pytest.raises(DataError, match=rf"{len(half.samples)} images are for training and for test, such as "):
        require_apart(training=half, validation=rest, test=found)
