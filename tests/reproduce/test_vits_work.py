"""The experiments of "How do vision transformers work": what is drawn, how claims are judged, all of it once, small."""

import io
from dataclasses import replace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from clearhead.data.pixels import DataError
from clearhead.data.shards import read_images
from clearhead.evaluate.statistics import Estimate
from clearhead.reproduce import vits_work
from clearhead.reproduce.vits_work import SIZES, Claim, reproduce


@pytest.fixture
def cifar(tmp_path):
    """60 and 20 pictures of 32 x 32 pixels in 2 classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 20)):
        pictures = []
        for i in range(count):
            stream = io.BytesIO()
            Image.fromarray(rng.integers(100 * (i % 2), 150 + 100 * (i % 2), (32, 32, 3), np.uint8)).save(stream, "PNG")
            pictures.append(stream.getvalue())
        table = pyarrow.table({"img": pictures, "label": [i % 2 for i in range(count)]})
        (tmp_path / "cifar").mkdir(exist_ok=True)
        pyarrow.parquet.write_table(table, tmp_path / "cifar" / f"{split}.parquet")
    return tmp_path / "cifar"


TINY = replace(SIZES["small"], train=32, validation=12, test=16, fractions=(0.5,), batches=2, probed=8)


@pytest.mark.parametrize(
    ("low", "high", "sign", "verdict"),
    [
        (0.1, 0.3, 1, "holds"),
        (-0.3, -0.1, 1, "does not hold"),
        (-0.3, -0.1, -1, "holds"),
        (-0.1, 0.3, 1, "cannot tell"),
        (0.0, 0.3, 1, "cannot tell"),
        (float("nan"), float("nan"), 1, "cannot tell"),
    ],
)
def test_a_claim_is_judged_by_the_interval_of_its_difference(low, high, sign, verdict):
    assert Claim("", "", Estimate((low + high) / 2, low, high, 9), sign).verdict == verdict


def test_parts_are_nested_and_share_what_they_are_measured_on(cifar, tmp_path):
    folder = vits_work._parts(tmp_path / "data", cifar, TINY, 0)
    whole, half = (
        {split: read_images(folder / p, split=split) for split in ("train", "val", "test")} for p in ("100", "50")
    )
    assert [len(whole[split].samples) for split in whole] == [32, 12, 16]
    assert [len(half[split].samples) for split in half] == [16, 12, 16]

    def pixels(images):
        return {sample.path.picture().tobytes() for sample in images.samples}

    assert pixels(half["train"]) < pixels(whole["train"])
    assert pixels(half["test"]) == pixels(whole["test"])
    assert not pixels(whole["train"]) & pixels(whole["val"])


@pytest.mark.slow
def test_all_of_it_once(cifar, tmp_path, monkeypatch):
    shallow = {name: f"{model},depth=1" if "vit" in name else model for name, model in TINY.models.items()}
    shallow["vit-window"] = "zoo:vit_mini_patch4_window_32,window=5,depth=1"
    few = replace(TINY.settings, epochs=2, warmup=1, batch_size=16)
    monkeypatch.setitem(SIZES, "small", replace(TINY, models=shallow, settings=few, early=1))
    found = reproduce(tmp_path / "out", cifar, device="cpu")
    for name in ("resnet", "vit-cls", "vit-gap", "vit-window", "alternet", "vit-gap-50"):
        assert f"| {name} |" in found
    assert found.count("| holds |") + found.count("| does not hold |") + found.count("| cannot tell |") == 16
    assert (tmp_path / "out" / "lesion" / "report.html").is_file()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("results.json")}
    assert reproduce(tmp_path / "out", cifar, device="cpu") == found
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("results.json")} == done


def test_bad_input(cifar, tmp_path):
    with pytest.raises(ValueError, match="there is small, paper"):
        reproduce(tmp_path / "out", cifar, size="large")
    (cifar / "test.parquet").unlink()
    with pytest.raises(DataError, match="the splits train and test are needed"):
        reproduce(tmp_path / "out", cifar)
