"""The results of each command as plain data: what results.json holds and the page is made from."""

from dataclasses import dataclass, field
from typing import Literal

from clearhead.data.folder import Problem
from clearhead.evaluate.audit import Audit
from clearhead.evaluate.compare import Comparison
from clearhead.heads.scores import HeadScores
from clearhead.heads.selection import Selection
from clearhead.linear import LinearLayer
from clearhead.repair import LastLayer
from clearhead.train import ChooseBy, Epoch


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
    heads: HeadScores | None = None


@dataclass(frozen=True)
class TrainingResults:
    """A training or a repair: how it went, and for a repair the checks against the model it started from.

    Attributes:
        kind: which results these are.
        model: where it started from.
        data: the folder.
        method: ``train``, or that of the repair.
        history: the epochs; empty for a method without any.
        choose_by: what the epoch kept has lowest of all on the validation images.
        selection: the heads that were kept (``heads``).
        last_layer: how the last layer was made (``dfr``).
        linear: how the last layer was trained, where it alone was.
        check: on the validation images, by which was chosen too: to find harm early, not to prove the gain.
        test: on images that nothing was chosen by, where the user named some.
        problems: with the data.
        facts: for the foot of the page.
    """

    kind: Literal["training"] = "training"
    model: str = ""
    data: str = ""
    method: str = "train"
    history: list[Epoch] = field(default_factory=list)
    choose_by: ChooseBy = "loss"
    selection: Selection | None = None
    last_layer: LastLayer | None = None
    linear: LinearLayer | None = None
    check: Comparison | None = None
    test: Comparison | None = None
    problems: list[Problem] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class HeadsResults:
    """The heads of a model, one by one."""

    kind: Literal["heads"]
    model: str
    data: str
    scores: HeadScores
    problems: list[Problem]
    facts: dict[str, str]


@dataclass(frozen=True)
class ComparisonResults:
    """Two models on one folder; `sample` shows images drawn at random, `first_lost` flips of the worst classes."""

    kind: Literal["comparison"]
    before: str
    after: str
    data: str
    comparison: Comparison
    gained: list[Strip]
    lost: list[Strip]
    sample: list[Strip]
    first_lost: list[Strip]
    problems: list[Problem]
    facts: dict[str, str]


Results = AuditResults | TrainingResults | ComparisonResults | HeadsResults
