"""Fingerprint the contents of a data set, so that a saved run can tell whether its data has changed."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from clearhead.data.dataset import ImageIndex
from clearhead.data.image_io import DataError, ImageRef

_VERSION_KEYS = ("size", "etag", "blob_id", "checksum", "md5", "mtime", "lastmodified", "last_modified", "created")
"""Entries of fsspec's ``info``, in lower case, that change when the contents of a remote file change."""


def fingerprint(index: ImageIndex) -> dict[str, str]:
    """Return one fingerprint for each part of a data set that a result can depend on.

    Images and masks are identified by name, size and modification time; nothing is decoded. Paths of local files enter
    relative to the data set, so the fingerprint does not depend on how the path to it is written.

    Returns:
        SHA-256 digests by part: "images" (file, label and version of each sample), "masks" (file and version of each
        mask), "metadata" (the group columns of each sample) and "classes" (the class names). "masks" and "metadata" are
        "none" if no sample has any.

    Raises:
        DataError: if a file no longer exists or cannot be accessed.
    """
    shards: dict[str, str] = {}
    images = []
    for sample in index.samples:
        if isinstance(sample.path, Path):
            version = _file_version(sample.path)
        else:
            url = getattr(sample.path, "url", None)
            if url is not None and url not in shards:
                shards[url] = _shard_version(url)
            version = repr(sample.path) if url is None else shards[url] + str(sample.path).removeprefix(url)
        images.append(f"{sample.file}\0{sample.label}\0{version}")
    return {
        "images": _digest(images),
        "masks": _digest(f"{s.file}\0{_version(s.mask)}" for s in index.samples if s.mask is not None),
        "metadata": _digest("\0".join((s.file, *map(str, s.groups.items()))) for s in index.samples if s.groups),
        "classes": _digest(index.classes),
    }


def _digest(lines: Iterable[str]) -> str:
    digest, empty = hashlib.sha256(), True
    for line in lines:
        digest.update(line.encode("utf-8", "surrogatepass") + b"\0\n")
        empty = False
    return "none" if empty else digest.hexdigest()


def _version(mask: Path | ImageRef) -> str:
    return _file_version(mask) if isinstance(mask, Path) else repr(mask)


def _file_version(path: str | Path) -> str:
    """Return the size of a local file in bytes and its modification time in ns."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return f"{status.st_size}\0{status.st_mtime_ns}"


def _shard_version(url: str) -> str:
    """Return what identifies the contents of a file of many images, local or remote."""
    try:
        fs, path = url_to_fs(url)
        if isinstance(fs, LocalFileSystem):
            return f"{path.rpartition('/')[2]}\0{_file_version(path)}"
        info = {key.lower(): value for key, value in fs.info(path).items()}
    except DataError:
        raise
    except Exception as error:  # file systems raise nearly anything
        raise DataError(f"{url} cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error
    return "\0".join([url, *(f"{key}={info[key]}" for key in _VERSION_KEYS if info.get(key) is not None)])
