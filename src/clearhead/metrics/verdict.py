"""Decide from intervals, not from point estimates, whether a change improved or regressed a model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from clearhead.metrics.power import images_at_observed, images_for
from clearhead.metrics.statistics import Estimate, format_interval, format_value

Outcome = Literal["improved", "regressed", "inconclusive", "gap", "reliance", "leak"]


@dataclass(frozen=True)
class Verdict:
    """The outcome of a comparison of two models, or a finding about one.

    Attributes:
        word: the outcome; of a finding ``gap`` (lower accuracy on some images) ``reliance`` (on something else than
            the object) or ``leak`` (data reveal their labels without the object).
        sentence: the reasons for it.
        basis: the rule that decided, with its level or margin.
        data: the name of the data set, where several verdicts are listed together.
    """

    word: Outcome
    sentence: str
    basis: str = ""
    data: str = ""


def noninferiority_verdict(differences: Mapping[str, Estimate], margin: float = 0.02) -> Verdict:
    """Return the verdict on paired differences (after - before, higher is better) with a non-inferiority margin.

    A measure is *better* if its interval lies above zero, *worse* if its interval lies below zero and extends below
    -margin, and *non-inferior* if its interval does not extend below -margin. One worse measure: regressed. At least
    one better and all others non-inferior: improved. Otherwise: inconclusive, and the sentence adds how many images
    would decide, if the observed differences are the true ones (``clearhead.metrics.power``).

    Args:
        differences: by measure, in the order in which the sentence names them.
        margin: largest acceptable loss, as a fraction.
    """
    texts = {name: f"{format_value(e.value, e.unit)} {format_interval(e)}".rstrip() for name, e in differences.items()}
    points = f"{100 * margin:g} pp"
    basis = f"Paired 95% intervals, non-inferiority margin {points}."
    worse = [name for name, e in differences.items() if e.high < 0 and e.low < -margin]
    better = [name for name, e in differences.items() if e.low > 0]
    unsure = [name for name, e in differences.items() if name not in better and not e.low >= -margin]
    rose = [f"{name} rose ({texts[name]})" for name in better]
    if worse:
        fell = [f"{name} fell ({texts[name]})" for name in worse]
        return Verdict("regressed", f"{_sentence(fell)} {_sentence(rose)}".rstrip(), basis)
    if better and not unsure:
        others = [f"{name} did not fall by more than {points} ({texts[name]})" for name in texts if name not in better]
        return Verdict("improved", f"{_sentence(rose)} {_sentence(others)}".rstrip(), basis)
    if unsure:
        maybe = [f"{name} may have fallen by more than {points} ({texts[name]})" for name in unsure]
        claims = [_claim(name, differences[name], margin) for name in unsure]
        needed = _images_for(claims) or "More images would narrow the interval."
        return Verdict("inconclusive", f"{_sentence([*rose, *maybe])} {needed}", basis)
    same = [f"{name} neither rose significantly nor fell by more than {points} ({texts[name]})" for name in texts]
    gains = [(f"{name} rose", e, 0.0) for name, e in differences.items() if e.value > 0]
    fewest = min(gains, key=lambda claim: images_at_observed(claim[1], 0.0) or math.inf, default=None)
    return Verdict("inconclusive", f"{_sentence(same)} {_images_for([fewest] if fewest else [])}".rstrip(), basis)


def _claim(name: str, difference: Estimate, margin: float) -> tuple[str, Estimate, float]:
    """Return what more images would show of a measure that may have fallen, and from which threshold its interval is.

    It is what the observed difference points to.
    """
    if difference.value > -margin:
        return f"{name} did not fall by more than {100 * margin:g} pp", difference, -margin
    return f"{name} fell", difference, 0.0


def _images_for(claims: Sequence[tuple[str, Estimate, float]]) -> str:
    """Return a sentence on how many images would show some claims; empty where no realistic number would."""
    needed = [images_at_observed(difference, threshold) for _, difference, threshold in claims]
    counts = [count for count in needed if count is not None]
    if not claims or len(counts) < len(claims):
        return ""
    claim = f"that {' and that '.join(text for text, _, _ in claims)}"
    return images_for(claim, max(counts), max(e.count for _, e, _ in claims))


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""
