"""README and docs: their commands exist, their Python runs, their links lead to something.

Shell examples run in bash with a function in place of ``clearhead`` that records its arguments; other programs are not
found. Names that need a download have stand-ins.
"""

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image

from clearhead import cli
from clearhead.analyses import ANALYSES
from clearhead.cli.analyses import parse
from clearhead.cli.signature import read_signature
from clearhead.data.images import read_images
from clearhead.models import load_model
from tests import command
from tests.conftest import CLASSES

ROOT = Path(__file__).parents[1]
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
RECORDER = r"""
clearhead() { printf '%s\037' "$@" >&3; printf '\036' >&3; }
torchrun() { while [ "$1" != clearhead ]; do shift; done; shift; clearhead "$@"; }
D=data M=timm:deit_tiny_patch16_224 PATH=
"""
"""The variables are those that docs/results.md defines in words."""


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str, folder: Path) -> list[list[str]]:
    """Return the arguments of each clearhead command that the shell examples of a document run."""
    script = "\n".join(blocks("sh", text)).replace(".venv/bin/clearhead", "clearhead")
    calls = folder / "calls"
    run = subprocess.run(
        ["bash", "-c", f"{RECORDER} exec 3>'{calls}'\n{script}"], cwd=folder, capture_output=True, text=True
    )
    assert "syntax error" not in run.stderr, run.stderr
    return [call.removesuffix("\037").split("\037") for call in calls.read_text("utf-8").split("\036")[:-1]]


def mentioned(text: str) -> list[list[str]]:
    """Return the arguments of each clearhead command that a document names in a sentence or a table."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [shlex.split(span)[1:] for span in spans(prose) if span.startswith("clearhead ")]


def spans(prose: str) -> list[str]:
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`", prose)]


@cache
def command_line() -> Any:
    return typer.main.get_command(cli.app)


def leaf(arguments: Sequence[str]) -> tuple[Any, str, list[str]]:
    """Return the command of the command line that arguments start with, its name, and the other arguments."""
    actual, words, rest = command_line(), [], list(arguments)
    while hasattr(actual, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in actual.commands, f"clearhead {' '.join(arguments)}: no command {rest[0]!r}"
        words.append(rest.pop(0))
        actual = actual.commands[words[-1]]
    return actual, " ".join(words), rest


def check(arguments: Sequence[str], *, complete: bool = True) -> None:
    """Read arguments as the command line does, without running anything.

    Fails for an unknown command or option, a value that it does not take, and in a `complete` command for a missing
    argument.
    """
    actual, name, rest = leaf(arguments)
    if hasattr(actual, "commands") or {"--help", "-h", "..."} & {*rest}:
        return
    try:
        values = actual.make_context(name, rest).params
    except Exception as error:
        if not complete and type(error).__name__ in ("MissingParameter", "BadOptionUsage"):
            return
        message = error.format_message() if hasattr(error, "format_message") else repr(error)
        pytest.fail(f"clearhead {' '.join(arguments)}: {message}")
    if name in ANALYSES:
        for parameter in read_signature(ANALYSES[name]).parameters:
            parse(parameter, values[parameter.name])


@cache
def every_option() -> set[str]:
    """Return all options of the command line."""

    def of(node: Any) -> set[str]:
        own = {word for parameter in node.params for word in (*parameter.opts, *parameter.secondary_opts)}
        return own.union(*map(of, getattr(node, "commands", {}).values()))

    return of(command_line())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_exist_and_take_their_arguments(document, tmp_path):
    for arguments in commands(DOCUMENTS[document], tmp_path):
        check(arguments)
    for arguments in mentioned(DOCUMENTS[document]):
        check(arguments, complete=False)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_options_named_in_a_sentence_exist(document):
    named = {span.split()[0] for span in spans(DOCUMENTS[document]) if re.match(r"--[a-z]", span)}
    assert named <= every_option()


def test_an_unknown_command_an_unknown_option_and_a_wrong_value_fail():
    with pytest.raises(AssertionError, match="no command 'asses'"):
        check(["asses", "MODEL", "DATA"])
    for line in ("audit MODEL DATA --images 9", "audit MODEL", "repair MODEL DATA --method none"):
        with pytest.raises(pytest.fail.Exception):
            check(line.split())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_a_file_and_a_heading(document):
    text = DOCUMENTS[document]
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        name, _, heading = target.partition("#")
        file = (ROOT / document).parent / name if name else ROOT / document
        assert file.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings], target


STAND_INS = {
    "timm:vit_small_patch16_224": "model",
    "sports car": "bird",
    "alternet50_32": "alternet_mini_32",
    "clearhead.zoo.MODELS": '["vit_mini_patch4_32"]',
    "points=21": "points=3",
    "epochs=30": "epochs=1",
}


@pytest.mark.parametrize("document", [name for name, text in DOCUMENTS.items() if blocks("python", text)])
def test_python_runs(document, workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("model", "data"):
        (tmp_path / folder).symlink_to(workspace / folder)
    Image.new("RGB", (80, 64), "teal").save("photo.jpg")
    model = load_model("model")
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    names: dict[str, Any] = {"model": model, "module": model.module, "images": images}
    names |= {"labels": torch.tensor([0, 1, 2]), "masks": torch.ones(3, 32, 32)}
    names |= {
        name: read_images("data", split=split, classes=model.classes)
        for name, split in (("train", "train"), ("validation", "val"))
    }
    for code in blocks("python", DOCUMENTS[document]):
        for name, stand_in in STAND_INS.items():
            code = code.replace(name, stand_in)
        exec(compile(code, document, "exec"), names)


LOCAL = {
    **dict.fromkeys(["MODEL", "OTHER", "BEFORE", "AFTER", "A", "B", "C"], "model"),
    **{"DATA": "data", "photos/": "data/cat", "photo.jpg": "data/cat/00.png"},
    **{"sports car": "bird", "container ship,daisy": "cat,fish"},
}
"""What stands in for the inputs of documented commands."""

QUICK = {"--points": "3", "--epochs": "2", "--save-epochs": "0,1", "--batches": "2", "--limit": "20"}
"""Values of options that would take long."""


def local(arguments: Sequence[str]) -> list[str] | None:
    """Return arguments with stand-ins; None for a command whose inputs have none."""
    if not any(word in LOCAL for word in arguments):
        return None
    words = [LOCAL.get(word, word) for word in arguments]
    if any(re.search(r"[A-Z/:{]|\.\.\.|\.npz$", word) for word in words if word not in LOCAL.values()):
        return None
    if any(word in LOCAL or word in ("run", "linear") for word in words if word not in LOCAL.values()):
        return None
    return [QUICK.get(before, word) for before, word in zip(["", *words], words, strict=False)]


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_run(document, workspace, tmp_path):
    for folder in ("model", "data"):
        shutil.copytree(workspace / folder, tmp_path / folder)
    tags = [f"{name}/{i:02d}.png,{'watermark' if i % 2 else 'none'}" for name in CLASSES for i in range(8)]
    (tmp_path / "tags.csv").write_text("\n".join(["file,tag", *tags]))
    documented = commands(DOCUMENTS[document], tmp_path) + mentioned(DOCUMENTS[document])
    unique = dict.fromkeys(tuple(actual) for arguments in documented if (actual := local(arguments)))
    failed = {}
    for arguments in unique:
        if leaf(arguments)[2]:
            done = command.clearhead(*arguments, cwd=tmp_path)
            if done.returncode or not done.stdout.strip():
                failed[" ".join(arguments)] = done.stderr[-500:]
    assert not failed, "\n".join(f"clearhead {name}: {error}" for name, error in failed.items())
