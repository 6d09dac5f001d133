"""Files written whole or not at all, and dataclasses as JSON beside their images."""

import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet
from PIL import Image
from pydantic import PlainSerializer, PlainValidator, SerializationInfo, TypeAdapter, ValidationInfo

from clearhead.errors import ClearheadError

T = TypeVar("T")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` for a file or folder; move it there when the block ends without an error.

    A folder in the way is replaced; ``restore`` completes a replacement that a kill interrupted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=temporary_prefix(path), dir=path.parent)) / path.name
    try:
        yield unfinished
        replace_path(unfinished, path)
    finally:
        shutil.rmtree(unfinished.parent, ignore_errors=True)


def temporary_prefix(path: Path) -> str:
    """Return how the names of temporary folders for `path` start."""
    return f".{path.name}."


def replace_path(unfinished: Path, path: Path) -> None:
    """Move a file or folder to `path`, replacing what is there."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if unfinished.is_dir() and path.exists():
        os.replace(path, old)
    os.replace(unfinished, path)
    shutil.rmtree(old, ignore_errors=True)


def restore(path: Path) -> None:
    """Put back the folder that ``replace_path`` had moved aside when it was interrupted."""
    old = path.with_name(f".{path.name}.old")
    if old.is_dir() and not path.exists():
        os.replace(old, path)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file; characters that are not valid text are replaced."""
    with atomic_path(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="replace")


def write_table(path: Path, columns: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write columns of equal length as a Parquet file."""
    with atomic_path(path) as unfinished:
        pyarrow.parquet.write_table(pyarrow.table(dict(columns)), unfinished)


def write_image(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """Write an H x W x 3 uint8 image; the extension decides the format."""
    with atomic_path(path) as unfinished:
        Image.fromarray(pixels).save(unfinished)


def write_arrays(path: Path, arrays: Mapping[str, npt.ArrayLike]) -> None:
    """Write named arrays as a compressed npz file."""
    named: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    with atomic_path(path) as unfinished:
        np.savez_compressed(unfinished, **named)


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read what ``write_arrays`` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _save_pixels(pixels: npt.NDArray[np.uint8], info: SerializationInfo) -> str:
    folder: Path = info.context["folder"]  # type: ignore[index]
    name = f"images/{next(info.context['numbers']):03d}.png"  # type: ignore[index]
    write_image(folder / name, pixels)
    return name


def _load_pixels(value: Any, info: ValidationInfo) -> npt.NDArray[np.uint8]:
    if isinstance(value, np.ndarray):
        return value
    folder = Path(info.context["folder"]).resolve()  # type: ignore[index]
    file = (folder / str(value)).resolve()
    if not file.is_relative_to(folder):
        raise ValueError(f"image {value!r} lies outside the run folder")
    with Image.open(file, formats=["PNG"]) as opened:
        return np.asarray(opened.convert("RGB"))


Pixels = Annotated[npt.NDArray[np.uint8], PlainValidator(_load_pixels), PlainSerializer(_save_pixels)]
"""An H x W x 3 uint8 image in a result: a PNG file below images/ where the result is saved."""

NotSaved = Annotated[Any, PlainSerializer(lambda value: None)]
"""A part of a result that is only in memory, such as arrays that a run folder keeps in a file of its own."""


def to_plain(result: Any, folder: Path) -> Any:
    """Return a dataclass as JSON values; its ``Pixels`` are written as PNG files below images/ of `folder`."""
    context = {"folder": folder, "numbers": itertools.count()}
    return TypeAdapter(type(result)).dump_python(result, mode="json", context=context)


def from_plain(plain: Any, result_type: type[T], folder: Path) -> T:
    """Read what ``to_plain`` gave. Raises ClearheadError for anything else."""
    try:
        return TypeAdapter(result_type).validate_python(plain, context={"folder": folder})
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ClearheadError(f"{folder} does not hold results of this version of clearhead: {reason}") from error


def write_json(path: Path, plain: Any) -> None:
    """Write JSON values."""
    write_text(path, json.dumps(plain, indent=2, ensure_ascii=False))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ClearheadError for a file that holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ClearheadError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ClearheadError(f"{path} holds a {type(content).__name__}; an object is needed")
    return content


def resumable(state: Path | None, key: str, compute: Callable[[], T], result_type: type[T]) -> T:
    """Return what `compute` gives, from `state` where an interrupted run has saved it under this key.

    `key` must name all that the value depends on besides what identifies the run, such as one of several models.
    """
    if state is None:
        return compute()
    file = state / hashlib.sha256(key.encode()).hexdigest()[:16] / "part.json"
    if not file.is_file():
        write_json(file, to_plain(compute(), file.parent))
    return from_plain(read_json(file), result_type, file.parent)
