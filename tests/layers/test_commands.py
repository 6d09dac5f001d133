"""The commands as a user runs them, and what a run leaves behind."""

import json

import numpy as np
from PIL import Image

from clearhead.workflows import run_lesion
from tests.command import clearhead, error, result


def test_fourier_and_cka_leave_whole_runs(place):
    run = clearhead("layers", "fourier", "model", "data", "--limit", 8, "--out", "fourier", cwd=place)
    assert run.returncode == 0, run.stderr
    assert "attention" in run.stdout
    found = result(place / "fourier")["maps"]["model"]
    assert found["images"] == 8
    assert [unit["kind"] for unit in found["units"]] == ["embed", *["attention", "mlp"] * 2]
    page = (place / "fourier" / "report.html").read_text()
    assert "Fourier spectrum" in page
    assert "Variance of feature maps" in page

    run = clearhead("layers", "cka", "model", "model", "data", "--batch-size", 12, "--out", "cka", cwd=place)
    assert run.returncode == 0, run.stderr
    found = json.loads((place / "cka" / "results.json").read_text())["similarity"]
    np.testing.assert_allclose(np.diag(found["cka"]), 1, atol=1e-6)
    assert "Similarity of representations" in (place / "cka" / "report.html").read_text()


def test_lesion_leaves_a_whole_run(place, monkeypatch):
    monkeypatch.chdir(place)
    run_lesion(["model"], "data", place / "lesion", split="test")
    found = json.loads((place / "lesion" / "results.json").read_text())["lesions"]["model"]
    assert [len(found["units"]), len(found["blocks"])] == [4, 2]
    assert found["accuracy"]["count"] == 12
    assert "Without each unit" in (place / "lesion" / "report.html").read_text()
    again = run_lesion(["model"], "data", place / "lesion", split="test")  # is read, not made again
    assert [unit.name for unit in again.lesions["model"].units][:2] == ["blocks.0 attention", "blocks.0 mlp"]


def test_bad_input_is_told(place):
    assert "3 were given" in error(
        clearhead("layers", "cka", "model", "model", "model", "data", "--out", "x", cwd=place)
    )
    (place / "few-images" / "cat").mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (32, 32)).save(place / "few-images" / "cat" / f"{i}.png")
    assert "needs at least 4" in error(clearhead("layers", "cka", "model", "few-images", "--out", "y", cwd=place))
