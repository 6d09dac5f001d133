"""Which images to train on and which to choose by."""

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
from clearhead.data.shards import is_sharded, plain_split, splits_in

HELD_OUT = 0.2


def train_and_validation(
    root: str | Path,
    *,
    train: str = "train",
    validation: str = "val",
    classes: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[ImageIndex, ImageIndex]:
    """The images to train on and those to choose by.

    Those of the two splits (``splits_of``; ``val`` and ``validation`` are one); the classes are those of the images to
    train on. Where there is none to choose by, a random fifth of each class of those to train on is held out (`seed`).
    Raises DataError, also for a class with a single image to divide.
    """
    splits = splits_of(root)
    train, validation = _among(splits, train), _among(splits, validation)
    if validation in splits or (splits and (train not in splits or validation != "val")):
        first = read_images(root, split=train, classes=classes)
        return first, read_images(root, split=validation, classes=first.classes)
    return split_off(read_images(root, split=train if splits else None, classes=classes), HELD_OUT, seed)


def _among(splits: set[str], wanted: str) -> str:
    """The split, by the name it has in the set."""
    alike = [split for split in sorted(splits) if plain_split(split) == plain_split(wanted)]
    return wanted if wanted in splits or not alike else alike[0]


def require_apart(**parts: ImageIndex | None) -> None:
    """Raise DataError where two parts of a set, by what they are for, share images."""
    there = {name: folder for name, folder in parts.items() if folder is not None}
    for (a, first), (b, second) in combinations(there.items(), 2):
        if shared := {sample.file for sample in first.samples} & {sample.file for sample in second.samples}:
            raise DataError(
                f"{first.root}: {len(shared):,} images are for {a} and for {b}, such as {min(shared)}; each needs "
                "images of its own: name other splits"
            )


def split_off(folder: ImageIndex, share: float, seed: int = 0) -> tuple[ImageIndex, ImageIndex]:
    """A folder without a random share of each class, and that share. DataError for a class of a single image."""
    by_class = defaultdict(list)
    for sample in folder.samples:
        by_class[sample.label].append(sample)
    rng, held_out = np.random.default_rng(seed), set()
    for label, samples in by_class.items():
        if len(samples) < 2:
            raise DataError(
                f"{folder.root}: class {folder.classes[label]} has one image; two or more are needed to hold some out "
                "for validation (or name the splits in metadata.csv)"
            )
        count = max(1, round(share * len(samples)))
        held_out |= {samples[i].file for i in rng.permutation(len(samples))[:count]}
    kept = tuple(sample for sample in folder.samples if sample.file not in held_out)
    chosen = tuple(sample for sample in folder.samples if sample.file in held_out)
    return replace(folder, samples=kept), replace(folder, samples=chosen, issues=())


def subsample_fraction(folder: ImageIndex, fraction: float, seed: int) -> ImageIndex:
    """A share of the images of each class, at least one; of two shares by one seed the larger holds the smaller."""
    if fraction == 1:
        return folder
    rng = np.random.default_rng([seed, 1])
    labels = np.array([sample.label for sample in folder.samples])
    kept: list[int] = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        kept += members[: max(1, round(fraction * len(members)))].tolist()
    return replace(folder, samples=tuple(folder.samples[i] for i in sorted(kept)), issues=())


def sample_n(folder: ImageIndex, count: int | None, seed: int) -> ImageIndex:
    """At most so many images of a folder, drawn at random, in its order; None for all."""
    if count is None or count >= len(folder.samples):
        return folder
    chosen = np.sort(np.random.default_rng(seed).permutation(len(folder.samples))[:count])
    return replace(folder, samples=tuple(folder.samples[i] for i in chosen))


def splits_of(root: str | Path) -> set[str]:
    """The splits that metadata.csv or the shards of a set name; none where there are no splits."""
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
