"""A data set as all of clearhead sees it: samples with labels, masks and groups, and what was wrong with the rest."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from clearhead.data.image_io import DataError, ImageRef, by, load_image, load_mask


@dataclass(frozen=True, slots=True)
class Sample:
    """One image: `file` is its path relative to the class folders, or in its shard, and its unique name."""

    file: str
    path: Path | ImageRef
    label: int
    mask: Path | None
    groups: Mapping[str, str]  # metadata columns other than file and split

    @property
    def own_file(self) -> Path:
        """The file that is the image. Raises DataError for one inside a shard."""
        if not isinstance(self.path, Path):
            raise DataError(f"{self.path}: images that are files are needed here, in class folders")
        return self.path


@dataclass(frozen=True)
class DataIssue:
    """One thing wrong with the data: ``clearhead.data.folder`` lists the categories and actions."""

    file: str
    category: str
    detail: str
    action: str  # 'skipped', 'mask ignored', 'row ignored', 'counted'


@dataclass(frozen=True)
class ImageIndex:
    """The usable samples of a data set, in order of `file`, and what was wrong with the rest."""

    root: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    issues: tuple[DataIssue, ...]


def require_samples(root: str | Path, samples: Sequence[Sample], issues: Sequence[DataIssue]) -> None:
    """Raise DataError where no image is left, with what befell them."""
    if not samples:
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(p.category for p in issues).most_common())
        first = next((p for p in issues if p.action == "skipped"), None)
        raise DataError(
            f"{root}: no usable image is left ({kinds})" + (f"; first {first.file}: {first.detail}" if first else "")
        )


def require_classes(folder: ImageIndex, classes: Sequence[str]) -> None:
    """Raise DataError where a folder's labels are not numbers of a model's classes."""
    if folder.classes != tuple(classes):
        raise DataError(
            f"{folder.root}: read for other classes than the model's ({len(folder.classes)} and {len(classes)}) or in "
            "another order: read_folder(..., classes=model.classes)"
        )


def check_samples(samples: Sequence[Sample]) -> tuple[list[Sample], list[DataIssue]]:
    """Decode every image and mask; return the samples that can be used (a bad mask taken off) and the problems."""
    with ThreadPoolExecutor() as pool:
        issues = list(pool.map(_check, samples))
    kept = [
        replace(sample, mask=None) if issue else sample
        for sample, issue in zip(samples, issues, strict=True)
        if not (issue and issue.action == "skipped")
    ]
    return kept, [issue for issue in issues if issue]


def attribute_columns(folder: ImageIndex) -> list[str]:
    """The metadata columns with at most 10 different values, the class aside."""
    values: dict[str, set[str]] = defaultdict(set)
    for sample in folder.samples:
        for column, value in sample.groups.items():
            values[column].add(value)
    return [column for column, seen in values.items() if column != "class" and len(seen) <= 10]


def shared_columns(train: ImageIndex, validation: ImageIndex) -> list[str]:
    """The columns that make groups of both parts: those of `train` that `validation` has, however few values there."""
    there = {column for sample in validation.samples for column in sample.groups}
    return [column for column in attribute_columns(train) if column in there]


def group_labels(folder: ImageIndex, columns: Sequence[str] | None) -> list[str]:
    """The group of each sample, such as ``class=cat, background=water``: its class crossed with metadata columns.

    `columns` None takes all columns with at most 10 different values; the class always comes first. A cell that is
    empty or missing reads ``unknown``. Raises DataError for a column that does not exist.
    """
    there = dict.fromkeys(column for sample in folder.samples for column in sample.groups if column != "class")
    columns = attribute_columns(folder) if columns is None else [column for column in columns if column != "class"]
    if missing := [column for column in columns if column not in there]:
        raise DataError(
            f"no group column {', '.join(missing)} in {folder.root / 'metadata.csv'}; "
            f"there is {listed(there) if there else 'none besides the class'}"
        )
    return [
        ", ".join(
            [f"class={folder.classes[sample.label]}"]
            + [f"{column}={sample.groups.get(column) or 'unknown'}" for column in columns]
        )
        for sample in folder.samples
    ]


def _check(sample: Sample) -> DataIssue | None:
    """What is wrong with the files of a sample."""
    try:
        size = load_image(sample.path).size
    except DataError as error:
        kind = "truncated" if "truncated" in str(error.__cause__).lower() else "unreadable"
        return DataIssue(sample.file, kind, str(error).removeprefix(f"{sample.path}: "), "skipped")
    if sample.mask is None:
        return None
    try:
        mask = load_mask(sample.mask)
    except DataError as error:
        return DataIssue(sample.file, "mask-unreadable", str(error).removeprefix(f"{sample.mask}: "), "mask ignored")
    if mask.size != size:
        detail = f"a mask of {by(mask.size)} for an image of {by(size)}"
        return DataIssue(sample.file, "mask-size", detail, "mask ignored")
    if mask.getbbox() is None:
        return DataIssue(sample.file, "mask-empty", "a mask without foreground", "mask ignored")
    return None


def listed(names: Iterable[str], most: int = 5) -> str:
    """A few names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
