"""The fingerprint of a data set changes with its contents, and only with its contents."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from clearhead.data.dataset import ImageIndex
from clearhead.data.fingerprint import fingerprint
from clearhead.data.folder import read_folder
from clearhead.data.image_io import DataError
from clearhead.data.images import read_images
from tests.data.helpers import save_image


def save_mask(path: Path, left: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((12, 20), dtype=np.uint8)
    values[2:6, left:9] = 255
    Image.fromarray(values).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of two images, one of them with a mask, and a table of groups."""
    root = tmp_path / "data"
    for file in ("cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png"):
        save_image(root / file)
    save_mask(root / "masks/cat/b.png")
    rows = ["file,split,background", "cat/a.png,train,sea", "cat/b.png,train,sky", "dog/c.png,train,sea"]
    (root / "metadata.csv").write_text("\n".join([*rows, "dog/d.png,test,sky"]) + "\n")
    return root


def changed(before: dict[str, str], index: ImageIndex) -> list[str]:
    after = fingerprint(index)
    assert after.keys() == before.keys()
    return [part for part in before if before[part] != after[part]]


def test_reading_again_gives_the_same_fingerprint(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(read_folder(root))
    assert list(before) == ["images", "masks", "metadata", "classes"]
    assert len(set(before.values())) == 4
    (root.parent / "link").symlink_to(root)
    monkeypatch.chdir(root.parent)
    for source in (root, "data", "../" + root.parent.name + "/data", "link"):
        assert changed(before, read_folder(source)) == []
        assert changed(before, read_folder(source, check=False)) == []


def test_a_copy_that_keeps_times_has_the_same_fingerprint(root: Path) -> None:
    before = fingerprint(read_folder(root))
    shutil.copytree(root, root.parent / "copy")
    assert changed(before, read_folder(root.parent / "copy")) == []


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda root: save_image(root / "cat/a.png", colour=91), ["images"]),
        (lambda root: os.utime(root / "dog/d.png", ns=(0, 1)), ["images"]),
        (lambda root: save_image(root / "cat/e.png"), ["images", "metadata"]),
        (lambda root: (root / "dog/d.png").unlink(), ["images", "metadata"]),
        (lambda root: save_mask(root / "masks/cat/b.png", 4), ["masks"]),
        (lambda root: save_mask(root / "masks/dog/c.png"), ["masks"]),
        (lambda root: shutil.rmtree(root / "masks"), ["masks"]),
        (lambda root: (root / "metadata.csv").unlink(), ["metadata"]),
        (
            lambda root: (root / "metadata.csv").write_text(
                (root / "metadata.csv").read_text().replace("cat/a.png,train,sea", "cat/a.png,train,sky")
            ),
            ["metadata"],
        ),
        (lambda root: (root / "dog").rename(root / "wolf"), ["images", "metadata", "classes"]),
    ],
)
def test_a_change_is_reported_for_the_parts_that_changed(
    root: Path, change: Callable[[Path], object], parts: list[str]
) -> None:
    before = fingerprint(read_folder(root, check=False))
    change(root)
    assert changed(before, read_folder(root, check=False)) == parts


def test_splits_and_labels_are_part_of_the_images(root: Path) -> None:
    before = fingerprint(read_folder(root))
    assert changed(before, read_folder(root, split="train")) == ["images", "metadata"]
    assert changed(before, read_folder(root, classes=["dog", "cat"])) == ["images", "classes"]


def test_absent_parts_are_none(root: Path) -> None:
    shutil.rmtree(root / "masks")
    (root / "metadata.csv").unlink()
    parts = fingerprint(read_folder(root))
    assert (parts["masks"], parts["metadata"]) == ("none", "none")


def test_a_missing_file_is_named(root: Path) -> None:
    index = read_folder(root)
    (root / "cat/a.png").unlink()
    with pytest.raises(DataError, match=r"cat/a\.png cannot be read: No such file"):
        fingerprint(index)


def save_medmnist(path: str, labels: list[int]) -> None:
    images = np.zeros((len(labels), 8, 8), dtype=np.uint8)
    with fsspec.open(path, "wb") as file:
        np.savez(file, test_images=images, test_labels=np.array(labels)[:, None])


def test_shards_are_identified_by_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "set.npz"
    save_medmnist(str(path), [0, 1, 1])
    before = fingerprint(read_images(path))
    monkeypatch.chdir(tmp_path)
    assert changed(before, read_images("set.npz", check=False)) == []
    save_medmnist(str(path), [0, 1, 0])
    assert changed(before, read_images(path)) == ["images"]
    os.utime(path, ns=(0, 1))
    assert changed(before, read_images(path)) == ["images"]


def test_remote_shards_are_queried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    save_medmnist("memory://bucket/set.npz", [0, 1, 1])
    index = read_images("memory://bucket/set.npz")
    calls = []
    info = type(fs).info
    monkeypatch.setattr(type(fs), "info", lambda fs, path, **o: calls.append(path) or info(fs, path, **o))
    before = fingerprint(index)
    assert len(calls) == 1
    save_medmnist("memory://bucket/set.npz", [0, 1, 1])
    assert changed(before, index) == ["images"]
    fs.store.clear()
    with pytest.raises(DataError, match=r"set\.npz cannot be read"):
        fingerprint(index)
