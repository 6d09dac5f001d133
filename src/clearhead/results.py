"""The results of each command as plain data: what results.json holds and the page is made from."""

from dataclasses import dataclass, field
from typing import Literal

from clearhead.analyses.audit import Audit
from clearhead.analyses.compare import Comparison
from clearhead.analyses.head_scores import HeadScores
from clearhead.data.dataset import DataIssue
from clearhead.metrics.calibration import TemperatureScaling
from clearhead.repairs import RetrainedHead
from clearhead.repairs.head_selection import Selection
from clearhead.training.linear_probe import LinearProbe
from clearhead.training.loop import Epoch, Monitor


@dataclass(frozen=True)
class ExampleImages:
    """A row of pictures of one image: captions and PNG files below the run's pictures/."""

    title: str
    text: str
    pictures: list[tuple[str, str]]


@dataclass(frozen=True)
class AuditResults:
    """One model on one folder; `rescaled` tells its calibration at a temperature fitted on another split."""

    kind: Literal["audit"]
    model: str
    data: str
    audit: Audit
    lowest_relevance_mass: list[ExampleImages]
    issues: list[DataIssue]
    provenance: dict[str, str]
    heads: HeadScores | None = None
    rescaled: TemperatureScaling | None = None


@dataclass(frozen=True)
class TrainingResults:
    """A training or a repair: how it went, and for a repair the checks against the model it started from.

    Attributes:
        kind: which results these are.
        model: where it started from.
        data: the folder.
        method: ``train``, or that of the repair.
        history: the epochs; empty for a method without any.
        monitor: what the epoch kept has lowest of all on the validation images.
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
    monitor: Monitor = "loss"
    selection: Selection | None = None
    last_layer: RetrainedHead | None = None
    linear: LinearProbe | None = None
    check: Comparison | None = None
    test: Comparison | None = None
    issues: list[DataIssue] = field(default_factory=list)
    provenance: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ComparisonResults:
    """Two models on one folder; `first_negative_flips` are of the most regressed classes, `sample` is random."""

    kind: Literal["comparison"]
    before: str
    after: str
    data: str
    comparison: Comparison
    positive_flips: list[ExampleImages]
    negative_flips: list[ExampleImages]
    sample: list[ExampleImages]
    first_negative_flips: list[ExampleImages]
    issues: list[DataIssue]
    provenance: dict[str, str]


Results = AuditResults | TrainingResults | ComparisonResults


def once(names: list[str]) -> list[str]:
    """The names, numbered where some are the same."""
    return [f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name for i, name in enumerate(names)]
