"""The one runner: it identifies a run, claims its folder, resumes it, writes it and prints it.

    config.yaml     the command, its arguments, fingerprints of its inputs, versions: written first
    log.txt         what was logged
    state/          what an unfinished run has kept; removed when it is finished
    checkpoint/     the model, loadable by the library it came from (train, repair)
    images/         the images of the page
    results.json    the numbers: written last, so a folder that has it is finished
    report.html     the page

A run is identified by what decides its numbers: the command, its arguments, the weights and the data. The same command
with the same inputs goes on where it stopped, or says that it is finished; with other inputs it says what changed and
starts in a folder of its own.

An analysis is a module with ``measure(model, data, ...) -> Result`` and ``page(result) -> Page``. It may also have
``export(result, folder)`` for files of its own, ``DISTRIBUTED = True`` if several processes can share its work, and
``DECIDES`` for arguments of ``SPEED_ONLY`` that its numbers depend on, and ``EPOCHS = True`` if the run folder of a
training stands for its saved epochs (``clearhead.analyses.epochs``). ``GROWS = True`` is for a plan that may grow: the
same file has the same folder, ``measure`` is always called and finds there what it has done before, and several
processes may work in the folder.
"""

import glob
import hashlib
import importlib
import inspect
import logging
import platform
import re
import shlex
import shutil
import sys
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_type_hints

import filelock
import yaml
from pydantic import TypeAdapter

from clearhead.analyses import ANALYSES
from clearhead.analyses.epochs import expand_epochs
from clearhead.analyses.subject import Subject
from clearhead.data.dataset import DataIssue
from clearhead.data.fingerprint import fingerprint as data_fingerprint
from clearhead.data.image_io import DataError
from clearhead.data.images import absolute_source, read_images, source_name
from clearhead.distributed import barrier, rank_and_size
from clearhead.errors import ClearheadError
from clearhead.inputs import model_name, number_duplicates
from clearhead.models.class_names import numbered
from clearhead.models.classifier import fingerprint as weights_fingerprint
from clearhead.models.errors import NoHeadError
from clearhead.models.source import ModelSource, display_names
from clearhead.progress import duration, log, show_progress
from clearhead.report.page import Page, Row, Table, render
from clearhead.storage import from_plain, read_json, to_plain, write_json, write_text

FOLDER = Path("runs")
"""Where run folders are made unless ``--out`` names one."""

LONGEST_NAME = 100
"""Bytes of a default folder's name before its digest; file systems take 255."""

SPEED_ONLY = ("batch_size", "workers", "jobs", "most_unreadable")
"""Arguments that change how fast a run is or when it gives up, not its numbers, unless ``DECIDES`` lists them."""

MODELS = ("model", "models", "before", "after")
"""Arguments that name models."""

FROM_RUNNER = ("progress", "state", "folder", "device")
"""Arguments of ``measure`` that the runner gives."""


class RunError(ClearheadError):
    """A run folder that cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        command: the analysis, a key of ``ANALYSES``.
        folder: where it is.
        result: what ``measure`` returned.
        provenance: what made the numbers, for the foot of the page.
        finished_earlier: whether nothing had to be run.
    """

    command: str
    folder: Path
    result: Any
    provenance: dict[str, str]
    finished_earlier: bool = False

    def page(self) -> Page:
        """Return the page of this run alone."""
        page: Page = analysis(self.command).page(self.result)
        issues = self.result.subject.issues
        sections = [*page.sections, *([issue_table(issues)] if issues else [])]
        return replace(page, sections=sections, provenance=self.provenance)


class Stopped(KeyboardInterrupt):
    """Ctrl-C during a run; the message says what is kept and how to go on."""


def analysis(command: str) -> types.ModuleType:
    """Return the module of an analysis. Raises RunError for a name that is not in ``ANALYSES``."""
    if command not in ANALYSES:
        raise RunError(f"command: {command!r} is unknown; choose from {', '.join(ANALYSES)}")
    return importlib.import_module(ANALYSES[command])


def run(
    command: str,
    arguments: Mapping[str, Any],
    *,
    out: Path | None = None,
    overwrite: bool = False,
    device: str | None = None,
    model_options: Mapping[str, Any] | None = None,
) -> Run:
    """Run an analysis in a folder of its own, or read it where it is finished.

    Args:
        command: a key of ``ANALYSES``.
        arguments: of its ``measure``; models and data by name.
        out: the folder; by default ``runs/COMMAND-MODEL-DATA-DIGEST``.
        overwrite: run again in a folder that holds a run.
        device: where models run; None is a GPU where there is one.
        model_options: further arguments of ``load_model``, for every model.

    Raises:
        RunError: for a folder that holds another run or other files, or that another process uses; for several
            processes where the analysis runs in one.
        ClearheadError: for anything else a user can mend.
    """
    module = analysis(command)
    if rank_and_size()[1] > 1 and not getattr(module, "DISTRIBUTED", False):
        raise RunError(f"{command} runs in one process: start it without torchrun or accelerate launch")
    defaults = {n: p.default for n, p in inspect.signature(module.measure).parameters.items() if n not in FROM_RUNNER}
    arguments = {n: arguments.get(n, default) for n, default in defaults.items()}
    options = dict(model_options or {})
    sources = {name: _source(arguments[name], device, options, arguments) for name in MODELS if arguments.get(name)}
    speed_only = set(SPEED_ONLY) - set(getattr(module, "DECIDES", ()))
    deciding = {name: value for name, value in arguments.items() if name not in speed_only}
    epochs = getattr(module, "EPOCHS", False)
    identity = _identify(command, deciding, sources, options, epochs=epochs)
    grows = getattr(module, "GROWS", False)
    folder = out or _default_folder(command, arguments, identity, grows=grows)
    with _claimed(folder, identity, explicit=out is not None, overwrite=overwrite, grows=grows) as finished:
        if finished:
            date = time.strftime("%Y-%m-%d %H:%M", time.localtime((folder / "results.json").stat().st_mtime))
            log.info("finished earlier (%s), nothing run; --overwrite to run again", date)
            return replace(read_run(folder), finished_earlier=True)
        _measure(module, command, arguments, sources, folder, device)
        return read_run(folder)


def read_run(folder: Path) -> Run:
    """Read a finished run. Raises RunError for a folder without results."""
    file = folder / "results.json"
    if not file.is_file():
        raise RunError(f"run: {folder} is not the folder of a finished run: it has no results.json")
    saved = read_json(file)
    if not {"command", "result", "provenance"} <= saved.keys():
        raise RunError(f"run: {file} does not hold results of this version of clearhead")
    result_type = get_type_hints(analysis(saved["command"]).measure)["return"]
    return Run(saved["command"], folder, from_plain(saved["result"], result_type, folder), saved["provenance"])


def merge_pages(runs: Sequence[Run], title: str = "") -> Page:
    """Return several runs on one page: verdicts, headline and title of the first comparison, or of the first run."""
    pages = [run.page() for run in runs]
    main = next((page for page in pages if page.verdicts), pages[0])
    names = number_duplicates([run.command for run in runs])
    order = sorted(zip(names, pages, runs, strict=True), key=lambda entry: entry[1] is not main)
    sections = []
    for _, page, one in order:
        models = one.result.subject.models
        label = f": {models[0]}" if len(runs) > 1 and len(models) == 1 else ""
        sections += [replace(section, title=f"{section.title}{label}") for section in page.sections]
    provenance: dict[str, str] = {}
    for name, _, one in zip(names, pages, runs, strict=True):
        several = len(runs) > 1
        provenance |= {
            f"{key}, {name}" if several and key != "versions" else key: v for key, v in one.provenance.items()
        }
    verdicts = [verdict for page in pages for verdict in page.verdicts]
    return replace(main, title=title or main.title, verdicts=verdicts, sections=sections, provenance=provenance)


def render_report(runs: Sequence[Path], out: Path, title: str = "") -> None:
    """Write several finished runs as one page. Raises RunError for a folder that is not a finished run."""
    write_text(out, render(merge_pages([read_run(folder) for folder in runs], title)))


def issue_table(issues: Sequence[DataIssue], shown: int = 20) -> Table:
    """Return the problems of the data as a table."""
    rows = [Row(issue.file, [issue.category, issue.action, issue.detail]) for issue in issues[:shown]]
    text = f"{len(issues):,} in total; the first {shown} are shown." if len(issues) > shown else ""
    return Table("Problems with the data", ["problem", "action", "detail"], rows, text, names="file")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide the numbers."""
    installed = {"python": platform.python_version()}
    for package in ("clearhead", "torch", "torchvision", "timm", "transformers"):
        with suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


def _measure(
    module: types.ModuleType,
    command: str,
    arguments: Mapping[str, Any],
    sources: Mapping[str, Any],
    folder: Path,
    device: str | None,
) -> None:
    """Measure, write the page, and last the numbers, which mark the run as finished."""
    started = time.perf_counter()
    parameters = inspect.signature(module.measure).parameters
    from_runner = {"progress": show_progress, "state": folder / "state", "folder": folder, "device": device}
    from_runner = {name: value for name, value in from_runner.items() if name in parameters}
    positional = [{**arguments, **sources}[name] for name in _positional(module)]
    keywords = {name: value for name, value in arguments.items() if name not in _positional(module)}
    result = module.measure(*positional, **keywords, **from_runner)
    if rank_and_size()[0] == 0:
        if hasattr(module, "export"):
            module.export(result, folder)
        provenance = _provenance(module, arguments, result.subject, time.perf_counter() - started)
        plain = to_plain(result, folder)
        write_text(folder / "report.html", render(Run(command, folder, result, provenance).page()))
        write_json(folder / "results.json", {"command": command, "provenance": provenance, "result": plain})
        shutil.rmtree(folder / "state", ignore_errors=True)
    barrier()


def _positional(module: types.ModuleType) -> list[str]:
    parameters = inspect.signature(module.measure).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]


def _source(names: Any, device: str | None, options: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    """Return the models of an argument: one, or several."""
    seed = int(arguments.get("seed") or 0)
    if arguments.get("pretrained") is False:
        options = {**options, "pretrained": False}
    if isinstance(names, str):
        return ModelSource(names, device, options, seed)
    return [ModelSource(name, device, options, seed) for name in names]


def _identify(
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


def _default_folder(
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
                log.info("inputs changed since %s (%s): running again in %s", other, _changes(before, identity), folder)
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
    usable = isinstance(content, dict) and all(isinstance(content.get(key), kind) for key, kind in keys.items())
    return content if usable else None


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
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


@contextmanager
def _claimed(
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
            _begin(folder, identity, explicit=explicit, overwrite=overwrite, grows=grows)
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


def _begin(folder: Path, identity: Mapping[str, Any], *, explicit: bool, overwrite: bool, grows: bool = False) -> None:
    """Write config.yaml, or check that the folder holds this very run. Raises RunError for another one."""
    before = _config(folder)
    if before is not None and not overwrite:
        changes = _changes(before, identity)
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
            if entry.name != ".lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    text = yaml.safe_dump({**identity, "versions": versions()}, sort_keys=False, allow_unicode=True)
    write_text(folder / "config.yaml", text)


def _stopped(folder: Path) -> str:
    kept = sorted(e.name for e in folder.iterdir() if e.name not in _TRACES) if folder.is_dir() else []
    if not kept:
        return "stopped; nothing was kept, the same command starts again"
    return f"stopped; {folder} keeps what was finished ({', '.join(kept)}): the same command goes on from there"


def _provenance(
    module: types.ModuleType, arguments: Mapping[str, Any], subject: Subject, seconds: float
) -> dict[str, str]:
    """Return what made the numbers, for the foot of the page."""
    made: dict[str, str] = {}
    if Path(sys.argv[0]).name == "clearhead":
        made["command"] = shlex.join(["clearhead", *sys.argv[1:]])
    defaults = inspect.signature(module.measure).parameters
    for name, value in arguments.items():
        if value is not None and (name == "seed" or value != defaults[name].default):
            listed = isinstance(value, list | tuple)
            made[name.replace("_", " ")] = ", ".join(map(str, value)) if listed else str(value)
    if subject.images:
        made["images"] = f"{subject.images:,}, {subject.masks:,} with a mask"
    if subject.input_size:
        made["input"] = " x ".join(map(str, subject.input_size)) + " pixels"
    made["time"] = duration(seconds)
    made["versions"] = ", ".join(f"{name} {number}" for name, number in versions().items())
    return made
