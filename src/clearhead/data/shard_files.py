"""What is in one file of many images: the pictures, the labels as they stand there, the names of the classes if any.

A Parquet file's footer and labels are read, a tar file's headers (all of it where it is checked), an .npz's arrays.
"""

import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from fsspec.core import url_to_fs

from clearhead.data.dataset import DataIssue, Sample, check_samples
from clearhead.data.image_io import DataError, ImageRef
from clearhead.data.image_refs import ArrayRow, InMemoryImage, ParquetCell, TarMember, array_of, opened

_IMAGE_COLUMNS = ("image", "img", "jpg", "png")
_LABEL_COLUMNS = ("label", "fine_label", "labels", "cls")
_IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True)
class Shard:
    """A file with many images, or the part of an .npz that is a split: `name` is its path in the set."""

    url: str
    kind: str
    name: str
    split: str


@dataclass(frozen=True)
class Entry:
    """An image of a shard and its label as it stands there."""

    file: str
    path: ImageRef
    label: int | str | None


@dataclass
class Contents:
    """What is in a shard."""

    entries: list[Entry] = field(default_factory=list)
    names: tuple[str, ...] | None = None
    issues: list[DataIssue] = field(default_factory=list)


@contextmanager
def reading(url: str) -> Iterator[None]:
    """Any failure as a DataError: file systems raise nearly anything."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{url}: no such file or folder") from error
    except Exception as error:
        raise DataError(f"{url} cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error


def contents_of(shard: Shard, check: bool) -> Contents:
    """The images of a shard."""
    with reading(shard.url):
        if shard.kind == ".parquet":
            return _of_parquet(shard)
        return _of_tar(shard, check) if shard.kind == ".tar" else _of_npz(shard)


def _of_parquet(shard: Shard) -> Contents:
    with opened(shard.url) as stream:
        file = pyarrow.parquet.ParquetFile(stream)
        schema, contents, row = file.schema_arrow, Contents(), 0
        image, label = (_column(shard.url, schema.names, names) for names in (_IMAGE_COLUMNS, _LABEL_COLUMNS))
        kind = schema.field(image).type
        if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
            raise DataError(f"{shard.url}: column {image} holds {kind}; the bytes of image files are needed")
        for group in range(file.num_row_groups):
            values = file.read_row_group(group, columns=[label], use_threads=False)[0].to_pylist()
            for i, value in enumerate(values):
                if not isinstance(value, int | str | None):
                    raise DataError(f"{shard.url}: column {label} holds {type(value).__name__}, not one label a row")
                contents.entries.append(
                    Entry(f"{shard.name}/{row + i}", ParquetCell(shard.url, image, group, i), value)
                )
            row += len(values)
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    contents.names = tuple(features.get(label, {}).get("names") or ()) or None
    return contents


def _column(url: str, there: Sequence[str], wanted: Sequence[str]) -> str:
    found = next((name for name in wanted if name in there), None)
    if found is None:
        raise DataError(f"{url}: no column {', '.join(wanted[:-1])} or {wanted[-1]}; it has {', '.join(there)}")
    return found


def _of_tar(shard: Shard, check: bool) -> Contents:
    """The images of a WebDataset shard, by one pass over its headers; with `check`, all that is in it."""
    members: dict[str, dict[str, Any]] = defaultdict(dict)
    contents, passing = Contents(), []
    fs, path = url_to_fs(shard.url)
    with fs.open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in tar:
            folder, _, base = member.name.rpartition("/")
            stem, _, extension = base.partition(".")
            extension = extension.lower()
            if not member.isreg() or not stem:
                continue
            file = f"{shard.name}/{folder}/{stem}" if folder.strip("./") else f"{shard.name}/{stem}"
            if extension in _IMAGE_MEMBERS and not members[file].keys() & set(_IMAGE_MEMBERS):
                members[file][extension] = TarMember(shard.url, member.offset_data, member.size)
                if check:
                    held = InMemoryImage(member.name, _bytes(tar, member))
                    passing.append(Sample(file, held, 0, None, {}))
            elif extension in ("cls", "json"):
                members[file][extension] = _bytes(tar, member)
            else:
                members[file].setdefault(extension, None)
            if len(passing) == 64:
                contents.issues += check_samples(passing)[1]
                passing = []
    contents.issues += check_samples(passing)[1] if passing else []
    broken = {issue.file for issue in contents.issues}
    for file, parts in members.items():
        image = next((part for part in parts.values() if isinstance(part, TarMember)), None)
        if image is None:
            detail = f"no {', '.join(_IMAGE_MEMBERS)} among its {', '.join(parts)}"
            contents.issues.append(DataIssue(file, "no-image", detail, "skipped"))
        elif file not in broken:
            try:
                contents.entries.append(Entry(file, image, _tar_label(parts)))
            except ValueError as error:
                contents.issues.append(DataIssue(file, "unreadable-json", str(error), "skipped"))
    return contents


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    return stream.read() if stream else b""


def _tar_label(parts: Mapping[str, Any]) -> int | str | None:
    """A number or a name from {key}.cls, or from {key}.json. Raises ClearheadError for text or JSON that is none."""
    if parts.get("cls") is not None:
        text = parts["cls"].decode().strip()
        return int(text) if re.fullmatch(r"-?\d+", text) else text or None
    said = json.loads(parts["json"]) if parts.get("json") is not None else {}
    found = [said[name] for name in _LABEL_COLUMNS if name in said] if isinstance(said, dict) else []
    return found[0] if found and isinstance(found[0], int | str) else None


def npz_splits(url: str) -> list[str]:
    """The splits of a file of MedMNIST. Raises DataError where there is none."""
    with reading(url):
        fs, path = url_to_fs(url)
        with fs.open(path, "rb") as stream:
            keys = np.load(stream).files
        splits = [key.removesuffix("_images") for key in keys if key.endswith("_images")]
        if not splits:
            raise DataError(f"{url}: no arrays named as MedMNIST's, such as train_images; it has {', '.join(keys)}")
        return splits


def _of_npz(shard: Shard) -> Contents:
    """The images of a split of MedMNIST (medmnist.com): N x H x W, or with three channels; labels N x 1."""
    images, labels = (array_of(shard.url, f"{shard.split}_{what}") for what in ("images", "labels"))
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        raise DataError(
            f"{shard.url}: its images are {images.dtype}, {images.shape}; bytes, N x H x W (x 3) are needed"
        )
    if labels.size != len(images):
        raise DataError(f"{shard.url}: its labels are {labels.shape} for {len(images)} images; one each is needed")
    stored = [ArrayRow(shard.url, f"{shard.split}_images", row) for row in range(len(images))]
    rows = enumerate(zip(stored, labels.ravel().tolist(), strict=True))
    return Contents([Entry(f"{shard.name}/{row}", image, label) for row, (image, label) in rows])
