"""Numbers with their 95% interval and count, and how people read them.

Which interval is made how, and why, is told in docs/statistics.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, bootstrap, norm

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
    """Images gained (wrong before, right after) and lost, and the exact two-sided p-value of so uneven a split."""

    gained: int
    lost: int
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
    """The mean of N numbers with the percentile interval of its bootstrap; no interval for a single number."""
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

    The interval is for the lowest of the true accuracies, whichever group has it: the smallest lower and the smallest
    upper end of intervals that hold for all groups at once (Wilson, at Šidák's level). The count is the group's.
    """
    names = np.asarray(groups)
    level = LEVEL ** (1 / len(np.unique(names)))
    found = {str(name): proportion(correct[names == name], level) for name in np.unique(names)}
    worst = min(found, key=lambda name: found[name].value)
    low, high = (min(getattr(e, end) for e in found.values()) for end in ("low", "high"))
    return worst, Estimate(found[worst].value, low, high, found[worst].count, "%")


def accuracy_difference(before: np.ndarray, after: np.ndarray) -> Estimate:
    """Share right after minus share right before, on the same N images, with Bonett and Price's paired interval."""
    count = _paired(before, after)
    gained, lost = int(np.sum(~before & after)), int(np.sum(before & ~after))
    up, down = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    half = norm.ppf(0.5 + LEVEL / 2) * math.sqrt((up + down - (up - down) ** 2) / (count + 2))
    value = (gained - lost) / count
    low, high = max(-1.0, up - down - half), min(1.0, up - down + half)
    return Estimate(value, min(low, value), max(high, value), count, "pp")


def mean_difference(before: np.ndarray, after: np.ndarray, unit: str = "", seed: int = 0) -> Estimate:
    """The mean of after - before over the same N images, with the interval of its bootstrap."""
    _paired(before, after)
    return mean(np.asarray(after, dtype=np.float64) - before, unit, seed)


def worst_group_difference(
    before: np.ndarray, after: np.ndarray, groups: Sequence[str], seed: int = 0, resamples: int = 10_000
) -> Estimate:
    """Worst-group accuracy after minus before, on the same N images; the two worst groups may differ.

    The interval is the percentile interval of a bootstrap that draws images within each group: the counts of the four
    cells (right or wrong, before and after) from a multinomial, which is the same in distribution.
    """
    count = _paired(before, after)
    names, rng = np.asarray(groups), np.random.default_rng(seed)
    accuracies, drawn = [], []
    for name in np.unique(names):
        a, b = before[names == name], after[names == name]
        cells = np.array([np.sum(a & b), np.sum(a & ~b), np.sum(~a & b), np.sum(~a & ~b)])
        counts = np.vstack([cells, rng.multinomial(len(a), cells / len(a), size=resamples)])
        shares = np.stack([counts[:, 0] + counts[:, 1], counts[:, 0] + counts[:, 2]]) / len(a)
        accuracies.append(shares[:, 0])
        drawn.append(shares[:, 1:])
    value = np.min(accuracies, 0)
    worst = np.min(drawn, 0)
    low, high = np.quantile(worst[1] - worst[0], [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Estimate(float(value[1] - value[0]), float(low), float(high), count, "pp")


def mcnemar(before: np.ndarray, after: np.ndarray) -> McNemar:
    """McNemar's test, exact: are the gained and the lost as likely? p is 1 where nothing flipped."""
    _paired(before, after)
    gained, lost = int(np.sum(~before & after)), int(np.sum(before & ~after))
    p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return McNemar(gained, lost, p_value)


def number(value: float, unit: str = "") -> str:
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


def interval(estimate: Estimate) -> str:
    """The 95% interval without its unit, '[81.0, 85.2]'; empty where an end is NaN."""
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return ""
    ends = (number(end, estimate.unit).removesuffix(estimate.unit).rstrip() for end in (estimate.low, estimate.high))
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
        raise ValueError(f"paired numbers of the same images are needed, got {len(before)} before, {len(after)} after")
    return len(before)
