"""Plan how many images a comparison of two models needs, by the rule that ``clearhead.metrics.verdict`` decides with.

Both models predict the same N images. Only images on which exactly one of them is correct, the discordant pairs, carry
information on the difference of accuracy. With rates p+ of positive and p- of negative flips (d = p+ + p- the rate of
discordant pairs, p+ - p- the effect), the number of discordant pairs is Binomial(N, d), and that of the positive flips
among m of them Binomial(m, p+ / d). The power is the probability that the interval of Bonett and Price, which the
verdict is made from, lies on the side of the threshold that it should: an exact sum, without a normal approximation.

The asymptotic form, used for the first guess and for estimates that are no accuracies, is that of a difference with
standard error s / sqrt(N):  N = s^2 (z_level + z_power)^2 / distance^2  (for paired proportions, s^2 = d - effect^2:
Miettinen 1968; Connor 1987, Biometrics 43).
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, norm

from clearhead.errors import ClearheadError
from clearhead.metrics.statistics import LEVEL, Array, Estimate, paired_interval, simultaneous_level

POWER = 0.8
"""Probability of showing an effect that exists, for which images are planned."""

MOST_IMAGES = 10**7
"""More images than this are not planned for."""


@dataclass(frozen=True)
class Plan:
    """How many images show what; None is more than ``MOST_IMAGES``.

    Attributes:
        discordant: fraction of the images that exactly one of the two models classifies correctly.
        change: images that show a change of this size, a gain or a loss.
        noninferiority: images that show non-inferiority of a model that is no worse.
    """

    discordant: float
    change: int | None
    noninferiority: int | None


def plan(
    effect: float,
    discordant: float,
    *,
    margin: float = 0.02,
    groups: int = 1,
    power: float = POWER,
    level: float = LEVEL,
) -> Plan:
    """Return how many images show a change of accuracy, and how many show that no more than a margin is lost.

    Args:
        effect: true difference of accuracy to be shown, as a fraction (0.05 = five points).
        discordant: rate of discordant pairs; see ``independent_discordance`` for an upper estimate.
        margin: non-inferiority margin of the verdict, as a fraction. Non-inferiority is planned for two models of equal
            accuracy with as many discordant pairs.
        groups: with more than one, the numbers are images of the worst of so many groups: the level of its interval is
            divided by them (Bonferroni). They hold where one group is the worst by far, before and after.
        power: probability that the planned number of images shows it.
        level: of the interval.

    Raises:
        ClearheadError: for numbers out of range, or fewer discordant pairs than the effect takes.
    """
    if groups < 1:
        raise ClearheadError(f"groups: got {groups}; give a number of groups, 1 for all images together")
    options = {"power": power, "level": simultaneous_level(groups, level)}
    return Plan(
        discordant,
        images_needed(effect, discordant, **options),
        images_needed(0, discordant, margin=margin, **options),
    )


def independent_discordance(accuracy: float, effect: float) -> float:
    """Return the rate of discordant pairs of two models whose mistakes are independent, after a change of accuracy.

    Two models of the same data agree more than this, so the rate is an upper estimate, and a plan made with it is safe.
    Raises ClearheadError for an accuracy that is not in 0..1 with the effect.
    """
    after = accuracy + effect
    if not (0 <= accuracy <= 1 and 0 <= after <= 1):
        raise ClearheadError(
            f"accuracy: got {100 * accuracy:g}% with an effect of {100 * effect:+g} points; both the accuracy before "
            "and after must be in 0..100%"
        )
    return accuracy * (1 - after) + after * (1 - accuracy)


def images_needed(
    effect: float, discordant: float, *, margin: float = 0.0, power: float = POWER, level: float = LEVEL
) -> int | None:
    """Return the smallest number of images with which the paired interval probably lies above -margin.

    A margin of 0 shows a gain; by symmetry as many images show a loss of the same size. The power is not quite monotone
    in the number of images, because flips are counted: a slightly smaller number may reach it too.

    Args:
        effect: true difference of accuracy, as a fraction.
        discordant: rate of discordant pairs, at least that of the effect.
        margin: non-inferiority margin, as a fraction; 0 asks for a gain.
        power: probability of the interval lying there.
        level: of the interval.

    Returns:
        The number, or None if it is above ``MOST_IMAGES`` or the true difference is not above -margin.

    Raises:
        ClearheadError: for numbers out of range, or fewer discordant pairs than the effect takes.
    """
    effect = abs(effect) if margin == 0 else effect
    for name, value in (("power", power), ("level", level)):
        if not 0 < value < 1:
            raise ClearheadError(f"{name}: got {value:g}; give a probability between 0 and 1, such as 0.8 or 0.95")
    if not 0 <= margin <= 1:
        raise ClearheadError(f"margin: got {margin:g}; give a fraction of the images in 0..1")
    if not abs(effect) <= discordant <= 1:
        raise ClearheadError(
            f"discordant: got {100 * discordant:g}% of the images; an effect of {100 * effect:+g} points needs at "
            f"least {100 * abs(effect):g}%, and at most 100% are possible"
        )
    first = asymptotic_images(effect + margin, math.sqrt(max(discordant - effect**2, 0)), power, level)
    if first is None:
        return None

    def enough(count: int) -> bool:
        return power_at(count, effect, discordant, margin, level) >= power

    low, high = 0, max(first, 1)
    while not enough(high):
        low, high = high, high + max(high // 8, 1)
        if high > MOST_IMAGES:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def power_at(count: int, effect: float, discordant: float, margin: float = 0.0, level: float = LEVEL) -> float:
    """Return the probability that the paired interval of `count` images lies above -margin; arguments as above."""
    spread = 6 * math.sqrt(count * discordant * (1 - discordant)) + 6
    pairs = np.arange(max(0, int(count * discordant - spread)), min(count, int(count * discordant + spread)) + 1)
    positive_rate = (discordant + effect) / (2 * discordant) if discordant else 0.5
    fewest = _fewest_positive(pairs, count, margin, level)
    return float((binom.pmf(pairs, count, discordant) * binom.sf(fewest - 1, pairs, positive_rate)).sum())


def _fewest_positive(pairs: Array, count: int, margin: float, level: float) -> Array:
    """Return how many of each number of discordant pairs must be positive flips; one more than all if none is enough.

    By bisection: for a number of pairs, the lower end rises with the positive flips among them.
    """
    low, high = np.zeros_like(pairs), pairs + 1
    while (low < high).any():
        middle = (low + high) // 2
        end = paired_interval(middle, pairs - middle, count, level)[0]
        shown = end >= -margin if margin else end > 0
        low, high = np.where(shown | (low >= high), low, middle + 1), np.where(shown, middle, high)
    return high


def asymptotic_images(distance: float, deviation: float, power: float = POWER, level: float = LEVEL) -> int | None:
    """Return how many images put an interval beyond a threshold, by the normal approximation.

    Args:
        distance: of the true value from the threshold, on the side to be shown.
        deviation: standard deviation of the estimate times the square root of its number of images.
        power: probability of the interval lying there.
        level: of the interval.

    Returns:
        The number; None if it is above ``MOST_IMAGES`` or the distance is not positive.
    """
    if distance <= 0:
        return None
    ratio = deviation * float(norm.ppf(0.5 + level / 2) + norm.ppf(power)) / distance
    return max(1, math.ceil(ratio**2)) if ratio <= math.sqrt(MOST_IMAGES) else None


def images_at_observed(estimate: Estimate, threshold: float, level: float = LEVEL) -> int | None:
    """Return how many images would put the interval of an estimate beyond a threshold, were its value the true one.

    The width of the interval is taken to shrink with the square root of the number of images, of the same mixture of
    groups. The power is ``POWER``; `level` is that of the estimate's interval. Returns None where no number of images
    up to ``MOST_IMAGES`` does, or the estimate has no interval.
    """
    if not math.isfinite(estimate.high - estimate.low) or estimate.count == 0:
        return None
    above = estimate.value > threshold
    half = estimate.value - estimate.low if above else estimate.high - estimate.value
    deviation = half * math.sqrt(estimate.count) / float(norm.ppf(0.5 + level / 2))
    return asymptotic_images(abs(estimate.value - threshold), deviation, level=level)


def round_images(count: int) -> str:
    """Return a number of images for a sentence, rounded up to two digits: '1,900'."""
    digits = 10 ** max(0, len(str(count)) - 2)
    return f"{math.ceil(count / digits) * digits:,}"


def images_for(claim: str, images: int, now: int) -> str:
    """Return the sentence on how many images would show a claim."""
    return (
        f"About {round_images(images)} images (now {now:,}) would show {claim}, if the observed difference is the true "
        f"one (power {POWER:.0%})."
    )
