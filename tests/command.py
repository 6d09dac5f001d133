"""Commands as a user runs them: in a process of its own, by exit code and message.

Importing torch and timm takes seconds, so commands are forked off a server that has imported them.
"""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from clearhead.analyses import ANALYSES

COMMAND = Path(sys.executable).with_name("clearhead")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["clearhead.cli", "clearhead.runs", *sorted(set(ANALYSES.values()))])


def clearhead(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    """Run a command: its exit code, its standard output and error."""
    command, files = [str(COMMAND), *map(str, arguments)], (cwd / ".stdout", cwd / ".stderr")
    process = FORKS.Process(target=_command, args=(command, cwd, files))
    process.start()
    process.join(300)
    assert process.exitcode is not None, f"{command} did not end in time"
    return subprocess.CompletedProcess(command, process.exitcode, *(file.read_text("utf-8") for file in files))


def _command(command: list[str], cwd: Path, files: tuple[Path, Path]) -> None:
    """Do what the installed script does, with this process's own output, folder and arguments."""
    for descriptor, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(cwd)
    sys.argv = command
    from clearhead.cli import main

    main()


def error(run: subprocess.CompletedProcess) -> str:
    """The message of a command that failed as it should: exit code 2, an error, no traceback."""
    assert run.returncode == 2, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    assert "Error" in run.stderr
    return " ".join(run.stderr.split())


def result(folder: Path) -> dict[str, Any]:
    """The numbers of a finished run."""
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))["result"]
