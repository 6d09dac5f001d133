"""Define a data set as all of clearhead uses it: samples with labels, masks and groups, and the issues of the rest."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clearhead.data.image_io import DataError, ImageRef, format_size, load_image, load_mask


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a data set.

    Attributes:
        file: its unique name: the path relative to the class folders, or in its shard.
        path: the image file, or where the image is stored in a larger file.
        label: the index of its class.
        mask: the file of its foreground mask, or where it is stored, if it has one.
        groups: its metadata, without the columns file and split.
    """

    file: str
    path: Path | ImageRef
    label: int
    mask: Path | ImageRef | None
    groups: Mapping[str, str]

    @property
    def image_file(self) -> Path:
        """The image file. Raises DataError for an image stored in a larger file."""
        if not isinstance(self.path, Path):
            raise DataError(f"{self.path}: images in class folders are needed here, not images inside another file")
        return self.path


@dataclass(frozen=True)
class DataIssue:
    """One issue with the data: ``clearhead.data.folder`` lists the categories and actions.

    Attributes:
        file: the file or folder, relative to the data set.
        category: what the issue is, such as 'truncated'.
        detail: one sentence fragment about this case.
        action: 'skipped', 'mask ignored', 'row ignored', 'mask dropped', or 'counted' if nothing was left out.
    """

    file: str
    category: str
    detail: str
    action: str


@dataclass(frozen=True)
class ImageIndex:
    """The usable samples of a data set, sorted by `file`, and the issues with the rest.

    Attributes:
        root: the folder, file or URL it was read from.
        classes: the class names; labels are their indices.
        samples: the usable samples.
        issues: what was left out or is suspicious.
    """

    root: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    issues: tuple[DataIssue, ...]


def sort_issues(issues: Iterable[DataIssue]) -> tuple[DataIssue, ...]:
    """Return issues sorted by file, then category."""
    return tuple(sorted(issues, key=lambda issue: (issue.file, issue.category)))


def count_categories(issues: Iterable[DataIssue]) -> str:
    """Return how often each category occurs, most frequent first, such as ``3 truncated, 1 unreadable``."""
    return ", ".join(f"{count} {name}" for name, count in Counter(i.category for i in issues).most_common())


def require_samples(root: str | Path, samples: Sequence[Sample], issues: Sequence[DataIssue]) -> None:
    """Raise DataError, with the reasons, if no sample is left."""
    if not samples:
        first = next((issue for issue in issues if issue.action == "skipped"), None)
        raise DataError(
            f"{root}: no usable image is left ({count_categories(issues)})"
            + (f"; first {first.file}: {first.detail}" if first else "")
        )


def require_classes(index: ImageIndex, classes: Sequence[str]) -> None:
    """Raise DataError unless the labels of an index are indices of a model's classes."""
    if index.classes != tuple(classes):
        raise DataError(
            f"{index.root}: read with {len(index.classes)} classes, but the model has {len(classes)}, or another "
            "order; read the data with classes=model.classes"
        )


def check_samples(samples: Sequence[Sample]) -> tuple[list[Sample], list[DataIssue]]:
    """Decode every image and mask; return the usable samples, without unusable masks, and the issues."""
    with ThreadPoolExecutor() as pool:
        issues = list(pool.map(_check_sample, samples))
    usable = [
        replace(sample, mask=None) if issue else sample
        for sample, issue in zip(samples, issues, strict=True)
        if not (issue and issue.action == "skipped")
    ]
    return usable, [issue for issue in issues if issue]


def _check_sample(sample: Sample) -> DataIssue | None:
    """Decode the files of a sample and return the first issue."""
    try:
        size = load_image(sample.path).size
    except DataError as error:
        category = "truncated" if "truncated" in str(error.__cause__).lower() else "unreadable"
        return DataIssue(sample.file, category, str(error).removeprefix(f"{sample.path}: "), "skipped")
    if sample.mask is None:
        return None
    try:
        mask = load_mask(sample.mask)
    except DataError as error:
        return DataIssue(sample.file, "mask-unreadable", str(error).removeprefix(f"{sample.mask}: "), "mask ignored")
    if mask.size != size:
        detail = f"the mask has {format_size(mask.size)} pixels, the image {format_size(size)}"
        return DataIssue(sample.file, "mask-size", detail, "mask ignored")
    if mask.getbbox() is None:
        return DataIssue(sample.file, "mask-empty", "the mask has no foreground", "mask ignored")
    return None


def attribute_columns(index: ImageIndex) -> list[str]:
    """Return the metadata columns with at most 10 different values, except the class."""
    values: dict[str, set[str]] = defaultdict(set)
    for sample in index.samples:
        for column, value in sample.groups.items():
            values[column].add(value)
    return [column for column, distinct in values.items() if column != "class" and len(distinct) <= 10]


def metadata_columns(index: ImageIndex, columns: Sequence[str] | None = None) -> dict[str, npt.NDArray[np.str_]]:
    """Return the metadata of an index, N values per column except the class; an empty cell reads ``unknown``.

    `columns` None takes all columns; ones that do not exist are left out.
    """
    available = dict.fromkeys(column for sample in index.samples for column in sample.groups if column != "class")
    return {
        column: np.array([sample.groups.get(column) or "unknown" for sample in index.samples])
        for column in available
        if columns is None or column in columns
    }


def shared_columns(train: ImageIndex, validation: ImageIndex) -> list[str]:
    """Return the attribute columns of the training split that the validation split has too."""
    available = {column for sample in validation.samples for column in sample.groups}
    return [column for column in attribute_columns(train) if column in available]


def group_labels(index: ImageIndex, columns: Sequence[str] | None) -> list[str]:
    """Return the group of each sample, such as ``class=cat, background=water``: its class crossed with its metadata.

    `columns` None takes all columns with at most 10 different values; the class always comes first. An empty or missing
    cell reads ``unknown``. Raises DataError for a column that does not exist.
    """
    available = dict.fromkeys(column for sample in index.samples for column in sample.groups if column != "class")
    columns = attribute_columns(index) if columns is None else [column for column in columns if column != "class"]
    if missing := [column for column in columns if column not in available]:
        raise DataError(
            f"group columns: {', '.join(missing)} is not in {index.root / 'metadata.csv'}; "
            + (f"choose from {format_names(available)}" if available else "it has no columns besides the class")
        )
    return [
        ", ".join(
            [f"class={index.classes[sample.label]}"]
            + [f"{column}={sample.groups.get(column) or 'unknown'}" for column in columns]
        )
        for sample in index.samples
    ]


def format_names(names: Iterable[str], limit: int = 5) -> str:
    """Return the first names, comma-separated, and how many more there are."""
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
