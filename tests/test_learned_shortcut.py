"""The reproduction of the X-rays with a marker: its data set, and a small run from the beginning to the table."""

import runpy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clearhead.data.dataset import group_labels
from clearhead.data.images import read_images

SCRIPT = runpy.run_path(str(Path(__file__).parent.parent / "scripts/learned_shortcut.py"))


@pytest.fixture(scope="module")
def medmnist(tmp_path_factory):
    """A data folder with images in the layout of PneumoniaMNIST: no pixel is as bright as the letter."""
    rng, arrays = np.random.default_rng(0), {}
    for split, counts in (("train", (70, 200)), ("val", (10, 20)), ("test", (20, 40))):
        labels = rng.permutation(np.repeat([0, 1], counts))
        noise = rng.integers(0, 100, (len(labels), 28, 28))
        arrays[f"{split}_images"] = (noise + 60 * labels[:, None, None]).astype(np.uint8)
        arrays[f"{split}_labels"] = labels[:, None].astype(np.uint8)
    folder = tmp_path_factory.mktemp("data")
    (folder / "pneumoniamnist").mkdir()
    np.savez(folder / "pneumoniamnist/pneumoniamnist.npz", **arrays)
    return folder


def make(medmnist, out):
    """Make the data set; return its folder."""
    SCRIPT["make_data"](medmnist / "pneumoniamnist/pneumoniamnist.npz", out, correlation=0.9, images=(50, 30), seed=3)
    return out


def test_groups_have_the_stated_sizes(medmnist, tmp_path):
    data = make(medmnist, tmp_path / "data")
    unusual = {"train": 5, "val": 3}  # a tenth of each class
    for split, (normal, pneumonia) in {"train": (50, 50), "val": (30, 30), "test": (20, 40)}.items():
        index, few = read_images(data, split=split), unusual.get(split)
        assert Counter(group_labels(index, None)) == {
            "class=normal, marker=no": normal - (few or 10),
            "class=normal, marker=yes": few or 10,
            "class=pneumonia, marker=no": few or 20,
            "class=pneumonia, marker=yes": pneumonia - (few or 20),
        }
        assert not index.issues
        assert all((sample.mask is None) == (split == "test") for sample in index.samples)


def test_only_the_letter_is_drawn(medmnist, tmp_path):
    """Every image is one of the source, in one split only, except the letter, and the letter is outside the mask."""
    arrays = np.load(medmnist / "pneumoniamnist/pneumoniamnist.npz")
    development = np.concatenate([arrays["train_images"], arrays["val_images"]])
    letters, files = set(), []
    for split, source in (("train", development), ("val", development), ("test", arrays["test_images"])):
        index = read_images(make(medmnist, tmp_path / "data") if split == "train" else tmp_path / "data", split=split)
        for sample in index.samples:
            files.append((source is development, sample.file.split("-")[1]))
            changed = np.asarray(Image.open(sample.path)) != source[int(Path(sample.file).stem.split("-")[1])]
            assert changed.any() == (sample.groups["marker"] == "yes")
            if sample.mask and changed.any():
                assert not (changed & (np.asarray(Image.open(sample.mask)) > 0)).any()
            letters.add(changed.tobytes())
    assert len(letters) == 2  # no letter, and one letter
    assert len(set(files)) == len(files) == 50 + 50 + 30 + 30 + 60


def test_equal_seeds_give_equal_files(medmnist, tmp_path):
    first, second = (make(medmnist, tmp_path / name) for name in ("first", "second"))
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(medmnist, tmp_path, capsys):
    model = "zoo:vit_mini_patch4_32,depth=1,embed_dim=16,num_heads=2"
    shared = ["--data", medmnist, "--out", tmp_path, "--seeds", 1, "--model", model, "--images", 30, 50]
    shared += ["--correlation", 0.9, "--epochs", 1, "--rows"]
    SCRIPT["main"]([str(value) for value in [*shared, "AFR"]])
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    assert sorted(path.name for path in finished) == ["AFR.npz", "original model.npz"]
    SCRIPT["main"]([str(value) for value in [*shared, "AFR", "DFR", "plain training"]])
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    rows = (tmp_path / "table.md").read_text().splitlines()
    names = [row.split(" | ")[0].removeprefix("| ") for row in rows[2:]]
    assert names == ["original model", "AFR", "DFR", "plain training"]
    assert len((tmp_path / "seed-1/tags-val-80-loss.csv").read_text().splitlines()) == 81
    assert rows[-1] in capsys.readouterr().out
