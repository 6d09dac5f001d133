"""The same command in two processes (torchrun) and in one: the same weights, the same numbers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
ONE = [sys.executable, "-m", "clearhead"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "clearhead"]


def ran(workspace, how, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*how, *map(str, arguments)]
    return subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True, timeout=300)


def history_in(file: Path) -> list[dict[str, Any]]:
    result = json.loads(file.read_text())["result"]
    return result.get("outcome", result)["history"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "model", "data"),
        ("train", "model", "data", "--diversity", 1),
        ("repair", "model", "data"),
        ("repair", "model", "data", "--method", "groupdro"),
    ],
    ids=["train", "diversity", "relevance", "groupdro"],
)
def test_training_is_the_same(workspace, arguments):
    # 12 images in batches of 11: in the last one the second process has none; the validation likewise
    options = ("--epochs", 2, "--lr", "1e-3", "--batch-size", 11, "--device", "cpu")
    name = "-".join(map(str, arguments)).replace("--", "")
    for how, out in ((ONE, f"{name}-one"), (TWO, f"{name}-two")):
        run = ran(workspace, how, *arguments, "--out", out, *options)
        assert run.returncode == 0, run.stderr
        assert run.stdout.count("page:") == 1  # the first process alone speaks
    one, two = (load_file(workspace / f"{name}-{n}" / "checkpoint" / "model.safetensors") for n in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-4)  # Adam divides rounding by rounding
    first, second = (history_in(workspace / f"{name}-{n}" / "results.json") for n in ("one", "two"))
    for a, b in zip(first, second, strict=True):
        assert b["train"] == pytest.approx(a["train"], rel=1e-3, abs=1e-6)
        if "groupdro" not in arguments:  # whose validation loss depends on how the images are batched
            assert b["validation"] == pytest.approx(a["validation"], rel=1e-3, abs=1e-6)


def test_what_runs_in_one_process_says_so(workspace):
    run = ran(workspace, TWO, "audit", "model", "data", "--out", "audit-two")
    assert run.returncode != 0
    assert "audit runs in one process" in run.stderr


def test_a_killed_process_loses_nothing_and_counts_nothing_twice(workspace):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (3000, 32, 32, 3), dtype=np.uint8), np.arange(3000)[:, None] % 3
    np.savez(workspace / "noise.npz", test_images=images, test_labels=labels)
    arguments = ("evaluate", "model", "noise.npz", "--suite", "occlusion", "--batch-size", 128)
    killed = workspace / "killed"
    command = [*TWO, *map(str, arguments), "--out", "killed"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(command, cwd=workspace, env=environment, stderr=subprocess.DEVNULL)
    while not list(killed.glob("predictions/model/.parts/*/*.parquet")):
        assert launcher.poll() is None
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert launcher.wait(120) != 0
    assert not (killed / "results.json").exists()

    for how, out in ((TWO, "killed"), (ONE, "whole")):
        run = ran(workspace, how, *arguments, "--out", out)
        assert run.returncode == 0, run.stderr
    files = sorted(path.name for path in (workspace / "whole" / "predictions" / "model").glob("*.parquet"))
    assert len(files) > 5
    for name in files:
        one, two = (workspace / out / "predictions" / "model" / name for out in ("whole", "killed"))
        assert one.read_bytes() == two.read_bytes()
    assert (workspace / "whole" / "table.csv").read_text() == (workspace / "killed" / "table.csv").read_text()
