"""The rule of the verdict, and what it says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearhead.metrics.statistics import Estimate
from clearhead.metrics.verdict import noninferiority_verdict


def change(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, low, high, 100, "pp")


UP, DOWN, SAME, WIDE = change(0.1, 0.2), change(-0.2, -0.1), change(-0.01, 0.01), change(-0.1, 0.1)


@pytest.mark.parametrize(
    ("worst", "average", "word"),
    [
        (UP, SAME, "improved"),
        (UP, UP, "improved"),
        (SAME, UP, "improved"),
        (UP, DOWN, "regressed"),
        (DOWN, UP, "regressed"),
        (UP, WIDE, "inconclusive"),
        (WIDE, SAME, "inconclusive"),
        (SAME, SAME, "inconclusive"),
        (change(-0.015, -0.005), UP, "improved"),  # a loss for certain, but within the margin
    ],
)
def test_the_rule(worst, average, word):
    verdict = noninferiority_verdict({"worst-group accuracy": worst, "average accuracy": average}, 0.02)
    assert verdict.word == word
    assert verdict.sentence[0].isupper()
    assert verdict.sentence.endswith(".")


def test_the_sentence_gives_number_interval_and_margin():
    sentence = noninferiority_verdict({"worst-group accuracy": UP, "average accuracy": SAME}, 0.02).sentence
    assert sentence == (
        "Worst-group accuracy rose (+15.0 pp [+10.0, +20.0]). "
        "Average accuracy did not fall by more than 2 pp (+0.0 pp [−1.0, +1.0])."
    )


A, W = "average accuracy", "worst-group accuracy"


@pytest.mark.parametrize(
    ("differences", "needed"),
    [
        ({A: change(-0.03, 0.03)}, "About 460 images (now 100) would show that average accuracy did not fall by more"),
        ({A: change(-0.09, 0.01)}, "About 320 images (now 100) would show that average accuracy fell, if"),
        ({A: change(-0.01, 0.02)}, "About 1,900 images (now 100) would show that average accuracy rose, if"),
        ({W: change(-0.01, 0.02), A: change(-0.01, 0.012)}, "(now 100) would show that worst-group accuracy rose, if"),
        ({A: change(-0.03, 0.03), W: change(-0.09, 0.09)}, "About 4,200 images (now 100) would show that average"),
        ({A: change(-0.01, 0.01)}, ""),  # no observed gain to be shown
        ({A: change(-0.0399999, 0)}, "More images would narrow the interval."),  # the loss is that of the margin
    ],
)
def test_an_inconclusive_verdict_names_the_number_of_images_that_would_decide(differences, needed):
    verdict = noninferiority_verdict(differences, 0.02)
    assert verdict.word == "inconclusive"
    assert needed in verdict.sentence
    assert ("images" in verdict.sentence) == bool(needed)


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 0.5), st.floats(0, 0.5))
def test_a_wider_margin_never_turns_an_improvement_into_a_regression(value, half, margin, more):
    measure = {"average accuracy": Estimate(value, value - half, value + half, 10, "pp")}
    order = ["regressed", "inconclusive", "improved"]
    assert order.index(noninferiority_verdict(measure, margin + more).word) >= order.index(
        noninferiority_verdict(measure, margin).word
    )
