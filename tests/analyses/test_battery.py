"""The shortcut battery: what a model is shown to rely on, with masks of the data, made by the model, or none."""

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from clearhead.analyses import battery
from clearhead.data.images import read_images
from clearhead.masks.automatic import add_masks
from clearhead.metrics.statistics import Estimate, accuracy_difference
from clearhead.models import Classifier, Preprocessing, as_classifier, from_module
from clearhead.shifts.shortcuts import SHORTCUTS
from tests import cases
from tests.command import clearhead, error, result
from tests.conftest import CLASSES

BACKGROUND = {"background swapped", "background removed", "background only"}


class BrightestChannel(torch.nn.Module):
    """Classify by the brightest channel: red is a bird, green a cat, blue a fish."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return 20 * pixels.mean((2, 3))


def colour_model() -> Classifier:
    preprocess = Preprocessing((32, 32), (32, 32), (0.5,) * 3, (0.5,) * 3)
    return from_module(BrightestChannel(), preprocess=preprocess, classes=tuple(CLASSES))


def write_scenes(root: Path, *, coloured: str) -> Path:
    """24 squares of each class on a noisy background, with masks; the class's colour is that of one of the two."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        for folder in (root / name, root / "masks" / name):
            folder.mkdir(parents=True)
        for i in range(24):
            pixels = rng.integers(0, 60, (32, 32, 3)).astype(np.uint8)
            inside = np.zeros((32, 32), bool)
            inside[8:24, 8:24] = True
            pixels[inside == (coloured == "object"), label] = 255
            Image.fromarray(pixels).save(root / name / f"{i}.png")
            Image.fromarray(inside).save(root / "masks" / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def on_background(tmp_path_factory) -> battery.BatteryResult:
    root = write_scenes(tmp_path_factory.mktemp("background"), coloured="background")
    return battery.measure(colour_model(), root, batch_size=24)


def test_a_model_that_reads_the_background_is_shown_to(on_background):
    effects = {effect.name: effect for effect in on_background.effects}
    assert set(effects) == {name.replace("-", " ") for name in SHORTCUTS}
    assert effects["background swapped"].is_shown
    assert effects["background swapped"].difference.value < -0.4
    only = effects["background only"]
    assert only.is_shown
    assert (only.accuracy.value, only.chance) == (1, pytest.approx(1 / 3))
    assert on_background.effects[-1] is only  # it is read differently
    drops = [effect.difference.value for effect in on_background.effects[:-1]]
    assert drops == sorted(drops)
    (verdict,) = battery.page(on_background).verdicts
    assert verdict.word == "reliance"
    assert "the background (background swapped: " in verdict.sentence
    assert "background only: 100.0%, chance level 33.3%" in verdict.sentence
    assert "colour" not in verdict.sentence


def test_a_drop_that_changes_the_object_is_no_verdict(tmp_path):
    measured = battery.measure(colour_model(), write_scenes(tmp_path, coloured="object"))
    colour = next(effect for effect in measured.effects if effect.name == "colour removed")
    assert colour.difference.value == pytest.approx(-2 / 3)
    assert not colour.is_shown
    assert battery.page(measured).verdicts[0].word == "inconclusive"


def test_differences_are_paired_and_hold_simultaneously(on_background):
    predictions = on_background.predictions
    for effect in on_background.effects:
        after = predictions.interventions[effect.name] == predictions.label
        assert effect.accuracy.value == after.mean()
        assert effect.difference.value == pytest.approx(after.mean() - predictions.correct.mean())
        alone = accuracy_difference(predictions.correct, after)
        assert effect.difference.low < alone.low or math.isclose(effect.difference.low, -1)
        assert effect.difference.high > alone.high


def test_each_example_is_an_image_that_shows_the_reliance(on_background):
    by_name = {example.title: example for example in on_background.examples}
    assert [example.title for example in on_background.examples] == [effect.name for effect in on_background.effects]
    swapped, only = by_name["background swapped"], by_name["background only"]
    predictions = on_background.predictions
    for example, is_correct in ((swapped, False), (only, True)):
        row = predictions.file.tolist().index(example.text.split("; ")[1])
        assert (predictions.interventions[example.title][row] == predictions.label[row]) == is_correct
        (before, clean), (after, changed) = example.images
        assert CLASSES[predictions.label[row]] in before
        assert CLASSES[predictions.interventions[example.title][row]] in after
        assert clean.shape == changed.shape == (32, 32, 3)
        assert (clean != changed).any()


def test_the_command_writes_a_run(workspace):
    run = clearhead("battery", "model", "data", "--split", "test", "--out", "battery", cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert "What this model relies on" in run.stdout
    assert len(result(workspace / "battery")["effects"]) == len(SHORTCUTS)
    table = pyarrow.parquet.read_table(workspace / "battery" / "predictions.parquet").to_pydict()
    assert len(table["predicted, watermark"]) == 12
    page = (workspace / "battery" / "report.html").read_text()
    assert page.count("<img") == 2 * len(SHORTCUTS)
    again = clearhead("battery", "model", "data", "--split", "test", "--out", "battery", cwd=workspace)
    assert again.stdout == run.stdout


def test_the_model_makes_masks_where_the_data_has_none(workspace, maskless):
    model = str(workspace / "model")
    measured = battery.measure(model, maskless, batch_size=12)
    assert measured.masks is not None
    assert measured.masks.images == 36
    index, _ = add_masks(as_classifier(model), read_images(maskless, classes=CLASSES), batch_size=12)
    assert (
        sum(sample.mask is not None for sample in index.samples) == measured.masks.masks == measured.subject.masks > 0
    )
    counts = {effect.name: effect.accuracy.count for effect in measured.effects}
    assert counts["background removed"] == measured.masks.masks
    assert counts["watermark"] == 36
    text = battery.page(measured).sections[1].text
    assert f"made by TokenCut with this model, of 36 images; the {measured.masks.masks} that" in text
    without = battery.measure(model, maskless, masks="none")
    assert without.masks is None
    assert {effect.name for effect in without.effects} == {n.replace("-", " ") for n in SHORTCUTS} - BACKGROUND
    assert "No image has a mask" in battery.page(without).sections[1].text


def test_masks_of_the_data_are_used_where_there_are_some(workspace):
    measured = battery.measure(
        str(workspace / "model"), workspace / "data", split="test", shortcuts=["background-only"]
    )
    assert measured.masks is None
    assert measured.subject.masks == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shortcuts", "waterwark"], "shortcuts: 'waterwark' is unknown; choose from watermark"),
        (["--shortcuts", "background-only", "--masks", "none"], "background-only needs foreground masks"),
        (["--masks", "some"], "'some' is not one of"),
    ],
)
def test_bad_input_ends_with_one_message(workspace, maskless, options, message):
    assert message in error(clearhead("battery", "model", maskless, *options, cwd=workspace))


def test_a_model_without_a_token_grid_has_no_rows_of_the_background(maskless):
    model = colour_model()
    measured = battery.measure(model, maskless)
    assert measured.masks is None
    assert not BACKGROUND & {effect.name for effect in measured.effects}
    with pytest.raises(ValueError, match="background-only needs foreground masks"):
        battery.measure(model, maskless, shortcuts=["background-only"])


def test_masks_in_memory_are_those_of_files(maskless, tmp_path):
    from clearhead.masks import write_masks

    model = cases.classifier("timm-vit")
    index = read_images(maskless)
    in_memory, made = add_masks(model, index)
    written = write_masks(maskless, tmp_path / "masked", model)
    assert (made.images, made.masks) == (written.images, written.masks)
    assert made.masks > 0
    by_file = {sample.file: sample.mask for sample in read_images(tmp_path / "masked").samples}
    for sample in in_memory.samples:
        mask = by_file[sample.file]
        assert (sample.mask is None) == (mask is None)
        if mask is not None:
            np.testing.assert_array_equal(np.asarray(sample.mask.open()), np.asarray(Image.open(mask)) > 0)


def test_a_drop_that_is_not_shown_names_the_images_that_would_show_it():
    def effect(shortcut: str, value: float, half: float) -> battery.ShortcutEffect:
        share = Estimate(0.5, 0.4, 0.6, 100, "%")
        change = Estimate(value, value - half, value + half, 100, "pp")
        return battery.ShortcutEffect(shortcut, share, share, change, 0.3, False)

    effects = [effect("watermark", -0.04, 0.06), effect("sticker", -0.03, 0.06), effect("colour-removed", -0.05, 0.06)]
    verdict = battery.battery_verdict(effects)
    # z = 2.394 for three simultaneous intervals, 0.842 for a power of 80%: 100 (6 / 4 (2.394 + 0.842) / 2.394)^2
    assert "About 420 images (now 100) would show the drop under watermark (−4.0 pp)" in verdict.sentence
    small = battery.battery_verdict([effect("sticker", -0.01, 0.06)])  # too small for a finding, however many images
    assert small.sentence == "No reliance on anything but the object is shown."
