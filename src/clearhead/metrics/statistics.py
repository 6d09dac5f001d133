"""Estimates with 95% confidence intervals and sample counts, paired tests, and their formatting.

docs/statistics.md describes the method of each interval and the reasons for it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike
from scipy.stats import binomtest, bootstrap, norm

from clearhead.errors import ClearheadError

Array = npt.NDArray[Any]

LEVEL = 0.95
RESAMPLES = 2000

MIN_GROUP = 10
"""A group of fewer images carries no verdict and is not the worst group."""

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Estimate:
    """A point estimate with its 95% confidence interval and sample count.

    Attributes:
        value: the point estimate; NaN if it is undefined.
        low: lower end of the interval; NaN without an interval.
        high: upper end of the interval; NaN without an interval.
        count: number of samples.
        unit: ``%`` for a proportion and ``pp`` for a difference of proportions, both stored as fractions; else the
            name of the unit, or empty.
    """

    value: float
    low: float
    high: float
    count: int
    unit: str = ""


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test on paired predictions.

    Attributes:
        positive_flips: images misclassified before and corrected after.
        negative_flips: images correct before and newly misclassified after.
        p_value: exact, two-sided; the null hypothesis is that both kinds of flips are equally likely.
    """

    positive_flips: int
    negative_flips: int
    p_value: float


def proportion(correct: Array, level: float = LEVEL) -> Estimate:
    """Return the proportion of true entries (N, bool) with the Wilson interval."""
    count = len(correct)
    if count == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, "%")
    successes = int(np.count_nonzero(correct))
    return Estimate(successes / count, *wilson_interval(successes, count, level), count, "%")


def wilson_interval(successes: int, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the Wilson interval of a proportion."""
    low, high = binomtest(successes, count).proportion_ci(level, method="wilson")
    return float(low), float(high)


def mean(values: Array, unit: str = "", seed: int = 0) -> Estimate:
    """Return the mean of N numbers with its percentile bootstrap interval.

    Fewer than two numbers, or equal numbers, have no interval (NaN): they show nothing of the spread. For few numbers
    with a long tail the interval is too short: see docs/statistics.md.
    """
    values = np.asarray(values, dtype=np.float64)
    value = float(values.mean()) if len(values) else math.nan
    return Estimate(value, *bootstrap_interval(values, np.mean, seed, batch=100), len(values), unit)


def bootstrap_interval(
    values: Array, statistic: Callable[..., Any], seed: int = 0, resamples: int = RESAMPLES, **options: Any
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a statistic of N values.

    It is NaN for fewer than two values, and where no resample differs from another: an interval of zero width would
    claim certainty. `options` are those of ``scipy.stats.bootstrap``.
    """
    if len(values) < 2:
        return math.nan, math.nan
    interval = bootstrap(
        (values,), statistic, n_resamples=resamples, method="percentile", rng=np.random.default_rng(seed), **options
    ).confidence_interval
    low, high = float(interval.low), float(interval.high)
    return (math.nan, math.nan) if math.isclose(low, high, rel_tol=1e-9) else (low, high)


def by_group(correct: Array, groups: Sequence[str] | Array) -> dict[str, Estimate]:
    """Return the accuracy of each group, by name in alphabetical order."""
    names = np.asarray(groups)
    return {str(name): proportion(correct[names == name]) for name in np.unique(names)}


def in_large_groups(groups: Sequence[str] | Array, minimum: int = MIN_GROUP) -> Array:
    """Return which of N images are in a group of at least `minimum` images: N, bool."""
    _, index, images = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    large: Array = images[index] >= minimum
    return large


def worst_group(correct: Array, groups: Sequence[str] | Array) -> tuple[str, Estimate]:
    """Return the name of the group with the lowest accuracy (ties: the first by name), and worst-group accuracy.

    The interval covers the lowest true accuracy, whichever group has it: the smallest lower end and the smallest upper
    end of the groups' exact intervals (Clopper and Pearson). The upper ends hold for all G groups simultaneously
    (Bonferroni); the lower ends need no correction, because that of the truly worst group already bounds the minimum.
    The count is that of the named group.

    Raises:
        ClearheadError: if there is no group, or not one group name per image.
    """
    parts = _parts(correct, groups)
    tests = {name: binomtest(int(correct[part].sum()), int(part.sum())) for name, part in parts.items()}
    low = min(test.proportion_ci(LEVEL, method="exact").low for test in tests.values())
    high = min(test.proportion_ci(simultaneous_level(len(parts)), method="exact").high for test in tests.values())
    worst = min(tests, key=lambda name: tests[name].statistic)
    return worst, Estimate(float(tests[worst].statistic), float(low), float(high), tests[worst].n, "%")


def accuracy_difference(before: Array, after: Array, level: float = LEVEL) -> Estimate:
    """Return accuracy after - before on the same N images, with the paired interval of Bonett and Price (2012)."""
    count = _paired(before, after)
    positive, negative = _flips(before, after)
    low, high = paired_interval(positive, negative, count, level)
    return Estimate((positive - negative) / count, float(low), float(high), count, "pp")


def paired_interval(positive: ArrayLike, negative: ArrayLike, count: int, level: float = LEVEL) -> tuple[Array, Array]:
    """Return both ends of Bonett and Price's interval (2012) of (positive - negative) / count, flips of paired images.

    Arrays of flips give arrays of ends.
    """
    positive, negative = np.asarray(positive), np.asarray(negative)
    up, down = (positive + 1) / (count + 2), (negative + 1) / (count + 2)
    half = norm.ppf(0.5 + level / 2) * np.sqrt((up + down - (up - down) ** 2) / (count + 2))
    value = (positive - negative) / count
    low, high = np.maximum(-1.0, up - down - half), np.minimum(1.0, up - down + half)
    return np.minimum(low, value), np.maximum(high, value)


def independent_difference(before: Array, after: Array, level: float = LEVEL) -> Estimate:
    """Return accuracy after - before on different images, with Newcombe's interval based on Wilson's."""
    return newcombe_difference(proportion(before, level), proportion(after, level))


def stratified_difference(correct: Array, second: Array, strata: Array, level: float = LEVEL) -> Estimate | None:
    """Return accuracy in the second group of images - accuracy in the first one within strata, such as classes.

    This is the difference of Mantel and Haenszel: the mean over the strata that have images of both groups, weighted by
    n1 n2 / (n1 + n2). The interval is Klingenberg's (2014, Statistics in Medicine 33), based on Sato's variance, which
    holds for few large strata and for many small ones; for the interval one more stratum with one correct and one
    wrong image per group is added, so that it keeps a width where all images are correct.

    Args:
        correct: of N images, bool.
        second: whether each image is in the second group, bool.
        strata: the stratum of each image.
        level: of the interval.

    Returns:
        The difference, with the number of images in those strata; None where no stratum has images of both groups.
    """
    _, index = np.unique(strata, return_inverse=True)
    images = np.stack([np.bincount(index[part], minlength=index.max() + 1) for part in (~second, second)])
    hits = np.stack([np.bincount(index[part & correct], minlength=index.max() + 1) for part in (~second, second)])
    shared = (images > 0).all(0)
    if not shared.any():
        return None
    value, *_ = _mantel_haenszel(images[:, shared], hits[:, shared])
    pair = np.ones((2, 1))
    centre, p, q = _mantel_haenszel(np.hstack([images[:, shared], 2 * pair]), np.hstack([hits[:, shared], pair]))
    z_squared = float(norm.ppf(0.5 + level / 2)) ** 2
    middle = centre + z_squared * p / 2
    half = math.sqrt(max(0.0, middle**2 - centre**2 + z_squared * q))
    low, high = max(-1.0, middle - half), min(1.0, middle + half)
    return Estimate(value, min(low, value), max(high, value), int(images[:, shared].sum()), "pp")


def _mantel_haenszel(images: Array, hits: Array) -> tuple[float, float, float]:
    """Return the difference d and the two terms of Sato's variance, d p + q, from 2 x strata of counts."""
    (n1, n2), (x1, x2) = images.astype(float), hits.astype(float)
    total = n1 + n2
    weight = (n1 * n2 / total).sum()
    p = ((n2**2 * x1 - n1**2 * x2 + n1 * n2 * (n1 - n2) / 2) / total**2).sum()
    q = ((x2 * (n1 - x1) + x1 * (n2 - x2)) / (2 * total)).sum()
    return float(((x2 * n1 - x1 * n2) / total).sum() / weight), float(p / weight**2), float(q / weight**2)


def newcombe_difference(before: Estimate, after: Estimate) -> Estimate:
    """Return after - before for estimates on different images, with Newcombe's interval based on theirs.

    For estimates on the same images the interval is too wide if they are positively correlated.
    """
    value = after.value - before.value
    low = value - math.hypot(after.value - after.low, before.high - before.value)
    high = value + math.hypot(after.high - after.value, before.value - before.low)
    return Estimate(value, low, high, min(before.count, after.count), "pp" if before.unit == "%" else before.unit)


def mean_difference(before: Array, after: Array, unit: str = "", seed: int = 0) -> Estimate:
    """Return the mean of after - before over the same N images, with its bootstrap interval."""
    _paired(before, after)
    return mean(np.asarray(after, dtype=np.float64) - before, unit, seed)


def worst_group_difference(before: Array, after: Array, groups: Sequence[str] | Array) -> Estimate:
    """Return worst-group accuracy after - before on the same N images; the two worst groups may differ.

    With A_g the accuracy of group g after and B_h that of group h before, min A - min B is the smallest over g of the
    largest over h of A_g - B_h, and equally the largest over h of the smallest over g. The interval applies the first
    form to the lower ends of all A_g - B_h and the second form to their upper ends: paired within a group (Bonett and
    Price), Newcombe's for independent samples between groups, all at Bonferroni's level. A bootstrap of the minimum is
    not used: it mistakes chance among nearly equal groups for a difference.

    Raises:
        ClearheadError: if the images are not paired, there is no group, or not one group name per image.
    """
    count, parts = _paired(before, after), _parts(before, groups).values()
    level = simultaneous_level(len(parts))
    a, b = ([proportion(correct[part], level) for part in parts] for correct in (after, before))
    (a_value, a_low, a_high), (b_value, b_low, b_high) = (
        np.array([(e.value, e.low, e.high) for e in estimates]).T for estimates in (a, b)
    )
    difference = np.subtract.outer(a_value, b_value)
    low = difference - np.hypot.outer(a_value - a_low, b_high - b_value)
    high = difference + np.hypot.outer(a_high - a_value, b_value - b_low)
    same = [accuracy_difference(before[part], after[part], level) for part in parts]
    np.fill_diagonal(low, [e.low for e in same])
    np.fill_diagonal(high, [e.high for e in same])
    value = float(a_value.min() - b_value.min())
    return Estimate(value, float(low.max(1).min()), float(high.min(0).max()), count, "pp")


def mcnemar(before: Array, after: Array) -> McNemar:
    """Run McNemar's exact test on paired correctness (N, bool); p is 1 where no prediction flipped."""
    _paired(before, after)
    positive, negative = _flips(before, after)
    p_value = float(binomtest(positive, positive + negative).pvalue) if positive + negative else 1.0
    return McNemar(positive, negative, p_value)


def _flips(before: Array, after: Array) -> tuple[int, int]:
    """Count the positive flips (wrong before, correct after) and the negative flips."""
    return int(np.sum(~before & after)), int(np.sum(before & ~after))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values of one family of tests adjusted by Holm's step-down method (1979), in the same order.

    Rejecting the adjusted p-values below a level bounds the family-wise error rate by that level.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = p.argsort(kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return [float(value) for value in adjusted]


def permutation_p_value(predicted: Array, label: Array, seed: int = 0, permutations: int = 1999) -> float:
    """Return the one-sided p-value that balanced accuracy is at chance: labels are permuted, predictions are not.

    Args:
        predicted: class of each of N images.
        label: its true class.
        seed: of the permutations.
        permutations: their number; the p-value is at least 1 / (permutations + 1).
    """
    _, index, images = np.unique(label, return_inverse=True, return_counts=True)
    weight, rng = 1 / images[index], np.random.default_rng(seed)
    actual = weight[predicted == label].sum() - 1e-9
    orders = (rng.permutation(len(label)) for _ in range(permutations))
    extreme = sum(weight[order][predicted == label[order]].sum() >= actual for order in orders)
    return float((1 + extreme) / (1 + permutations))


def format_value(value: float, unit: str = "") -> str:
    """Return a number as text: '83.1%', '+2.4 pp', '0.0412', '1.20×10⁻⁵', '12,400'; '–' if it is NaN."""
    if math.isnan(value):
        return "–"
    if unit == "%":
        text = f"{100 * value:z.1f}%"
    elif unit == "pp":
        text = f"{100 * value:+z.1f} pp"
    else:
        text = f"{_three_digits(value)} {unit}".rstrip()
    return text.replace("-", "−").replace("inf", "∞")


def format_interval(estimate: Estimate) -> str:
    """Return the 95% interval without its unit, '[81.0, 85.2]'; empty if an end is NaN."""
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return ""
    ends = (
        format_value(end, estimate.unit).removesuffix(estimate.unit).rstrip() for end in (estimate.low, estimate.high)
    )
    return f"[{', '.join(ends)}]"


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    if not 1e-3 <= abs(rounded) < math.inf:
        if math.isinf(rounded):
            return f"{rounded}"
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return f"{value:,.0f}" if abs(rounded) >= 1000 else f"{value:#.3g}".rstrip(".")


def _paired(before: Array, after: Array) -> int:
    if len(before) != len(after) or len(before) == 0:
        raise ClearheadError(
            f"before, after: got {len(before)} and {len(after)} numbers; give one per image, of the same images"
        )
    return len(before)


def simultaneous_level(count: int, level: float = LEVEL) -> float:
    """Return the level of each of `count` intervals that hold simultaneously at `level` (Bonferroni)."""
    return 1 - (1 - level) / max(1, count)


def _parts(correct: Array, groups: Sequence[str] | Array) -> dict[str, Array]:
    """Return which images are in each group (N, bool), by name in alphabetical order."""
    names = np.asarray(groups)
    if len(names) != len(correct) or len(names) == 0:
        raise ClearheadError(f"groups: got {len(names)} names for {len(correct)} images; give one per image")
    return {str(name): names == name for name in np.unique(names)}
