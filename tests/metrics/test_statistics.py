"""Numbers and intervals against closed forms, peers, and simulated coverage."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom, norm
from torchmetrics.functional.classification import multiclass_calibration_error

from clearhead.analyses.audit import balanced_accuracy
from clearhead.metrics.calibration import confidence_bins, expected_calibration_error
from clearhead.metrics.statistics import (
    Estimate,
    accuracy_difference,
    by_group,
    format_interval,
    format_value,
    in_large_groups,
    independent_difference,
    mcnemar,
    mean,
    mean_difference,
    permutation_p_value,
    proportion,
    stratified_difference,
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
    result = proportion(correct)
    np.testing.assert_allclose([result.value, result.low, result.high], [p, middle - half, middle + half], atol=1e-9)
    assert (result.count, result.unit) == (n, "%")


def test_a_share_of_nothing_is_not_a_number():
    result = proportion(np.array([], bool))
    assert math.isnan(result.value)
    assert result.count == 0


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
    result = mcnemar(before, after)
    n = result.positive_flips + result.negative_flips
    assert result.positive_flips == (~before & after).sum()
    assert result.negative_flips == (before & ~after).sum()
    tail = sum(math.comb(n, k) for k in range(min(result.positive_flips, result.negative_flips) + 1)) / 2**n
    np.testing.assert_allclose(result.p_value, min(1, 2 * tail))


def test_the_mean_and_its_interval_are_those_of_a_normal_sample():
    values = np.random.default_rng(0).normal(3, 2, 4000)
    result, half = mean(values, "nats"), 1.96 * values.std() / math.sqrt(4000)
    expected = values.mean() + np.array([0, -half, half])
    np.testing.assert_allclose([result.value, result.low, result.high], expected, atol=5e-3)
    assert mean(values, "nats") == result  # the seed decides
    assert math.isnan(mean(values[:1]).low)
    assert math.isnan(mean(values[:0]).value)


def test_a_mean_difference_is_paired():
    before = np.random.default_rng(0).normal(0, 100, 500)
    change = np.linspace(0.9, 1.1, 500)
    result = mean_difference(before, before + change)
    np.testing.assert_allclose([result.low, result.value, result.high], 1, atol=1e-2)


@pytest.mark.parametrize("value", [True, False])
def test_no_interval_of_equal_samples_has_zero_width(value):
    same, label = np.full(20, value), np.repeat([0, 1], 10)
    numbers = same.astype(float)
    groups = ["a"] * 10 + ["b"] * 10
    for estimate in (
        proportion(same),
        balanced_accuracy(same, label),
        worst_group(same, groups)[1],
        worst_group_difference(same, same, groups),
        accuracy_difference(same, same),
        independent_difference(same[:10], same[10:]),
        stratified_difference(same, np.arange(20) % 2 == 0, label),
    ):
        assert estimate.low < estimate.high
    # nothing bounds these numbers: equal ones show no spread at all
    for estimate in (mean(numbers), mean_difference(numbers, numbers), expected_calibration_error(numbers, same)):
        assert estimate.value in (0, 1)
        assert math.isnan(estimate.low)
        assert format_interval(estimate) == ""


def test_a_stratified_difference_is_that_of_mantel_and_haenszel():
    # two classes of (n, correct): without 8, 6 and 2, 1; with 4, 1 and 8, 2; a third class is only in one group
    correct = np.repeat([1, 0, 1, 0, 1, 0, 1, 0, 1], [6, 2, 1, 1, 1, 3, 2, 6, 5]).astype(bool)
    second = np.repeat([False, True, False], [10, 12, 5])
    strata = np.repeat([0, 1, 0, 1, 2], [8, 2, 4, 8, 5])
    result = stratified_difference(correct, second, strata)
    weights = np.array([8 * 4 / 12, 2 * 8 / 10])
    assert result.value == pytest.approx(np.average([1 / 4 - 6 / 8, 2 / 8 - 1 / 2], weights=weights))
    assert (result.count, result.unit) == (22, "pp")
    turned = stratified_difference(correct, ~second, strata)
    np.testing.assert_allclose([turned.low, turned.high], [-result.high, -result.low])
    assert stratified_difference(correct, second, np.where(second, 0, 1)) is None


@pytest.mark.parametrize(
    ("without", "with_it", "accuracy"),
    [
        ([1] * 150, [1] * 150, (0.86, 0.73)),
        pytest.param([95, 5], [5, 95], (0.9, 0.5), marks=pytest.mark.slow),
        pytest.param([30] * 3, [10] * 3, (0.99, 0.99), marks=pytest.mark.slow),
        pytest.param([3] * 100, [1] * 100, (0.97, 0.97), marks=pytest.mark.slow),
        pytest.param([10], [50], (0.8, 0.95), marks=pytest.mark.slow),
    ],
)
def test_the_interval_of_a_stratified_difference_covers_the_truth(without, with_it, accuracy):
    rng = np.random.default_rng(0)
    strata = np.concatenate([np.repeat(np.arange(len(n)), n) for n in (without, with_it)])
    second = np.arange(len(strata)) >= sum(without)
    p = np.where(second, accuracy[1], accuracy[0])
    drawn = [stratified_difference(rng.random(len(p)) < p, second, strata) for _ in range(300)]
    assert np.mean([e.low <= accuracy[1] - accuracy[0] <= e.high for e in drawn]) >= 0.93


def test_large_groups_have_at_least_ten_images():
    groups = ["a"] * 10 + ["b"] * 9
    np.testing.assert_array_equal(in_large_groups(groups), [True] * 10 + [False] * 9)


def test_groups_and_the_worst_of_them():
    correct = np.array([1, 1, 0, 1, 0, 0], bool)
    groups = ["b", "b", "b", "a", "a", "c"]
    result = by_group(correct, groups)
    assert {name: (e.value, e.count) for name, e in result.items()} == {"a": (0.5, 2), "b": (2 / 3, 3), "c": (0, 1)}
    name, worst = worst_group(correct, groups)
    assert (name, worst.value, worst.count) == ("c", 0, 1)
    assert worst.low <= min(e.low for e in result.values())


@pytest.mark.parametrize(
    ("true", "sizes"),
    [
        ([0.5, 0.9], [20, 200]),
        pytest.param([0.7, 0.72, 0.75, 0.9], [60, 40, 80, 200], marks=pytest.mark.slow),
        pytest.param([0.95] * 4, [30] * 4, marks=pytest.mark.slow),
        pytest.param([0.99] * 8, [50] * 8, marks=pytest.mark.slow),  # Wilson's at Šidák's level covers 89% here
    ],
)
def test_the_worst_groups_interval_covers_the_worst_true_accuracy(true, sizes):
    rng, groups = np.random.default_rng(0), np.repeat(list("abcdefgh")[: len(true)], sizes)
    result = [worst_group(rng.random(len(groups)) < np.repeat(true, sizes), groups)[1] for _ in range(300)]
    assert np.mean([e.low <= min(true) <= e.high for e in result]) >= 0.95


# Groups as (images, accuracy before, share still correct after, share of the wrong ones corrected). The bootstrap of
# the minimum covers 81% of the second: with many equal groups before and one different after, chance looks like a rise.
CHANGES = {
    "no change among equals": [(100, 0.6, 0.95, 0.075)] * 4,
    "equals before, not after": [(100, 0.6, 0.99, 0.9)] * 3 + [(100, 0.6, 0.99, 0.02)],
    "equals after, not before": [(100, 0.3, 0.99, 0.9)] + [(100, 0.95, 0.97, 0.5)] * 3,
    "few flips": [(100, 0.9, 0.995, 0.05)] * 4,
    "another group is worst": [(400, 0.98, 0.99, 0.5), (400, 0.75, 0.9, 0.4), (120, 0.6, 0.95, 0.6)],
    "small groups": [(15, 0.9, 0.9, 0.5), (15, 0.5, 0.9, 0.4)],
}


def draw(rng, change):
    names = np.repeat([str(i) for i in range(len(change))], [n for n, *_ in change])
    _, correctness, saved, gained = (np.repeat(column, [n for n, *_ in change]) for column in zip(*change, strict=True))
    before = rng.random(len(names)) < correctness
    return before, rng.random(len(names)) < np.where(before, saved, gained), names


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_interval_of_the_worst_groups_difference_covers_the_truth(change):
    rng = np.random.default_rng(1)
    truth = min(p * k + (1 - p) * g for _, p, k, g in change) - min(p for _, p, _, _ in change)
    result = [worst_group_difference(*draw(rng, change)) for _ in range(1000)]
    assert np.mean([e.low <= truth + 1e-12 and truth - 1e-12 <= e.high for e in result]) >= 0.95


def test_a_rise_of_the_worst_group_is_rarely_seen_where_there_is_none():
    rng, change = np.random.default_rng(2), CHANGES["equals before, not after"]
    rises = np.mean([worst_group_difference(*draw(rng, change)).low > 0.002 for _ in range(300)])  # the truth is 0.002
    assert rises <= 0.04


@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from("abc")), min_size=1, max_size=60).map(
        lambda v: [np.array(column) for column in zip(*v, strict=True)]
    )
)
def test_a_worst_group_difference_holds_its_value_and_turns_with_its_sign(drawn):
    before, after, groups = drawn
    there, back = worst_group_difference(before, after, groups), worst_group_difference(after, before, groups)
    lowest = [min(correctness[groups == name].mean() for name in groups) for correctness in (before, after)]
    np.testing.assert_allclose(there.value, lowest[1] - lowest[0], atol=1e-12)
    np.testing.assert_allclose([there.low, there.high], [-back.high, -back.low], atol=1e-12)
    assert there.low <= there.value <= there.high
    assert there.high - there.low > 0.01  # few images never make certain, even if nothing flipped


def test_a_worst_group_difference_of_one_group_is_that_of_accuracy():
    rng = np.random.default_rng(0)
    before, after = rng.random(500) < 0.6, rng.random(500) < 0.7
    result, plain = worst_group_difference(before, after, ["a"] * 500), accuracy_difference(before, after)
    np.testing.assert_allclose(
        [result.value, result.low, result.high], [plain.value, plain.low, plain.high], atol=1e-12
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "gained", "lost"), [(20, 0.1, 0.05), (100, 0.02, 0.01), (30, 0.5, 0.2), (1000, 0.06, 0.04)]
)
def test_the_interval_of_a_paired_difference_covers_the_truth(count, gained, lost):
    rng, covered = np.random.default_rng(0), 0
    for _ in range(2000):
        drawn = rng.random(count)
        before, after = drawn >= gained, (drawn < gained) | (drawn >= gained + lost)
        result = accuracy_difference(before, after)
        covered += result.low <= gained - lost <= result.high
    assert covered / 2000 >= 0.94  # 95%, minus the sampling error of 2000 draws


@pytest.mark.slow
def test_the_bootstrap_of_a_mean_is_right_for_many_and_too_short_for_few_with_a_long_tail():
    rng = np.random.default_rng(0)

    def covered(draw, truth):
        result = [mean(draw(), seed=i) for i in range(300)]
        return np.mean([e.low <= truth <= e.high for e in result])

    assert covered(lambda: rng.normal(size=100), 0) >= 0.92
    assert 0.75 <= covered(lambda: rng.lognormal(0, 1.5, 100), math.exp(1.125)) <= 0.92


@pytest.mark.parametrize("groups", [[], ["a", "b"]])
def test_groups_that_do_not_fit_the_images_raise_an_error(groups):
    correctness = np.ones(3, bool)
    with pytest.raises(ValueError, match="give one per image"):
        worst_group(correctness, groups)
    with pytest.raises(ValueError, match="give one per image"):
        worst_group_difference(correctness, correctness, groups)


@pytest.mark.parametrize("function", [accuracy_difference, mean_difference, mcnemar])
def test_unpaired_numbers_raise_an_error(function):
    with pytest.raises(ValueError, match="got 3 and 2 numbers"):
        function(np.zeros(3, bool), np.zeros(2, bool))


def test_the_calibration_error_is_that_of_torchmetrics():
    rng = np.random.default_rng(0)
    probabilities = torch.from_numpy(rng.dirichlet([0.5] * 5, 700))
    labels = torch.from_numpy(rng.integers(0, 5, 700))
    confidence, predicted = probabilities.max(1)
    expected = multiclass_calibration_error(probabilities, labels, 5, n_bins=15, norm="l1").item()
    result = expected_calibration_error(confidence.numpy(), (predicted == labels).numpy())
    np.testing.assert_allclose(result.value, expected, atol=1e-6)
    assert result.low <= result.value <= result.high


def test_the_calibration_error_of_a_calibrated_model_is_above_zero_with_its_interval():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 1, 1000)
    assert expected_calibration_error(confidence, rng.random(1000) < confidence).low > 0.01


def test_bins_hold_every_image_once():
    confidence, correct = np.array([0.0, 0.51, 0.52, 1.0]), np.array([False, True, False, True])
    bins = confidence_bins(confidence, correct, 2)
    assert (bins.counts, bins.accuracy) == ([1, 3], [0.0, 2 / 3])
    np.testing.assert_allclose(bins.confidence, [0, (0.51 + 0.52 + 1) / 3])
    with pytest.raises(ValueError, match=r"0\.\.1"):
        confidence_bins(np.array([1.5]), np.array([True]))


@pytest.mark.parametrize(
    ("value", "unit", "text"),
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
def test_numbers_are_written_as_people_read_them(value, unit, text):
    assert format_value(value, unit) == text


def test_an_interval_has_no_unit_and_an_estimate_fits_json():
    estimate = Estimate(0.8, 0.75, 0.84, 100, "%")
    assert format_interval(estimate) == "[75.0, 84.0]"
    assert json.loads(json.dumps(asdict(estimate)))["count"] == 100


def test_the_permutation_test_is_that_of_the_hypergeometric_distribution():
    label = np.repeat([0, 1], 20)
    predicted = np.r_[np.zeros(13), np.ones(7), np.zeros(7), np.ones(13)].astype(int)
    exact = hypergeom(40, 20, 20).sf(12)
    assert permutation_p_value(predicted, label, 0) == pytest.approx(exact, abs=0.015)
    assert permutation_p_value(label, label, 0) == pytest.approx(1 / 2000)
    assert permutation_p_value(1 - label, label, 0) == 1
