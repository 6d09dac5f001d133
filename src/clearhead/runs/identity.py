"""What decides the numbers of a run: the command, its arguments, the weights, the data."""

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from clearhead.analyses.epochs import expand_epochs
from clearhead.data.fingerprint import fingerprint as data_fingerprint
from clearhead.data.image_io import DataError
from clearhead.data.images import absolute_source, read_images
from clearhead.models.class_names import numbered
from clearhead.models.classifier import fingerprint as weights_fingerprint
from clearhead.models.errors import NoHeadError
from clearhead.models.source import ModelSource, display_names
from clearhead.progress import log

MODELS = ("model", "models", "before", "after")
"""Arguments that name models."""


def model_sources(names: Any, device: str | None, options: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    """Return the models of an argument: one, or several."""
    seed = int(arguments.get("seed") or 0)
    if arguments.get("pretrained") is False:
        options = {**options, "pretrained": False}
    if isinstance(names, str):
        return ModelSource(names, device, options, seed)
    return [ModelSource(name, device, options, seed) for name in names]


def identify(
    command: str,
    arguments: Mapping[str, Any],
    sources: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    epochs: bool = False,
) -> dict[str, Any]:
    """Return all that decides the numbers of a run, as plain values."""
    deciding = dict(arguments)
    for name in MODELS:
        if isinstance(deciding.get(name), str):
            deciding[name] = _absolute_model(deciding[name])
        elif deciding.get(name):
            deciding[name] = [_absolute_model(model) for model in deciding[name]]
    inputs: dict[str, dict[str, str]] = {}
    every = [source for value in sources.values() for source in (value if isinstance(value, list) else [value])]
    every = list(expand_epochs(every).values()) if epochs else every
    folders: tuple[str, ...] = ()
    if deciding.get("data"):
        inputs["data"], folders = _data(deciding["data"], deciding.get("split"))
        deciding["data"] = absolute_source(deciding["data"])
    for name, source in zip(display_names(every), every, strict=True):
        inputs[f"model {name}"] = {"weights": _weights(source, folders, hold=len(every) <= 2)}
    for name, value in deciding.items():
        paths = [value] if isinstance(value, Path) else value
        if isinstance(paths, list | tuple) and paths and all(isinstance(path, Path) for path in paths):
            inputs[name] = {str(path.resolve()): _contents(path) for path in paths}
            deciding[name] = [str(path.resolve()) for path in paths]
    plain = {"command": command, "arguments": deciding, "model options": dict(options), "inputs": inputs}
    return {**TypeAdapter(dict[str, Any]).dump_python(plain, mode="json"), "clearhead": version("clearhead")}


def _absolute_model(name: str) -> str:
    architecture, at, file = name.partition("@")
    if at:
        return f"{architecture}@{Path(file).expanduser().resolve()}"
    return str(Path(name).expanduser().resolve()) if Path(name).expanduser().is_dir() else name


def _weights(source: ModelSource, folders: tuple[str, ...], *, hold: bool) -> str:
    """Return the fingerprint of a model's weights, preprocessing and classes.

    A model without class names takes those of the data's class folders, if there are as many.
    """
    try:
        model = source.load(hold=hold)
        if len(model.classes) == len(folders) and model.classes == numbered(len(folders)) != folders:
            model = source.name_classes(folders)
            names = ", ".join(folders[:5]) + (", ..." if len(folders) > 5 else "")
            log.info(
                "%s has no class names; using the data's, sorted: %s (--classes FILE for others)", source.name, names
            )
    except NoHeadError:
        model = source.load_backbone()
    about = f"{weights_fingerprint(model.module)} {model.preprocess} {model.classes}"
    return hashlib.sha256(about.encode()).hexdigest()


def _data(source: str, split: str | None) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the fingerprint and the classes of a data set; of a folder of data sets, the fingerprint of its files."""
    try:
        index = read_images(source, split=split, check=False)
    except DataError:
        if not Path(source).is_dir():
            raise
        return {"files": _contents(Path(source))}, ()
    return {"number of images": f"{len(index.samples):,}", **data_fingerprint(index)}, index.classes


def _contents(path: Path) -> str:
    """Return the fingerprint of a file by its contents, or of a folder by its files' names, sizes and times."""
    if path.is_file():
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    lines = []
    for file in sorted(path.rglob("*")):
        if file.is_file() and not file.name.startswith(".") and file.name != "log.txt":
            stat = file.stat()
            lines.append(f"{file.relative_to(path)} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe how two runs differ."""
    if before["command"] != now["command"]:
        return f"it is a run of {before['command']}"
    changes = []
    for name in sorted({*before["arguments"], *now["arguments"]}):
        old, new = before["arguments"].get(name), now["arguments"].get(name)
        if old != new:
            changes.append(f"{name} was {old!r}, now {new!r}")
    for name in sorted({*before["inputs"], *now["inputs"]}):
        old, new = before["inputs"].get(name) or {}, now["inputs"].get(name) or {}
        for part in sorted({*old, *new}):
            if old.get(part) != new.get(part):
                counted = part.startswith("number")
                changes.append(
                    f"{part}: {old.get(part)} -> {new.get(part)}" if counted else f"{part} of {name} changed"
                )
    if before.get("model options") != now.get("model options"):
        changes.append("model options changed")
    if before.get("clearhead") != now.get("clearhead"):
        changes.append(f"clearhead was {before.get('clearhead')}, now {now.get('clearhead')}")
    return "; ".join(changes)
