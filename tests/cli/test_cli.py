"""The commands as a user runs them: in a process of its own, by exit code and message, on a tiny model and folder.

Importing torch and timm takes seconds, so all commands but the first are forked off a server that has imported them.
"""

import json
import shutil
import subprocess

import numpy as np
import pyarrow.parquet
import pytest
import timm
import torch
import yaml
from PIL import Image

from clearhead.models import load_model
from tests.command import COMMAND, clearhead, error
from tests.conftest import CLASSES


@pytest.fixture(scope="session")
def repaired(place) -> subprocess.CompletedProcess:
    return clearhead("repair", "model", "data", "--out", "repair", "--epochs", 2, "--lr", 1e-3, cwd=place)


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


def test_repair_leaves_an_ordinary_checkpoint_and_compare_judges_it(place, repaired):
    assert repaired.returncode == 0, repaired.stderr
    assert "check on the validation images" in repaired.stdout
    assert not (place / "repair" / "state").exists()
    module = timm.create_model(f"local-dir:{place / 'repair' / 'checkpoint'}", pretrained=True).eval()
    image = torch.randn(1, 3, 32, 32)
    model = load_model(str(place / "repair" / "checkpoint"))
    torch.testing.assert_close(module(model.normalize(image)), model(image))
    assert model.classes == tuple(CLASSES)

    run = clearhead("compare", "model", "repair/checkpoint", "data", "--split", "test", "--out", "compare", cwd=place)
    assert run.returncode == 0, run.stderr
    assert any(word in run.stdout for word in ("improved", "regressed", "inconclusive"))
    results = json.loads((place / "compare" / "results.json").read_text())["comparison"]
    change = results["after"]["accuracy"]["value"] - results["before"]["accuracy"]["value"]
    assert results["differences"]["average accuracy"]["value"] == pytest.approx(change)
    flips = results["mcnemar"]
    assert (flips["positive_flips"] - flips["negative_flips"]) / 12 == pytest.approx(change)

    changed = any(difference["value"] for difference in results["classes"].values())
    assert ("Classes most" in (place / "compare" / "report.html").read_text()) == changed
    page = clearhead("report", "compare", "repair", "--out", "all.html", "--title", "Both", cwd=place)
    assert page.returncode == 0, page.stderr
    assert "<h1>Both</h1>" in (place / "all.html").read_text()


def test_train_gives_a_fresh_head_to_other_classes_and_learns_them(place):
    shutil.copytree(place / "data", place / "two", ignore=shutil.ignore_patterns("fish", "metadata.csv"))
    options = ["--epochs", 12, "--lr", 3e-3, "--batch-size", 4, "--out", "train"]
    run = clearhead("train", "model", "two", *options, cwd=place)
    assert run.returncode == 0, run.stderr
    model = load_model(str(place / "train" / "checkpoint"))
    assert model.classes == ("bird", "cat")
    history = json.loads((place / "train" / "results.json").read_text())["history"]
    assert max(epoch["validation"]["accuracy"] for epoch in history) == 1


@pytest.mark.parametrize("method", ["gradmask", "rrr", "heads", "dfr", "groupdro", "reweight"])
def test_every_method_of_repair_leaves_a_checkpoint_and_both_checks(place, method):
    options = ["--method", method, "--epochs", 1, "--test-split", "test", "--out", f"by-{method}"]
    if method == "heads":
        options += ["--search", "greedy", "--objective", "accuracy"]
    run = clearhead("repair", "model", "data", *options, cwd=place)
    assert run.returncode == 0, run.stderr
    assert "check on the validation images" in run.stdout
    assert "test images" in run.stdout
    results = json.loads((place / f"by-{method}" / "results.json").read_text())
    assert (results["method"], results["test"]["before"]["accuracy"]["count"]) == (method, 12)
    assert "data, test images" in (place / f"by-{method}" / "report.html").read_text()  # the verdict
    model = timm.create_model(f"local-dir:{place / f'by-{method}' / 'checkpoint'}", pretrained=True).eval()
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    if method == "heads":
        assert results["selection"]["after"] >= results["selection"]["before"]
        assert results["check"]["after"]["accuracy"]["value"] == pytest.approx(results["selection"]["after"])


def test_terms_are_switched_and_written_down(place):
    options = ["--preset", "DeiT-S", "--epochs", 1, "--background", 0, "--target", "truth", "--attribution", "rollout"]
    run = clearhead("repair", "model", "data", *options, "--out", "terms", cwd=place)
    assert run.returncode == 0, run.stderr
    arguments = yaml.safe_load((place / "terms" / "config.yaml").read_text())["arguments"]
    assert (arguments["settings"]["lr"], arguments["settings"]["epochs"]) == (1e-6, 1)
    chosen = {"background": 0.0, "temperature": 0.55, "target": "truth", "attribution": "rollout", "foreground": 0.3}
    assert chosen.items() <= arguments["loss"].items()
    history = json.loads((place / "terms" / "results.json").read_text())["history"]
    parts = history[1]["validation"]
    assert parts["loss"] == pytest.approx(0.8 * 0.3 * parts["foreground"] + 0.2 * parts["classification"])


def test_a_linear_layer_on_a_backbone_and_the_same_repair(place):
    run = clearhead("train", "model", "data", "--linear", "--out", "linear", cwd=place)
    assert run.returncode == 0, run.stderr
    assert "of the validation images right" in run.stdout
    assert "on the features as they are" in (place / "linear" / "report.html").read_text()
    backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    torch.save(backbone.state_dict(), place / "backbone.pth")
    name = "timm:vit_tiny_patch16_224@backbone.pth"
    run = clearhead("train", name, "data", "--linear", "--out", "from-backbone", cwd=place)
    assert run.returncode == 0, run.stderr
    run = clearhead("repair", "linear/checkpoint", "data", "--epochs", 1, "--out", "linear-repair", cwd=place)
    assert run.returncode == 0, run.stderr


def test_train_with_diverse_heads_and_audit_with_heads(place):
    options = ["--epochs", 1, "--diversity", 6.25, "--layers", "all", "--out", "diverse"]
    run = clearhead("train", "model", "data", *options, cwd=place)
    assert run.returncode == 0, run.stderr
    results = json.loads((place / "diverse" / "results.json").read_text())
    assert results["history"][1]["validation"]["diversity"] > 0
    run = clearhead("audit", "model", "data", "--heads", "--split", "test", "--out", "with-heads", cwd=place)
    assert run.returncode == 0, run.stderr
    assert "Similarity of heads" in (place / "with-heads" / "report.html").read_text()


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
        (["repair", "model", "maskless"], "foreground masks"),
        (["compare", "model", "train3/nothing", "data"], "train3/nothing"),
        (["report", "data"], "not the folder of a finished run"),
        (["repair", "model", "data", "--method", "heads", "--test-split", "val"], "chosen on it"),
        (["train", "model", "data", "--val-split", "train"], "12 images are for training and for validation"),
        (["train", "model", "data", "--device", "foo"], "device: 'foo' is unavailable"),
        (["repair", "model", "data", "--device", "cuda:7"], "device: 'cuda:7' is unavailable"),
        (["data", "masks", "data", "--model", "model"], "exists"),
        (["data", "masks", "maskless", "--from", "sky=x"], "there is"),
        (["data", "masks", "maskless"], "give one of the two"),
        (["reproduce", "relevance", "--model", "ViT-L", "--images", "data", "--test", "A=data"], "no weights of ViT-L"),
        (["study", "repairs", "nothing.yaml"], "plan: nothing.yaml: no such file"),
        (["repair", "model", "data", "--attribution", "lime"], "choose from gae, rollout"),
        (
            ["repair", "model", "data", "--method", "gradmask", "--foreground", "1"],
            "foreground: not an option of the method",
        ),
        (["repair", "model", "data", "--method", "rrr", "--preset", "ViT-B"], "relevance, not rrr"),
        (
            ["repair", "model", "data", "--method", "heads", "--background", "3"],
            "background: not an option of the method heads",
        ),
        (["train", "model", "data", "--linear", "--diversity", "1"], "last layer alone"),
        (["repair", "model", "data", "--preset", "ViT-H"], "choose from ViT-B"),
        (["data", "mnist-cifar", "new", "--mnist", "data", "--cifar", "data"], "data"),
        (["data", "waterbirds", "new", "--source", "model"], "metadata.csv"),
        (["reproduce", "mnist-cifar", "--mnist", "data", "--cifar", "data", "--seeds", "1"], "MNIST"),
        (["repair", "model", "data", "--train-split", "val", "--method", "dfr"], "are both 'val'"),
        (["data", "collage", "model", "--images", "a", "--masks", "b", "--background", "x", "--class", "y"], "'='"),
    ],
)
def test_bad_input_ends_with_one_message(place, arguments, said):
    if not (place / "maskless").exists():
        shutil.copytree(place / "data", place / "maskless", ignore=shutil.ignore_patterns("masks"))
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
