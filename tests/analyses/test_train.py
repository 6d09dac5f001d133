"""Training, as a command."""

import re
import shutil

import pytest
import timm
import torch

from clearhead.models import load_model
from tests.command import clearhead, error, result


def test_training_gives_a_fresh_head_to_other_classes_and_learns_them(workspace):
    ignored = shutil.ignore_patterns("fish", "metadata.csv")
    shutil.copytree(workspace / "data", workspace / "two-classes", ignore=ignored)
    options = ["--epochs", 12, "--lr", 3e-3, "--batch-size", 4, "--save-epochs", "0,3", "--out", "train"]
    run = clearhead("train", "model", "two-classes", *options, cwd=workspace)
    assert run.returncode == 0, run.stderr
    model = load_model(str(workspace / "train"))
    assert model.classes == ("bird", "cat")
    assert max(epoch["validation"]["accuracy"] for epoch in result(workspace / "train")["history"]) == 1
    assert sorted(folder.name for folder in (workspace / "train" / "epochs").iterdir()) == ["0", "3"]
    lines = [line for line in run.stderr.splitlines() if re.match(r"epoch \d+/12: ", line)]
    assert len(lines) == 13
    assert "remaining" in lines[1]
    assert "Selected epoch" in run.stdout


def test_a_linear_probe_of_a_backbone_can_be_repaired(workspace):
    run = clearhead("train", "model", "data", "--linear", "--out", "linear", cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert "Linear probe" in run.stdout
    backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    torch.save(backbone.state_dict(), workspace / "backbone.pth")
    name = "timm:vit_tiny_patch16_224@backbone.pth"
    run = clearhead("train", name, "data", "--linear", "--out", "from-backbone", cwd=workspace)
    assert run.returncode == 0, run.stderr
    run = clearhead("repair", "linear", "data", "--epochs", 1, "--out", "linear-repair", cwd=workspace)
    assert run.returncode == 0, run.stderr


def test_heads_are_trained_to_be_diverse(workspace):
    options = ["--epochs", 1, "--diversity", 6.25, "--layers", "all", "--out", "diverse"]
    run = clearhead("train", "model", "data", *options, cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert result(workspace / "diverse")["history"][1]["validation"]["diversity"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--validation-split", "train"], "train"),
        (["--device", "foo"], "device: 'foo' is unavailable"),
        (["--linear", "--save-epochs", "1"], "linear"),
        (["--save-epochs", "99"], "save_epochs"),
        (["--diversity", "1", "--mixup", "0.5"], "mixup"),
        (["--optimizer", "adamm"], "adamm"),
        (["--lr", "1e9", "--epochs", "2"], "learning rate"),
    ],
)
def test_bad_input_ends_with_one_message(workspace, arguments, message):
    # training that diverges keeps its folder, and other tests of the workspace expect none in runs/
    assert message in error(clearhead("train", "model", "data", *arguments, "--out", "bad-train", cwd=workspace))
