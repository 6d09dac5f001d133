"""metadata.csv: splits, groups, and every issue with its rows."""

from pathlib import Path

import pytest

from clearhead.data.folder import read_folder
from clearhead.data.image_io import DataError
from tests.data.helpers import only_issue, write_metadata


def test_metadata_gives_splits_and_groups(root: Path) -> None:
    write_metadata(
        root,
        "file, split ,place",
        "cat/a.jpg,train,water",
        "./cat/b.png,test,land",
        "dog\\c.JPEG,train, land",
        "dog/d.webp,test,land",
    )
    assert [s.groups["place"] for s in read_folder(root).samples] == ["water", "land", "land", "land"]
    train = read_folder(root, split="train")
    assert [s.file for s in train.samples] == ["cat/a.jpg", "dog/c.JPEG"]
    assert train.samples[0].groups == {"place": "water"}
    assert train.classes == ("cat", "dog")
    assert train.issues == ()


def test_rows_without_image_and_images_without_row(root: Path) -> None:
    write_metadata(
        root, "file,split,place", "cat/a.jpg,train,water", "cat/b.png,,land", "cat/z.jpg,train,land", "cat/y.jpg,val,x"
    )
    train = read_folder(root, split="train")
    assert [s.file for s in train.samples] == ["cat/a.jpg"]
    assert [(p.file, p.category, p.action) for p in train.issues] == [
        ("cat/b.png", "no-metadata", "skipped"),
        ("cat/z.jpg", "metadata-without-file", "counted"),
        ("dog/c.JPEG", "no-metadata", "skipped"),
        ("dog/d.webp", "no-metadata", "skipped"),
    ]
    both = read_folder(root)
    assert len(both.samples) == 4
    assert both.samples[2].groups == {"place": ""}
    assert {(p.file, p.action) for p in both.issues if p.category == "no-metadata"} == {
        ("dog/c.JPEG", "counted"),
        ("dog/d.webp", "counted"),
    }


def test_repeated_rows(root: Path) -> None:
    write_metadata(
        root,
        "file,split",
        *["cat/a.jpg,train"] * 2,
        "cat/b.png,train",
        "cat/b.png,test",
        "dog/c.JPEG,train",
        "dog/d.webp,test",
    )
    for split, files in (("train", ["cat/a.jpg", "dog/c.JPEG"]), ("test", ["dog/d.webp"])):
        folder = read_folder(root, split=split)
        assert [s.file for s in folder.samples] == files
        assert ("cat/b.png", "metadata-duplicate", "skipped") in [(p.file, p.category, p.action) for p in folder.issues]
    assert [p.action for p in read_folder(root).issues] == ["counted", "skipped"]


def test_malformed_rows(root: Path) -> None:
    write_metadata(
        root,
        "file,place",
        "cat/a.jpg,water",
        "cat/b.png",
        "cat/b.png,a,b",
        ",land",
        "",
        "dog/c.JPEG,land",
        "dog/d.webp,land",
    )
    issues = [p for p in read_folder(root).issues if p.category == "metadata-row"]
    assert [p.detail for p in issues] == [
        "line 3: 1 cells, 2 columns",
        "line 4: 3 cells, 2 columns",
        "line 5: no file",
    ]
    assert {p.action for p in issues} == {"row ignored"}


def test_missing_splits_raise_an_error(root: Path) -> None:
    with pytest.raises(DataError, match=r"metadata\.csv, which does not exist"):
        read_folder(root, split="train")
    write_metadata(root, "file,place", "cat/a.jpg,water")
    with pytest.raises(DataError, match=r"needs a column split in .*; its columns are file, place"):
        read_folder(root, split="train")
    write_metadata(root, "file,split", "cat/a.jpg,train", "cat/b.png,train", "dog/c.JPEG,test")
    with pytest.raises(DataError, match=r"split: 'val' is not in .*; choose from train \(2\), test \(1\)"):
        read_folder(root, split="val")
    write_metadata(root, "file,split", "cat/a.jpg,train", "cat/z.jpg,val")
    with pytest.raises(DataError, match="no usable image"):
        read_folder(root, split="val")


@pytest.mark.parametrize(
    "content", [b"", b"name,split\n", b"file,file\n", b"file,split\n\xff\xfe\xfa", b"\x00\x01\x02"]
)
def test_invalid_metadata_raises_an_error(root: Path, content: bytes) -> None:
    (root / "metadata.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"metadata\.csv"):
        read_folder(root)


def test_metadata_with_paths_relative_to_another_folder_raises_an_error(root: Path) -> None:
    write_metadata(root, "file,split", "images/cat/a.jpg,train")
    with pytest.raises(DataError, match=r"'images/cat/a.jpg', but paths are relative to .*, as in 'cat/a.jpg'"):
        read_folder(root)


def test_two_spellings_of_a_path_are_duplicate_rows(root: Path) -> None:
    write_metadata(root, "file,ground", "cat/a.jpg,x", "./cat/a.jpg,x", "cat/b.png,x", "dog/c.JPEG,x", "dog/d.webp,x")
    assert (only_issue(read_folder(root)).category, only_issue(read_folder(root)).action) == (
        "metadata-duplicate",
        "counted",
    )
