"""Choose the images to train on and those for model selection, and draw random subsets."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from clearhead.data.dataset import ImageIndex
from clearhead.data.image_io import DataError
from clearhead.data.images import read_images
from clearhead.data.shards import is_sharded, normalize_split, splits_in

VALIDATION_FRACTION = 0.2
"""Fraction of each class that is held out if there is no validation split."""


def train_and_validation(
    root: str | Path,
    *,
    train: str = "train",
    validation: str = "val",
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[ImageIndex, ImageIndex]:
    """Return the training and validation images of a data set.

    Both have the classes of the training images. Without a validation split, a random 20% of each class of the training
    images is held out, decided by `seed`. ``val`` and ``validation`` are the same split.

    Raises:
        DataError: for data or a split that cannot be read, or a class with a single image to divide.
    """
    splits = splits_of(root)
    train, validation = _match_split(splits, train), _match_split(splits, validation)
    if validation in splits or (splits and (train not in splits or validation != "val")):
        index = read_images(root, split=train, classes=classes)
        return index, read_images(root, split=validation, classes=index.classes)
    return split_off(read_images(root, split=train if splits else None, classes=classes), VALIDATION_FRACTION, seed)


def _match_split(splits: set[str], name: str) -> str:
    """Return the name that a split has in the data set."""
    same = [split for split in sorted(splits) if normalize_split(split) == normalize_split(name)]
    return name if name in splits or not same else same[0]


def require_apart(**parts: ImageIndex | None) -> None:
    """Raise DataError if two parts of a data set, named by their purpose, share images."""
    present = {name: index for name, index in parts.items() if index is not None}
    for (a, first), (b, second) in combinations(present.items(), 2):
        if shared := {sample.file for sample in first.samples} & {sample.file for sample in second.samples}:
            raise DataError(
                f"{first.root}: {len(shared):,} images are for {a} and for {b}, such as {min(shared)}; name splits "
                "that do not overlap"
            )


def split_off(index: ImageIndex, fraction: float, seed: int = 0) -> tuple[ImageIndex, ImageIndex]:
    """Return an index without a random fraction of each class, and that fraction, at least one image per class.

    Raises DataError for a class with a single image.
    """
    by_class = defaultdict(list)
    for sample in index.samples:
        by_class[sample.label].append(sample)
    rng, held_out = np.random.default_rng(seed), set()
    for label, samples in by_class.items():
        if len(samples) < 2:
            raise DataError(
                f"{index.root}: class {index.classes[label]} has one image; two or more are needed to hold some out "
                "for validation (or name the splits in metadata.csv)"
            )
        count = max(1, round(fraction * len(samples)))
        held_out |= {samples[i].file for i in rng.permutation(len(samples))[:count]}
    rest = tuple(sample for sample in index.samples if sample.file not in held_out)
    part = tuple(sample for sample in index.samples if sample.file in held_out)
    return replace(index, samples=rest), replace(index, samples=part, issues=())


def subsample_fraction(index: ImageIndex, fraction: float, seed: int) -> ImageIndex:
    """Return a random fraction of each class, at least one image; with the same seed, larger fractions contain it."""
    if fraction == 1:
        return index
    rng = np.random.default_rng([seed, 1])
    labels = np.array([sample.label for sample in index.samples])
    selected: list[int] = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        selected += members[: max(1, round(fraction * len(members)))].tolist()
    return replace(index, samples=tuple(index.samples[i] for i in sorted(selected)), issues=())


def sample_n(index: ImageIndex, count: int | None, seed: int) -> ImageIndex:
    """Return at most `count` random images, in their order; all if `count` is None."""
    if count is None or count >= len(index.samples):
        return index
    selected = np.sort(np.random.default_rng(seed).permutation(len(index.samples))[:count])
    return replace(index, samples=tuple(index.samples[i] for i in selected))


def splits_of(root: str | Path) -> set[str]:
    """Return the splits named by metadata.csv or by the files of a sharded source; empty if it has no splits."""
    if is_sharded(root):
        return splits_in(root)
    table = Path(root) / "metadata.csv"
    if not table.is_file():
        return set()
    try:
        with table.open(encoding="utf-8-sig", errors="replace", newline="") as opened:
            rows = csv.reader(opened)
            names = [cell.strip() for cell in next(rows, [])]
            if "split" not in names:
                return set()
            column = names.index("split")
            return {row[column].strip() for row in rows if len(row) > column} - {""}
    except (csv.Error, OSError) as error:
        raise DataError(f"{table} cannot be read: {error}") from error
