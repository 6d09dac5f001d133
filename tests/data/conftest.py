"""Fixtures of the tests of this room."""

from pathlib import Path

import pytest

from tests.data.helpers import save_image, save_mask


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of two images, one of them with a mask."""
    for file in ("cat/a.jpg", "cat/b.png", "dog/c.JPEG", "dog/d.webp"):
        save_image(tmp_path / file)
    save_mask(tmp_path / "masks/cat/b.png")
    return tmp_path
