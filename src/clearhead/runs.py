"""What a run leaves behind: a folder that says how it was made, and nothing half-written under its final name.

    config.yaml          the command, its arguments, the versions: written first
    state/               how far an unfinished run has come; gone when it is finished
    checkpoint/          the model, loadable by the library it came from
    predictions.parquet  a row an image
    pictures/            the images and maps the page shows
    results.json         the numbers: written last, so a folder that has it is finished
    report.html          the page

A command given the folder of a finished run of the same command does nothing; that of an unfinished one goes on.
"""

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import yaml
from pydantic import TypeAdapter

from clearhead.distributed import barrier, main_process_first, rank_and_size
from clearhead.errors import ClearheadError


class RunError(ClearheadError):
    """A run folder that cannot be used; the message says what to do."""


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved to it when the block ends well and removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent)) / path.name
    try:
        yield unfinished
        replace_folder(unfinished, path)
    finally:
        shutil.rmtree(unfinished.parent, ignore_errors=True)


def _prefix(path: Path) -> str:
    """Of the folders in which a file is about to be written, by any machine, or was stopped in being written."""
    return f".{path.name}."


def replace_folder(unfinished: Path, path: Path) -> None:
    """Move a file or a folder to `path`, in place of what is there; ``restore`` mends it after a kill in between."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if unfinished.is_dir() and path.exists():
        os.replace(path, old)
    os.replace(unfinished, path)
    shutil.rmtree(old, ignore_errors=True)


def restore(path: Path) -> None:
    """Put back the folder that ``replace_folder`` was stopped in replacing."""
    old = path.with_name(f".{path.name}.old")
    if old.is_dir() and not path.exists():
        os.replace(old, path)


def begin(folder: Path, command: str, arguments: Mapping[str, Any], shared: bool = False) -> bool:
    """Claim a folder for a run; whether the same run is already finished in it.

    A run that failed before it left anything does not hold its folder. `shared`: several processes may work on it
    together. Raises RunError if the folder holds a run of another command or of other arguments, or other files, or if
    there are several processes for a run that is not shared.
    """
    if rank_and_size()[1] > 1 and not shared:
        raise RunError(f"{command} runs in one process: start it without torchrun or accelerate launch")
    with main_process_first():
        finished = _begin(folder, command, arguments)
    barrier()  # else a slow process could see the first one's results as those of an earlier run
    return finished


def _begin(folder: Path, command: str, arguments: Mapping[str, Any]) -> bool:
    config = {"command": command, "arguments": _plain(arguments), "versions": versions()}
    file = folder / "config.yaml"
    if (found := told_by(file, config.keys(), "run")) is not None:
        changed = _changed(found, config)
        started = [entry.name for entry in folder.iterdir()] != ["config.yaml"]
        if changed and started:
            raise RunError(
                f"{folder} holds another run ({changed}): give another --out, or delete the folder to start anew"
            )
        if not changed:
            return (folder / "results.json").is_file()
    with written(file) as path:
        path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return False


def told_by(file: Path, keys: Collection[str], kind: str) -> dict[str, Any] | None:
    """What the YAML file that marks a folder as ours tells; None where the folder holds nothing yet.

    Raises RunError for a folder of something else: one without such a file, or whose file has not these keys.
    """
    folder = file.parent
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (UnicodeDecodeError, yaml.YAMLError):
        found = None
    if isinstance(found, dict) and {*keys} <= found.keys():
        return found
    if folder.exists() and (not folder.is_dir() or any(not e.name.startswith(_prefix(file)) for e in folder.iterdir())):
        raise RunError(f"{folder} exists and is not the folder of a {kind}: give a new or an empty folder as --out")
    return None


def versions() -> dict[str, str]:
    """The versions that decide the numbers."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("clearhead", "torch", "torchvision", "timm", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return TypeAdapter(dict[str, Any]).dump_python(dict(arguments), mode="json")


def _changed(found: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """In words, how a config differs; versions may."""
    if found["command"] != config["command"]:
        return f"config.yaml is of the command {found['command']}"
    old, new = found["arguments"] or {}, config["arguments"]
    return ", ".join(
        f"{name} was {old.get(name)!r}, now {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    )


def write_results(folder: Path, results: Any) -> None:
    """Write a dataclass as results.json."""
    with written(folder / "results.json") as path:
        path.write_text(json.dumps(asdict(results), indent=2, ensure_ascii=False), encoding="utf-8")


def read_results(folder: Path, kind: Any) -> Any:
    """results.json as a dataclass (or one of a union); RunError where the run is not finished or of another kind."""
    file = folder / "results.json"
    if not file.is_file():
        raise RunError(f"{folder} has no results.json: not the folder of a finished run")
    try:
        return TypeAdapter(kind).validate_json(file.read_bytes())
    except ValueError as error:
        raise RunError(f"{file} does not hold results of this version of clearhead: {error}") from error


def write_table(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Columns of equal length as a Parquet file."""
    with written(path) as unfinished:
        pyarrow.parquet.write_table(pyarrow.table(dict(columns)), unfinished)
