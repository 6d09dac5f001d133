"""The whole demo, run as a new user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm

from clearhead.demo.run import MODEL
from tests.command import result


def test_the_shipped_weights_are_small_and_timm_loads_them():
    assert (MODEL / "model.safetensors").stat().st_size < 1_100_000
    module = timm.create_model(f"local-dir:{MODEL}", pretrained=True)
    assert module.num_classes == 4


@pytest.mark.slow
def test_the_repair_improves_the_worst_group_on_shifted_images(tmp_path):
    command = [Path(sys.executable).with_name("clearhead"), "demo", "--out", "demo"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("improved")
    assert (tmp_path / "demo" / "report.html").is_file()
    results = result(tmp_path / "demo" / "compare")["comparison"]
    assert results["before"]["worst_group"][1]["value"] == pytest.approx(0.093, abs=0.001)  # the published numbers
    assert results["after"]["worst_group"][1]["value"] == pytest.approx(0.84, abs=0.001)
    assert results["before"]["worst_group"][1]["high"] < 0.5  # the model relied on the shortcut
    assert results["differences"]["worst-group accuracy"]["low"] > 0.2
    assert results["differences"]["average accuracy"]["low"] > 0
    tagged = json.loads(next((tmp_path / "demo" / "tagged").glob("*/part.json")).read_text("utf-8"))["comparison"]
    assert tagged["differences"]["worst-group accuracy"]["low"] > 0.2
    assert "Repaired by 100 tags, without masks" in (tmp_path / "demo" / "report.html").read_text("utf-8")
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert again.stdout == run.stdout  # finished steps are not run again
