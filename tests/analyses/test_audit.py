"""An audit, as a function and as a command."""

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
import yaml
from PIL import Image

from clearhead.analyses import audit
from clearhead.analyses.battery import ShortcutEffect
from clearhead.analyses.next_steps import next_steps
from clearhead.data.images import read_images
from clearhead.errors import ClearheadError
from clearhead.metrics.attributes import attribute_gaps
from clearhead.metrics.statistics import Estimate, proportion
from clearhead.models import Preprocessing, from_module, load_model
from clearhead.models.preprocessing import to_uint8
from clearhead.repairs.registry import REPAIRS
from clearhead.shifts.shortcuts import SHORTCUTS, watermark
from tests import cases
from tests.command import clearhead, error, result
from tests.conftest import CLASSES


def test_an_audit_leaves_a_whole_run_and_is_made_only_one_time(workspace):
    run = clearhead("audit", "model", "data", "--out", "audit", "--split", "test", cwd=workspace)
    assert run.returncode == 0, run.stderr
    numbers = result(workspace / "audit")["audit"]
    assert numbers["accuracy"]["count"] == 12
    # groups of two images each are counted and pooled, but none is the worst
    assert "worst-group accuracy" not in run.stdout
    assert (numbers["groups"], numbers["worst_group"]) == ({}, None)
    assert (numbers["small_group_count"], numbers["small_groups"]["count"]) == (6, 12)
    assert {effect["shortcut"] for effect in numbers["effects"]} == set(SHORTCUTS)
    assert "What this model relies on" in run.stdout
    assert "next: clearhead" in run.stdout
    table = pyarrow.parquet.read_table(workspace / "audit" / "predictions.parquet").to_pydict()
    correct = np.mean([a == b for a, b in zip(table["label"], table["predicted"], strict=True)])
    assert correct == numbers["accuracy"]["value"]
    assert yaml.safe_load((workspace / "audit" / "config.yaml").read_text())["command"] == "audit"
    assert "<html" in (workspace / "audit" / "report.html").read_text()
    saved = result(workspace / "audit")
    galleries = [saved[name] for name in ("changes", "mistakes", "examples")]
    assert all(galleries)
    assert len(list((workspace / "audit" / "images").iterdir())) == 2 * sum(map(len, galleries))

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


class BrightestChannel(torch.nn.Module):
    """Classify by the brightest channel: red squares are birds, green ones cats, blue ones fish."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return 20 * pixels.mean((2, 3))


@pytest.fixture(scope="module")
def watermarked(tmp_path_factory):
    """Squares of a class's colour, half of them with a blue watermark, and a metadata column that names them."""
    root, rng = tmp_path_factory.mktemp("watermarked"), np.random.default_rng(0)
    rows = ["file,watermark,photo"]
    for label, name in enumerate(CLASSES):
        (root / name).mkdir()
        for i in range(24):
            pixels = rng.integers(0, 60, (32, 32, 3)).astype(np.uint8)
            pixels[8:24, 8:24, label] = 255
            pixels[:, 4:, 2] = pixels[:, 4:, 2] if i % 2 else 255
            Image.fromarray(pixels).save(root / name / f"{i}.png")
            rows.append(f"{name}/{i}.png,{'no' if i % 2 else 'yes'},photo {name} {i}")
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")
    return root


def test_an_audit_leads_with_the_gap_of_an_attribute(watermarked):
    side = (32, 32)
    preprocess = Preprocessing(side, side, (0.5,) * 3, (0.5,) * 3)
    model = from_module(BrightestChannel(), preprocess=preprocess, classes=tuple(CLASSES))
    measured = audit.measure(model, watermarked)
    classes = next(section for section in audit.page(measured).sections if section.title == "Classes")
    assert [row.name for row in classes.rows[1:]] == ["bird", "cat", "fish"]  # 24 images each
    (gap,) = measured.attributes.gaps
    assert (gap.attribute, gap.value, gap.baseline) == ("watermark", "yes", "no")
    assert gap.gap.value == pytest.approx(-2 / 3)  # fish stay fish
    assert "72 different values" in measured.attributes.skipped["photo"]
    page = audit.page(measured)
    assert page.verdicts[0].word == "gap"
    assert "66.7 points lower where watermark = yes" in page.verdicts[0].sentence
    assert measured.audit.worst_group is not None
    assert measured.audit.worst_group[1].count == 12


@pytest.mark.slow
@pytest.mark.skipif("CLEARHEAD_DATA" not in os.environ, reason="CLEARHEAD_DATA names no folder of real images")
def test_the_gap_of_a_real_watermark_leads(tmp_path):
    folder = Path(os.environ["CLEARHEAD_DATA"])
    name = f"timm:deit_tiny_patch16_224@{folder / 'models' / 'deit_tiny_patch16_224.safetensors'}"
    model, rows = load_model(name), ["file,watermark"]
    for file in sorted((folder / "nips17").glob("n*/*")):
        (tmp_path / file.parent.name).mkdir(exist_ok=True)
        plain = model.preprocess.image(Image.open(file).convert("RGB"))[None]
        for value, pixels in (("no", plain), ("yes", watermark(plain, plain, ()))):
            path = f"{file.parent.name}/{file.stem}-{value}.png"
            bordered = np.pad(to_uint8(pixels[0]), ((12, 12), (12, 12), (0, 0)))  # 248 px, of which 224 are cropped
            Image.fromarray(bordered).save(tmp_path / path)
            rows.append(f"{path},{value}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows) + "\n")
    measured = audit.measure(model, tmp_path, battery=False)
    assert measured.audit.worst_group is None  # no class has ten images of a value
    verdict = audit.page(measured).verdicts[0]
    assert verdict.word == "gap"
    assert "where watermark = yes" in verdict.sentence
    assert measured.attributes.gaps[0].gap.value == pytest.approx(-0.125, abs=0.005)


def test_an_attribute_without_a_gap_is_inconclusive(workspace):
    measured = audit.measure(str(workspace / "model"), workspace / "data")
    verdict, _ = audit.page(measured).verdicts
    assert verdict.word == "inconclusive"
    assert "ground" in verdict.sentence


def test_mistakes_are_the_most_confident_ones_with_maps(workspace):
    measured = audit.measure(str(workspace / "model"), workspace / "data", battery=False)
    predictions = measured.predictions
    wrong = np.flatnonzero(~predictions.correct)
    expected = wrong[predictions.confidence[wrong].argsort()[::-1]][:8]
    assert measured.audit.confident_mistakes == predictions.file[expected].tolist()
    assert [example.text for example in measured.mistakes] == measured.audit.confident_mistakes
    assert [caption for caption, _ in measured.mistakes[0].images] == ["image", "map"]
    assert (measured.audit.effects, measured.changes, measured.masks) == ([], [], None)
    page = audit.page(measured)
    assert "Most confident mistakes" in [section.title for section in page.sections]
    assert "What this model relies on" not in [section.title for section in page.sections]


def test_an_audit_makes_masks_for_the_battery_and_says_so(workspace, maskless):
    measured = audit.measure(str(workspace / "model"), maskless)
    assert measured.masks is not None
    assert "background swapped" in [effect.name for effect in measured.audit.effects]
    assert measured.audit.relevance_mass is None  # the masks are made from the features that the maps explain
    table = next(s for s in audit.page(measured).sections if s.title == "What this model relies on")
    assert "made by TokenCut with this model" in table.text
    without = audit.measure(str(workspace / "model"), maskless, masks="none")
    assert without.masks is None
    assert "background swapped" not in [effect.name for effect in without.audit.effects]


def test_a_model_whose_attention_cannot_be_read_is_audited_without_masks_and_maps(tmp_path):
    model, rng = cases.classifier("timm-vit"), np.random.default_rng(0)
    for block in model.module.blocks:
        block.attn.fused_attn = False
    for name in model.classes:
        (tmp_path / name).mkdir()
        Image.fromarray(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(tmp_path / name / "0.png")
    measured = audit.measure(model, tmp_path)
    assert (measured.masks, measured.mistakes) == (None, [])
    assert "watermark" in [effect.name for effect in measured.audit.effects]
    assert measured.audit.accuracy.value < 1
    classes = next(section for section in audit.page(measured).sections if section.title == "Classes")
    assert len(classes.rows) == 1
    assert "5 classes of fewer than 10 images are not listed" in classes.text
    with pytest.raises(ClearheadError, match="no attention call"):
        audit.measure(model, tmp_path, method="gae")


def effect(shortcut, difference):
    interval = difference - 0.01, difference + 0.01
    return ShortcutEffect(
        shortcut, proportion(np.ones(9)), proportion(np.ones(9)), Estimate(difference, *interval, 9, "pp"), 0.1, True
    )


def test_the_next_steps_follow_from_the_findings(watermarked):
    data, label = str(watermarked), np.arange(100) % 2
    no_gaps = attribute_gaps({}, np.ones(100, bool), label)
    gaps = attribute_gaps({"hospital": np.repeat(["a", "b"], 50)}, np.repeat([True, False], 50), label)
    effects = [effect("colour-removed", -0.5), effect("watermark", -0.3), effect("sticker", -0.2)]
    first, second = next_steps("timm:a b", data, effects, no_gaps)
    assert first.command == ("clearhead repair 'timm:a b' TRAINING_DATA --method counterfactual --shortcuts watermark")
    assert second.command == "clearhead tag 'timm:a b' TRAINING_DATA"
    first, second = next_steps("model", data, [], gaps, limit=10, split="test")
    assert first.command == "clearhead repair model TRAINING_DATA --method dfr --groups hospital"
    assert second.command == f"clearhead audit model {data} --split test"
    assert next_steps("model", data, [effect("background-only", 0.0)], gaps)[1:] == []


def test_a_next_step_trains_on_the_splits_of_the_data(workspace):
    data = str(workspace / "data")
    gaps = attribute_gaps({"ground": np.repeat(["a", "b"], 50)}, np.repeat([True, False], 50), np.arange(100) % 2)
    (step,) = next_steps("model", data, [], gaps, split="test")
    assert step.command == f"clearhead repair model {data} --method dfr --groups ground"
    assert {"dfr", "counterfactual"} <= REPAIRS.keys()


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
