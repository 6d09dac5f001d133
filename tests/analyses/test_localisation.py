"""Maps as segmentations against torchmetrics, scikit-learn and the public code's way of adding up."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import average_precision_score
from torchmetrics.functional.classification import binary_jaccard_index
from torchmetrics.functional.classification import multiclass_jaccard_index as jaccard

from clearhead.analyses.localisation import localisation, measure, segmentation, usable
from clearhead.attribution import explain
from clearhead.data.dataset import ImageIndex
from clearhead.data.folder import read_folder
from clearhead.data.image_io import DataError
from clearhead.data.loading import ImageDataset
from tests.attribution.test_explain import classifier
from tests.cases import CLASSES
from tests.command import clearhead, error, result


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> ImageIndex:
    """Noise of five classes, 4 images each: masks of a rectangle, but one missing and one all foreground."""
    root, rng = tmp_path_factory.mktemp("masked"), np.random.default_rng(0)
    for label in range(CLASSES):
        (root / f"c{label}").mkdir()
        (root / "masks" / f"c{label}").mkdir(parents=True)
        for i in range(4):
            pixels, mask = rng.integers(0, 255, (32, 32, 3)), np.zeros((32, 32))
            top, left = rng.integers(0, 16, 2)
            mask[top : top + 14, left : left + 14] = 255
            if (label, i) == (0, 0):
                mask[:] = 255
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"c{label}" / f"{i}.png")
            if (label, i) != (1, 0):
                Image.fromarray(mask.astype(np.uint8)).save(root / "masks" / f"c{label}" / f"{i}.png")
    return read_folder(root)


@st.composite
def maps_and_masks(draw) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps of few different values, so that many are equal, some maps constant, and masks of both kinds of pixels."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    count, levels = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 5, 10**6]))
    maps = torch.randint(levels, (count, 6, 7), generator=generator) / max(levels - 1, 1)
    masks = torch.rand(count, 6, 7, generator=generator) < draw(st.floats(0, 1))
    masks[:, 0, 0], masks[:, 0, 1] = True, False
    return maps, masks


@settings(deadline=None, max_examples=30)
@given(maps_and_masks())
def test_of_each_image_it_is_torchmetrics_and_scikit_learns(case):
    maps, masks = case
    outcome = segmentation(maps, masks)
    for i, (map_, mask) in enumerate(zip(maps, masks, strict=True)):
        predicted = map_ > map_.double().mean() if map_.min() < map_.max() else torch.zeros_like(mask)
        expected = (binary_jaccard_index(predicted, mask) + binary_jaccard_index(~predicted, ~mask)) / 2
        np.testing.assert_allclose(outcome.iou[i], expected, rtol=1e-6)
        np.testing.assert_allclose(outcome.correct[i], (predicted == mask).float().mean(), rtol=1e-6)
        values, truth = map_.flatten().numpy(), mask.flatten().numpy()
        np.testing.assert_allclose(outcome.precision[i], average_precision_score(truth, values), rtol=1e-5)
        pooled = average_precision_score(np.r_[truth, ~truth], np.r_[values, 1 - values])
        np.testing.assert_allclose(outcome.pooled_precision[i], pooled, rtol=1e-5)


def test_a_map_that_is_the_mask_is_perfect_and_a_constant_one_is_nothing():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, :4, :4] = True
    perfect = segmentation(mask.float(), mask)
    assert (perfect.correct, perfect.iou, perfect.precision, perfect.pooled_precision) == (1, 1, 1, 1)
    for value in (0.0, 0.1, 0.3, 1.0):
        constant = segmentation(torch.full((1, 8, 8), value), mask)
        assert constant.correct == 0.75
        assert constant.iou == 0.375
        np.testing.assert_allclose(constant.precision, 0.25)


def test_over_a_folder_pixels_are_added_up(folder):
    model = classifier("timm-vit")
    model.module.train()
    outcome = localisation(model, folder, batch_size=7, progress=lambda batches, count, description: batches)
    assert model.module.training
    model.module.eval()
    items = [ImageDataset(folder, model.preprocess)[i] for i in range(20)]
    masked = [item for item in items if item["has_mask"] and not item["mask"].all()]
    images, masks = (
        torch.stack([i["image"] for i in masked]),
        torch.stack([i["mask"][0] for i in masked]) > 0.5,
    )
    maps = explain(model, images)  # in one batch: rounding can turn the order of two pixels
    predicted = maps > maps.mean((1, 2), keepdim=True)
    expected = jaccard(predicted.long(), masks.long(), 2, average="macro")
    np.testing.assert_allclose(outcome.iou.value, expected, rtol=1e-3)
    np.testing.assert_allclose(outcome.pixel_accuracy.value, (predicted == masks).float().mean(), rtol=1e-3)
    np.testing.assert_allclose(outcome.image_iou.value, outcome.overlap.iou.mean())
    precision = [average_precision_score(m.flatten(), v.flatten()) for m, v in zip(masks, maps, strict=True)]
    np.testing.assert_allclose(outcome.precision.value, np.mean(precision), rtol=1e-3)
    assert outcome.file.tolist() == [folder.samples[i["index"]].file for i in masked]
    assert outcome.excluded == {"no usable mask": 2}
    assert outcome.method == "gae"
    np.testing.assert_allclose(outcome.area.value, masks.float().mean(), rtol=1e-5)
    for estimate in (
        outcome.pixel_accuracy,
        outcome.iou,
        outcome.image_iou,
        outcome.precision,
        outcome.pooled_precision,
    ):
        assert estimate.low < estimate.value < estimate.high
        assert (estimate.count, estimate.unit) == (18, "%")


def test_only_right_predictions_where_they_alone_count(folder):
    model = classifier("timm-swin")
    outcome, every = localisation(model, folder, correct_only=True), localisation(model, folder)
    items = [ImageDataset(folder, model.preprocess)[i] for i in range(20)]
    with torch.no_grad():
        predicted = model(torch.stack([item["image"] for item in items])).argmax(1).tolist()
    correct = {s.file for s, label in zip(folder.samples, predicted, strict=True) if label == s.label}
    assert outcome.file.tolist() == [file for file in every.file if file in correct]
    assert 0 < len(outcome.file) < 18
    assert outcome.excluded == {"no usable mask": 2, "wrong prediction": 18 - len(outcome.file)}
    assert outcome.method == "input-gradient"
    np.testing.assert_array_equal(outcome.overlap.iou, every.overlap.iou[np.isin(every.file, outcome.file)])


def test_one_image_has_no_interval(folder):
    outcome = localisation(classifier("timm-vit"), replace(folder, samples=folder.samples[-1:]), method="rollout")
    assert outcome.iou.count == 1
    assert np.isnan(outcome.iou.low)
    np.testing.assert_allclose(outcome.iou.value, outcome.image_iou.value)


def test_what_cannot_be_measured(folder):
    model = classifier("timm-vit")
    bare = replace(folder, samples=tuple(replace(sample, mask=None) for sample in folder.samples))
    with pytest.raises(DataError, match=r"no image is left to compare a map with \(20 of 20: no usable mask\)"):
        localisation(model, bare)
    mislabelled = replace(folder, samples=tuple(replace(sample, label=-1) for sample in folder.samples))
    with pytest.raises(DataError, match="2 of 20: no usable mask, 18 of 20: wrong prediction"):
        localisation(model, mislabelled, correct_only=True)
    with pytest.raises(ValueError, match="method: 'guess' is unknown"):
        localisation(model, folder, method="guess")
    maps, masks = torch.rand(2, 4, 4), torch.eye(4, dtype=torch.bool).expand(2, 4, 4)
    with pytest.raises(ValueError, match="B x H x W both"):
        segmentation(maps, masks[:, :2])
    with pytest.raises(ValueError, match="without NaN"):
        segmentation(maps * torch.nan, masks)
    with pytest.raises(ValueError, match="masks: 2 of 2 are all foreground or all background"):
        segmentation(maps, torch.ones_like(masks))
    assert usable(torch.stack([masks[0], torch.zeros(4, 4) > 0, torch.ones(4, 4) > 0])).tolist() == [True, False, False]


def test_the_command_measures_models_and_methods(workspace, other):
    arguments = ("localize", "model", "other", "data", "--methods", "all", "--split", "test", "--out", "localize")
    run = clearhead(*arguments, cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert "mIoU" in run.stdout
    assert "other, gae" in run.stdout
    models = result(workspace / "localize")["models"]
    assert models["model"].keys() >= {"gae", "rollout", "attnlrp", "input-gradient"}
    assert models["other"]["gae"]["iou"]["count"] == 12
    assert "other, rollout" in (workspace / "localize" / "report.html").read_text()
    outcome = measure([str(workspace / "model")], workspace / "data", split="test", methods=["gae"]).models["model"][
        "gae"
    ]
    assert outcome.iou.value == models["model"]["gae"]["iou"]["value"]
    assert outcome.area.value == pytest.approx(0.28, abs=0.01)  # a quarter, before the centre crop


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model", "nowhere"), "data: nowhere: no such folder or file"),
        (("model", "maskless"), "no image is left to compare a map with"),
        (("model", "data", "--methods", "lime"), "method: 'lime' is unknown"),
        (("model", "two", "data"), "models: the classes differ"),
        (("model", "data", "--out", "data"), "out: data holds other files"),
    ],
)
def test_bad_input_of_the_command(workspace, maskless, two, arguments, message):
    before = sorted(workspace.glob("runs/*"))
    assert message in error(clearhead("localize", *arguments, cwd=workspace))
    assert sorted(workspace.glob("runs/*")) == before
