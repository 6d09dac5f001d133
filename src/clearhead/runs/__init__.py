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

import importlib
import inspect
import shlex
import shutil
import sys
import time
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from clearhead.analyses import ANALYSES
from clearhead.analyses.subject import Subject
from clearhead.data.dataset import DataIssue
from clearhead.distributed import barrier, rank_and_size
from clearhead.inputs import number_duplicates
from clearhead.progress import duration, log, show_progress
from clearhead.report.page import Page, Row, Table, render
from clearhead.runs.folder import RunError, Stopped, claimed, default_folder, versions
from clearhead.runs.identity import MODELS, identify, model_sources
from clearhead.storage import from_plain, read_json, to_plain, write_json, write_text

__all__ = ["Run", "RunError", "Stopped", "analysis", "merge_pages", "read_run", "render_report", "run"]

SPEED_ONLY = ("batch_size", "workers", "jobs", "most_unreadable")
"""Arguments that change how fast a run is or when it gives up, not its numbers, unless ``DECIDES`` lists them."""

FROM_RUNNER = ("progress", "state", "folder", "device")
"""Arguments of ``measure`` that the runner gives."""


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
    sources = {
        name: model_sources(arguments[name], device, options, arguments) for name in MODELS if arguments.get(name)
    }
    speed_only = set(SPEED_ONLY) - set(getattr(module, "DECIDES", ()))
    deciding = {name: value for name, value in arguments.items() if name not in speed_only}
    epochs = getattr(module, "EPOCHS", False)
    identity = identify(command, deciding, sources, options, epochs=epochs)
    grows = getattr(module, "GROWS", False)
    folder = out or default_folder(command, arguments, identity, grows=grows)
    with claimed(folder, identity, explicit=out is not None, overwrite=overwrite, grows=grows) as finished:
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
    # the verdict of a comparison names its images; a finding about a single model names none
    main = next((page for page in pages if any(verdict.data for verdict in page.verdicts)), pages[0])
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
    verdicts = [
        replace(verdict, data=verdict.data or (page.title if len(runs) > 1 else ""))
        for page in pages
        for verdict in page.verdicts
    ]
    return replace(main, title=title or main.title, verdicts=verdicts, sections=sections, provenance=provenance)


def render_report(runs: Sequence[Path], out: Path, title: str = "") -> None:
    """Write several finished runs as one page. Raises RunError for a folder that is not a finished run."""
    write_text(out, render(merge_pages([read_run(folder) for folder in runs], title)))


def issue_table(issues: Sequence[DataIssue], shown: int = 20) -> Table:
    """Return the problems of the data as a table."""
    rows = [Row(issue.file, [issue.category, issue.action, issue.detail]) for issue in issues[:shown]]
    text = f"{len(issues):,} in total; the first {shown} are shown." if len(issues) > shown else ""
    return Table("Problems with the data", ["problem", "action", "detail"], rows, text, names="file")


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
