"""`clearhead plan`: numbers of images from rates or from a run, and mistakes in them."""

import re

import pytest

from clearhead.metrics.power import plan
from tests.command import clearhead, error


def numbers(line: str) -> list[int]:
    return [int(word.replace(",", "")) for word in re.findall(r"(?<![\d.])\d[\d,]*(?![\d.%])", line)]


def test_from_a_rate(tmp_path):
    run = clearhead("plan", "--effect", 5, "--discordant", 10, "--groups", 4, cwd=tmp_path)
    total, per_group = run.stdout.splitlines()[2:4]
    whole, group = plan(0.05, 0.1), plan(0.05, 0.1, groups=4)
    assert numbers(total) == [whole.change, whole.noninferiority]
    assert numbers(per_group) == [group.change, group.noninferiority]
    assert not [*tmp_path.glob("runs")]


def test_from_an_accuracy(tmp_path):
    run = clearhead("plan", "--effect", 5, "--margin", 1, "--accuracy", 80, cwd=tmp_path)
    assert "29.0%" in run.stdout
    assert "independent mistakes" in run.stdout
    assert "to exclude a loss of 1 pp" in run.stdout


@pytest.mark.parametrize("command", ["audit", "compare"])
def test_from_a_run(command, workspace, repaired, tmp_path):
    models = [workspace / "model"] if command == "audit" else [workspace / "model", workspace / "repair"]
    assert clearhead(command, *models, workspace / "data", "--out", "run", cwd=tmp_path).returncode == 0
    lines = clearhead("plan", "--effect", 10, "--run", "run", cwd=tmp_path).stdout.splitlines()
    assert lines[2].startswith("all images")
    assert numbers(lines[2])[-1] == 36
    groups = [line for line in lines if line.startswith("class=")]
    assert len(groups) == 6
    assert all(numbers(line)[-1] == 6 for line in groups)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--effect", 0.05, "--accuracy", 80], "five points are 5, not 0.05"),
        (["--effect", 5, "--margin", 0.02, "--accuracy", 80], "--margin: got 0.02 percentage points"),
        (["--effect", 0, "--accuracy", 80], "--effect: got 0"),
        (["--effect", 5, "--margin", -1, "--accuracy", 80], "--margin: got -1"),
        (["--effect", 5], "give exactly one of them"),
        (["--effect", 5, "--accuracy", 80, "--discordant", 10], "give exactly one of them"),
        (["--effect", 30, "--accuracy", 80], "accuracy: got 80% with an effect of +30 points"),
        (["--effect", 5, "--accuracy", 80, "--power", 100], "power: got 1"),
        (["--effect", 5, "--run", "nowhere"], "nowhere is not the folder of a finished run"),
    ],
)
def test_mistakes(options, message, tmp_path):
    assert message in error(clearhead("plan", *options, cwd=tmp_path))


def test_a_run_of_another_command(workspace, tmp_path):
    clearhead("knn", workspace / "model", workspace / "data", "--k", 1, "--out", "run", cwd=tmp_path)
    assert "is a run of knn" in error(clearhead("plan", "--effect", 5, "--run", "run", cwd=tmp_path))
