"""The images of the experiments: drawn and written, each part as a data set."""

import io
import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from clearhead.data.dataset import ImageIndex
from clearhead.data.fingerprint import fingerprint as data_fingerprint
from clearhead.data.image_io import DataError, load_image
from clearhead.data.images import absolute_source, read_images
from clearhead.data.splits import sample_n, split_off, splits_of, subsample_fraction
from clearhead.reproduce.vits_work.sizes import Size, percent
from clearhead.storage import write_json
from clearhead.study.cells import claim

CORRUPTED = "corrupted"
"""The test images that corruptions are made from."""


def parts(folder: Path, cifar: str | Path, size: Size, seed: int) -> Path:
    """Write a data set with the splits train, val and test for each fraction, named by its percent.

    Raises DataError for data without the splits train and test, or with too few images.
    """
    if not {"train", "test"} <= splits_of(cifar):
        raise DataError(
            f"cifar: {cifar} needs the splits train and test; it has {', '.join(sorted(splits_of(cifar))) or 'none'}"
        )
    every = read_images(cifar, split="train")
    test = read_images(cifar, split="test", classes=every.classes)
    sources = {"train": every, "test": test}
    needed = {"train": size.validation + (size.train or 1), "test": size.test or 1}
    for split, images in sources.items():
        if len(images.samples) < needed[split]:
            raise DataError(
                f"cifar: {cifar} has {len(images.samples):,} images in {split}; at least {needed[split]:,} are needed"
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
            f"cifar: {len(train.samples):,} training images are too few: {percent(fewest)}% must be two batches "
            f"of 16, so at least {least:,} are needed"
        )
    deciding: dict[str, Any] = {"train": size.train, "validation": size.validation, "test": size.test}
    deciding |= {
        "fractions": size.fractions,
        "corrupted": size.corrupted,
        "cifar": absolute_source(cifar),
        "seed": seed,
    }
    deciding |= {f"{split} images": data_fingerprint(index) for split, index in sources.items()}
    if claim(folder, deciding):
        return folder
    for fraction in size.fractions:
        _write(
            {"train": subsample_fraction(train, fraction, seed), "val": validation, "test": test},
            folder / percent(fraction),
        )
    _write({"test": sample_n(test, size.corrupted, seed)}, folder / CORRUPTED)
    write_json(folder / "results.json", {"parts": [percent(fraction) for fraction in size.fractions]})
    return folder


def _write(splits: dict[str, ImageIndex], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "names.txt").write_text("\n".join(splits["test"].classes) + "\n", encoding="utf-8")
    for split, images in splits.items():
        encoded = []
        for sample in images.samples:
            stream = io.BytesIO()
            load_image(sample.path).save(stream, "PNG")
            encoded.append(stream.getvalue())
        columns = {"image": encoded, "label": [sample.label for sample in images.samples]}
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"{split}.parquet")
