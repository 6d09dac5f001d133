"""Pictures that are no files of their own: where each lies, and how it is had from there.

Whatever holds them, on disk or behind a URL, is opened by fsspec. Of a tar file the picture's bytes alone are read; of
a Parquet file its row group, which is kept for the next; an array is mapped into memory, or read, once a process.
"""

import functools
import io
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow
import pyarrow.parquet
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from clearhead.data.image_io import DataError

_KEPT_BYTES = 2**28
"""Of row groups a process keeps: a shuffled pass over a smaller set reads each once."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A picture in a tar file: `size` bytes from `offset`."""

    url: str
    offset: int
    size: int

    def open(self) -> Image.Image:
        """As Pillow opens it."""
        with _lock:
            file = _file(self.url)
            file.seek(self.offset)
            return Image.open(io.BytesIO(file.read(self.size)))

    def __str__(self) -> str:
        return f"{self.url}, byte {self.offset}"


@dataclass(frozen=True, slots=True)
class ParquetCell:
    """A picture in a Parquet file: in a row of a row group."""

    url: str
    column: str
    group: int
    row: int

    def open(self) -> Image.Image:
        """As Pillow opens it; the row group is kept, so that reading in order reads each once."""
        cell = _row_group(self.url, self.column, self.group)[self.row].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if data is None:
            elsewhere = cell and cell.get("path")
            raise DataError(f"the picture is not in the file but in {elsewhere}" if elsewhere else "an empty cell")
        return Image.open(io.BytesIO(data))

    def __str__(self) -> str:
        return f"{self.url}, row {self.row} of row group {self.group}"


@dataclass(frozen=True, slots=True)
class ArrayRow:
    """A picture that is a row of an array, N x H x W or N x H x W x 3 in 0..255: in an .npy file, or an .npz by key."""

    url: str
    key: str
    row: int

    def open(self) -> Image.Image:
        """The picture itself."""
        return Image.fromarray(np.ascontiguousarray(array_of(self.url, self.key)[self.row]))

    def __str__(self) -> str:
        return f"{self.url}, row {self.row}" + (f" of {self.key}" if self.key else "")


@dataclass(frozen=True)
class InMemoryImage:
    """A picture in memory, on its way past."""

    name: str
    data: bytes

    def open(self) -> Image.Image:
        """As Pillow opens it."""
        return Image.open(io.BytesIO(self.data))

    def __str__(self) -> str:
        return self.name


# Files that are open, and row groups that are read, of this process: a forked one starts anew, since it would share
# the positions in its parent's files.
_lock = threading.RLock()
_kept: OrderedDict[tuple[str, str, int], pyarrow.ChunkedArray] = OrderedDict()


def opened(url: str) -> BinaryIO:
    """A file to jump about in: what is asked for is read and no more."""
    fs, path = url_to_fs(url)
    return fs.open(path, "rb", cache_type="none")


_file = functools.lru_cache(maxsize=16)(opened)


@functools.lru_cache(maxsize=16)
def _parquet_file(url: str) -> pyarrow.parquet.ParquetFile:
    return pyarrow.parquet.ParquetFile(_file(url))


def _row_group(url: str, column: str, group: int) -> pyarrow.ChunkedArray:
    """A column of a row group; the last that were asked for are kept."""
    key = (url, column, group)
    with _lock:
        if key not in _kept:
            _kept[key] = _parquet_file(url).read_row_group(group, columns=[column], use_threads=False).column(0)
            while len(_kept) > 1 and sum(cells.nbytes for cells in _kept.values()) > _KEPT_BYTES:
                _kept.popitem(last=False)
        _kept.move_to_end(key)
        return _kept[key]


@functools.lru_cache(maxsize=128)
def array_of(url: str, key: str) -> np.ndarray:
    """An array of a file; an .npy on disk is mapped into memory, not read."""
    fs, path = url_to_fs(url)
    if not key and isinstance(fs, LocalFileSystem):
        return np.load(path, mmap_mode="r")
    with fs.open(path, "rb") as opened:
        found = np.load(opened)
        return found[key] if key else found


def forget() -> None:
    """Open every file anew: one that was written again is another."""
    with _lock:
        _kept.clear()
        for cache in (_file, _parquet_file, array_of):
            cache.cache_clear()


def _start_anew() -> None:
    global _lock
    _lock = threading.RLock()
    forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
