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
from clearhead.models import load_model
from clearhead.reproduce.vits_work import SIZES, reproduce
from clearhead.reproduce.vits_work.claims import Claim
from clearhead.reproduce.vits_work.images import parts
from clearhead.reproduce.vits_work.sizes import BLOCKS, FRACTIONS, WINDOWS


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


SMALL = SIZES["small"]


def tiny():
    """The small size on a few images, with models of one block and only the series that claims are made of."""
    half = {f"{name}-50": replace(SMALL.trainings[name], fraction=0.5) for name in ("resnet", "vit-gap")}
    kept = {name: SMALL.trainings[name] for name in (*SMALL.main, "vit-window-3", "alternet-1")}

    def shallow(training):
        model = training.model.replace("num_blocks=6", "num_blocks=1")
        return replace(training, model=f"{model},depth=1" if "vit" in model else model)

    series = {
        FRACTIONS: ("resnet", "resnet-50", "vit-gap", "vit-gap-50"),
        WINDOWS: ("vit-window-3", "vit-gap"),
        BLOCKS: ("resnet", "alternet-1"),
    }
    settings = replace(SMALL.settings, epochs=2, warmup=1, batch_size=16)
    few = {"train": 32, "validation": 12, "test": 16, "batches": 2, "probed": 8, "corrupted": 4}
    return replace(
        SMALL,
        trainings={name: shallow(t) for name, t in (kept | half).items()},
        series=series,
        settings=settings,
        early=1,
        **few,
    )


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
    folder = parts(tmp_path / "data", cifar, tiny(), 0)
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
    monkeypatch.setitem(SIZES, "small", tiny())
    found = reproduce(tmp_path / "out", cifar, device="cpu")
    for name in tiny().trainings:
        assert f"| {name} |" in found
    claims = found.count("| holds |") + found.count("| does not hold |") + found.count("| cannot tell |")
    frost = "mean corruption accuracy: resnet less vit-cls" in found  # whose photographs need not be there
    assert claims == (24 if frost else 22)
    assert (tmp_path / "out" / "lesion" / "report.html").is_file()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("results.json")}
    assert reproduce(tmp_path / "out", cifar, device="cpu") == found
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("results.json")} == done


@pytest.mark.parametrize("size", SIZES)
def test_the_trainings_are_those_of_the_paper(size):
    chosen = SIZES[size]
    assert {name for names in (chosen.main, *chosen.series.values()) for name in names} == {*chosen.trainings}
    assert all(chosen.last(name) > chosen.early for name in chosen.main)
    assert chosen.last("vit-third") == round(chosen.settings.epochs / 3)
    plain = chosen.trainings["vit-none"].settings(chosen.settings)
    assert (plain.augment, plain.mixup, plain.cutmix) == ("none", 0, 0)


@pytest.mark.parametrize("size", ["small", pytest.param("paper", marks=pytest.mark.slow)])
def test_every_model_can_be_made(size):
    alike = {}
    for name, training in SIZES[size].trainings.items():
        model = load_model(training.model, num_classes=10)
        alike.setdefault(sum(p.numel() for p in model.module.parameters()), []).append(name)
    assert len(alike) > 8, alike  # the names of their arguments are read, and change them


def test_bad_input(cifar, tmp_path):
    with pytest.raises(ValueError, match="there is small, paper"):
        reproduce(tmp_path / "out", cifar, size="large")
    (cifar / "test.parquet").unlink()
    with pytest.raises(DataError, match="the splits train and test are needed"):
        reproduce(tmp_path / "out", cifar)
