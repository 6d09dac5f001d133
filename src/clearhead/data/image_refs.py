"""Refer to images stored in larger files (tar, Parquet, arrays) and open them from there.

fsspec opens the file, on disk or behind a URL. Of a tar file only the image's bytes are read; of a Parquet file its row
group, which is cached for the next image; an array is memory-mapped, or read once per process.
"""

import functools
import io
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from clearhead.data.image_io import DataError

_CACHE_BYTES = 2**28
"""Size of the cache of row groups per process: a shuffled pass over a smaller data set reads each of them once."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """An image in a tar file: `size` bytes from `offset`."""

    url: str
    offset: int
    size: int

    def open(self) -> Image.Image:
        """Open the image with Pillow."""
        with _lock:
            file = _cached_file(self.url)
            file.seek(self.offset)
            return Image.open(io.BytesIO(file.read(self.size)))

    def __str__(self) -> str:
        return f"{self.url}, byte {self.offset}"


@dataclass(frozen=True, slots=True)
class ParquetCell:
    """An image in a Parquet file: a row of a row group."""

    url: str
    column: str
    group: int
    row: int

    def open(self) -> Image.Image:
        """Open the image with Pillow. The row group is cached: reading in order reads each row group once."""
        cell = _row_group(self.url, self.column, self.group)[self.row].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if data is None:
            path = cell and cell.get("path")
            raise DataError(f"the image is not stored in this file but in {path}" if path else "an empty cell")
        return Image.open(io.BytesIO(data))

    def __str__(self) -> str:
        return f"{self.url}, row {self.row} of row group {self.group}"


@dataclass(frozen=True, slots=True)
class ArrayRow:
    """A row of an array, N x H x W or N x H x W x 3 in 0..255: in an .npy file, or under `key` in an .npz file."""

    url: str
    key: str
    row: int

    def open(self) -> Image.Image:
        """Return the image."""
        return Image.fromarray(np.ascontiguousarray(load_array(self.url, self.key)[self.row]))

    def __str__(self) -> str:
        return f"{self.url}, row {self.row}" + (f" of {self.key}" if self.key else "")


@dataclass(frozen=True)
class InMemoryImage:
    """The bytes of an image file in memory, for checking a stream as it passes."""

    name: str
    data: bytes

    def open(self) -> Image.Image:
        """Open the image with Pillow."""
        return Image.open(io.BytesIO(self.data))

    def __str__(self) -> str:
        return self.name


# Open files and cached row groups belong to this process. A forked process clears them, because it would share the
# positions in its parent's files.
_lock = threading.RLock()
_row_groups: OrderedDict[tuple[str, str, int], pyarrow.ChunkedArray] = OrderedDict()


def open_file(url: str) -> BinaryIO:
    """Open a file for random access: only the requested bytes are read."""
    fs, path = url_to_fs(url)
    return cast(BinaryIO, fs.open(path, "rb", cache_type="none"))


_cached_file = functools.lru_cache(maxsize=16)(open_file)


@functools.lru_cache(maxsize=16)
def _parquet_file(url: str) -> pyarrow.parquet.ParquetFile:
    return pyarrow.parquet.ParquetFile(_cached_file(url))


def _row_group(url: str, column: str, group: int) -> pyarrow.ChunkedArray:
    """Return a column of a row group, from the cache if possible."""
    key = (url, column, group)
    with _lock:
        if key not in _row_groups:
            _row_groups[key] = _parquet_file(url).read_row_group(group, columns=[column], use_threads=False).column(0)
            while len(_row_groups) > 1 and sum(cells.nbytes for cells in _row_groups.values()) > _CACHE_BYTES:
                _row_groups.popitem(last=False)
        _row_groups.move_to_end(key)
        return _row_groups[key]


@functools.lru_cache(maxsize=128)
def load_array(url: str, key: str) -> npt.NDArray[Any]:
    """Return the array of an .npy file (`key` is empty), memory-mapped if on disk, or one of an .npz file."""
    fs, path = url_to_fs(url)
    if not key and isinstance(fs, LocalFileSystem):
        return cast(npt.NDArray[Any], np.load(path, mmap_mode="r"))
    with fs.open(path, "rb") as file:
        content = np.load(file)
        return cast(npt.NDArray[Any], content[key] if key else content)


def clear_caches() -> None:
    """Close all files and forget their contents, which may have changed."""
    with _lock:
        _row_groups.clear()
        for cache in (_cached_file, _parquet_file, load_array):
            cache.cache_clear()


def _reset_after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    clear_caches()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
