"""List the images in one shard, with their raw labels and, if it names them, the classes.

This reads the footer and labels of a Parquet file, the headers of a tar file (all of it with `check`), and the arrays
of an .npz file.
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
from clearhead.data.image_refs import ArrayRow, InMemoryImage, ParquetCell, TarMember, load_array, open_file

_IMAGE_COLUMNS = ("image", "img", "jpg", "png")
_LABEL_COLUMNS = ("label", "fine_label", "labels", "cls")
_IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True)
class Shard:
    """A file with many images, or one split of an .npz file.

    Attributes:
        url: the file.
        suffix: its format, such as ``.tar``.
        name: its path in the data set.
        split: its split, or an empty string.
    """

    url: str
    suffix: str
    name: str
    split: str


@dataclass(frozen=True)
class Entry:
    """An image of a shard and its label as stored."""

    file: str
    path: ImageRef
    label: int | str | None


@dataclass
class Contents:
    """The images of a shard, the class names if it has them, and the issues."""

    entries: list[Entry] = field(default_factory=list)
    names: tuple[str, ...] | None = None
    issues: list[DataIssue] = field(default_factory=list)


@contextmanager
def reading(url: str) -> Iterator[None]:
    """Turn any exception of the block into a DataError: file systems raise nearly anything."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{url}: no such file or folder") from error
    except Exception as error:
        raise DataError(f"{url} cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error


def read_shard(shard: Shard, check: bool) -> Contents:
    """List the images of a shard; `check` decodes those of a tar file. Raises DataError."""
    with reading(shard.url):
        if shard.suffix == ".parquet":
            return _read_parquet(shard)
        return _read_tar(shard, check) if shard.suffix == ".tar" else _read_npz(shard)


def _read_parquet(shard: Shard) -> Contents:
    with open_file(shard.url) as stream:
        file = pyarrow.parquet.ParquetFile(stream)
        schema, contents, row = file.schema_arrow, Contents(), 0
        image, label = (_find_column(shard.url, schema.names, names) for names in (_IMAGE_COLUMNS, _LABEL_COLUMNS))
        cells = schema.field(image).type
        if pyarrow.types.is_struct(cells) and cells.get_field_index("bytes") >= 0:
            cells = cells.field("bytes").type
        if not (pyarrow.types.is_binary(cells) or pyarrow.types.is_large_binary(cells)):
            raise DataError(f"{shard.url}: column {image} holds {cells}; the bytes of image files are needed")
        for group in range(file.num_row_groups):
            values = file.read_row_group(group, columns=[label], use_threads=False)[0].to_pylist()
            for i, value in enumerate(values):
                if not isinstance(value, int | str | None):
                    raise DataError(f"{shard.url}: column {label} holds {type(value).__name__}, not one label per row")
                contents.entries.append(
                    Entry(f"{shard.name}/{row + i}", ParquetCell(shard.url, image, group, i), value)
                )
            row += len(values)
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    contents.names = tuple(features.get(label, {}).get("names") or ()) or None
    return contents


def _find_column(url: str, columns: Sequence[str], names: Sequence[str]) -> str:
    column = next((name for name in names if name in columns), None)
    if column is None:
        raise DataError(
            f"{url}: no column {', '.join(names[:-1])} or {names[-1]}; its columns are {', '.join(columns)}"
        )
    return column


def _read_tar(shard: Shard, check: bool) -> Contents:
    """List the images of a WebDataset shard in one pass over its headers; with `check`, over everything."""
    members: dict[str, dict[str, Any]] = defaultdict(dict)
    contents, unchecked = Contents(), []
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
                    image = InMemoryImage(member.name, _read_member(tar, member))
                    unchecked.append(Sample(file, image, 0, None, {}))
            elif extension in ("cls", "json"):
                members[file][extension] = _read_member(tar, member)
            else:
                members[file].setdefault(extension, None)
            if len(unchecked) == 64:
                contents.issues += check_samples(unchecked)[1]
                unchecked = []
    contents.issues += check_samples(unchecked)[1] if unchecked else []
    broken = {issue.file for issue in contents.issues}
    for file, parts in members.items():
        stored = next((part for part in parts.values() if isinstance(part, TarMember)), None)
        if stored is None:
            detail = f"no {', '.join(_IMAGE_MEMBERS)} among its {', '.join(parts)}"
            contents.issues.append(DataIssue(file, "no-image", detail, "skipped"))
        elif file not in broken:
            try:
                contents.entries.append(Entry(file, stored, _tar_label(parts)))
            except ValueError as error:
                contents.issues.append(DataIssue(file, "unreadable-json", str(error), "skipped"))
    return contents


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    return stream.read() if stream else b""


def _tar_label(parts: Mapping[str, Any]) -> int | str | None:
    """Return the number or name in {key}.cls or {key}.json. Raises ValueError for invalid text or JSON."""
    if parts.get("cls") is not None:
        text = parts["cls"].decode().strip()
        return int(text) if re.fullmatch(r"-?\d+", text) else text or None
    content = json.loads(parts["json"]) if parts.get("json") is not None else {}
    labels = [content[name] for name in _LABEL_COLUMNS if name in content] if isinstance(content, dict) else []
    return labels[0] if labels and isinstance(labels[0], int | str) else None


def npz_splits(url: str) -> list[str]:
    """Return the splits of a MedMNIST file. Raises DataError if it has none."""
    with reading(url):
        fs, path = url_to_fs(url)
        with fs.open(path, "rb") as stream:
            keys = np.load(stream).files
        splits = [key.removesuffix("_images") for key in keys if key.endswith("_images")]
        if not splits:
            raise DataError(f"{url}: no array such as MedMNIST's train_images; its arrays are {', '.join(keys)}")
        return splits


def _read_npz(shard: Shard) -> Contents:
    """List the images of a MedMNIST split (medmnist.com): N x H x W or N x H x W x 3; labels N x 1."""
    images, labels = (load_array(shard.url, f"{shard.split}_{name}") for name in ("images", "labels"))
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        raise DataError(
            f"{shard.url}: its images are {images.dtype} of shape {images.shape}; uint8, N x H x W (x 3) is needed"
        )
    if labels.size != len(images):
        raise DataError(f"{shard.url}: labels {labels.shape} for {len(images)} images; one per image is needed")
    stored = [ArrayRow(shard.url, f"{shard.split}_images", row) for row in range(len(images))]
    rows = enumerate(zip(stored, labels.ravel().tolist(), strict=True))
    return Contents([Entry(f"{shard.name}/{row}", image, label) for row, (image, label) in rows])
