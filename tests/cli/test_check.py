"""`clearhead check` and the GitHub Action: exit codes, the JUnit file, and what each rule asks for."""

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml

from clearhead import predict
from clearhead.cli.check import fails
from clearhead.metrics.statistics import Estimate
from clearhead.metrics.verdict import noninferiority_verdict
from clearhead.models import load_model, save_model
from tests.command import clearhead, error, result

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def gate(workspace, tmp_path_factory) -> Path:
    """A folder with a model that is correct on all images of its data, and one that is always wrong."""
    root = tmp_path_factory.mktemp("gate")
    model = load_model(str(workspace / "model"))
    save_model(model, root / "good")
    predictions = predict(model, workspace / "data")
    for file, predicted in zip(predictions.file, predictions.predicted, strict=True):
        folder = root / "data" / model.classes[predicted]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(workspace / "data" / file, folder / file.replace("/", "-"))
    with torch.no_grad():
        for parameter in model.module.get_classifier().parameters():
            parameter.neg_()
    save_model(model, root / "bad")
    return root


def test_a_regression_fails_with_exit_code_1_and_is_in_the_junit_file(gate):
    options = ("--out", "worse", "--junit", "reports/worse.xml")
    run = clearhead("check", "good", "bad", "data", *options, cwd=gate)
    assert run.returncode == 1, run.stderr
    assert "Error" not in run.stderr
    assert run.stdout.startswith("regressed")
    assert "check: failed (--fail-if regressed)" in run.stdout
    assert result(gate / "worse")["comparison"]["verdict"]["word"] == "regressed"
    suite = ElementTree.parse(gate / "reports" / "worse.xml").getroot()[0]
    assert {name: suite.get(name) for name in ("tests", "failures", "errors")} == {
        "tests": "1",
        "failures": "1",
        "errors": "0",
    }
    assert suite[0].get("name") == "bad compared with good on data: regressed"
    assert "Average accuracy fell (−100.0 pp" in suite[0].find("failure").get("message")
    assert "average accuracy: −100.0 pp" in suite[0].find("failure").text
    again = clearhead("check", "good", "bad", "data", *options, cwd=gate)
    assert again.returncode == 1
    assert "finished earlier" in again.stderr


def test_an_improvement_passes_every_rule(gate):
    for rule in ("regressed", "maybe-regressed", "not-improved"):
        options = ("--fail-if", rule, "--out", "better", "--junit", "better.xml")
        run = clearhead("check", "bad", "good", "data", *options, cwd=gate)
        assert run.returncode == 0, run.stderr
    assert "check: passed (--fail-if not-improved)" in run.stdout
    suite = ElementTree.parse(gate / "better.xml").getroot()[0]
    assert suite.get("failures") == "0"
    assert suite[0].find("failure") is None
    assert "average accuracy: +100.0 pp" in suite[0].find("system-out").text


@pytest.mark.parametrize(
    ("differences", "failing"),
    [
        ({"average accuracy": (-0.2, -0.1)}, ["regressed", "maybe-regressed", "not-improved"]),
        ({"average accuracy": (-0.1, 0.1)}, ["maybe-regressed", "not-improved"]),
        ({"average accuracy": (-0.01, 0.01)}, ["not-improved"]),
        ({"average accuracy": (0.01, 0.03)}, []),
        ({"average accuracy": (0.01, 0.03), "worst-group accuracy": (-0.1, 0.2)}, ["maybe-regressed", "not-improved"]),
        ({"average accuracy": (np.nan, np.nan)}, ["maybe-regressed", "not-improved"]),
    ],
)
def test_the_rules(differences, failing):
    judged = {name: Estimate(sum(ends) / 2, *ends, 100, "pp") for name, ends in differences.items()}
    others = {"loss": Estimate(-1, -2, -0.5, 100, "nats")}
    verdict = noninferiority_verdict(judged, 0.02)
    comparison = SimpleNamespace(verdict=verdict, differences=judged | others, margin=0.02)
    rules = ["regressed", "maybe-regressed", "not-improved"]
    assert [rule for rule in rules if fails(comparison, rule)] == failing


def test_errors_end_with_exit_code_2(gate):
    assert "no such folder" in error(clearhead("check", "good", "bad", "nowhere", cwd=gate))
    assert "not one of" in error(clearhead("check", "good", "bad", "data", "--fail-if", "worse", cwd=gate))
    assert "margin" in error(clearhead("check", "good", "bad", "data", "--margin", 2, cwd=gate))


@pytest.mark.parametrize(("after", "code"), [("good", 0), ("bad", 1)])
def test_the_action_runs_the_command_and_passes_its_exit_code_on(after, code, gate, tmp_path):
    """The script of the action, with the values of its inputs, and a function in place of the command."""
    action = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
    [step] = [step for step in action["runs"]["steps"] if step.get("name") == "Compare the models"]
    inputs = {"before": "good", "after": after, "data": "my data", "split": "test", "options": "--limit 10"}
    values = {name: inputs.get(name, entry.get("default", "")) for name, entry in action["inputs"].items()}
    environment = {
        name: values[expression.removeprefix("${{ inputs.").removesuffix(" }}")]
        for name, expression in step["env"].items()
    }
    record = 'clearhead() { printf "%s\\n" "$@" > calls; echo "the outcome"; ' + f"return {code}; }}\n"
    run = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", record + step["run"]],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"), **environment},
        capture_output=True,
        text=True,
    )
    assert run.returncode == code, run.stderr
    words = (tmp_path / "calls").read_text().splitlines()
    assert words[:4] == ["check", "good", after, "my data"]
    assert words[words.index("--split") + 1] == "test"
    assert words[words.index("--limit") + 1] == "10"
    assert "the outcome" in run.stdout
    assert "the outcome" in (tmp_path / "summary.md").read_text()
    assert "my data: no such folder" in error(clearhead(*words, cwd=gate))  # not an unknown option
