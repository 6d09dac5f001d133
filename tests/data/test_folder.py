"""Reading folders: every rule for good and bad data, through the public functions."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clearhead.data.dataset import DataIssue, ImageIndex, Sample, group_labels
from clearhead.data.folder import read_folder
from clearhead.data.image_io import DataError, load_image, load_mask
from clearhead.data.loading import ImageDataset, SeededSampler, loader
from clearhead.data.splits import require_apart


def picture(path: Path, size: tuple[int, int] = (20, 12), colour: int = 90, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, colour // 2, 10)).save(path, **options)
    return path


def cover(path: Path, size: tuple[int, int] = (20, 12), foreground: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros(size[::-1], dtype=np.uint8)
    values[2:6, 3:9] = 255 * foreground
    Image.fromarray(values).save(path, format="PNG")
    return path


def noise(path: Path, size: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(256, size=(size, size, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def cut(path: Path, fraction: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])


def metadata(root: Path, *lines: str) -> None:
    (root / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def only(folder: ImageIndex) -> DataIssue:
    (issue,) = folder.issues
    return issue


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of two images, one of them with a mask."""
    for file in ("cat/a.jpg", "cat/b.png", "dog/c.JPEG", "dog/d.webp"):
        picture(tmp_path / file)
    cover(tmp_path / "masks/cat/b.png")
    return tmp_path


# --- what is read


def test_reads_class_folders_in_order_with_masks(root: Path) -> None:
    folder = read_folder(root)
    assert folder.classes == ("cat", "dog")
    assert [sample.file for sample in folder.samples] == ["cat/a.jpg", "cat/b.png", "dog/c.JPEG", "dog/d.webp"]
    assert [sample.label for sample in folder.samples] == [0, 0, 1, 1]
    assert [sample.mask for sample in folder.samples] == [None, root / "masks/cat/b.png", None, None]
    assert folder.issues == ()
    assert read_folder(str(root), check=False) == folder


def test_images_folder_is_the_class_root(tmp_path: Path) -> None:
    picture(tmp_path / "images/cat/a.jpg")
    cover(tmp_path / "masks/cat/a.png")
    (tmp_path / "notes").mkdir()
    sample = read_folder(tmp_path).samples[0]
    assert (sample.file, sample.mask) == ("cat/a.jpg", tmp_path / "masks/cat/a.png")


def test_a_class_may_be_called_images(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg")
    picture(tmp_path / "words/a.jpg")
    assert read_folder(tmp_path).classes == ("images", "words")


def test_hidden_entries_are_passed_over(root: Path) -> None:
    picture(root / "cat/._a.jpg")
    picture(root / ".cache/x.jpg")
    assert read_folder(root) == read_folder(root, check=False)
    assert len(read_folder(root).samples) == 4


def test_metadata_gives_splits_and_groups(root: Path) -> None:
    metadata(
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


# --- the model's classes


def test_classes_match_by_name_whatever_case_and_underscores(tmp_path: Path) -> None:
    picture(tmp_path / "American_Bulldog/a.jpg")
    picture(tmp_path / "CAT/a.jpg")
    folder = read_folder(tmp_path, classes=["fish", "american bulldog", "cat"])
    assert [(s.file, s.label) for s in folder.samples] == [("American_Bulldog/a.jpg", 1), ("CAT/a.jpg", 2)]
    assert folder.classes == ("fish", "american bulldog", "cat")


def test_wordnet_folders_of_an_imagenet_model(tmp_path: Path) -> None:
    known = {"n01440764": 0, "n01443537": 1, "n01484850": 2, "n15075141": 999}
    for name in known:
        picture(tmp_path / name / "a.jpg")
    picture(tmp_path / "n00000001/a.jpg")
    folder = read_folder(tmp_path, classes=[f"class {i}" for i in range(1000)])
    assert {Path(s.file).parent.name: s.label for s in folder.samples} == known
    assert (only(folder).file, only(folder).category) == ("n00000001", "unknown-class")
    with pytest.raises(DataError, match="no class folder is a class of the model"):
        read_folder(tmp_path, classes=["cat", "dog"])


def test_unknown_class_is_skipped_and_counted(root: Path) -> None:
    folder = read_folder(root, classes=["dog"])
    assert [s.label for s in folder.samples] == [0, 0]
    assert only(folder) == DataIssue("cat", "unknown-class", "not among the model's 1 classes; 2 images", "skipped")


def test_ambiguous_class_is_skipped(root: Path) -> None:
    folder = read_folder(root, classes=["dog", "cat", "Cat"])
    assert {s.label for s in folder.samples} == {0}
    assert (only(folder).category, only(folder).action) == ("ambiguous-class", "skipped")


def test_no_known_class_says_what_both_have(root: Path) -> None:
    with pytest.raises(DataError, match=r"it has lion, tiger, the folder has cat, dog") as error:
        read_folder(root, classes=["lion", "tiger"])
    assert "WordNet" not in str(error.value)
    with pytest.raises(DataError, match=r"class 4 and 995 more, .* WordNet id"):
        read_folder(root, classes=[f"class {i}" for i in range(1000)])


@pytest.mark.parametrize("classes", [None, ["cat", "dog"]])
def test_two_folders_for_one_class(root: Path, classes: list[str] | None) -> None:
    picture(root / "Cat/e.jpg")
    if len(list(root.glob("[Cc]at"))) < 2:
        pytest.skip("file names of this system have no case")
    with pytest.raises(DataError, match="Cat and cat are for the same class"):
        read_folder(root, classes=classes)


def test_a_name_and_a_wordnet_id_for_one_class(tmp_path: Path) -> None:
    picture(tmp_path / "tench/a.jpg")
    picture(tmp_path / "n01440764/a.jpg")
    with pytest.raises(DataError, match="same class"):
        read_folder(tmp_path, classes=["tench", *(f"class {i}" for i in range(999))])


# --- bad images


@pytest.mark.parametrize("name", ["cat/e.jpg", "cat/e.png"])
def test_truncated_image_is_skipped(root: Path, name: str) -> None:
    cut(noise(root / name))
    folder = read_folder(root)
    assert len(folder.samples) == 4
    assert (only(folder).file, only(folder).category, only(folder).action) == (name, "truncated", "skipped")


@pytest.mark.parametrize(
    "content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"GIF89a", b"\xff\xd8\xff"]
)
def test_unreadable_image_is_skipped(root: Path, content: bytes) -> None:
    (root / "dog/e.png").write_bytes(content)
    folder = read_folder(root)
    assert len(folder.samples) == 4
    assert (only(folder).file, only(folder).category, only(folder).action) == ("dog/e.png", "unreadable", "skipped")
    assert "\n" not in only(folder).detail


def test_image_that_may_not_be_read(root: Path) -> None:
    path = picture(root / "dog/e.png")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert only(read_folder(root)).category == "unreadable"


def test_oversized_image_is_skipped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(root / "cat/e.png", (200, 200))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    folder = read_folder(root)
    assert (only(folder).file, only(folder).category) == ("cat/e.png", "unreadable")


def test_no_image_left(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/a.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no usable image is left \(1 unreadable\); first cat/a.jpg"):
        read_folder(tmp_path)


def test_unchecked_broken_file_is_a_data_error_when_loaded(root: Path) -> None:
    cut(noise(root / "cat/a.jpg"))
    images = ImageDataset(read_folder(root, check=False), Pixels())
    with pytest.raises(DataError, match=r"cat/a\.jpg"):
        images[0]


# --- bad masks


def test_mask_of_another_size_is_ignored(root: Path) -> None:
    cover(root / "masks/cat/a.png", (12, 20))
    folder = read_folder(root)
    assert folder.samples[0].mask is None
    assert only(folder) == DataIssue(
        "cat/a.jpg", "mask-size", "a mask of 12 x 20 for an image of 20 x 12", "mask ignored"
    )
    with pytest.raises(DataError, match="12 x 20"):
        ImageDataset(read_folder(root, check=False), Pixels())[0]


def test_mask_is_compared_with_the_upright_image(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(root / "cat/a.jpg", exif=exif)  # 20 x 12 in the file, 12 x 20 to the eye
    cover(root / "masks/cat/a.png", (12, 20))
    assert read_folder(root).samples[0].mask is not None
    cover(root / "masks/cat/a.png", (20, 12))
    assert only(read_folder(root)).category == "mask-size"


def test_unreadable_and_empty_masks_are_ignored(root: Path) -> None:
    cut(noise(root / "masks/cat/a.png"))
    cover(root / "masks/dog/c.png", foreground=False)
    folder = read_folder(root)
    assert [s.mask is None for s in folder.samples] == [True, False, True, True]
    assert [(p.file, p.category, p.action) for p in folder.issues] == [
        ("cat/a.jpg", "mask-unreadable", "mask ignored"),
        ("dog/c.JPEG", "mask-empty", "mask ignored"),
    ]


def test_mask_that_is_no_png(root: Path) -> None:
    picture(root / "masks/cat/a.jpg")
    folder = read_folder(root)
    assert folder.samples[0].mask is None
    assert (only(folder).category, only(folder).action) == ("mask-format", "mask ignored")


def test_mask_without_image_is_counted(root: Path) -> None:
    cover(root / "masks/cat/z.png")
    assert only(read_folder(root)) == DataIssue("masks/cat/z.png", "mask-without-image", "no such image", "counted")


def test_one_name_twice_loses_its_mask(root: Path) -> None:
    picture(root / "cat/b.jpg")
    folder = read_folder(root)
    assert [s.mask for s in folder.samples if s.file.startswith("cat/b")] == [None, None]
    assert only(folder) == DataIssue("cat/b.jpg", "duplicate-name", "one name with b.png", "mask ignored")
    (root / "masks/cat/b.png").unlink()
    assert only(read_folder(root)).action == "counted"
    assert len(read_folder(root).samples) == 5


# --- bad folders


def test_strays_are_reported(root: Path) -> None:
    (root / "empty").mkdir()
    (root / "cat/notes.txt").write_text("x")
    picture(root / "dog/puppies/e.jpg")
    picture(root / "loose.jpg")
    folder = read_folder(root)
    assert len(folder.samples) == 4
    assert folder.classes == ("cat", "dog", "empty")
    assert [(p.file, p.category, p.action) for p in folder.issues] == [
        ("cat/notes.txt", "other-file", "skipped"),
        ("dog/puppies", "nested-folder", "skipped"),
        ("empty", "empty-class", "counted"),
        ("loose.jpg", "no-class", "skipped"),
    ]


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is a file"):
        read_folder(picture(tmp_path / "file.jpg"))
    with pytest.raises(DataError, match=r"no class folders \(1 images lie directly in it\)"):
        read_folder(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="its folders cat are empty"):
        read_folder(tmp_path)
    picture(tmp_path / "train/cat/a.jpg")
    with pytest.raises(DataError, match=r"such as train/cat: is the data in .*train\?"):
        read_folder(tmp_path)


# --- bad metadata


def test_rows_without_file_and_files_without_row(root: Path) -> None:
    metadata(
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
    metadata(
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
    metadata(
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
        "line 3: 1 cells for 2 columns",
        "line 4: 3 cells for 2 columns",
        "line 5: no file",
    ]
    assert {p.action for p in issues} == {"row ignored"}


def test_splits_that_are_none(root: Path) -> None:
    with pytest.raises(DataError, match=r"metadata\.csv does not exist"):
        read_folder(root, split="train")
    metadata(root, "file,place", "cat/a.jpg,water")
    with pytest.raises(DataError, match="no column split; it has file, place"):
        read_folder(root, split="train")
    metadata(root, "file,split", "cat/a.jpg,train", "cat/b.png,train", "dog/c.JPEG,test")
    with pytest.raises(DataError, match=r"no split 'val' in .*; there is train \(2\), test \(1\)"):
        read_folder(root, split="val")
    metadata(root, "file,split", "cat/a.jpg,train", "cat/z.jpg,val")
    with pytest.raises(DataError, match="no usable image"):
        read_folder(root, split="val")


@pytest.mark.parametrize(
    "content", [b"", b"name,split\n", b"file,file\n", b"file,split\n\xff\xfe\xfa", b"\x00\x01\x02"]
)
def test_metadata_that_is_none(root: Path, content: bytes) -> None:
    (root / "metadata.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"metadata\.csv"):
        read_folder(root)


def test_metadata_with_paths_from_elsewhere(root: Path) -> None:
    metadata(root, "file,split", "images/cat/a.jpg,train")
    with pytest.raises(DataError, match=r"'images/cat/a.jpg', paths are relative to .*, as in 'cat/a.jpg'"):
        read_folder(root)


# --- groups


def test_groups_cross_the_class_with_columns(root: Path) -> None:
    rows = ["cat/a.jpg,water,1", "cat/b.png,land,2", "dog/c.JPEG,land,3", "dog/d.webp,,4"]
    metadata(root, "file,place,n", *rows)
    folder = read_folder(root)
    assert group_labels(folder, ["place"]) == [
        "class=cat, place=water",
        "class=cat, place=land",
        "class=dog, place=land",
        "class=dog, place=unknown",
    ]
    assert group_labels(folder, None)[0] == "class=cat, place=water, n=1"
    assert group_labels(folder, ["class"]) == ["class=cat"] * 2 + ["class=dog"] * 2
    with pytest.raises(DataError, match=r"no group column colour in .*; there is place, n"):
        group_labels(folder, ["place", "colour"])


def test_groups_leave_out_columns_of_many_values(tmp_path: Path) -> None:
    lines = []
    for i in range(11):
        picture(tmp_path / f"cat/{i}.png")
        lines.append(f"cat/{i}.png,{i},{i % 10}")
    metadata(tmp_path, "file,unique,digit", *lines)
    assert group_labels(read_folder(tmp_path), None)[-1] == "class=cat, digit=9"


def test_groups_without_metadata(root: Path) -> None:
    assert set(group_labels(read_folder(root), None)) == {"class=cat", "class=dog"}
    with pytest.raises(DataError, match="none besides the class"):
        group_labels(read_folder(root), ["place"])


# --- pixels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_as_pillow_turns_it(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    image = Image.fromarray(np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        expected = ImageOps.exif_transpose(opened)
    assert np.array_equal(load_image(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_once(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    drawn = Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3)
    drawn.save(tmp_path / "a.png", exif=exif)
    drawn.save(tmp_path / "a.tif", exif=exif, compression="tiff_lzw")
    assert load_image(tmp_path / "a.tif").tobytes() == load_image(tmp_path / "a.png").tobytes()
    assert load_image(tmp_path / "a.tif").size == load_mask(tmp_path / "a.tif").size
    assert load_mask(tmp_path / "a.tif").tobytes() == load_mask(tmp_path / "a.png").tobytes()


def test_a_name_that_is_no_text_is_left_out(root: Path) -> None:
    before = len(read_folder(root).samples)
    with open(os.fsencode(root / read_folder(root).classes[0]) + b"/caf\xe9.png", "wb") as file:
        file.write(read_folder(root).samples[0].path.read_bytes())
    found = read_folder(root)
    assert len(found.samples) == before
    (issue,) = [issue for issue in found.issues if issue.category == "name"]
    assert issue.file == f"{found.classes[0]}/caf\\xe9.png"


def test_parts_that_share_images_are_refused(root: Path) -> None:
    found = read_folder(root)
    half = replace(found, samples=found.samples[: len(found.samples) // 2])
    rest = replace(found, samples=found.samples[len(found.samples) // 2 :])
    require_apart(training=half, validation=rest, test=None)
    with pytest.raises(DataError, match=rf"{len(half.samples)} images are for training and for test, such as "):
        require_apart(training=half, validation=rest, test=found)


def test_broken_exif_is_passed_over(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", exif=b"Exif\0\0broken beyond repair")
    assert load_image(tmp_path / "a.jpg").size == (20, 12)


def test_modes_become_rgb(tmp_path: Path) -> None:
    def load(image: Image.Image, name: str, **options: object) -> np.ndarray:
        image.save(tmp_path / name, **options)
        loaded = load_image(tmp_path / name)
        assert loaded.mode == "RGB"
        return np.asarray(loaded)

    grey = Image.fromarray(np.array([[0, 100, 255]], dtype=np.uint8))
    assert load(grey, "grey.png")[0, :, 0].tolist() == [0, 100, 255]
    deep = Image.fromarray(np.array([[0, 25700, 65535]], dtype=np.uint16))
    assert load(deep, "deep.png")[0, :, 2].tolist() == [0, 100, 255]
    assert load(deep.convert("I"), "deep.tif")[0, :, 2].tolist() == [0, 100, 255]
    unit = Image.fromarray(np.array([[0, 0.4, 1]], dtype=np.float32))
    assert load(unit, "unit.tif")[0, :, 1].tolist() == [0, 102, 255]
    wide = Image.fromarray(np.array([[0, 102, 300]], dtype=np.float32))
    assert load(wide, "wide.tif")[0, :, 1].tolist() == [0, 102, 255]
    assert load(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "cmyk.jpg", quality=100)[4, 4, 0] > 200
    assert load(Image.new("1", (4, 4), 1), "bit.png")[0, 0].tolist() == [255, 255, 255]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert load(palette, "palette.png")[0, 0].tolist() == [10, 20, 30]
    assert load(palette, "clear.png", transparency=1)[0, 0].tolist() == [255, 255, 255]
    assert load(Image.new("RGBA", (4, 4), (200, 0, 0, 0)), "alpha.png")[0, 0].tolist() == [255, 255, 255]
    assert load(Image.new("LA", (4, 4), (50, 255)), "la.png")[0, 0].tolist() == [50, 50, 50]
    frames = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (40, 200)]
    assert load(frames[0], "film.webp", save_all=True, append_images=frames[1:], lossless=True)[0, 0, 0] == 40


def test_masks_are_nonzero_of_any_mode(tmp_path: Path) -> None:
    def load(image: Image.Image) -> list[int]:
        image.save(tmp_path / "m.png")
        mask = load_mask(tmp_path / "m.png")
        assert mask.mode == "L"
        return np.asarray(mask)[0].tolist()

    assert load(Image.fromarray(np.array([[0, 1, 255]], dtype=np.uint8))) == [0, 255, 255]
    assert load(Image.fromarray(np.array([[0, 1, 65535]], dtype=np.uint16))) == [0, 255, 255]
    assert load(Image.fromarray(np.array([[False, True]]))) == [0, 255]
    assert load(Image.fromarray(np.array([[[0, 0, 0], [0, 0, 9]]], dtype=np.uint8))) == [0, 255]
    clear = np.array([[[0, 0, 0, 255], [9, 9, 9, 255], [9, 9, 9, 0]]], dtype=np.uint8)
    assert load(Image.fromarray(clear)) == [0, 255, 0]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([200, 200, 200, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    assert load(palette) == [0, 255]


def test_loading_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    for load in (load_image, load_mask):
        with pytest.raises(DataError, match=r"nowhere\.png"):
            load(tmp_path / "nowhere.png")


# --- tensors


class Pixels:
    """A preprocess: 6 x 10 pixels, 0..1."""

    def image(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image.resize((10, 6)), dtype=np.float32) / 255).permute(2, 0, 1)

    def mask(self, mask: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(mask.resize((10, 6), 0), dtype=np.float32) / 255)[None]


def speckle(
    image: Image.Image, mask: Image.Image | None, generator: torch.Generator
) -> tuple[Image.Image, Image.Image | None]:
    shade = int(torch.randint(256, (), generator=generator))
    return Image.new("RGB", image.size, (shade, 0, 0)), mask


def test_items_are_tensors_with_a_mask_always(root: Path) -> None:
    images = ImageDataset(read_folder(root), Pixels())
    assert len(images) == 4
    without, given = images[0], images[1]
    assert (without["image"].shape, without["mask"].shape) == ((3, 6, 10), (1, 6, 10))
    assert without["mask"].sum() == 0
    assert (without["has_mask"], given["has_mask"]) == (False, True)
    assert given["mask"].unique().tolist() == [0, 1]
    assert (given["label"], given["index"], images[-1]["index"]) == (0, 1, 3)


def test_batches_in_order(root: Path) -> None:
    batches = list(loader(ImageDataset(read_folder(root), Pixels()), 3, 0))
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2], [3]]
    assert batches[0]["image"].shape == (3, 3, 6, 10)
    assert batches[0]["has_mask"].tolist() == [False, True, False]
    assert batches[1]["label"].tolist() == [1]


def drawn(
    root: Path, workers: int, seed: int, epochs: int, augment: Callable | None = speckle
) -> list[list[list[float]]]:
    batches = loader(ImageDataset(read_folder(root), Pixels(), augment), 2, workers, shuffle=True, seed=seed)
    return [
        [[float(i), float(x)] for b in batches for i, x in zip(b["index"], b["image"][:, 0, 0, 0], strict=True)]
        for _ in range(epochs)
    ]


def test_shuffling_and_augmentation_depend_on_seed_and_epoch_alone(root: Path) -> None:
    first = drawn(root, workers=0, seed=3, epochs=4)
    torch.rand(5)  # other code's random numbers make no difference
    assert drawn(root, workers=2, seed=3, epochs=4) == first
    assert drawn(root, workers=0, seed=4, epochs=4) != first
    assert all(sorted(i for i, _ in epoch) == [0, 1, 2, 3] for epoch in first)
    assert len({str(epoch) for epoch in first}) == 4
    assert len({dict(map(tuple, epoch))[0.0] for epoch in first}) > 1  # another draw for the same image


def test_shuffle_goes_on_at_an_epoch() -> None:
    whole = SeededSampler(50, seed=1)
    passes = [list(whole) for _ in range(3)]
    resumed = SeededSampler(50, seed=1)
    resumed.set_epoch(2)
    assert list(resumed) == passes[2] != passes[0]
    assert len(resumed) == 50


def test_augmented_items_repeat_by_index(root: Path) -> None:
    images = ImageDataset(read_folder(root), Pixels(), speckle)
    assert torch.equal(images[0]["image"], images[0]["image"])
    assert not torch.equal(images[0]["image"], images[0, 99]["image"])


def test_samples_are_plain_data(root: Path) -> None:
    sample = read_folder(root).samples[0]
    assert sample == Sample("cat/a.jpg", root / "cat/a.jpg", 0, None, {})


def test_balanced_batches_draw_every_group_alike_often() -> None:
    groups = ["common"] * 97 + ["rare"] * 3
    sampler = SeededSampler(100, seed=1, groups=groups)
    passes = [[index for index, _ in sampler] for _ in range(30)]
    share = sum(groups[index] == "rare" for drawn in passes for index in drawn) / 3000
    assert share == pytest.approx(0.5, abs=0.04)
    assert {97, 98, 99} <= set(passes[0])
    assert passes[0] != passes[1]
    sampler.set_epoch(0)
    assert [index for index, _ in sampler] == passes[0]


def test_masks_of_a_folder_that_is_not_there_are_told(root: Path) -> None:
    (root / "masks/cat").rename(root / "masks/cats")
    assert only(read_folder(root)) == DataIssue("masks/cats", "mask-without-image", "no such class folder", "counted")


def test_two_spellings_of_a_path_are_one_row_twice(root: Path) -> None:
    metadata(root, "file,ground", "cat/a.jpg,x", "./cat/a.jpg,x", "cat/b.png,x", "dog/c.JPEG,x", "dog/d.webp,x")
    assert (only(read_folder(root)).category, only(read_folder(root)).action) == ("metadata-duplicate", "counted")
