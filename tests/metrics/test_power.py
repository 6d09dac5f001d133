"""Planned numbers of images agree with the verdicts that are made from so many, by simulation."""

import math

import numpy as np
import pytest

from clearhead.errors import ClearheadError
from clearhead.metrics.power import (
    MOST_IMAGES,
    asymptotic_images,
    images_at_observed,
    images_needed,
    independent_discordance,
    plan,
    power_at,
    round_images,
)
from clearhead.metrics.statistics import Estimate, accuracy_difference, worst_group_difference
from clearhead.metrics.verdict import noninferiority_verdict

DRAWS = 600


def draw(rng, count, effect, discordant, common=0.5):
    """Correctness of two models on `count` images, as the plan assumes them."""
    flips = np.array([(discordant + effect) / 2, (discordant - effect) / 2])
    outcome = rng.choice(4, count, p=[*flips, *((1 - discordant) * np.array([common, 1 - common]))])
    return (outcome == 1) | (outcome == 2), (outcome == 0) | (outcome == 2)


def share_of_verdicts(word, count, effect, discordant):
    rng, words = np.random.default_rng(0), []
    for _ in range(DRAWS):
        change = accuracy_difference(*draw(rng, count, effect, discordant))
        words.append(noninferiority_verdict({"average accuracy": change}, 0.02).word)
    return words.count(word) / DRAWS


@pytest.mark.parametrize(("effect", "discordant"), [(0.05, 0.1), (0.1, 0.4)])
def test_of_planned_numbers_of_images_four_in_five_give_the_verdict(effect, discordant):
    count = plan(effect, discordant).change
    error = 3 * math.sqrt(0.8 * 0.2 / DRAWS)
    assert share_of_verdicts("improved", count, effect, discordant) == pytest.approx(0.8, abs=error + 0.02)
    assert share_of_verdicts("regressed", count, -effect, discordant) == pytest.approx(0.8, abs=error + 0.02)
    assert share_of_verdicts("improved", count // 2, effect, discordant) < 0.65


def test_four_in_five_show_non_inferiority():
    count, rng = plan(0.05, 0.1, margin=0.03).noninferiority, np.random.default_rng(0)
    shown = [accuracy_difference(*draw(rng, count, 0, 0.1)).low >= -0.03 for _ in range(DRAWS)]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.04)
    assert power_at(count, 0, 0.1, 0.03) == pytest.approx(0.8, abs=0.005)


def test_four_in_five_show_a_gain_of_the_worst_group_of_four():
    count, rng = plan(0.2, 0.3, groups=4).change, np.random.default_rng(0)
    group = np.repeat(list("abcd"), count)
    shown = []
    for _ in range(200):
        parts = [draw(rng, count, 0.2, 0.3, 0.3), *(draw(rng, count, 0, 0.02, 0.97) for _ in range(3))]
        before, after = (np.concatenate(values) for values in zip(*parts, strict=True))
        shown.append(worst_group_difference(before, after, group.tolist()).low > 0)
    assert np.mean(shown) == pytest.approx(0.8, abs=0.09)
    assert count > plan(0.2, 0.3).change


def test_the_exact_number_approaches_the_asymptotic_one():
    assert images_needed(0.002, 0.05) == pytest.approx(asymptotic_images(0.002, math.sqrt(0.05 - 0.002**2)), rel=1e-3)
    # Connor (1987): (1.96 sqrt(d) + 0.84 sqrt(d - e^2))^2 / e^2 for d = 0.1, e = 0.05 is 309
    assert images_needed(0.05, 0.1) == pytest.approx(309, rel=0.02)


@pytest.mark.parametrize("name", ["effect", "discordant", "power", "margin"])
def test_the_number_changes_in_the_expected_direction(name):
    options = {"effect": 0.0, "discordant": 0.1, "power": 0.8, "margin": 0.02}
    more = options | {name: options[name] + 0.01}
    fewer = name in ("effect", "margin")
    assert (images_needed(**more) < images_needed(**options)) == fewer


def test_a_loss_takes_as_many_images_as_a_gain_and_nothing_takes_too_many():
    assert images_needed(-0.05, 0.1) == images_needed(0.05, 0.1)
    assert images_needed(0, 0.1) is None
    assert images_needed(1e-5, 0.1) is None
    assert images_needed(-0.02, 0.1, margin=0.02) is None  # a loss of the margin is never excluded
    assert plan(1e-5, 0.1).change is None


def test_independent_mistakes():
    rng = np.random.default_rng(0)
    before, after = rng.random(10**6) < 0.8, rng.random(10**6) < 0.85
    assert independent_discordance(0.8, 0.05) == pytest.approx((before != after).mean(), abs=0.002)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: images_needed(0.05, 0.01), "an effect of .5 points needs at least 5%"),
        (lambda: images_needed(0.05, 1.2), "got 120% of the images"),
        (lambda: images_needed(0.05, 0.1, power=1), "power: got 1"),
        (lambda: images_needed(0.05, 0.1, level=95), "level: got 95"),
        (lambda: images_needed(0.05, 0.1, margin=2), "margin: got 2"),
        (lambda: plan(0.05, 0.1, groups=0), "groups: got 0"),
        (lambda: independent_discordance(0.98, 0.05), "accuracy: got 98% with an effect of .5 points"),
    ],
)
def test_numbers_out_of_range(call, message):
    with pytest.raises(ClearheadError, match=message):
        call()


def test_the_number_at_the_observed_difference_is_that_of_the_plan():
    before, after = draw(np.random.default_rng(1), 2000, 0.01, 0.1)
    change = accuracy_difference(before, after)
    planned = images_needed(change.value, float((before != after).mean()))
    assert images_at_observed(change, 0) == pytest.approx(planned, rel=0.05)
    planned = images_needed(change.value, float((before != after).mean()), margin=0.02)
    assert images_at_observed(change, -0.02) == pytest.approx(planned, rel=0.05)


@pytest.mark.parametrize(
    "estimate",
    [Estimate(0.1, math.nan, math.nan, 10), Estimate(math.nan, math.nan, math.nan, 0), Estimate(0, -1, 1, 9)],
)
def test_no_number_without_an_interval_or_a_distance(estimate):
    assert images_at_observed(estimate, 0) is None


@pytest.mark.parametrize(("count", "text"), [(7, "7"), (99, "99"), (1801, "1,900"), (123456, "130,000")])
def test_numbers_of_images_are_rounded_up(count, text):
    assert round_images(count) == text
    assert round_images(MOST_IMAGES) == "10,000,000"
