"""The commands as a user runs them: in a process of its own, by exit code and message, on a tiny model and folder.

Importing torch and timm takes seconds, so all commands but the first are forked off a server that has imported them.
"""

import json
import subprocess

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from tests.command import COMMAND, clearhead, error
from tests.conftest import CLASSES


def test_the_installed_command(tmp_path):
    run = subprocess.run([COMMAND, "--version"], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout.strip()) == (0, "0.1.0")
    run = subprocess.run([COMMAND, "audit", "a", "b"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "timm:NAME" in error(run)


def test_help_names_every_command(tmp_path):
    said = clearhead("--help", cwd=tmp_path).stdout
    assert all(
        command in said
        for command in ("audit", "repair", "compare", "explain", "heads", "train", "demo", "report", "data")
    )


def test_masks_from_boxes(place):
    files = [f"{name}/{i:02d}.png" for name in CLASSES for i in range(12)]
    images = [{"id": i, "file_name": file, "width": 32, "height": 32} for i, file in enumerate(files)]
    boxes = [{"image_id": i, "category_id": 1, "bbox": [8, 8, 16, 16]} for i in range(35)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    (place / "boxes.json").write_text(json.dumps(content))
    run = clearhead("data", "masks", "data", "--from", "coco-boxes=boxes.json", "--out", "boxed", cwd=place)
    assert run.returncode == 0, run.stderr
    assert "35 of 36 images have a mask, 25.0%" in run.stdout
    assert "IoU with the true masks, saved masks: 1.00" in run.stdout
    assert "no object is annotated" in run.stderr
    assert np.asarray(Image.open(place / "boxed" / "masks" / "cat" / "03.png")).sum() == 255 * 16 * 16


def test_nothing_of_the_users_is_written_over(place, tmp_path):
    """By a run in a folder with a config of its own."""
    model, mine = place / "model", tmp_path / "mine"
    mine.mkdir()
    for content in ("learning: 3\n", "!!python/object:x.Y {}\n"):
        (mine / "config.yaml").write_text(content)
        assert "not the folder of a run" in error(
            clearhead("audit", model, place / "data", "--out", mine, cwd=tmp_path)
        )
        assert (mine / "config.yaml").read_text() == content


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report", "data"], "not the folder of a finished run"),
        (["data", "masks", "data", "--model", "model"], "exists"),
        (["data", "masks", "maskless", "--from", "sky=x"], "there is"),
        (["data", "masks", "maskless"], "give one of the two"),
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
def test_bad_input_ends_with_one_message(place, maskless, arguments, said):
    assert said in error(clearhead(*arguments, cwd=place))


def test_evaluate_a_suite_leaves_one_table_and_compares_from_what_it_kept(place, repaired):
    assert repaired.returncode == 0, repaired.stderr
    suite = ("--suite", "occlusion,rotation", "--sets", "occlusion,rotation 90")
    run = clearhead(
        "evaluate", "model", "again=model", "again=repair/checkpoint", "data", *suite, "--out", "suite", cwd=place
    )
    assert run.returncode == 0, run.stderr
    results = json.loads((place / "suite" / "results.json").read_text())
    assert results["models"] == ["model", "again (1)", "again (2)"]
    sets = [row["set"] for row in results["rows"] if row["model"] == "model"]
    assert sets[0] == "clean"
    assert "rotation 90" in sets
    assert "rotation 45" not in sets
    table = pyarrow.parquet.read_table(place / "suite" / "table.parquet").to_pylist()
    count = len(results["rows"])
    assert [row["top1"] for row in table[:count]] == [row["top1"]["value"] for row in results["rows"]]
    assert {row["model"] for row in table[count:]} == {"again, mean of 2"}
    kept = pyarrow.parquet.read_table(place / "suite" / "predictions" / "model" / "as-it-is.parquet").to_pylist()
    assert table[0]["top1"] == np.mean([row["label"] == row["predicted"] for row in kept])
    same = [row for row in results["changes"] if row["model"] == "again (1)"]
    assert {(row["positive_flips"], row["negative_flips"], row["word"]) for row in same} == {
        (0, 0, "no difference detected")
    }
    assert {row["label"] for row in results["seeds"]} == {"again"}

    for name, model in (("a", "model"), ("b", "repair/checkpoint")):
        clearhead("evaluate", model, "data", *suite, "--out", f"suite-{name}", cwd=place)
    run = clearhead("compare", "suite-a", "suite-b", "--out", "suites", cwd=place)
    assert run.returncode == 0, run.stderr
    found = json.loads((place / "suites" / "results.json").read_text())["changes"]
    assert [{**row, "model": "b"} for row in found] == [
        {**row, "model": "b"} for row in results["changes"] if row["model"] == "again (2)"
    ]
    assert "(Holm)" in (place / "suites" / "report.html").read_text()


def test_effective_robustness_is_from_a_baseline_table(place, repaired):
    rows = [f"m{i},{name},3 classes,{x}" for i, x in enumerate((0.3, 0.6, 0.9)) for name in ("clean", "rotation 90")]
    (place / "baseline.csv").write_text("model,set,scoring,top1\n" + "\n".join(rows) + "\n")
    suite = ("--suite", "rotation", "--sets", "rotation 90", "--baseline", "baseline.csv")
    run = clearhead("evaluate", "repair/checkpoint", "data", *suite, "--out", "line", cwd=place)
    assert run.returncode == 0, run.stderr
    before, after = json.loads((place / "line" / "results.json").read_text())["rows"]
    assert before["effective"] is None
    expected = min(max(before["top1"]["value"], 1e-6), 1 - 1e-6)  # the baselines lose nothing
    assert after["effective"]["value"] == pytest.approx(after["top1"]["value"] - expected)
    (place / "worse.csv").write_text(
        (place / "baseline.csv").read_text().replace("rotation 90,3 classes,0.9", "x,y,0.9")
    )
    again = clearhead("evaluate", "repair/checkpoint", "data", *suite[:-1], "worse.csv", "--out", "line", cwd=place)
    assert again.returncode == 0, again.stderr  # nothing is answered anew
    results = json.loads((place / "line" / "results.json").read_text())
    assert results["rows"][1]["effective"]["value"] == pytest.approx(after["effective"]["value"])
    assert results["provenance"]["baseline"] == "worse.csv"
    options = ("--suite", "rotation", "--sets", "rotation 90")
    run = clearhead("evaluate", "model", "data", *options, "--baseline", "baseline.csv", "--out", "other", cwd=place)
    assert run.returncode == 0, run.stderr
    run = clearhead("compare", "line", "other", "--out", "lines", cwd=place)
    assert run.returncode == 0, run.stderr
    rows = json.loads((place / "lines" / "results.json").read_text())["rows"]
    assert all(row["effective"] is None for row in rows)  # from two lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "model", "data", "--suite", "rotatoin"), "suite 'rotatoin': there is rotation"),
        (("evaluate", "model", "data", "--suite", "rotation", "--sets", "rotation 1"), "set 'rotation 1' is not of"),
        (("evaluate", "model", "--suite", "imagenet", "--root", "data"), "none of imagenet, imagenet-v2"),
        (("evaluate", "data", "--suite", "rotation"), "a model and data are needed"),
        (("compare", "model", "repair"), "no results.json"),
        (("evaluate", "a b=model", "a-b=model", "data", "--suite", "rotation"), "cannot be told apart as files"),
        (("evaluate", "model", "--suite", "imagenet-a", "--root", "data"), "not there: imagenet-a"),
        (("evaluate", "model", "data", "--suite", "rotation", "--baseline", "no.csv"), "no.csv"),
    ],
)
def test_suites_that_cannot_be_are_refused(place, repaired, arguments, message):
    assert message in error(clearhead(*arguments, "--out", "refused", cwd=place))


def test_landscape_hessian_tells_models_side_by_side(place, repaired):
    command = ("landscape", "hessian", "model", "repair/checkpoint", "data", "--split", "train", "--batch-size", 4)
    run = clearhead(*command, "--top", 2, "--out", "hessian", cwd=place)
    assert run.returncode == 0, run.stderr
    results = json.loads((place / "hessian" / "results.json").read_text())
    assert results["models"] == ["model", "repair"]
    for found in results["spectra"].values():
        assert [len(batch["values"]) for batch in found["batches"]] == [2, 2, 2]
        for batch in found["batches"]:
            assert abs(batch["values"][0]) >= abs(batch["values"][1])
            assert batch["lowest"] <= min(batch["values"]) <= max(batch["values"]) <= batch["highest"]
            assert batch["error"] <= 0.01
    assert "Positive eigenvalues" in (place / "hessian" / "report.html").read_text()
    refused = clearhead("landscape", "hessian", "model", "data", "--batch-size", 99, "--out", "few", cwd=place)
    assert "36 images are fewer than a batch of 99" in error(refused)
