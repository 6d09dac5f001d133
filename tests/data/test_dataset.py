"""Checked samples, their issues, and groups."""

import os
from pathlib import Path

import pytest
from PIL import Image

from clearhead.data.dataset import DataIssue, Sample, group_labels
from clearhead.data.folder import read_folder
from clearhead.data.image_io import DataError
from clearhead.data.loading import ImageDataset
from tests.data.helpers import Pixels, only_issue, save_image, save_mask, save_noise, truncate, write_metadata


@pytest.mark.parametrize("name", ["cat/e.jpg", "cat/e.png"])
def test_truncated_image_is_skipped(root: Path, name: str) -> None:
    truncate(save_noise(root / name))
    folder = read_folder(root)
    assert len(folder.samples) == 4
    assert (only_issue(folder).file, only_issue(folder).category, only_issue(folder).action) == (
        name,
        "truncated",
        "skipped",
    )


@pytest.mark.parametrize(
    "content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"GIF89a", b"\xff\xd8\xff"]
)
def test_unreadable_image_is_skipped(root: Path, content: bytes) -> None:
    (root / "dog/e.png").write_bytes(content)
    folder = read_folder(root)
    assert len(folder.samples) == 4
    assert (only_issue(folder).file, only_issue(folder).category, only_issue(folder).action) == (
        "dog/e.png",
        "unreadable",
        "skipped",
    )
    assert "\n" not in only_issue(folder).detail


def test_an_image_without_read_permission_is_skipped(root: Path) -> None:
    path = save_image(root / "dog/e.png")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert only_issue(read_folder(root)).category == "unreadable"


def test_oversized_image_is_skipped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(root / "cat/e.png", (200, 200))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    folder = read_folder(root)
    assert (only_issue(folder).file, only_issue(folder).category) == ("cat/e.png", "unreadable")


def test_no_usable_image_raises_an_error(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/a.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no usable image is left \(1 unreadable\); first cat/a.jpg"):
        read_folder(tmp_path)


def test_mask_of_another_size_is_ignored(root: Path) -> None:
    save_mask(root / "masks/cat/a.png", (12, 20))
    folder = read_folder(root)
    assert folder.samples[0].mask is None
    assert only_issue(folder) == DataIssue(
        "cat/a.jpg", "mask-size", "the mask has 12 x 20 pixels, the image 20 x 12", "mask ignored"
    )
    with pytest.raises(DataError, match="12 x 20"):
        ImageDataset(read_folder(root, check=False), Pixels())[0]


def test_mask_is_compared_with_the_upright_image(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(root / "cat/a.jpg", exif=exif)  # 20 x 12 in the file, 12 x 20 to the eye
    save_mask(root / "masks/cat/a.png", (12, 20))
    assert read_folder(root).samples[0].mask is not None
    save_mask(root / "masks/cat/a.png", (20, 12))
    assert only_issue(read_folder(root)).category == "mask-size"


def test_unreadable_and_empty_masks_are_ignored(root: Path) -> None:
    truncate(save_noise(root / "masks/cat/a.png"))
    save_mask(root / "masks/dog/c.png", foreground=False)
    folder = read_folder(root)
    assert [s.mask is None for s in folder.samples] == [True, False, True, True]
    assert [(p.file, p.category, p.action) for p in folder.issues] == [
        ("cat/a.jpg", "mask-unreadable", "mask ignored"),
        ("dog/c.JPEG", "mask-empty", "mask ignored"),
    ]


def test_groups_cross_the_class_with_columns(root: Path) -> None:
    rows = ["cat/a.jpg,water,1", "cat/b.png,land,2", "dog/c.JPEG,land,3", "dog/d.webp,,4"]
    write_metadata(root, "file,place,n", *rows)
    folder = read_folder(root)
    assert group_labels(folder, ["place"]) == [
        "class=cat, place=water",
        "class=cat, place=land",
        "class=dog, place=land",
        "class=dog, place=unknown",
    ]
    assert group_labels(folder, None)[0] == "class=cat, place=water, n=1"
    assert group_labels(folder, ["class"]) == ["class=cat"] * 2 + ["class=dog"] * 2
    with pytest.raises(DataError, match=r"group columns: colour is not in .*; choose from place, n"):
        group_labels(folder, ["place", "colour"])


def test_groups_leave_out_columns_of_many_values(tmp_path: Path) -> None:
    lines = []
    for i in range(11):
        save_image(tmp_path / f"cat/{i}.png")
        lines.append(f"cat/{i}.png,{i},{i % 10}")
    write_metadata(tmp_path, "file,unique,digit", *lines)
    assert group_labels(read_folder(tmp_path), None)[-1] == "class=cat, digit=9"


def test_groups_without_metadata(root: Path) -> None:
    assert set(group_labels(read_folder(root), None)) == {"class=cat", "class=dog"}
    with pytest.raises(DataError, match="no columns besides the class"):
        group_labels(read_folder(root), ["place"])


def test_samples_are_plain_data(root: Path) -> None:
    sample = read_folder(root).samples[0]
    assert sample == Sample("cat/a.jpg", root / "cat/a.jpg", 0, None, {})
