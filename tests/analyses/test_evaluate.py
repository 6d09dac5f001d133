"""Suites of shifted data through the function and the commands; comparisons from saved predictions."""

import json
import shutil

import numpy as np
import pyarrow.parquet
import pytest
import timm

from clearhead.analyses.evaluate import measure
from clearhead.analyses.robustness import SetRow
from clearhead.analyses.suite_page import suite_page
from clearhead.data.image_io import DataError
from clearhead.errors import ClearheadError
from clearhead.metrics.statistics import Estimate
from clearhead.models import from_module
from clearhead.models.preprocessing import Preprocessing
from tests.command import clearhead, error, result

SUITE = ("--suite", "occlusion,rotation", "--sets", "occlusion,rotation 90")


def test_evaluate_leaves_one_table_and_compare_suites_works_from_what_it_saved(workspace, other):
    arguments = ("evaluate", "model", "model", "other", "data", *SUITE, "--labels", "model,again,again")
    run = clearhead(*arguments, "--out", "suite", cwd=workspace)
    assert run.returncode == 0, run.stderr
    results = result(workspace / "suite")
    assert results["subject"]["models"] == ["model", "again (1)", "again (2)"]
    sets = [row["set"] for row in results["rows"] if row["model"] == "model"]
    assert sets[0] == "clean"
    assert "rotation 90" in sets
    assert "rotation 45" not in sets
    table = pyarrow.parquet.read_table(workspace / "suite" / "table.parquet").to_pylist()
    count = len(results["rows"])
    assert [row["top1"] for row in table[:count]] == [row["top1"]["value"] for row in results["rows"]]
    assert {row["model"] for row in table[count:]} == {"again, mean of 2"}
    saved = pyarrow.parquet.read_table(workspace / "suite" / "predictions" / "model" / "clean.parquet").to_pylist()
    assert table[0]["top1"] == np.mean([row["label"] == row["predicted"] for row in saved])
    same = [row for row in results["changes"] if row["model"] == "again (1)"]
    assert {(row["positive_flips"], row["negative_flips"], row["word"]) for row in same} == {
        (0, 0, "no difference detected")
    }
    assert {row["label"] for row in results["seeds"]} == {"again"}
    assert "rotation 90" in run.stdout

    for name, model in (("a", "model"), ("b", "other")):
        assert clearhead("evaluate", model, "data", *SUITE, "--out", f"suite-{name}", cwd=workspace).returncode == 0
    run = clearhead("compare-suites", "suite-a", "suite-b", "--out", "suites", cwd=workspace)
    assert run.returncode == 0, run.stderr
    changes = result(workspace / "suites")["changes"]
    assert [{**row, "model": "b"} for row in changes] == [
        {**row, "model": "b"} for row in results["changes"] if row["model"] == "again (2)"
    ]
    assert "(Holm)" in (workspace / "suites" / "report.html").read_text()
    again = clearhead("compare-suites", "suite-a", "suite-b", "--out", "suites", cwd=workspace)
    assert "finished earlier" in again.stderr

    clearhead("evaluate", "model", "data", *SUITE, "--seed", 1, "--out", "suite-seed", cwd=workspace)
    refused = clearhead("compare-suites", "suite-a", "suite-seed", "--out", "refused", cwd=workspace)
    assert "different images: seed was 0 and 1" in error(refused)
    shutil.copytree(workspace / "data", workspace / "data-2")
    (workspace / "data-2" / "cat" / "00.png").unlink()
    clearhead("evaluate", "model", "data-2", *SUITE, "--out", "suite-data", cwd=workspace)
    refused = clearhead("compare-suites", "suite-a", "suite-data", "--out", "refused", cwd=workspace)
    assert "different images: " in error(refused)


def test_effective_robustness_is_from_a_baseline_table(workspace, other):
    rows = [f"m{i},{name},3 classes,{x}" for i, x in enumerate((0.3, 0.6, 0.9)) for name in ("clean", "rotation 90")]
    (workspace / "baseline.csv").write_text("model,set,scoring,top1\n" + "\n".join(rows) + "\n")
    suite = ("--suite", "rotation", "--sets", "rotation 90")
    run = clearhead("evaluate", "other", "data", *suite, "--out", "line", cwd=workspace)
    assert run.returncode == 0, run.stderr
    run = clearhead("effective-robustness", "line", "baseline.csv", "--out", "effective", cwd=workspace)
    assert run.returncode == 0, run.stderr
    before, after = result(workspace / "effective")["rows"]
    assert before["effective"] is None
    expected = min(max(before["top1"]["value"], 1e-6), 1 - 1e-6)  # the baselines lose nothing
    assert after["effective"]["value"] == pytest.approx(after["top1"]["value"] - expected)
    assert "effective_low" in (workspace / "effective" / "table.csv").read_text()
    assert "effective robustness" in (workspace / "effective" / "table.md").read_text()
    (workspace / "worse.csv").write_text(
        (workspace / "baseline.csv").read_text().replace("rotation 90,3 classes,0.9", "x,y,0.9")
    )
    run = clearhead("effective-robustness", "line", "worse.csv", cwd=workspace)
    assert run.returncode == 0, run.stderr
    (folder,) = (workspace / "runs").glob("effective-robustness-line-worse-*")
    assert result(folder)["rows"][1]["effective"]["value"] == pytest.approx(after["effective"]["value"])
    assert "worse.csv" in json.loads((folder / "results.json").read_text())["provenance"]["table"]
    shutil.rmtree(workspace / "runs")


def test_a_finished_run_is_not_run_again_and_unreadable_images_may_be_allowed_later(workspace):
    (workspace / "torn").mkdir()
    for name in ("bird", "cat", "fish"):
        shutil.copytree(workspace / "data" / name, workspace / "torn" / name)
    file = workspace / "torn" / "cat" / "00.png"
    file.write_bytes(file.read_bytes()[:200])
    arguments = ("evaluate", "model", "torn", "--suite", "rotation", "--sets", "rotation 90", "--out", "torn-run")
    assert "clean: 1 of 36 images" in error(clearhead(*arguments, cwd=workspace))
    run = clearhead(*arguments, "--most-unreadable", 0.1, cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert "cat/00.png" in run.stderr
    assert [row["unreadable"] for row in result(workspace / "torn-run")["rows"]] == [1, 1]
    assert "finished earlier" in clearhead(*arguments, cwd=workspace).stderr


def test_the_function_saves_nothing(workspace, other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = measure(
        [str(workspace / "model"), str(other)], workspace / "data", suite=["rotation"], sets=["rotation 90"]
    )
    assert [(row.model, row.set) for row in outcome.rows] == [
        (model, name) for model in ("model", "other") for name in ("clean", "rotation 90")
    ]
    assert not list(tmp_path.iterdir())
    titles = [section.title for section in suite_page(outcome).sections]
    assert titles[0] == "Accuracy"
    assert "other compared with model" in titles
    with pytest.raises(ClearheadError, match="labels: got 1 for 2 models; give one per model"):
        measure([str(workspace / "model"), str(other)], workspace / "data", suite=["rotation"], labels=["a"])
    with pytest.raises(ClearheadError, match="suite: give one or more of imagenet"):
        measure([str(other)], workspace / "data")
    with pytest.raises(DataError, match="share a file name"):
        measure([str(other)] * 2, workspace / "data", suite=["rotation"], labels=["a b", "a-b"])


def test_models_of_other_sets_are_not_compared(workspace, two):
    with pytest.raises(ClearheadError, match="models: the classes differ: model has 3"):
        measure([str(workspace / "model"), str(two)], workspace / "data", suite=["rotation"])
    large = timm.create_model("vit_tiny_patch16_224", img_size=96, depth=1, num_classes=3)
    side, half = (96, 96), (0.5, 0.5, 0.5)
    model = from_module(large, preprocess=Preprocessing(side, side, half, half), classes=("bird", "cat", "fish"))
    with pytest.raises(ClearheadError, match="corruptions have other constants"):
        measure([str(workspace / "model"), model], workspace / "data", suite=["corruptions"])


def test_the_first_table_has_means_over_levels_and_metrics_over_sets(workspace):
    outcome = measure(
        [str(workspace / "model")], workspace / "data", suite=["corruptions"], sets=["fog", "gaussian_noise"]
    )
    page = suite_page(outcome)
    overview, *_ = page.sections
    assert [row.name for row in overview.rows] == ["clean", "gaussian noise", "fog"]
    fog = [row.top1.value for row in outcome.rows if row.family == "fog"]
    assert overview.rows[2].cells == [f"{100 * np.mean(fog):.1f}%"]
    assert any(section.title == "Corruptions" for section in page.sections)
    assert isinstance(outcome.rows[0], SetRow)
    assert isinstance(overview.rows[0].cells[0], Estimate)
    assert outcome.constants == "cifar"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "model", "data", "--suite", "rotatoin"), "suite: 'rotatoin' is unknown"),
        (("evaluate", "model", "data"), "suite: give one or more of imagenet"),
        (("evaluate", "model", "data", "--suite", "rotation", "--sets", "rotation 1"), "sets: 'rotation 1' is not in"),
        (("evaluate", "model", "data", "--suite", "imagenet"), "none of imagenet, imagenet-v2"),
        (("evaluate", "model", "nowhere", "--suite", "imagenet"), "data: nowhere: no such folder or file"),
        (("evaluate", "model", "model", "data", "--labels", "a b,a-b", "--suite", "scale"), "share a file name"),
        (("evaluate", "model", "data", "--suite", "imagenet-a"), "not found: imagenet-a"),
        (("evaluate", "model", "data", "--suite", "rotation", "--out", "data"), "out: data holds other files"),
        (("compare-suites", "model", "data"), "before_run: model has no results.json"),
        (("compare-suites", "nowhere", "data"), "before_run: nowhere: no such file or folder"),
        (("effective-robustness", "model", "no.csv"), "table: no.csv: no such file or folder"),
        (("effective-robustness", "model", "data/metadata.csv"), "run: model has no results.json"),
    ],
)
def test_bad_input_of_the_commands(workspace, arguments, message):
    assert message in error(clearhead(*arguments, cwd=workspace))
    assert not list((workspace / "runs").glob(f"{arguments[0]}-*"))
