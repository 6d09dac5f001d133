"""Files written whole or not at all, and dataclasses as JSON beside their images."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
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


def save_result(path: Path, result: Any) -> None:
    """Write a dataclass as JSON, its ``Pixels`` as PNG files in images/ beside it."""
    context = {"folder": path.parent, "numbers": iter(range(10**9))}
    plain = TypeAdapter(type(result)).dump_python(result, mode="json", context=context)
    write_text(path, json.dumps(plain, indent=2, ensure_ascii=False))


def load_result(path: Path, result_type: type[T]) -> T:
    """Read what ``save_result`` wrote. Raises ClearheadError for a file that does not hold such a result."""
    try:
        return TypeAdapter(result_type).validate_json(path.read_bytes(), context={"folder": path.parent})
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ClearheadError(f"{path} does not hold results of this version of clearhead: {reason}") from error
