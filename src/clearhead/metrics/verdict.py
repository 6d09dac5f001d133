"""Helped, harmed, or cannot tell: a rule on intervals, not on points."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from clearhead.metrics.statistics import Estimate, interval, number


@dataclass(frozen=True)
class Verdict:
    """The verdict, and a sentence that gives the reasons."""

    word: Literal["helped", "harmed", "cannot tell"]
    sentence: str


def noninferiority_verdict(differences: Mapping[str, Estimate], margin: float = 0.02) -> Verdict:
    """The verdict on paired differences (after minus before, higher is better), with a margin of non-inferiority.

    A measure is *better* if its interval lies above zero, *worse* if it lies below zero and reaches below -margin, and
    *not harmed* if it does not reach below -margin. One worse measure: harmed. One better and all others not harmed:
    helped. Else nobody can tell.

    Args:
        differences: by measure, in the order they are told.
        margin: the loss that is still no harm, as a fraction.
    """
    said = {name: f"{number(e.value, e.unit)} {interval(e)}".rstrip() for name, e in differences.items()}
    points = f"{100 * margin:g} pp"
    worse = [name for name, e in differences.items() if e.high < 0 and e.low < -margin]
    better = [name for name, e in differences.items() if e.low > 0]
    unsure = [name for name, e in differences.items() if name not in better and not e.low >= -margin]
    if worse:
        fell = _sentence([f"{name} fell ({said[name]})" for name in worse])
        rose = _sentence([f"{name} rose ({said[name]})" for name in better])
        return Verdict("harmed", f"{fell} {rose}".rstrip())
    if better and not unsure:
        rose = _sentence([f"{name} rose ({said[name]})" for name in better])
        kept = [f"{name} did not fall by more than {points} ({said[name]})" for name in said if name not in better]
        return Verdict("helped", f"{rose} {_sentence(kept)}".rstrip())
    if unsure:
        open_ = [f"{name} may have fallen by more than {points} ({said[name]})" for name in unsure]
        up = [f"{name} rose ({said[name]})" for name in better]
        return Verdict("cannot tell", f"{_sentence([*up, *open_])} More images would narrow the interval.")
    same = [f"{name} neither rose for certain nor fell by more than {points} ({said[name]})" for name in said]
    return Verdict("cannot tell", _sentence(same))


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""
