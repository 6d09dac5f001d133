"""Read images from any source: a folder of class folders, shards on disk or behind a URL, a data set of the Hub."""

from collections.abc import Sequence
from pathlib import Path

from clearhead.data.dataset import ImageIndex, require_classes
from clearhead.data.folder import read_folder
from clearhead.data.image_io import DataError
from clearhead.data.shards import HUB, is_sharded, read_sharded

DataLike = ImageIndex | str | Path
"""Any of the ways to name images."""


def read_images(
    source: str | Path, *, split: str | None = None, classes: Sequence[str] | None = None, check: bool = True
) -> ImageIndex:
    """Read the images of a data set.

    Args:
        source: a folder of class folders (``read_folder``); a .parquet, .tar or .npz file, a folder of the first two, a
            glob or numbers in braces (``val-{000..063}.tar``), local or a URL that fsspec opens (s3://, https://,
            hf://); ``hf-dataset:OWNER/NAME`` or ``hf-dataset:OWNER/NAME/CONFIG``, a data set of the Hugging Face Hub.
        split: the split in metadata.csv, or in file names such as ``train-00000-of-00002.parquet``,
            ``test/0000.parquet``, ``imagenet-val-07.tar``. All splits by default. ``validation`` means ``val``.
        classes: the model's class names, in the order of its outputs. The classes of the data set match them by full
            name (ignoring case, ``_`` = space), by WordNet id if there are 1000, or by the part before the first comma.
            If both have as many classes and most agree in order, the others match by order. Labels without names match
            by number if there are as many. By default the classes are those of the data set.
        check: decode every image and mask, and leave out what cannot be decoded.

    Raises:
        DataError: for a source that does not exist or cannot be opened, missing columns or members, classes that do not
            match the model's, a split that does not exist, or no usable image.
    """
    read = read_sharded if is_sharded(source) else read_folder
    return read(source, split=split, classes=classes, check=check)


def as_image_index(
    data: DataLike,
    *,
    classes: Sequence[str] | None = None,
    split: str | None = None,
    check: bool = True,
) -> ImageIndex:
    """Return the index of a data set: `data` itself if it is one, else what ``read_images`` reads from that source.

    Raises:
        DataError: as ``read_images``; for an index with other classes than `classes`, or together with `split`.
    """
    if not isinstance(data, ImageIndex):
        return read_images(data, split=split, classes=classes, check=check)
    if split is not None:
        raise DataError(f"split: {split!r} needs a path or URL as data; an ImageIndex is used as a whole")
    if classes is not None:
        require_classes(data, classes)
    return data


def absolute_source(source: str | Path, folder: Path = Path()) -> str:
    """Return a source as text that does not depend on how it is written: local paths absolute, symlinks resolved.

    A relative path is relative to `folder`. URLs and data sets of the Hub are returned as they are.
    """
    text = str(source).removeprefix("file://")
    return text if text.startswith(HUB) or "://" in text else str((folder / text).resolve())


def source_name(source: str | Path) -> str:
    """Return a short name of a source: the name of a file or folder, OWNER/NAME of a data set of the Hub."""
    text = str(source).rstrip("/")
    if text.startswith(HUB):
        return text.removeprefix(HUB)
    return text.rsplit("/", 1)[-1] if "://" in text else Path(text).resolve().name
