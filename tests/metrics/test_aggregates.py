"""One number for many sets, against the definitions written out."""

from pathlib import Path

import numpy as np
import pytest

from clearhead.data.dataset import ImageIndex, Sample
from clearhead.metrics.aggregates import aggregate_metrics
from clearhead.models.class_names import imagenet_names
from clearhead.prediction.suite_predictions import SuitePredictions
from clearhead.shifts.corruptions import COMMON, corruption_sets, mean_corruption_error
from clearhead.shifts.sets import ClassMapping, ShiftedDataset, identity_mapping


def answers(predicted, label) -> SuitePredictions:
    predicted, label = np.array(predicted, dtype=object), np.array(label, dtype=object)
    ones = np.ones(len(label))
    file = np.array([f"{i}.png" for i in range(len(label))], dtype=object)
    return SuitePredictions(file, label, predicted, predicted == label, ones > 0, ones, ones, {})


def folder(classes, labels, groups=None) -> ImageIndex:
    groups = groups or [{} for _ in labels]
    samples = [
        Sample(f"{i}.png", Path(f"{i}.png"), classes.index(label), None, group)
        for i, (label, group) in enumerate(zip(labels, groups, strict=True))
    ]
    return ImageIndex(Path("data"), tuple(classes), tuple(samples), ())


def test_corruptions_have_a_mean_and_for_imagenet_an_mce():
    rng = np.random.default_rng(0)
    classes = imagenet_names("imagenet-1k")
    labels = [classes[i] for i in rng.integers(0, 1000, 60)]
    sets = corruption_sets(folder(classes, labels), {"all": identity_mapping(1000)})
    predictions = {one.name: answers([v if rng.random() < 0.7 else classes[0] for v in labels], labels) for one in sets}
    result = aggregate_metrics(sets, predictions)
    faces = corruption_sets(
        folder([f"face {i}" for i in range(1000)], ["face 1"] * 60), {"all": identity_mapping(1000)}
    )
    assert aggregate_metrics(faces, predictions).keys() == {
        "mean corruption accuracy"
    }  # of a thousand classes, but not ImageNet's
    assert aggregate_metrics(sets, predictions, imagenet=False).keys() == {"mean corruption accuracy"}
    accuracy = {name: [predictions[f"{name} {s}"].correct.mean() for s in range(1, 6)] for name in COMMON}
    assert result["mean corruption accuracy"].value == pytest.approx(np.mean(list(accuracy.values())))
    errors = {name: [1 - value for value in values] for name, values in accuracy.items()}
    assert result["mCE"].value == pytest.approx(mean_corruption_error(errors))
    assert result["mCE"].low < result["mCE"].value < result["mCE"].high
    assert aggregate_metrics(sets[1:], predictions) == {}
    broken = predictions[sets[7].name]
    saved = np.arange(60) != 11
    fewer = {
        name: getattr(broken, name)[saved] for name in SuitePredictions.__dataclass_fields__ if name != "unreadable"
    }
    result = aggregate_metrics(
        sets, predictions | {sets[7].name: SuitePredictions(**fewer, unreadable={"11.png": "truncated"})}
    )
    assert result["mCE"].count == 59  # one that cannot be read under a corruption counts under none


def test_shape_bias_is_of_the_decisions_for_either():
    classes = ["bear", "car", "cat", "dog"]
    textures = ["dog", "dog", "dog", "dog", "cat", "cat", None]
    data = folder(classes, ["cat"] * 7, [{"texture": t} if t else {} for t in textures])
    one = ShiftedDataset("cue-conflict", data, {"4 classes": ClassMapping(identity_mapping(4).outputs, 4, pool="mean")})
    predictions = answers(["cat", "cat", "dog", "car", "cat", "car", "cat"], ["cat"] * 7)
    result = aggregate_metrics([one], {one.name: predictions})["shape bias"]
    assert (result.value, result.count) == (pytest.approx(2 / 3), 3)


def test_the_background_gap_is_paired():
    data = folder(["a", "b"], ["a"] * 4)
    sets = [
        ShiftedDataset(f"imagenet-9 ({name})", data, {"9 classes": identity_mapping(2)})
        for name in ("mixed_same", "mixed_rand")
    ]
    predictions = {
        one.name: answers(list(result), ["a"] * 4) for one, result in zip(sets, ("aaab", "abbb"), strict=True)
    }
    assert aggregate_metrics(sets, predictions)["background gap"].value == pytest.approx(0.5)
    random = predictions[sets[1].name]
    other = SuitePredictions(**(vars(random) | {"file": np.array([f"x{i}" for i in range(4)], dtype=object)}))
    unpaired = aggregate_metrics(sets, predictions | {sets[1].name: other})["background gap"]
    assert unpaired.value == pytest.approx(0.5)
    assert unpaired.low < 0.5 < unpaired.high
