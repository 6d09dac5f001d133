"""Names of models and data: how people read them, and mistakes in them found without importing torch."""

import difflib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

from clearhead.errors import ClearheadError

LIBRARIES = ("timm", "hf", "torchvision", "zoo")
WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")


def require_model(name: str) -> None:
    """Raise ClearheadError for a model name that cannot name a model: no library, folder or file of it exists."""
    library, colon, target = name.partition(":")
    if colon and library in LIBRARIES:
        if not target:
            raise ClearheadError(f"model: got {name!r}, nothing after the colon; write {library}:NAME")
        _, at, file = target.partition("@")
        if at and not Path(file).expanduser().is_file():
            raise ClearheadError(f"model: {name}: no such file: {file or '(empty)'}")
        return
    path = Path(name).expanduser()
    if path.is_dir():
        return
    if path.suffix in WEIGHTS:
        hint = f"; write timm:ARCHITECTURE@{name}" if path.is_file() else ""
        state = "a checkpoint file does not say its architecture" if path.is_file() else "no such file"
        raise ClearheadError(f"model: {name}: {state}{hint}")
    is_name = "/" not in name and not name.startswith(".")
    hint = f"; did you mean timm:{name}?" if is_name else _nearby(path)
    choices = ", ".join(f"{library}:NAME" for library in LIBRARIES)
    raise ClearheadError(f"model: {name} is not a folder; give a folder, {choices} or timm:NAME@FILE{hint}")


def require_data(source: str) -> None:
    """Raise ClearheadError for a local data path that does not exist; URLs, globs and Hub data sets pass."""
    if source.startswith("hf-dataset:") or "://" in source or any(c in source for c in "*{["):
        return
    path = Path(source).expanduser()
    if not path.exists():
        raise ClearheadError(f"data: {source}: no such folder or file{_nearby(path)}")


def require_files(argument: str, paths: Iterable[Path]) -> None:
    """Raise ClearheadError for a path that does not exist."""
    for path in paths:
        if not path.expanduser().exists():
            raise ClearheadError(f"{argument}: {path}: no such file or folder{_nearby(path)}")


def _nearby(path: Path) -> str:
    """Return a suggestion from the folder that the path would be in."""
    parent = path.parent if path.parent.is_dir() else Path()
    close = difflib.get_close_matches(path.name, [entry.name for entry in parent.iterdir()], 1)
    return f"; did you mean {parent / close[0]}?" if close else ""


def model_name(model: str) -> str:
    """Return how people call a model: without the path of its file; a checkpoint by its run and epoch."""
    run, epoch = checkpoint_run(model)
    name = run.resolve().name if Path(model).is_dir() else model.split("@")[0]
    return f"{name}, {epoch}" if epoch else name


def checkpoint_run(model: str) -> tuple[Path, str]:
    """Return the run folder that a checkpoint belongs to and its epoch in words, or the path itself and no epoch."""
    path = Path(model)
    if path.is_dir() and path.parent.name == "epochs":
        return path.parent.parent, f"epoch {path.name}"
    return path.parent if path.is_dir() and path.name == "checkpoint" else path, ""


def number_duplicates(names: Sequence[str]) -> list[str]:
    """Return the names, numbered where several are equal."""
    return [
        f"{name} ({list(names[: i + 1]).count(name)})" if list(names).count(name) > 1 else name
        for i, name in enumerate(names)
    ]


def file_stems(files: Sequence[Path]) -> list[str]:
    """Return a unique name for the output of each of some files: its stem, after its folder's name where stems repeat.

    Names are valid text of at most 150 bytes.
    """
    stems = [valid_text(file.stem) for file in files]
    counts = Counter(stems)
    wanted = [f"{valid_text(f.parent.name)}-{s}" if counts[s] > 1 else s for f, s in zip(files, stems, strict=True)]
    used: set[str] = set()
    names = []
    for stem in wanted:
        short = stem.encode()[:150].decode(errors="ignore")
        name = next(n for k in count(1) if (n := short if k == 1 else f"{short}-{k}") not in used)
        used.add(name)
        names.append(name)
    return names


def valid_text(name: str) -> str:
    """Return the name of a file as text that can be written as UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
