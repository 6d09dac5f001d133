"""Commands are made from analyses: one module and one line of the registry."""

import inspect
import json
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from clearhead import runs
from clearhead.analyses import ANALYSES
from clearhead.cli.analyses import add_analyses
from clearhead.cli.signature import FROM_RUNNER, read_signature
from clearhead.options import ARGUMENTS, Option

BRIGHTNESS = '''
"""How bright are the images?"""

from dataclasses import dataclass
from typing import Annotated

from clearhead.analyses.subject import Subject, subject_of
from clearhead.data.images import as_image_index
from clearhead.data.image_io import load_image
from clearhead.metrics.statistics import Estimate, mean
from clearhead.models.source import display_names
from clearhead.options import Option, Split
from clearhead.report.page import Page, Row, Table


@dataclass(frozen=True)
class Brightness:
    subject: Subject
    mean: Estimate


def measure(
    model, data, *, split: Split = None, scale: Annotated[float, Option("Factor of the brightness.", min=0)] = 1.0
) -> Brightness:
    """Measure the mean brightness of the images.

    Example:
        $ clearhead brightness MODEL DATA
    """
    index = as_image_index(data, split=split)
    values = [sum(load_image(s.path).convert("L").resize((1, 1)).getdata()) * scale for s in index.samples]
    return Brightness(subject_of(display_names([model]), index, data, split), mean(values))


def page(result: Brightness) -> Page:
    return Page("Brightness", "", sections=[Table("Brightness", ["mean"], [Row("all images", [result.mean])])])
'''


def test_an_analysis_is_one_module_and_one_line(workspace, tmp_path, monkeypatch):
    (tmp_path / "brightness.py").write_text(BRIGHTNESS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ANALYSES, "brightness", "brightness")
    app = typer.Typer()
    add_analyses(app)
    runner = CliRunner()
    text = runner.invoke(app, ["brightness", "--help"]).output
    assert "Measure the mean brightness of the images." in text
    assert "Example: clearhead brightness MODEL DATA" in text
    assert "Factor of the brightness." in text
    arguments = ["brightness", str(workspace / "model"), str(workspace / "data"), "--scale", "2", "--split", "val"]
    run = runner.invoke(app, arguments, catch_exceptions=False)
    assert run.exit_code == 0
    (folder,) = Path("runs").iterdir()
    saved = json.loads((folder / "results.json").read_text())
    assert saved["result"]["mean"]["count"] == 12
    assert "all images" in run.output
    assert "Brightness" in (folder / "report.html").read_text()
    assert runs.read_run(folder).result.mean.count == 12


@pytest.mark.parametrize("command", ANALYSES)
def test_the_signature_read_from_the_source_is_that_of_the_function(command):
    module = runs.analysis(command)
    signature, real = read_signature(ANALYSES[command]), inspect.signature(module.measure)
    hints = get_type_hints(module.measure, include_extras=True)
    positional = [p.name for p in real.parameters.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert signature.positional == positional
    assert set(positional) <= ARGUMENTS.keys()
    keyword = {n: p.default for n, p in real.parameters.items() if n not in (*positional, *FROM_RUNNER)}
    assert {p.name: p.default for p in signature.parameters} == keyword
    for parameter in signature.parameters:
        base, *metadata = get_args(hints[parameter.name])
        assert (base, parameter.option) == (parameter.type, next(m for m in metadata if isinstance(m, Option)))


@pytest.mark.parametrize("command", ANALYSES)
def test_every_command_has_a_sentence_and_an_example(command):
    signature = read_signature(ANALYSES[command])
    assert signature.summary.endswith((".", "?"))
    assert all(example.startswith(f"clearhead {command} ") for example in signature.examples)
    assert signature.examples
