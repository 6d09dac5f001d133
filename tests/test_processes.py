"""The same command in two processes (torchrun) and in one: the same weights, the same numbers."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
ONE = [sys.executable, "-m", "clearhead"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "clearhead"]


def ran(place, how, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*how, *map(str, arguments)]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)


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
def test_training_is_the_same(place, arguments):
    # 12 images in batches of 11: in the last one the second process has none; the validation likewise
    options = ("--epochs", 2, "--lr", "1e-3", "--batch-size", 11, "--device", "cpu")
    name = "-".join(map(str, arguments)).replace("--", "")
    for how, out in ((ONE, f"{name}-one"), (TWO, f"{name}-two")):
        run = ran(place, how, *arguments, "--out", out, *options)
        assert run.returncode == 0, run.stderr
        assert run.stdout.count("page:") == 1  # the first process alone speaks
    one, two = (load_file(place / f"{name}-{n}" / "checkpoint" / "model.safetensors") for n in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-4)  # Adam divides rounding by rounding
    first, second = (json.loads((place / f"{name}-{n}" / "results.json").read_text()) for n in ("one", "two"))
    for a, b in zip(first["history"], second["history"], strict=True):
        assert b["train"] == pytest.approx(a["train"], rel=1e-3, abs=1e-6)
        if "groupdro" not in arguments:  # whose validation loss depends on how the images are batched
            assert b["validation"] == pytest.approx(a["validation"], rel=1e-3, abs=1e-6)


def test_what_runs_in_one_process_says_so(place):
    run = ran(place, TWO, "audit", "model", "data", "--out", "audit-two")
    assert run.returncode != 0
    assert "audit runs in one process" in run.stderr
