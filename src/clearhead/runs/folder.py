"""The folder of a run: its name, who may use it, and what it says of the run that made it."""

import glob
import hashlib
import logging
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import filelock
import yaml

from clearhead.data.images import source_name
from clearhead.distributed import barrier, rank_and_size
from clearhead.errors import ClearheadError
from clearhead.inputs import model_name
from clearhead.progress import log
from clearhead.runs.identity import MODELS, describe_changes
from clearhead.storage import write_text

FOLDER = Path("runs")
"""Where run folders are made unless ``--out`` names one."""

LONGEST_NAME = 100
"""Bytes of a default folder's name before its digest; file systems take 255."""


class RunError(ClearheadError):
    """A run folder that cannot be used; the message says what to do."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C during a run; the message says what is kept and how to go on."""


def default_folder(
    command: str, arguments: Mapping[str, Any], identity: Mapping[str, Any], *, grows: bool = False
) -> Path:
    """Return runs/COMMAND-MODEL-DATA-DIGEST, and log which inputs changed since the same command ran before.

    The digest is that of the identity; of a plan that grows, that of the command and the plan's path.
    """
    models = [
        name
        for key in MODELS
        if (value := arguments.get(key))
        for name in ([value] if isinstance(value, str) else value)
    ]
    files = [path.stem for value in arguments.values() if isinstance(value, Path) for path in [value]]
    parts = [command, *map(model_name, models), *files]
    parts += [source_name(arguments["data"])] if arguments.get("data") else []
    name = re.sub(r"[^\w.,=+@-]+", "-", "-".join(parts)).strip("-.")
    if len(encoded := name.encode()) > LONGEST_NAME:
        name = encoded[:LONGEST_NAME].decode(errors="ignore")
    unique = {"command": command, "plan": identity["arguments"]["plan"]} if grows else dict(identity)
    text = yaml.safe_dump(unique, sort_keys=True, allow_unicode=True)
    folder = FOLDER / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    if not folder.exists():
        for other in sorted(FOLDER.glob(f"{glob.escape(name)}-????????"), key=lambda f: -f.stat().st_mtime):
            before = _config(other)
            if before and before["arguments"] == identity["arguments"] and before["inputs"] != identity["inputs"]:
                log.info(
                    "inputs changed since %s (%s): running again in %s",
                    other,
                    describe_changes(before, identity),
                    folder,
                )
                break
    return folder


def _config(folder: Path) -> dict[str, Any] | None:
    """Return config.yaml of a run folder; None where there is none that a run wrote."""
    file = folder / "config.yaml"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        return None
    keys = {"command": str, "arguments": dict, "inputs": dict}
    usable = isinstance(content, dict) and all(isinstance(content.get(key), of) for key, of in keys.items())
    return content if usable else None


@contextmanager
def claimed(
    folder: Path, identity: Mapping[str, Any], *, explicit: bool, overwrite: bool, grows: bool = False
) -> Iterator[bool]:
    """Hold a run folder; gives whether the run is finished in it. A failed run that left nothing leaves no folder."""
    main, created = rank_and_size()[0] == 0, not folder.exists()
    lock = filelock.FileLock(folder / ".lock")
    handler: logging.Handler | None = None
    if main:
        _require_free(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if not grows:
                lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RunError(
                f"{folder} is in use by another process; wait until it ends, or give another folder as --out"
            ) from None
    try:
        if main:
            _begin(folder, identity, overwrite=overwrite, grows=grows)
            handler = logging.FileHandler(folder / "log.txt", encoding="utf-8")
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
            log.addHandler(handler)
        barrier()
        finished = not grows and (folder / "results.json").is_file()
        barrier()  # else a slow process could see the results that a fast one has just written
        yield finished
    except KeyboardInterrupt:
        raise Stopped(_stopped(folder)) from None
    finally:
        if handler is not None:
            log.removeHandler(handler)
            handler.close()
        if main:
            lock.release()
            if created and folder.exists() and {entry.name for entry in folder.iterdir()} <= _TRACES:
                shutil.rmtree(folder, ignore_errors=True)
                if not explicit:
                    with suppress(OSError):  # where other runs are in it
                        folder.parent.rmdir()


_TRACES = {"config.yaml", "log.txt", ".lock"}
"""What a run leaves before it has kept anything."""

USER_FILES = {"tags.csv"}
"""Files of a run folder that hold a user's work: ``--overwrite`` leaves them."""


def _require_free(folder: Path) -> None:
    """Raise RunError for a path that is a file, or a folder with other files than a run's."""
    if folder.is_file():
        raise RunError(f"out: {folder} is a file; give a new or an empty folder")
    if folder.is_dir() and _config(folder) is None:
        traces = (".lock", ".config.yaml.")  # of a run that stopped before it wrote config.yaml
        strangers = [entry.name for entry in folder.iterdir() if not entry.name.startswith(traces)]
        if strangers:
            raise RunError(
                f"out: {folder} holds other files (such as {strangers[0]}) and is not a run folder; give a new or an "
                "empty folder"
            )


def _begin(folder: Path, identity: Mapping[str, Any], *, overwrite: bool, grows: bool = False) -> None:
    """Write config.yaml, or check that the folder holds this very run. Raises RunError for another one."""
    before = _config(folder)
    if before is not None and not overwrite:
        changes = describe_changes(before, identity)
        if grows and before["command"] == identity["command"]:
            changes = ""
        empty = {entry.name for entry in folder.iterdir()} <= _TRACES
        if changes and not empty:
            raise RunError(
                f"out: {folder} holds another run: {changes}. Give another --out, or --overwrite to replace it"
            )
        if not changes and not grows:
            return
    if before is not None and (overwrite or not grows):
        for entry in folder.iterdir():
            if entry.name not in (".lock", *USER_FILES):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    text = yaml.safe_dump({**identity, "versions": versions()}, sort_keys=False, allow_unicode=True)
    write_text(folder / "config.yaml", text)


def _stopped(folder: Path) -> str:
    saved = sorted(e.name for e in folder.iterdir() if e.name not in _TRACES) if folder.is_dir() else []
    if not saved:
        return "stopped; nothing was kept, the same command starts again"
    return f"stopped; {folder} keeps what was finished ({', '.join(saved)}): the same command goes on from there"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide the numbers."""
    installed = {"python": platform.python_version()}
    for package in ("clearhead", "torch", "torchvision", "timm", "transformers"):
        with suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed
