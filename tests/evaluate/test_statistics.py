"""Numbers and intervals against closed forms, peers, and simulated coverage."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from torchmetrics.functional.classification import multiclass_calibration_error

from clearhead.evaluate.calibration import confidence_bins, expected_calibration_error
from clearhead.evaluate.statistics import (
    Estimate,
    accuracy_difference,
    by_group,
    interval,
    mcnemar,
    mean,
    mean_difference,
    number,
    proportion,
    worst_group,
    worst_group_difference,
)

answers = st.lists(st.booleans(), min_size=1, max_size=60).map(lambda values: np.array(values))
pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60).map(lambda v: np.array(v).T)


@given(answers)
def test_a_share_has_wilsons_interval(correct):
    n, p, z = len(correct), correct.mean(), norm.ppf(0.975)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = proportion(correct)
    np.testing.assert_allclose([found.value, found.low, found.high], [p, middle - half, middle + half], atol=1e-9)
    assert (found.count, found.unit) == (n, "%")


def test_a_share_of_nothing_is_not_a_number():
    found = proportion(np.array([], bool))
    assert math.isnan(found.value)
    assert found.count == 0


@given(pairs)
def test_a_paired_difference_holds_its_value_and_turns_with_its_sign(pair):
    before, after = pair
    there, back = accuracy_difference(before, after), accuracy_difference(after, before)
    np.testing.assert_allclose(there.value, after.mean() - before.mean(), atol=1e-12)
    np.testing.assert_allclose([there.low, there.high], [-back.high, -back.low], atol=1e-12)
    assert -1 <= there.low <= there.value <= there.high <= 1


@given(pairs)
def test_mcnemar_is_the_exact_sign_test_of_the_flips(pair):
    before, after = pair
    found = mcnemar(before, after)
    n = found.gained + found.lost
    assert found.gained == (~before & after).sum()
    assert found.lost == (before & ~after).sum()
    tail = sum(math.comb(n, k) for k in range(min(found.gained, found.lost) + 1)) / 2**n
    np.testing.assert_allclose(found.p_value, min(1, 2 * tail))


def test_the_mean_and_its_interval_are_those_of_a_normal_sample():
    values = np.random.default_rng(0).normal(3, 2, 4000)
    found, half = mean(values, "nats"), 1.96 * values.std() / math.sqrt(4000)
    np.testing.assert_allclose([found.value, found.low, found.high], values.mean() + np.array([0, -half, half]), atol=5e-3)
    assert mean(values, "nats") == found  # the seed decides
    assert math.isnan(mean(values[:1]).low)


def test_a_mean_difference_is_paired():
    before = np.random.default_rng(0).normal(0, 100, 500)
    found = mean_difference(before, before + 1.0)
    np.testing.assert_allclose([found.low, found.value, found.high], 1, atol=1e-9)


def test_groups_and_the_worst_of_them():
    correct = np.array([1, 1, 0, 1, 0, 0], bool)
    groups = ["b", "b", "b", "a", "a", "c"]
    found = by_group(correct, groups)
    assert {name: (e.value, e.count) for name, e in found.items()} == {"a": (0.5, 2), "b": (2 / 3, 3), "c": (0, 1)}
    name, worst = worst_group(correct, groups)
    assert (name, worst.value, worst.count) == ("c", 0, 1)
    assert worst.low <= min(e.low for e in found.values())


def test_the_worst_groups_interval_covers_the_worst_true_accuracy():
    rng, true, sizes = np.random.default_rng(0), [0.7, 0.72, 0.75, 0.9], [60, 40, 80, 200]
    groups = np.repeat(["a", "b", "c", "d"], sizes)
    covered = 0
    for _ in range(400):
        correct = np.concatenate([rng.random(n) < p for p, n in zip(true, sizes, strict=True)])
        _, found = worst_group(correct, groups)
        covered += found.low <= 0.7 <= found.high
    assert covered / 400 >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("gain", [0.0, 0.15])
def test_the_interval_of_the_worst_groups_difference_covers_the_truth(gain):
    """In the hardest case, groups that are equally bad, so that which is the worst is chance."""
    rng, groups = np.random.default_rng(1), np.repeat(["a", "b", "c", "d"], 100)
    covered = 0
    for repeat in range(300):
        before = rng.random(400) < 0.6
        after = np.where(before, rng.random(400) < 0.95, rng.random(400) < 0.075 + gain / 0.4)
        truth = 0.6 * 0.95 + 0.4 * (0.075 + gain / 0.4) - 0.6
        found = worst_group_difference(before, after, groups, seed=repeat, resamples=1000)
        covered += found.low <= truth <= found.high
    assert covered / 300 >= 0.93


def test_a_worst_group_difference_of_one_group_is_that_of_accuracy():
    rng = np.random.default_rng(0)
    before, after = rng.random(500) < 0.6, rng.random(500) < 0.7
    found, plain = worst_group_difference(before, after, ["a"] * 500), accuracy_difference(before, after)
    np.testing.assert_allclose([found.value, found.low, found.high], [plain.value, plain.low, plain.high], atol=0.01)


@pytest.mark.parametrize("function", [accuracy_difference, mean_difference, mcnemar])
def test_unpaired_numbers_are_refused(function):
    with pytest.raises(ValueError, match="3 before, 2 after"):
        function(np.zeros(3, bool), np.zeros(2, bool))


def test_the_calibration_error_is_that_of_torchmetrics():
    rng = np.random.default_rng(0)
    probabilities = torch.from_numpy(rng.dirichlet([0.5] * 5, 700))
    labels = torch.from_numpy(rng.integers(0, 5, 700))
    confidence, predicted = probabilities.max(1)
    expected = multiclass_calibration_error(probabilities, labels, 5, n_bins=15, norm="l1").item()
    found = expected_calibration_error(confidence.numpy(), (predicted == labels).numpy())
    np.testing.assert_allclose(found.value, expected, atol=1e-6)
    assert found.low <= found.value <= found.high


def test_bins_hold_every_image_once():
    confidence, correct = np.array([0.0, 0.51, 0.52, 1.0]), np.array([False, True, False, True])
    bins = confidence_bins(confidence, correct, 2)
    assert (bins.counts, bins.accuracy) == ([1, 3], [0.0, 2 / 3])
    np.testing.assert_allclose(bins.confidence, [0, (0.51 + 0.52 + 1) / 3])
    with pytest.raises(ValueError, match=r"0\.\.1"):
        confidence_bins(np.array([1.5]), np.array([True]))


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (0.8312, "%", "83.1%"),
        (0.024, "pp", "+2.4 pp"),
        (-0.0001, "pp", "+0.0 pp"),
        (0.04123, "nats", "0.0412 nats"),
        (12400.0, "", "12,400"),
        (1.2e-5, "", "1.20×10⁻⁵"),
        (math.nan, "%", "–"),
    ],
)
def test_numbers_are_written_as_people_read_them(value, unit, said):
    assert number(value, unit) == said


def test_an_interval_has_no_unit_and_an_estimate_fits_json():
    estimate = Estimate(0.8, 0.75, 0.84, 100, "%")
    assert interval(estimate) == "[75.0, 84.0]"
    assert json.loads(json.dumps(asdict(estimate)))["count"] == 100
