"""The trajectory of a training run through the command."""

import pytest

from tests.command import clearhead, error, result


def test_the_command_shows_distances_and_angles(workspace, trained):
    command = ("landscape", "trajectory", "trained", "--out", "trajectory")
    run = clearhead(*command, cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert "epoch 10" in run.stdout
    measured = result(workspace / "trajectory")
    assert measured["epochs"] == [1, 3, 10]
    assert len(measured["trajectory"]["step"]) == 2
    assert measured["trajectory"]["angle"][0] == pytest.approx(90, abs=3)  # random steps in many dimensions
    assert "trained: training trajectory" in (workspace / "trajectory" / "report.html").read_text()
    (workspace / "trained" / "log.txt").write_text("a line")
    again = clearhead(*command, cwd=workspace)
    assert "finished earlier" in again.stderr
    assert again.stdout == run.stdout


def test_bad_input_is_reported(workspace):
    assert "has 0 saved epochs; at least 2 are needed" in error(
        clearhead("landscape", "trajectory", "model", cwd=workspace)
    )
    assert "run: nowhere: no such file or folder" in error(
        clearhead("landscape", "trajectory", "nowhere", cwd=workspace)
    )
