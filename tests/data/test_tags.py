"""Tags files: what is read, what is an error, and which images train and select."""

from collections import Counter
from pathlib import Path

import pytest

from clearhead.data.dataset import ImageIndex, Sample, group_labels
from clearhead.data.image_io import DataError
from clearhead.data.tags import TAG, joined, read_tags, require_tagged_groups, spread_tags, tagged_only, with_tags


def index_of(*files: str, root: str = "data") -> ImageIndex:
    """An index of two classes, a and b; the class is the folder."""
    samples = tuple(Sample(file, Path(root) / file, "ab".index(file[0]), None, {"size": "1"}) for file in sorted(files))
    return ImageIndex(Path(root), ("a", "b"), samples, ())


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    file = folder / "tags.csv"
    file.write_bytes(text.encode(encoding))
    return file


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("file,tag\na/1.png,with\nb/1.png,without\na/2.png,\n", "utf-8"),
        ("file;tag;label\r\na/1.png;with;a\r\nb/1.png;without;b\r\na/2.png;;a\r\n", "utf-8-sig"),
        ("label\tTag\tFile\nx\t with\ta/1.png\nx\tWithout\tb\\1.png\nx\tWITHOUT\tb/1.png\n", "utf-8"),
    ],
)
def test_spreadsheets_are_read(tmp_path, text, encoding):
    tags = read_tags(write(tmp_path, text, encoding))
    assert {file: tag.lower() for file, tag in tags.items()} == {"a/1.png": "with", "b/1.png": "without"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,tag\na/1.png,with\nb/1.png,with\n", "all 2 tagged images .* have the tag 'with'; two or more tags"),
        ("file,tag\na/1.png,with\na/1.png,without\n", "different tags for 1 image, such as a/1.png: with, without"),
        ("file,tag\na/1.png,\n", "has no tagged image; fill its column tag"),
        ("file,value\na/1.png,x\n", r"must name the columns file and tag; got \['file', 'value'\]"),
        ("", "must name the columns file and tag"),
        ("file,tag\na/1.png,\xe9\n", "cannot be read as UTF-8"),
    ],
)
def test_unusable_files_raise_an_error(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_tags(write(tmp_path, text, "latin-1"))


def test_tags_are_a_metadata_column(tmp_path):
    file = write(tmp_path, "file,tag\na/1.png,with\nb/1.png,without\na/9.png,with\n")
    index = with_tags(index_of("a/1.png", "a/2.png", "b/1.png"), file)
    assert [sample.groups for sample in index.samples] == [
        {"size": "1", TAG: "with"},
        {"size": "1", TAG: ""},
        {"size": "1", TAG: "without"},
    ]
    assert group_labels(index, [TAG]) == ["class=a, tag=with", "class=a, tag=unknown", "class=b, tag=without"]
    assert [(issue.file, issue.category, issue.action) for issue in index.issues] == [
        ("a/9.png", "tag-without-image", "row ignored")
    ]
    assert [sample.file for sample in tagged_only(index).samples] == ["a/1.png", "b/1.png"]
    with pytest.raises(DataError, match=r"none of the 3 tagged images .* among the 1 images .* an image is named 'b/7"):
        with_tags(index_of("b/7.png"), file)


def test_a_file_in_both_splits_is_ambiguous():
    with pytest.raises(DataError, match="1 images are for training and for validation"):
        joined(index_of("a/1.png", "b/1.png"), index_of("a/1.png", "b/2.png"))


def tagged(counts: dict[str, int]) -> ImageIndex:
    """Tagged images: how many of each group, such as a+."""
    from dataclasses import replace

    index = index_of(*(f"{group[0]}/{group[1]}{i}.png" for group, count in counts.items() for i in range(count)))
    return replace(index, samples=tuple(replace(s, groups={TAG: s.file[2].strip("0")}) for s in index.samples))


def test_too_few_images_per_group_raise_an_error():
    require_tagged_groups(tagged({"a+": 2, "a-": 2, "b+": 1}), every_class=True)
    with pytest.raises(DataError, match=r"no class has 2 or more images of each of two tags.* 5 a '\+', 1 a '-'"):
        require_tagged_groups(tagged({"a+": 5, "a-": 1, "b+": 9}), every_class=False)
    require_tagged_groups(tagged({"a+": 2, "a-": 2}), every_class=False)
    with pytest.raises(DataError, match=r"no tagged image of b \(1 of the model's 2 classes\)"):
        require_tagged_groups(tagged({"a+": 2, "a-": 2}), every_class=True)


def test_groups_of_two_or_more_are_in_both_parts():
    index = tagged({"a+": 9, "a-": 2, "b+": 6, "b-": 1, "a0": 20, "b0": 20})
    files = {sample.file for sample in index.samples}
    validation = {"a/00.png", "a/01.png", "b/-0.png", "b/+0.png", "b/+1.png", "b/+2.png", "b/+3.png"}
    parts = spread_tags(index, set(validation), seed=0)
    names = [{sample.file for sample in part.samples} for part in parts]
    assert names[0] | names[1] == files
    assert not names[0] & names[1]
    counts = [Counter((s.file[0], s.groups[TAG]) for s in part.samples) for part in parts]
    assert counts[0] == {("a", "+"): 6, ("a", "-"): 1, ("b", "+"): 2, ("b", "-"): 1, ("a", ""): 18, ("b", ""): 20}
    assert counts[1] == {("a", "+"): 3, ("a", "-"): 1, ("b", "+"): 4, ("a", ""): 2}
    assert validation - {"b/-0.png"} <= names[1]  # what is in both parts, or untagged, stays
    assert [s.file for s in spread_tags(index, validation, seed=0)[1].samples] == [s.file for s in parts[1].samples]
