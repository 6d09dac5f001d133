"""CIFAR-10-C, CIFAR-100-C and ImageNet-C, in small folders with the published layout."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clearhead.data.image_io import DataError, load_image
from clearhead.shifts.corruption_benchmarks import read_cifar_c, read_imagenet_c


def cifar(root: Path, top: int = 9, types: tuple[str, ...] = ("fog", "snow")) -> dict[str, np.ndarray]:
    """Five severities of four images."""
    root.mkdir(parents=True, exist_ok=True)
    np.save(root / "labels.npy", np.tile(np.array([top, 0, 1, 2], dtype=np.uint8), 5))
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(256, size=(20, 32, 32, 3), dtype=np.uint8) for name in types}
    for name, array in arrays.items():
        np.save(root / f"{name}.npy", array)
    return arrays


def imagenet(root: Path, wnids: tuple[str, ...] = ("n01440764", "n01443537"), severities: str = "12345") -> None:
    for severity in severities:
        for wnid in wnids:
            file = root / severity / wnid / f"ILSVRC2012_val_{wnid}.JPEG"
            file.parent.mkdir(parents=True)
            Image.new("RGB", (8, 8), (20 * int(severity), 0, 0)).save(file)


def test_cifar_c_has_five_blocks_per_type(tmp_path: Path) -> None:
    arrays = cifar(tmp_path / "CIFAR-10-C")
    sets = read_cifar_c(tmp_path)
    assert [one.name for one in sets] == [f"{name} {level}" for name in ("fog", "snow") for level in range(1, 6)]
    for one in sets:
        assert one.level is not None
        first = 4 * (int(one.level) - 1)
        assert [sample.label for sample in one.folder.samples] == [9, 0, 1, 2]
        assert [sample.file for sample in one.folder.samples] == ["0", "1", "2", "3"]
        for i, sample in enumerate(one.folder.samples):
            assert np.array_equal(np.asarray(load_image(sample.path)), arrays[one.family][first + i])
        assert {name: how.outputs for name, how in one.class_mappings.items()} == {
            "10 classes": tuple((i,) for i in range(10))
        }
        assert one.folder.classes[:3] == ("airplane", "automobile", "bird")
    assert pickle.loads(pickle.dumps(sets[0])) == sets[0]


def test_cifar_100_c_has_its_hundred_classes(tmp_path: Path) -> None:
    cifar(tmp_path, top=99)
    (one, *_) = read_cifar_c(tmp_path)
    assert (len(one.folder.classes), one.folder.classes[0], one.folder.classes[99]) == (100, "apple", "worm")
    assert list(one.class_mappings) == ["100 classes"]


def test_invalid_cifar_folders_raise_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_cifar_c(tmp_path / "none")
    with pytest.raises(
        DataError, match=r"name the folder of labels\.npy, as published with CIFAR-10-C; no folder in it has one"
    ):
        read_cifar_c(tmp_path)
    cifar(tmp_path / "a", types=())
    with pytest.raises(DataError, match=r"no arrays of corruptions, such as fog\.npy, beside labels\.npy"):
        read_cifar_c(tmp_path)
    cifar(tmp_path / "b")
    with pytest.raises(DataError, match=r"CIFAR-10-C; .*a and .*b has one"):
        read_cifar_c(tmp_path)
    np.save(tmp_path / "b" / "snow.npy", np.zeros((10, 32, 32, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=r"snow\.npy: uint8, \(10, 32, 32, 3\); uint8, 20 x 32 x 32 x 3 is needed"):
        read_cifar_c(tmp_path / "b")
    (tmp_path / "b" / "snow.npy").write_bytes(b"text")
    with pytest.raises(DataError, match=r"snow\.npy cannot be read as an array"):
        read_cifar_c(tmp_path / "b")
    for labels, message in ((np.arange(7), "five blocks"), (np.full(10, 120), r"labels 120\.\.120")):
        np.save(tmp_path / "b" / "labels.npy", labels)
        with pytest.raises(DataError, match=message):
            read_cifar_c(tmp_path / "b")


def test_imagenet_c_is_read_as_its_archives_unpack(tmp_path: Path) -> None:
    imagenet(tmp_path / "fog")
    imagenet(tmp_path / "blur" / "zoom_blur", severities="35")
    imagenet(tmp_path / "more" / "extra" / "spatter", severities="1")
    sets = read_imagenet_c(tmp_path)
    names = [*(f"fog {level}" for level in range(1, 6)), "spatter 1", "zoom_blur 3", "zoom_blur 5"]
    assert [one.name for one in sets] == names
    assert [(one.family, one.level) for one in sets[4:7]] == [("fog", 5), ("spatter", 1), ("zoom_blur", 3)]
    files = ["n01440764/ILSVRC2012_val_n01440764.JPEG", "n01443537/ILSVRC2012_val_n01443537.JPEG"]
    for one in sets:
        assert [sample.file for sample in one.folder.samples] == files
        assert one.class_mappings["1000 classes"].outputs == ((0,), (1,))
        assert one.class_mappings["1000 classes"].among == "all"
    assert abs(load_image(sets[4].folder.samples[0].path).getpixel((0, 0))[0] - 100) < 5


def test_invalid_imagenet_folders_raise_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_imagenet_c(tmp_path / "none")
    with pytest.raises(DataError, match="no files TYPE/SEVERITY/WNID"):
        read_imagenet_c(tmp_path)
    imagenet(tmp_path / "fog", wnids=("cat", "dog"))
    with pytest.raises(DataError, match="cat is not a WordNet id of ImageNet-1k"):
        read_imagenet_c(tmp_path)
    imagenet(tmp_path / "weather" / "fog")
    with pytest.raises(DataError, match="are the same corruption"):
        read_imagenet_c(tmp_path)
