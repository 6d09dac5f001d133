"""Class folders: layout, class matching, masks, and unusable folders."""

import os
from pathlib import Path

import pytest

from clearhead.data.dataset import DataIssue
from clearhead.data.folder import read_folder
from clearhead.data.image_io import DataError
from tests.data.helpers import only_issue, save_image, save_mask


def test_reads_class_folders_in_order_with_masks(root: Path) -> None:
    folder = read_folder(root)
    assert folder.classes == ("cat", "dog")
    assert [sample.file for sample in folder.samples] == ["cat/a.jpg", "cat/b.png", "dog/c.JPEG", "dog/d.webp"]
    assert [sample.label for sample in folder.samples] == [0, 0, 1, 1]
    assert [sample.mask for sample in folder.samples] == [None, root / "masks/cat/b.png", None, None]
    assert folder.issues == ()
    assert read_folder(str(root), check=False) == folder


def test_images_folder_is_the_class_root(tmp_path: Path) -> None:
    save_image(tmp_path / "images/cat/a.jpg")
    save_mask(tmp_path / "masks/cat/a.png")
    (tmp_path / "notes").mkdir()
    sample = read_folder(tmp_path).samples[0]
    assert (sample.file, sample.mask) == ("cat/a.jpg", tmp_path / "masks/cat/a.png")


def test_a_class_may_be_called_images(tmp_path: Path) -> None:
    save_image(tmp_path / "images/a.jpg")
    save_image(tmp_path / "words/a.jpg")
    assert read_folder(tmp_path).classes == ("images", "words")


def test_hidden_entries_are_ignored(root: Path) -> None:
    save_image(root / "cat/._a.jpg")
    save_image(root / ".cache/x.jpg")
    assert read_folder(root) == read_folder(root, check=False)
    assert len(read_folder(root).samples) == 4


def test_classes_match_by_name_ignoring_case_and_underscores(tmp_path: Path) -> None:
    save_image(tmp_path / "American_Bulldog/a.jpg")
    save_image(tmp_path / "CAT/a.jpg")
    folder = read_folder(tmp_path, classes=["fish", "american bulldog", "cat"])
    assert [(s.file, s.label) for s in folder.samples] == [("American_Bulldog/a.jpg", 1), ("CAT/a.jpg", 2)]
    assert folder.classes == ("fish", "american bulldog", "cat")


def test_wordnet_folders_of_an_imagenet_model(tmp_path: Path) -> None:
    known = {"n01440764": 0, "n01443537": 1, "n01484850": 2, "n15075141": 999}
    for name in known:
        save_image(tmp_path / name / "a.jpg")
    save_image(tmp_path / "n00000001/a.jpg")
    folder = read_folder(tmp_path, classes=[f"class {i}" for i in range(1000)])
    assert {Path(s.file).parent.name: s.label for s in folder.samples} == known
    assert (only_issue(folder).file, only_issue(folder).category) == ("n00000001", "unknown-class")
    with pytest.raises(DataError, match="no class folder is a class of the model"):
        read_folder(tmp_path, classes=["cat", "dog"])


def test_unknown_class_is_skipped_and_counted(root: Path) -> None:
    folder = read_folder(root, classes=["dog"])
    assert [s.label for s in folder.samples] == [0, 0]
    assert only_issue(folder) == DataIssue(
        "cat", "unknown-class", "not among the model's 1 classes; 2 images", "skipped"
    )


def test_ambiguous_class_is_skipped(root: Path) -> None:
    folder = read_folder(root, classes=["dog", "cat", "Cat"])
    assert {s.label for s in folder.samples} == {0}
    assert (only_issue(folder).category, only_issue(folder).action) == ("ambiguous-class", "skipped")


def test_no_matching_class_raises_an_error_with_both_lists(root: Path) -> None:
    with pytest.raises(DataError, match=r"the folders are cat, dog, the model's classes lion, tiger") as error:
        read_folder(root, classes=["lion", "tiger"])
    assert "WordNet" not in str(error.value)
    with pytest.raises(DataError, match=r"class 4 and 995 more; .* WordNet id"):
        read_folder(root, classes=[f"class {i}" for i in range(1000)])


@pytest.mark.parametrize("classes", [None, ["cat", "dog"]])
def test_two_folders_for_one_class(root: Path, classes: list[str] | None) -> None:
    save_image(root / "Cat/e.jpg")
    if len(list(root.glob("[Cc]at"))) < 2:
        pytest.skip("file names of this system have no case")
    with pytest.raises(DataError, match="Cat and cat are the same class"):
        read_folder(root, classes=classes)


def test_a_name_and_a_wordnet_id_for_one_class(tmp_path: Path) -> None:
    save_image(tmp_path / "tench/a.jpg")
    save_image(tmp_path / "n01440764/a.jpg")
    with pytest.raises(DataError, match="same class"):
        read_folder(tmp_path, classes=["tench", *(f"class {i}" for i in range(999))])


def test_a_mask_that_is_not_a_png_is_ignored(root: Path) -> None:
    save_image(root / "masks/cat/a.jpg")
    folder = read_folder(root)
    assert folder.samples[0].mask is None
    assert (only_issue(folder).category, only_issue(folder).action) == ("mask-format", "mask ignored")


def test_a_mask_without_image_is_counted(root: Path) -> None:
    save_mask(root / "masks/cat/z.png")
    assert only_issue(read_folder(root)) == DataIssue(
        "masks/cat/z.png", "mask-without-image", "no such image", "counted"
    )


def test_images_that_share_a_mask_name_lose_the_mask(root: Path) -> None:
    save_image(root / "cat/b.jpg")
    folder = read_folder(root)
    assert [s.mask for s in folder.samples if s.file.startswith("cat/b")] == [None, None]
    assert only_issue(folder) == DataIssue(
        "cat/b.jpg", "duplicate-name", "its mask would also be that of b.png", "mask ignored"
    )
    (root / "masks/cat/b.png").unlink()
    assert only_issue(read_folder(root)).action == "counted"
    assert len(read_folder(root).samples) == 5


def test_other_entries_are_reported(root: Path) -> None:
    (root / "empty").mkdir()
    (root / "cat/notes.txt").write_text("x")
    save_image(root / "dog/puppies/e.jpg")
    save_image(root / "loose.jpg")
    folder = read_folder(root)
    assert len(folder.samples) == 4
    assert folder.classes == ("cat", "dog", "empty")
    assert [(p.file, p.category, p.action) for p in folder.issues] == [
        ("cat/notes.txt", "other-file", "skipped"),
        ("dog/puppies", "nested-folder", "skipped"),
        ("empty", "empty-class", "counted"),
        ("loose.jpg", "no-class", "skipped"),
    ]


def test_unusable_folders_raise_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is a file"):
        read_folder(save_image(tmp_path / "file.jpg"))
    with pytest.raises(DataError, match=r"no class folders \(1 images lie directly in it\)"):
        read_folder(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="its folders cat are empty"):
        read_folder(tmp_path)
    save_image(tmp_path / "train/cat/a.jpg")
    with pytest.raises(DataError, match=r"such as train/cat: is the data in .*train\?"):
        read_folder(tmp_path)


def test_a_file_name_that_is_not_valid_text_is_skipped(root: Path) -> None:
    before = len(read_folder(root).samples)
    with open(os.fsencode(root / read_folder(root).classes[0]) + b"/caf\xe9.png", "wb") as file:
        file.write(read_folder(root).samples[0].path.read_bytes())
    folder = read_folder(root)
    assert len(folder.samples) == before
    (issue,) = [issue for issue in folder.issues if issue.category == "name"]
    assert issue.file == f"{folder.classes[0]}/caf\\xe9.png"


def test_masks_of_a_missing_class_folder_are_reported(root: Path) -> None:
    (root / "masks/cat").rename(root / "masks/cats")
    assert only_issue(read_folder(root)) == DataIssue(
        "masks/cats", "mask-without-image", "no such class folder", "counted"
    )
