"""The images of the experiments: drawn once and written down, each part a data set of its own."""

import io
import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from clearhead.data.dataset import ImageIndex
from clearhead.data.image_io import DataError, load_image
from clearhead.data.images import read_images
from clearhead.data.splits import sample_n, split_off, splits_of, subsample_fraction
from clearhead.reproduce.vits_work.sizes import Size, percent
from clearhead.runs import begin, write_results

CORRUPTED = "corrupted"
"""The test images that corruptions are made of."""


def parts(folder: Path, cifar: str | Path, size: Size, seed: int) -> Path:
    """Draw the images; each fraction, named by its percent, becomes a data set with the splits train, val and test.

    Raises DataError for data without the splits train and test, or with too few images.
    """
    if not {"train", "test"} <= splits_of(cifar):
        raise DataError(
            f"{cifar}: the splits train and test are needed, there is {', '.join(splits_of(cifar)) or 'none'}"
        )
    every = read_images(cifar, split="train")
    test = read_images(cifar, split="test", classes=every.classes)
    needed = {"train": size.validation + (size.train or 1), "test": size.test or 1}
    for split, images in (("train", every), ("test", test)):
        if len(images.samples) < needed[split]:
            raise DataError(
                f"{cifar}: {len(images.samples):,} images in {split}, {needed[split]:,} are needed to draw from"
            )
    train, validation = split_off(every, size.validation / len(every.samples), seed)
    if size.train is not None:
        train = subsample_fraction(train, min(1.0, size.train / len(train.samples)), seed)
    if size.test is not None:
        test = subsample_fraction(test, min(1.0, size.test / len(test.samples)), seed)
    fewest = size.fractions[-1]
    if len(train.samples) * fewest < 2 * 16:
        least = math.ceil(2 * 16 / fewest)
        raise DataError(
            f"{cifar}: {len(train.samples):,} training images; of {percent(fewest)}% of them a spectrum is taken on at "
            f"least two batches of 16, so {least:,} are needed"
        )
    wanted: dict[str, Any] = {"train": size.train, "validation": size.validation, "test": size.test}
    wanted |= {"fractions": size.fractions, "corrupted": size.corrupted}
    if begin(folder, "reproduce vits-work", {"cifar": str(cifar), "seed": seed, **wanted}):
        return folder
    for fraction in size.fractions:
        _write(
            {"train": subsample_fraction(train, fraction, seed), "val": validation, "test": test},
            folder / percent(fraction),
        )
    _write({"test": sample_n(test, size.corrupted, seed)}, folder / CORRUPTED)
    write_results(folder, size)
    return folder


def _write(splits: dict[str, ImageIndex], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "names.txt").write_text("\n".join(splits["test"].classes) + "\n", encoding="utf-8")
    for split, images in splits.items():
        pictures = []
        for sample in images.samples:
            stream = io.BytesIO()
            load_image(sample.path).save(stream, "PNG")
            pictures.append(stream.getvalue())
        columns = {"image": pictures, "label": [sample.label for sample in images.samples]}
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"{split}.parquet")
