"""The results of each command as plain data: what results.json holds and the page is made from."""

from dataclasses import dataclass
from typing import Literal

from clearhead.data.folder import Problem
from clearhead.evaluate.audit import Audit
from clearhead.evaluate.compare import Comparison
from clearhead.train import Epoch


@dataclass(frozen=True)
class Strip:
    """A row of pictures of one image: captions and PNG files below the run's pictures/."""

    title: str
    text: str
    pictures: list[tuple[str, str]]


@dataclass(frozen=True)
class AuditResults:
    """One model on one folder."""

    kind: Literal["audit"]
    model: str
    data: str
    audit: Audit
    least: list[Strip]
    problems: list[Problem]
    facts: dict[str, str]


@dataclass(frozen=True)
class TrainingResults:
    """A training or a repair: its history, and for a repair the check against the model it started from.

    The check is made on the validation images, by which the epoch was chosen too: it is there to find harm early, not
    to prove the gain. That is what a comparison on other images is for.
    """

    kind: Literal["training"]
    model: str
    data: str
    history: list[Epoch]
    check: Comparison | None
    problems: list[Problem]
    facts: dict[str, str]


@dataclass(frozen=True)
class ComparisonResults:
    """Two models on one folder; `sample` shows images drawn at random."""

    kind: Literal["comparison"]
    before: str
    after: str
    data: str
    comparison: Comparison
    gained: list[Strip]
    lost: list[Strip]
    sample: list[Strip]
    problems: list[Problem]
    facts: dict[str, str]


Results = AuditResults | TrainingResults | ComparisonResults
