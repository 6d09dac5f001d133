"""Slices: planted groups are found without their labels, and pure noise gives none more often than it may."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import timm
import torch
from PIL import Image
from scipy.stats import fisher_exact

from clearhead.analyses import slices
from clearhead.analyses.slices import find_slices
from clearhead.metrics.statistics import holm
from clearhead.models import load_model, save_model
from clearhead.report.page import ExampleImages
from clearhead.runs import read_run
from tests.command import clearhead, error

CLASSES = ["ant", "bee", "cow"]


def planted(seed: int = 0, count: int = 900) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Features and maps that hold a hidden group besides the class; of bees of the group most are predicted as ants."""
    rng = np.random.default_rng(seed)
    label, hidden = rng.integers(0, 3, count), rng.random(count) < 0.3
    features = rng.normal(size=(count, 12)) + 6 * np.eye(12)[label] + 4 * hidden[:, None] * np.eye(12)[5]
    maps = rng.random((count, 4, 4)) * 0.2
    maps[np.arange(count), np.where(hidden, 0, 3), 2] += 1
    wrong = rng.random(count) < np.where((label == 1) & hidden, 0.8, 0.05)
    predicted = np.where(wrong, np.where(label == 1, 0, (label + 1) % 3), label)
    return features, maps, label, predicted, ["on a leaf" if h else "elsewhere" for h in hidden]


def files(count: int) -> list[str]:
    return [f"{i:04d}.png" for i in range(count)]


@pytest.mark.parametrize("space", ["features", "relevance", "both"])
def test_a_planted_group_is_found_and_told_by_its_metadata(space):
    features, maps, label, predicted, workspace = planted()
    x = features if space != "relevance" else None
    measured = find_slices(
        x, maps if space != "features" else None, label, predicted, CLASSES, files(900), {"place": workspace}
    )
    first = measured.slices[0]
    assert (first.label, first.mistaken_for, first.worse) == ("bee", "ant", True)
    assert first.error.value > 0.6
    assert first.rest.value < 0.25
    overlap = first.overlaps[0]
    assert (overlap.column, overlap.value) == ("place", "on a leaf")
    assert overlap.inside > 0.9
    assert overlap.outside < 0.2
    inside = measured.assigned[measured.held_out] == first.name
    assert first.error.count == inside.sum()
    rows = [files(900).index(file) for file in first.files]
    assert rows
    assert (measured.held_out[rows] & (measured.assigned[rows] == first.name) & (label != predicted)[rows]).all()


def test_the_numbers_are_those_of_the_half_that_found_nothing():
    features, maps, label, predicted, _ = planted()
    measured = find_slices(features, maps, label, predicted, CLASSES, files(900))
    wrong = label != predicted
    assert sum(measured.held_out) == pytest.approx(450, abs=2)
    raw = []
    for part in measured.slices:
        of_class = measured.held_out & (label == CLASSES.index(part.label))
        inside = of_class & (measured.assigned == part.name)
        assert part.error.value == pytest.approx(wrong[inside].mean())
        assert (part.error.count, part.rest.count) == (inside.sum(), (of_class & ~inside).sum())
        table = [[(wrong & inside).sum(), (~wrong & inside).sum()]]
        rest = of_class & ~inside
        raw.append(fisher_exact([*table, [(wrong & rest).sum(), (~wrong & rest).sum()]], alternative="greater").pvalue)
    np.testing.assert_allclose([part.p_value for part in measured.slices], holm(np.array(raw)), atol=1e-9)
    assert raw == sorted(raw)


def test_which_half_and_which_part_depend_on_the_seed_alone():
    features, maps, label, predicted, _ = planted()
    a, b, c = (find_slices(features, maps, label, predicted, CLASSES, files(900), seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a.assigned, b.assigned)
    assert (a.held_out != c.held_out).any()
    # on the half that is held out, what was predicted decides no image's part
    other = np.where(a.held_out, (label + 1) % 3, predicted)
    d = find_slices(features, maps, label, other, CLASSES, files(900))
    np.testing.assert_array_equal(a.assigned, d.assigned)


def _flagged_in_noise(runs: int) -> int:
    """In how many of so many runs on pure noise any slice is flagged as worse."""
    flagged = 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        label = rng.integers(0, 2, 240)
        predicted = np.where(rng.random(240) < 0.35, 1 - label, label)
        x = rng.normal(size=(240, 5))
        flagged += any(
            part.worse for part in find_slices(x, None, label, predicted, CLASSES, files(240), seed=seed).slices
        )
    return flagged


def test_noise_rarely_gives_a_slice():
    assert _flagged_in_noise(12) <= 3  # 4 or more: 0.2% at 5%


@pytest.mark.slow
def test_noise_gives_a_slice_no_more_often_than_it_may():
    assert _flagged_in_noise(100) <= 12  # 13 or more: 0.2% at 5%


def test_a_class_with_few_images_and_one_without_mistakes():
    rng = np.random.default_rng(0)
    few = find_slices(rng.normal(size=(20, 3)), None, np.arange(20) % 2, np.zeros(20, int), CLASSES, files(20))
    assert few.slices == []
    assert (few.assigned == "").all()
    x = np.concatenate([rng.normal(size=(60, 3)), 9 + rng.normal(size=(60, 3))])
    correct = find_slices(x, None, np.zeros(120, int), np.zeros(120, int), CLASSES, files(120))
    assert len(correct.slices) > 1
    assert all((part.p_value, part.files, part.mistaken_for) == (1, [], "") for part in correct.slices)
    same = find_slices(
        np.ones((120, 3)), np.zeros((120, 2, 2)), np.zeros(120, int), np.arange(120) % 2, CLASSES, files(120)
    )
    assert all(part.p_value <= 1 for part in same.slices)  # features that do not differ break nothing


@pytest.mark.parametrize(
    ("features", "maps", "message"),
    [
        (None, None, "both are None; pass one of them or both"),
        (np.zeros((3, 2)), None, "features: got 3 rows for 4 labels; one row per image"),
        (None, np.full((4, 2, 2), np.nan), "maps: 4 images have values that are not finite"),
    ],
)
def test_features_that_cannot_be_used_are_refused(features, maps, message):
    with pytest.raises(ValueError, match=message):
        find_slices(features, maps, np.zeros(4, int), np.zeros(4, int), CLASSES, files(4))
    with pytest.raises(ValueError, match="3 files"):
        find_slices(np.zeros((4, 2)), None, np.zeros(4, int), np.zeros(4, int), CLASSES, files(3))


# The verbs


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and squares of two colours on two grounds, in two splits."""
    root, rng, rows = tmp_path_factory.mktemp("slices"), np.random.default_rng(0), ["file,split,ground"]
    torch.manual_seed(0)
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    module = timm.create_model("vit_tiny_patch16_224", num_classes=2, **size)
    timm.models.save_for_hf(module, root / "hub", model_config={"model_args": size, "label_names": ["ant", "bee"]})
    save_model(load_model(str(root / "hub")), root / "model")
    for label, name in enumerate(["ant", "bee"]):
        (root / "data" / name).mkdir(parents=True)
        for i in range(60):
            pixels = rng.integers(0, 60, (32, 32, 3)) + 150 * (i % 2)
            pixels[8:24, 8:24, label] = 255
            Image.fromarray(pixels.astype(np.uint8)).save(root / "data" / name / f"{i:02d}.png")
            rows.append(f"{name}/{i:02d}.png,{'val' if i < 6 else 'test'},{['dark', 'light'][i % 2]}")
    (root / "data" / "metadata.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.mark.parametrize("space", ["features", "relevance", "both"])
def test_slices_leave_a_whole_run(workspace, space):
    out = workspace / f"slices-{space}"
    arguments = ("slices", "model", "data", "--split", "test", "--space", space, "--out", out)
    run = clearhead(*arguments, cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert {file.name for file in out.iterdir()} >= {"config.yaml", "results.json", "report.html", "slices.parquet"}
    saved = read_run(out).result
    assert f"{sum(part.worse for part in saved.slices)} of {len(saved.slices)} have more errors" in run.stdout
    table = pyarrow.parquet.read_table(out / "slices.parquet").to_pydict()
    assert len(table["file"]) == saved.accuracy.count == 108
    assert sum(table["held out"]) == saved.held_out == 54
    assert {part.name for part in saved.slices} <= set(table["slice"])
    assert "slices with more errors" in (out / "report.html").read_text()
    stamp = (out / "results.json").stat().st_mtime_ns
    again = clearhead(*arguments, cwd=workspace)
    assert (again.stdout, "finished earlier" in again.stderr) == (run.stdout, True)
    assert (out / "results.json").stat().st_mtime_ns == stamp
    measured = slices.measure(str(workspace / "model"), workspace / "data", split="test", space=space)
    assert (measured.slices, measured.accuracy) == (saved.slices, saved.accuracy)


def test_the_page_shows_mistakes_of_the_slices_that_are_worse(workspace):
    measured = slices.measure(str(workspace / "model"), workspace / "data", split="test", space="features")
    first, *others = measured.slices
    example = ExampleImages([("image", np.zeros((8, 8, 3), np.uint8))], "ant: bee (90%)", "ant/00.png")
    shown = [replace(first, p_value=0.001), *(replace(one, p_value=1.0) for one in others)]
    page = slices.page(replace(measured, slices=shown, examples=[[example]]))
    assert page.sections[0].title == f"Slices: 1 of {len(shown)} have more errors than the rest of their class"
    assert [section.title for section in page.sections[1:]] == [f"Slice {first.name}"]
    assert "Column ground: " in page.sections[1].text
    assert [name for name, _ in page.headline] == ["Accuracy", f"Errors in slice {first.name}"]


def test_slices_that_cannot_be_found(workspace, tmp_path):
    def message(*arguments):
        return error(clearhead("slices", *arguments, cwd=workspace))

    assert "'pixels'" in message("model", "data", "--space", "pixels")
    assert "method: 'lrp' is unknown" in message("model", "data", "--method", "lrp")
    assert "nowhere: no such folder" in message("model", "nowhere")
    assert "model: modle" in message("modle", "data")
    assert "out: data holds other files" in message("model", "data", "--out", "data")
    (tmp_path / "wasp").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "wasp" / "0.png")
    assert "no class folder is a class of the model" in message("model", tmp_path)
