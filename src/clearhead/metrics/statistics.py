"""Numbers with their 95% interval and count, and how people read them.

Which interval is made how, and why, is told in docs/statistics.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, bootstrap, norm

from clearhead.errors import ClearheadError

LEVEL = 0.95
RESAMPLES = 2000

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Estimate:
    """A number, its 95% interval and the number of samples it rests on.

    ``unit`` is ``%`` for a share and ``pp`` for a difference of shares, both held as fractions; otherwise the name of
    the unit, or nothing. A number that could not be measured is NaN.
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


def proportion(correct: np.ndarray, level: float = LEVEL) -> Estimate:
    """The share of true entries (N, bool) with Wilson's interval."""
    count = len(correct)
    if count == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, "%")
    right = int(np.count_nonzero(correct))
    low, high = binomtest(right, count).proportion_ci(level, method="wilson")
    return Estimate(right / count, float(low), float(high), count, "%")


def mean(values: np.ndarray, unit: str = "", seed: int = 0) -> Estimate:
    """The mean of N numbers with the percentile interval of its bootstrap.

    No interval (NaN) for fewer than two numbers; one of no width for equal numbers, whose spread nothing tells. Too
    short for few numbers with a long tail: see docs/statistics.md.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return Estimate(float(values.mean()) if len(values) else math.nan, math.nan, math.nan, len(values), unit)
    found = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, batch=100, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Estimate(float(values.mean()), float(found.low), float(found.high), len(values), unit)


def by_group(correct: np.ndarray, groups: Sequence[str]) -> dict[str, Estimate]:
    """The accuracy of each group, by name in order."""
    names = np.asarray(groups)
    return {str(name): proportion(correct[names == name]) for name in np.unique(names)}


def worst_group(correct: np.ndarray, groups: Sequence[str]) -> tuple[str, Estimate]:
    """The group of lowest accuracy (the first by name of equals), and the accuracy of the worst group.

    The interval is for the lowest of the true accuracies, whichever group has it: the smallest of the groups' lower
    and the smallest of their upper ends, both exact (Clopper and Pearson). The upper ends hold for all G groups at
    once (Bonferroni); the lower ones need not, since the truly worst group's own end already bounds the smallest.
    The count is the group's. Raises ClearheadError if there is no group, or not one name an image.
    """
    parts = _parts(correct, groups)
    tests = {name: binomtest(int(correct[part].sum()), int(part.sum())) for name, part in parts.items()}
    low = min(test.proportion_ci(LEVEL, method="exact").low for test in tests.values())
    high = min(test.proportion_ci(_together(len(parts)), method="exact").high for test in tests.values())
    worst = min(tests, key=lambda name: tests[name].statistic)
    return worst, Estimate(float(tests[worst].statistic), float(low), float(high), tests[worst].n, "%")


def accuracy_difference(before: np.ndarray, after: np.ndarray, level: float = LEVEL) -> Estimate:
    """Share right after minus share right before, on the same N images, with Bonett and Price's paired interval."""
    count = _paired(before, after)
    positive, negative = _flips(before, after)
    up, down = (positive + 1) / (count + 2), (negative + 1) / (count + 2)
    half = norm.ppf(0.5 + level / 2) * math.sqrt((up + down - (up - down) ** 2) / (count + 2))
    value = (positive - negative) / count
    low, high = max(-1.0, up - down - half), min(1.0, up - down + half)
    return Estimate(value, min(low, value), max(high, value), count, "pp")


def independent_difference(before: np.ndarray, after: np.ndarray) -> Estimate:
    """Share right after minus share right before, on other images, with Newcombe's interval from Wilson's."""
    return newcombe_difference(proportion(before), proportion(after))


def newcombe_difference(before: Estimate, after: Estimate) -> Estimate:
    """After less before, of numbers on other images, with Newcombe's interval from theirs.

    For numbers on the same images it is too wide where they go up and down together.
    """
    value = after.value - before.value
    low = value - math.hypot(after.value - after.low, before.high - before.value)
    high = value + math.hypot(after.high - after.value, before.value - before.low)
    return Estimate(value, low, high, min(before.count, after.count), "pp" if before.unit == "%" else before.unit)


def mean_difference(before: np.ndarray, after: np.ndarray, unit: str = "", seed: int = 0) -> Estimate:
    """The mean of after - before over the same N images, with the interval of its bootstrap."""
    _paired(before, after)
    return mean(np.asarray(after, dtype=np.float64) - before, unit, seed)


def worst_group_difference(before: np.ndarray, after: np.ndarray, groups: Sequence[str]) -> Estimate:
    """Worst-group accuracy after minus before, on the same N images; the two worst groups may differ.

    With A_g the accuracy of group g after and B_h that of group h before, min A - min B is the smallest over g of the
    largest over h of A_g - B_h, and as well the largest over h of the smallest over g. The interval takes the first
    of the lower ends of all A_g - B_h and the second of their upper ends: paired within a group (Bonett and Price),
    Newcombe's for independent samples between groups, all at Bonferroni's level. A bootstrap of the minimum is not
    used: it takes the luck of near equals for a difference.

    Raises ClearheadError if the images are not paired, there is no group, or not one name an image.
    """
    count, parts = _paired(before, after), _parts(before, groups).values()
    level = _together(len(parts))
    a, b = ([proportion(right[part], level) for part in parts] for right in (after, before))
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


def mcnemar(before: np.ndarray, after: np.ndarray) -> McNemar:
    """Run McNemar's exact test on paired correctness (N, bool); p is 1 where no prediction flipped."""
    _paired(before, after)
    positive, negative = _flips(before, after)
    p_value = float(binomtest(positive, positive + negative).pvalue) if positive + negative else 1.0
    return McNemar(positive, negative, p_value)


def _flips(before: np.ndarray, after: np.ndarray) -> tuple[int, int]:
    """Count the positive flips (wrong before, correct after) and the negative flips."""
    return int(np.sum(~before & after)), int(np.sum(before & ~after))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of one family of tests, each adjusted by Holm's step-down rule (1979), in the order given.

    Rejecting those below a level makes a false rejection anywhere in the family at most that likely.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = p.argsort(kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted.tolist()


def format_value(value: float, unit: str = "") -> str:
    """A number as people read it: '83.1%', '+2.4 pp', '0.0412', '1.20×10⁻⁵', '12,400'; '–' where it is NaN."""
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
    """The 95% interval without its unit, '[81.0, 85.2]'; empty where an end is NaN."""
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


def _paired(before: np.ndarray, after: np.ndarray) -> int:
    if len(before) != len(after) or len(before) == 0:
        raise ClearheadError(
            f"paired numbers of the same images are needed, got {len(before)} before, {len(after)} after"
        )
    return len(before)


def _together(count: int) -> float:
    """The level at which so many intervals hold together at LEVEL (Bonferroni)."""
    return 1 - (1 - LEVEL) / count


def _parts(correct: np.ndarray, groups: Sequence[str]) -> dict[str, np.ndarray]:
    """Which images are in each group (N, bool), by name in order."""
    names = np.asarray(groups)
    if len(names) != len(correct) or len(names) == 0:
        raise ClearheadError(f"groups: one name an image is needed, got {len(names)} names for {len(correct)} images")
    return {str(name): names == name for name in np.unique(names)}
