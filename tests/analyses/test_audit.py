"""An audit, as a function and as a command."""

import shutil

import numpy as np
import pyarrow.parquet
import pytest
import yaml

from clearhead.analyses import audit
from clearhead.data.images import read_images
from clearhead.errors import ClearheadError
from clearhead.models import load_model
from tests.command import clearhead, error, result
from tests.conftest import CLASSES


def test_an_audit_leaves_a_whole_run_and_is_made_only_one_time(workspace):
    run = clearhead("audit", "model", "data", "--out", "audit", "--split", "test", cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert "worst-group accuracy" in run.stdout
    numbers = result(workspace / "audit")["audit"]
    assert numbers["accuracy"]["count"] == 12
    assert set(numbers["groups"]) == {f"class={c}, ground={g}" for c in CLASSES for g in ("dark", "light")}
    assert set(numbers["interventions"]) == {"clean", "background removed", "background swapped", "background only"}
    table = pyarrow.parquet.read_table(workspace / "audit" / "predictions.parquet").to_pydict()
    correct = np.mean([a == b for a, b in zip(table["label"], table["predicted"], strict=True)])
    assert correct == numbers["accuracy"]["value"]
    assert yaml.safe_load((workspace / "audit" / "config.yaml").read_text())["command"] == "audit"
    assert "<html" in (workspace / "audit" / "report.html").read_text()
    assert len(list((workspace / "audit" / "images").iterdir())) == 2 * len(result(workspace / "audit")["examples"])

    before = (workspace / "audit" / "results.json").stat().st_mtime_ns
    again = clearhead("audit", "model", "data", "--out", "audit", "--split", "test", cwd=workspace)
    assert again.stdout == run.stdout
    assert (workspace / "audit" / "results.json").stat().st_mtime_ns == before
    other = error(clearhead("audit", "model", "data", "--out", "audit", cwd=workspace))
    assert "split was 'test', now None" in other


def test_the_function_gives_the_numbers_of_the_command(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    by_name = audit.measure("model", "data", split="test")
    model = load_model("model")
    by_object = audit.measure(model, read_images("data", split="test", classes=model.classes))
    assert by_name.audit == by_object.audit
    assert by_name.subject.data == "data, test split"
    assert [example.images[0][1].shape for example in by_name.examples] == [(32, 32, 3)] * 8
    limited = audit.measure("model", "data", limit=10)
    assert limited.audit.accuracy.count == 10


def test_bad_images_are_named_and_left_out(workspace):
    shutil.copytree(workspace / "data", workspace / "bad", ignore=shutil.ignore_patterns("metadata.csv"))
    (workspace / "bad" / "cat" / "torn.png").write_bytes((workspace / "data" / "cat" / "00.png").read_bytes()[:200])
    (workspace / "bad" / "dog").mkdir()
    shutil.copy(workspace / "data" / "cat" / "00.png", workspace / "bad" / "dog" / "00.png")
    run = clearhead("audit", "model", "bad", "--out", "bad-audit", cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert "cat/torn.png" in run.stderr
    assert "unknown-class" in run.stderr
    assert result(workspace / "bad-audit")["audit"]["accuracy"]["count"] == 36
    assert "Problems with the data" in (workspace / "bad-audit" / "report.html").read_text()


def test_heads_and_temperature_are_options(workspace):
    options = ["--heads", "--split", "test", "--temperature", "val", "--out", "with-heads"]
    run = clearhead("audit", "model", "data", *options, cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert "ECE at temperature" in run.stdout
    numbers = result(workspace / "with-heads")
    assert len(numbers["heads"]["heads"]) == 4
    assert numbers["scaled"]["images"] == 12
    page = (workspace / "with-heads" / "report.html").read_text()
    assert "Accuracy without each head" in page
    assert "Calibration at temperature" in page


@pytest.mark.filterwarnings("ignore:no temperature")
def test_calibration_is_given_without_and_with_a_temperature_of_another_split(workspace):
    model, data = str(workspace / "model"), workspace / "data"
    plain = audit.measure(model, data, split="test")
    scaled = audit.measure(model, data, split="test", temperature="val")
    assert plain.scaled is None
    assert scaled.scaled is not None
    assert (scaled.scaled.split, scaled.scaled.images) == ("val", 12)
    assert scaled.audit.accuracy == plain.audit.accuracy
    assert scaled.audit.calibration.loss == plain.audit.calibration.loss
    assert scaled.scaled.calibration.loss != scaled.audit.calibration.loss
    assert scaled.scaled.calibration.brier.count == 12
    sections = audit.page(scaled).sections
    assert any(section.title.startswith("Calibration at temperature") for section in sections)
    assert any("12 images of the split val" in section.text for section in sections)


@pytest.mark.parametrize("split", [None, "val"])
def test_a_temperature_is_judged_on_other_images(workspace, split):
    with pytest.raises(ClearheadError, match="judged on another"):
        audit.measure(str(workspace / "model"), workspace / "data", split=split, temperature="val")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model", "nowhere"], "no such folder"),
        (["timm:vit_tinny_patch16_224", "data"], "did you mean vit_tiny_patch16_224"),
        (["model.safetensors", "data"], "timm:ARCHITECTURE@"),
        (["model", "data", "--split", "tset"], "choose from train (12)"),
        (["model", "data", "--groups", "sky"], "sky"),
        (["model", "data", "--method", "lrp"], "input-gradient"),
        (["model", "data", "--out", "data"], "holds other files"),
    ],
)
def test_bad_input_ends_with_one_message(workspace, arguments, message):
    (workspace / "model.safetensors").touch()
    assert message in error(clearhead("audit", *arguments, cwd=workspace))
