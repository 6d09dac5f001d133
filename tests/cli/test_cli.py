"""The commands as a user runs them: in a process of its own, by exit code and message, on a tiny model and folder.

Importing torch and timm takes seconds, so all commands but the first are forked off a server that has imported them.
"""

import json
import subprocess

import numpy as np
import pytest
from PIL import Image

from clearhead import __version__
from tests.command import COMMAND, clearhead, error, result
from tests.conftest import CLASSES


def test_the_installed_command(tmp_path):
    run = subprocess.run([COMMAND, "--version"], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout.strip()) == (0, __version__)
    run = subprocess.run([COMMAND, "audit", "a", "b"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "timm:NAME" in error(run)


def test_help_names_every_command(tmp_path):
    reported = clearhead("--help", cwd=tmp_path).stdout
    assert all(
        command in reported
        for command in ("audit", "repair", "compare", "explain", "heads", "train", "demo", "report", "data")
    )


def test_masks_from_boxes(workspace):
    files = [f"{name}/{i:02d}.png" for name in CLASSES for i in range(12)]
    images = [{"id": i, "file_name": file, "width": 32, "height": 32} for i, file in enumerate(files)]
    boxes = [{"image_id": i, "category_id": 1, "bbox": [8, 8, 16, 16]} for i in range(35)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    (workspace / "boxes.json").write_text(json.dumps(content))
    run = clearhead("data", "masks", "data", "--from", "coco-boxes=boxes.json", "--out", "boxed", cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert "35 of 36 images have a mask, mean area 25.0%" in run.stdout
    assert "IoU with the true masks, saved masks: 1.00" in run.stdout
    assert "no object is annotated" in run.stderr
    assert np.asarray(Image.open(workspace / "boxed" / "masks" / "cat" / "03.png")).sum() == 255 * 16 * 16


def test_nothing_of_the_users_is_written_over(workspace, tmp_path):
    """By a run in a folder with a config of its own."""
    model, mine = workspace / "model", tmp_path / "mine"
    mine.mkdir()
    for content in ("learning: 3\n", "!!python/object:x.Y {}\n"):
        (mine / "config.yaml").write_text(content)
        message = error(clearhead("audit", model, workspace / "data", "--out", mine, cwd=tmp_path))
        assert "holds other files (such as config.yaml) and is not a run folder" in message
        assert (mine / "config.yaml").read_text() == content


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (["report", "data"], "not the folder of a finished run"),
        (["data", "masks", "data", "--model", "model"], "exists"),
        (["data", "masks", "maskless", "--from", "sky=x"], "format 'sky' is unknown; choose from coco"),
        (["data", "masks", "maskless"], "exactly one of the two is needed"),
        (["reproduce", "relevance", "--model", "ViT-L", "--images", "data", "--test", "A=data"], "no weights of ViT-L"),
        (["study", "repairs", "nothing.yaml"], "plan: nothing.yaml: no such file"),
        (
            ["repair", "model", "data", "--method", "gradmask", "--foreground", "1"],
            "foreground: not an option of the method",
        ),
        (
            ["repair", "model", "data", "--method", "heads", "--background", "3"],
            "background: not an option of the method heads",
        ),
        (["data", "mnist-cifar", "new", "--mnist", "data", "--cifar", "data"], "data"),
        (["data", "waterbirds", "new", "--source", "model"], "metadata.csv"),
        (["reproduce", "mnist-cifar", "--mnist", "data", "--cifar", "data", "--seeds", "1"], "MNIST"),
        (["data", "collage", "model", "--images", "a", "--masks", "b", "--background", "x", "--class", "y"], "'='"),
    ],
)
def test_bad_input_ends_with_one_message(workspace, maskless, arguments, reported):
    assert reported in error(clearhead(*arguments, cwd=workspace))


def test_landscape_hessian_tells_models_side_by_side(workspace, repaired):
    command = ("landscape", "hessian", "model", "repair/checkpoint", "data", "--split", "train", "--batch-size", 4)
    run = clearhead(*command, "--top", 2, "--out", "hessian", cwd=workspace)
    assert run.returncode == 0, run.stderr
    results = result(workspace / "hessian")
    assert results["subject"]["models"] == ["model", "repair"]
    for actual in results["spectra"].values():
        assert [len(batch["values"]) for batch in actual["batches"]] == [2, 2, 2]
        for batch in actual["batches"]:
            assert abs(batch["values"][0]) >= abs(batch["values"][1])
            assert batch["lowest"] <= min(batch["values"]) <= max(batch["values"]) <= batch["highest"]
            assert batch["error"] <= 0.01
    assert "Positive eigenvalues" in (workspace / "hessian" / "report.html").read_text()
    refused = clearhead("landscape", "hessian", "model", "data", "--batch-size", 99, "--out", "few", cwd=workspace)
    assert "36 images are fewer than a batch of 99" in error(refused)
