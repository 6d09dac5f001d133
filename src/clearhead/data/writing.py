"""Write data sets: a folder appears when it is complete, metadata.csv is written last, images are linked."""

import csv
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clearhead.data.image_io import DataError
from clearhead.storage import atomic_path


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn an OSError of the block into a DataError that names the target."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{target} could not be written: {error}") from error


def require_empty(target: Path, advice: str = "choose another folder or remove it") -> None:
    """Raise DataError unless a path is absent or an empty folder."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise DataError(f"{target} exists and is not an empty folder; {advice}")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder to fill that becomes `target` when the block ends without an error.

    Raises DataError if it cannot be written.
    """
    with writing(target), atomic_path(target) as unfinished:
        unfinished.mkdir()
        yield unfinished


def require_no_metadata(root: Path) -> None:
    """Raise DataError if a folder already holds a complete data set, that is metadata.csv, which is written last."""
    if (root / "metadata.csv").exists():
        raise DataError(f"{root / 'metadata.csv'} exists; choose an empty folder, or delete this file to write again")


def write_metadata(root: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write metadata.csv of a data set."""
    with atomic_path(root / "metadata.csv") as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def link(original: Path, target: Path) -> None:
    """Make a hard link to a file, or a copy if the file system does not allow it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # copying onto an earlier link would write into the original
    try:
        os.link(original.resolve(), target)
    except OSError:
        shutil.copyfile(original, target)
