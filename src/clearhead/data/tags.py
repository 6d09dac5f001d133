"""Tags: a few images labelled by hand with whether they show a shortcut, in a CSV file with the columns file and tag.

A tag becomes the metadata column ``tag``, so that a class crossed with its tags makes groups, as any column does.
"""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from clearhead.data.dataset import DataIssue, ImageIndex, format_names, sort_issues
from clearhead.data.image_io import DataError
from clearhead.data.splits import require_apart
from clearhead.storage import write_text

TAG = "tag"
"""The metadata column of tags, and the column of a tags file."""

MIN_TAGGED = 2
"""Images that each of two tags must have in at least one class; smaller groups are fitted on but select nothing."""

VALIDATION_PART = 1 / 3
"""Share of the tagged images of a group that moves to the validation images where those have none of it."""


def read_tags(path: str | Path) -> dict[str, str]:
    """Return the tag of each tagged image of a tags file: UTF-8 text, separated by commas, semicolons or tabs.

    The columns ``file`` (as in metadata.csv) and ``tag`` are read, others ignored. A row without a tag is an untagged
    image. Tags that differ only in case or spaces are the same; the first spelling is used.

    Raises:
        DataError: for a file that cannot be read, lacks a column or any tag, has one tag only, or tags an image twice
            with different tags.
    """
    path = Path(path)
    every: dict[str, list[str]] = defaultdict(list)
    spelling: dict[str, str] = {}
    for row in _rows(path):
        if row.file and row.tag:
            every[row.file].append(spelling.setdefault(row.tag.casefold(), row.tag))
    if not every:
        raise DataError(f"tags: {path} has no tagged image; fill its column {TAG}, with one of two or more tags each")
    if twice := {file: tags for file, tags in every.items() if len(set(tags)) > 1}:
        file, tags = min(twice.items())
        raise DataError(
            f"tags: {path} has different tags for {len(twice):,} image{'s' * (len(twice) > 1)}, such as {file}: "
            f"{format_names(dict.fromkeys(tags))}; leave one row of each"
        )
    if len(spelling) == 1:
        raise DataError(
            f"tags: all {len(every):,} tagged images of {path} have the tag {next(iter(spelling.values()))!r}; two or "
            "more tags are needed to divide the images of a class: tag more images, or draw others with another --seed"
        )
    return {file: tags[0] for file, tags in every.items()}


@dataclass(frozen=True)
class TaggedFile:
    """A row of a tags file: the image, its tag (empty without one), and its class for the reader."""

    file: str
    tag: str
    label: str = ""


def _rows(path: Path) -> list[TaggedFile]:
    """Return the rows of a tags file, in its order."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        header = text.partition("\n")[0]
        lines = csv.reader(text.splitlines(), delimiter=max(",;\t", key=header.count))
        columns = [cell.strip().casefold() for cell in next(lines, [])]
        if not {"file", TAG} <= set(columns):
            raise DataError(f"tags: the first line of {path} must name the columns file and {TAG}; got {columns}")
        rows = (dict(zip(columns, cells, strict=False)) for cells in lines)
        return [
            TaggedFile(
                PurePosixPath(row["file"].strip().replace("\\", "/")).as_posix() if row["file"].strip() else "",
                " ".join(row[TAG].split()),
                row.get("label", ""),
            )
            for row in rows
            if {"file", TAG} <= row.keys()
        ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"tags: {path} cannot be read as UTF-8 text with one row per image: {error}") from error


def merge_tags(path: Path, rows: Sequence[TaggedFile]) -> list[TaggedFile]:
    """Return rows with the tags of a tags file that may be there, and after them its other tagged images."""
    earlier = {row.file: row for row in _rows(path) if row.tag} if path.is_file() else {}
    files = {row.file for row in rows}
    others = [row for file, row in earlier.items() if file not in files]
    return [replace(row, tag=earlier[row.file].tag) if row.file in earlier else row for row in rows] + others


def write_tags(path: Path, rows: Sequence[TaggedFile]) -> None:
    """Write a tags file."""
    text = io.StringIO()
    csv.writer(text).writerows([("file", TAG, "label"), *((row.file, row.tag, row.label) for row in rows)])
    write_text(path, text.getvalue())


def with_tags(index: ImageIndex, path: str | Path) -> ImageIndex:
    """Return an index whose samples have the metadata column ``tag``, empty for images without a tag.

    Tagged images that are not in the index become issues: those rows are ignored.

    Args:
        index: the images.
        path: the tags file, as ``read_tags`` reads it.

    Raises:
        DataError: as ``read_tags``; if no image of the index has a tag.
    """
    tags = read_tags(path)
    files = {sample.file for sample in index.samples}
    if not files & tags.keys():
        raise DataError(
            f"tags: none of the {len(tags):,} tagged images of {path} is among the {len(files):,} images of "
            f"{index.root}; it tags {min(tags)!r}, an image is named {min(files)!r}"
        )
    missing = [
        DataIssue(file, "tag-without-image", "a tagged image that is not among the images used", "row ignored")
        for file in tags.keys() - files
    ]
    samples = tuple(replace(s, groups={**s.groups, TAG: tags.get(s.file, "")}) for s in index.samples)
    return replace(index, samples=samples, issues=sort_issues([*index.issues, *missing]))


def tagged_only(index: ImageIndex) -> ImageIndex:
    """Return the tagged images of an index with tags."""
    return replace(index, samples=tuple(sample for sample in index.samples if sample.groups[TAG]))


def joined(train: ImageIndex, validation: ImageIndex) -> ImageIndex:
    """Return the images of both. Raises DataError if a file is in both."""
    require_apart(training=train, validation=validation)
    samples = sorted((*train.samples, *validation.samples), key=lambda sample: sample.file)
    return replace(train, samples=tuple(samples), issues=sort_issues({*train.issues, *validation.issues}))


def require_tagged_groups(index: ImageIndex, *, every_class: bool) -> None:
    """Raise DataError for tags that make too few groups.

    Args:
        index: tagged images.
        every_class: whether each class needs a tagged image.
    """
    counts = Counter((sample.label, sample.groups[TAG]) for sample in index.samples)
    large = Counter(label for (label, _), count in counts.items() if count >= MIN_TAGGED)
    if not large or max(large.values()) < 2:
        sizes = (f"{count} {index.classes[label]} {tag!r}" for (label, tag), count in sorted(counts.items()))
        raise DataError(
            f"tags: no class has {MIN_TAGGED} or more images of each of two tags, so they cannot separate a class from "
            f"its shortcut; got {format_names(sizes, 8)}. Tag more images"
        )
    missing = [name for i, name in enumerate(index.classes) if i not in {sample.label for sample in index.samples}]
    if every_class and missing:
        raise DataError(
            f"tags: no tagged image of {format_names(missing)} ({len(missing)} of the model's {len(index.classes)} "
            f"classes); tag {MIN_TAGGED} or more images of each tag in every class"
        )


def spread_tags(index: ImageIndex, validation_files: set[str], seed: int) -> tuple[ImageIndex, ImageIndex]:
    """Return training and validation images so that each group of two or more tagged images is in both.

    A group that is in one of them only is divided at random, a third of it for validation; other images stay. A group
    of one image is for training.

    Args:
        index: all images, with tags.
        validation_files: the validation images among them.
        seed: random seed.
    """
    groups: dict[tuple[int, str], list[str]] = defaultdict(list)
    for sample in index.samples:
        if sample.groups[TAG]:
            groups[sample.label, sample.groups[TAG]].append(sample.file)
    rng = np.random.default_rng(seed)
    validation_files = set(validation_files)
    for _, files in sorted(groups.items()):
        if len({file in validation_files for file in files}) == 1:
            count = max(1, round(VALIDATION_PART * len(files))) if len(files) > 1 else 0
            validation_files -= set(files)
            validation_files |= {files[i] for i in rng.permutation(len(files))[:count]}
    parts = [[s for s in index.samples if (s.file in validation_files) == held_out] for held_out in (False, True)]
    train, validation = (replace(index, samples=tuple(part)) for part in parts)
    return train, validation
