"""The demo's pictures: the shortcut is where it should be and nowhere else, and masks are exact."""

import csv
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from clearhead.data.image_io import DataError
from clearhead.demo import data as demo
from clearhead.demo.data import NATURAL, NATURAL_SHARE, make_demo, plan, render


def test_the_ground_tells_the_class_in_training_and_not_in_the_test():
    planned = plan()
    for split in ("train", "val"):
        own = [p.ground == NATURAL[p.label] for p in planned if p.split == split]
        assert np.mean(own) == pytest.approx(NATURAL_SHARE, abs=0.01)
    counts = Counter((p.label, p.ground) for p in planned if p.split == "test")
    assert len(counts) == 16
    assert len(set(counts.values())) == 1


@pytest.mark.parametrize("label", NATURAL)
def test_a_picture_depends_on_its_generator_alone_and_its_mask_is_the_animal(label):
    image, mask = render(label, "water", np.random.default_rng([0, 7]))
    again, _ = render(label, "water", np.random.default_rng([0, 7]))
    np.testing.assert_array_equal(image, again)
    other, same_mask = render(label, "sand", np.random.default_rng([0, 7]))
    assert (image.shape, image.dtype, mask.shape) == ((64, 64, 3), np.uint8, (64, 64))
    assert set(np.unique(mask)) == {0, 255}
    assert 0.03 < (mask > 0).mean() < 0.4
    assert (mask > 0)[:6].sum() == (mask > 0)[-6:].sum() == 0  # the ground's ring is free of it
    assert not np.array_equal(image, other)
    assert same_mask.shape == mask.shape


def test_the_folder_is_complete_when_its_table_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "COUNTS", {"train": 8, "val": 4, "test": 16})
    make_demo(tmp_path / "data")
    rows = list(csv.DictReader((tmp_path / "data" / "metadata.csv").open()))
    assert Counter(row["split"] for row in rows) == {"train": 8, "val": 4, "test": 16}
    for row in rows:
        assert Image.open(tmp_path / "data" / row["file"]).size == (64, 64)
        assert Image.open(tmp_path / "data" / "masks" / row["file"]).mode == "L"
    with pytest.raises(DataError, match=r"metadata\.csv exists"):
        make_demo(tmp_path / "data")
