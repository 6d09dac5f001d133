"""Folders of the parts of a study or a reproduction: each is identified by what decides its numbers.

inputs.yaml has what decides the numbers; results.json is written last, so a folder that has it is finished.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter

from clearhead.storage import from_plain, read_json, to_plain, write_json, write_text
from clearhead.study.plan_files import StudyError

T = TypeVar("T")


def claim(folder: Path, deciding: Mapping[str, Any]) -> bool:
    """Write what decides the numbers of a cell into its folder, and return whether the cell is finished.

    Raises StudyError for a folder of a cell with other numbers, or with other files.
    """
    file = folder / "inputs.yaml"
    plain = TypeAdapter(dict[str, Any]).dump_python(dict(deciding), mode="json")
    if file.is_file():
        if changes := _changes(yaml.safe_load(file.read_text(encoding="utf-8")), plain):
            raise StudyError(
                f"out: {folder} holds results for other inputs: {changes}. Give another --out, or delete the folder to "
                "start again"
            )
    else:
        others = [entry.name for entry in folder.iterdir() if entry.name[0] != "."] if folder.is_dir() else []
        if others:
            raise StudyError(f"out: {folder} holds other files (such as {others[0]}); give a new or an empty folder")
        write_text(file, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
    return (folder / "results.json").is_file()


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return ", ".join(
        f"{name} changed"
        if isinstance(now.get(name), dict) or len(str(now.get(name))) > 60
        else f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
        for name in names
    )


def write_result(folder: Path, result: Any) -> None:
    """Write the results of a cell or a part of it, a dataclass, which marks it as finished."""
    write_json(folder / "results.json", to_plain(result, folder))


def read_result(folder: Path, result_type: type[T]) -> T:
    """Read the results of a finished cell. Raises ClearheadError for a folder without."""
    return from_plain(read_json(folder / "results.json"), result_type, folder)
