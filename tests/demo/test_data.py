"""The demo's data: the background is spuriously correlated with the class in training only, and masks are exact."""

import csv
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from clearhead.data.image_io import DataError
from clearhead.demo import data as demo
from clearhead.demo.data import CORRELATION, USUAL_BACKGROUND, make_demo, plan, render


def test_the_background_predicts_the_class_in_training_and_not_in_the_test_split():
    planned = plan()
    for split in ("train", "val"):
        usual = [p.background == USUAL_BACKGROUND[p.label] for p in planned if p.split == split]
        assert np.mean(usual) == pytest.approx(CORRELATION, abs=0.01)
    counts = Counter((p.label, p.background) for p in planned if p.split == "test")
    assert len(counts) == 16
    assert len(set(counts.values())) == 1


@pytest.mark.parametrize("label", USUAL_BACKGROUND)
def test_an_image_depends_only_on_its_generator_and_its_mask_is_the_animal(label):
    image, mask = render(label, "water", np.random.default_rng([0, 7]))
    repeated, _ = render(label, "water", np.random.default_rng([0, 7]))
    np.testing.assert_array_equal(image, repeated)
    other, same_mask = render(label, "sand", np.random.default_rng([0, 7]))
    assert (image.shape, image.dtype, mask.shape) == ((64, 64, 3), np.uint8, (64, 64))
    assert set(np.unique(mask)) == {0, 255}
    assert 0.03 < (mask > 0).mean() < 0.4
    assert (mask > 0)[:6].sum() == (mask > 0)[-6:].sum() == 0  # a margin of background
    assert not np.array_equal(image, other)
    assert same_mask.shape == mask.shape


def test_the_data_set_is_complete_once_its_table_exists(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "COUNTS", {"train": 8, "val": 4, "test": 16})
    make_demo(tmp_path / "data")
    rows = list(csv.DictReader((tmp_path / "data" / "metadata.csv").open()))
    assert Counter(row["split"] for row in rows) == {"train": 8, "val": 4, "test": 16}
    for row in rows:
        assert Image.open(tmp_path / "data" / row["file"]).size == (64, 64)
        assert Image.open(tmp_path / "data" / "masks" / row["file"]).mode == "L"
    with pytest.raises(DataError, match=r"metadata\.csv exists"):
        make_demo(tmp_path / "data")
