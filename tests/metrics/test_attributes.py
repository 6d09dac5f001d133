"""Gaps of accuracy between the values of attributes: which are compared, shown, or skipped with a reason."""

import re

import numpy as np
import pytest

from clearhead.analyses.attributes import gap_verdicts
from clearhead.metrics.attributes import OTHER_VALUES, attribute_gaps
from clearhead.metrics.statistics import newcombe_difference, proportion

ROWS = 400
LABEL = np.arange(ROWS) % 50


def values(*names: str) -> np.ndarray:
    """One value per image, cycling slowly enough that each class has all of them."""
    return np.array(names)[(np.arange(ROWS) // 50) % len(names)]


def test_two_values_have_one_gap_from_the_better_to_the_worse():
    watermark = values("no", "yes")
    correct = np.where(watermark == "no", LABEL % 7 != 0, LABEL % 2 == 0)
    (gap,) = attribute_gaps({"watermark": watermark}, correct, LABEL).gaps
    assert (gap.value, gap.baseline) == ("yes", "no")
    expected = newcombe_difference(*(proportion(correct[watermark == value]) for value in ("no", "yes")))
    np.testing.assert_allclose(
        [gap.gap.value, gap.gap.low, gap.gap.high], [expected.value, expected.low, expected.high]
    )
    assert gap.within_classes.value == pytest.approx(gap.gap.value)  # each class has as many images of both values
    assert gap.is_shown


def test_a_gap_that_classes_explain_is_not_shown():
    rng = np.random.default_rng(0)
    is_hard = LABEL < 25
    often = np.where(rng.random(ROWS) < np.where(is_hard, 0.8, 0.2), "yes", "no")  # more often in difficult classes
    correct = rng.random(ROWS) < np.where(is_hard, 0.4, 0.9)
    (gap,) = attribute_gaps({"watermark": often}, correct, LABEL).gaps
    assert gap.gap.high < 0
    assert gap.within_classes.low < 0 < gap.within_classes.high
    assert not gap.is_shown
    (gap,) = attribute_gaps({"watermark": np.where(is_hard, "yes", "no")}, correct, LABEL).gaps
    assert gap.within_classes is None
    assert not gap.is_shown


def test_each_of_several_values_is_compared_with_the_rest_at_a_simultaneous_level():
    scene = values("sea", "road", "field", "road")
    scene[:3] = "moon"
    correct = scene != "sea"
    correct[-5:] = False
    result = attribute_gaps({"scene": scene}, correct, LABEL)
    assert (result.gaps[0].value, result.gaps[0].baseline) == ("sea", OTHER_VALUES)
    assert {gap.value for gap in result.gaps} == {"sea", "road", "field"}  # three images on the moon are no group
    alone = attribute_gaps({"sea": scene == "sea"}, correct, LABEL).gaps[0].gap
    assert result.gaps[0].gap.low < alone.low < alone.high < result.gaps[0].gap.high
    assert result.gaps[0].gap.value == alone.value


def test_attributes_without_a_comparison_are_skipped_with_the_reason():
    columns = {
        "photographer": np.array([f"p{i}" for i in range(ROWS)]),
        "camera": np.full(ROWS, "one"),
        "flag": np.array(["x"] + ["-"] * (ROWS - 1)),
    }
    result = attribute_gaps(columns, np.ones(ROWS, bool), LABEL)
    assert result.gaps == []
    assert "400 different values" in result.skipped["photographer"]
    assert "one value (one)" in result.skipped["camera"]
    assert "10 images" in result.skipped["flag"]


def test_a_gap_that_is_not_shown_names_the_images_that_would_show_it():
    rng = np.random.default_rng(3)
    count, label = 120, np.arange(120) % 2
    wet = np.where(rng.random(count) < 0.5, "yes", "no")
    correct = rng.random(count) < np.where(wet == "yes", 0.7, 0.85)
    gaps = attribute_gaps({"wet": wet}, correct, label)
    [verdict] = gap_verdicts(gaps)
    assert verdict.word == "inconclusive"
    named = re.search(r"About ([\d,]+) images \(now 120\) would show the gap of wet = yes", verdict.sentence)
    images, shown = int(named[1].replace(",", "")), []
    rates = {value: correct[wet == value].mean() for value in ("yes", "no")}  # the observed difference is the true one
    for _ in range(60):
        more = np.where(rng.random(images) < (wet == "yes").mean(), "yes", "no")
        hits = rng.random(images) < np.where(more == "yes", rates["yes"], rates["no"])
        shown.append(attribute_gaps({"wet": more}, hits, np.arange(images) % 2).gaps[0].is_shown)
    assert np.mean(shown) == pytest.approx(0.8, abs=0.18)
    equal = attribute_gaps({"wet": wet}, np.full(count, True), label)
    assert gap_verdicts(equal)[0].sentence == "No gap of accuracy is shown between the values of wet."
    by_class = attribute_gaps({"wet": np.where(label == 0, "yes", "no")}, correct, label)  # no class has both
    assert "images" not in gap_verdicts(by_class)[0].sentence
