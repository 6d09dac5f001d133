"""How each kind of results is told on its page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clearhead.analyses.compare import Comparison
from clearhead.metrics.statistics import Estimate
from clearhead.report.audits import audit_sections
from clearhead.report.comparisons import comparison_sections
from clearhead.report.page import Section
from clearhead.report.trainings import training_sections
from clearhead.results import (
    AuditResults,
    ComparisonResults,
    TrainingResults,
)


@dataclass(frozen=True)
class Kind:
    """How results of one kind are told.

    Attributes:
        title: of a page of their own.
        lead: the sentence below it.
        sections: of the results, the folder of their pictures, and what sets the titles apart on a page of several.
        headline: the numbers above all others, if any.
    """

    title: Callable[[Any], str]
    lead: Callable[[Any], str]
    sections: Callable[[Any, Path, str], list[Section]]
    headline: Callable[[Any], list[tuple[str, Estimate]]] = lambda run: []


def _listed(models: Sequence[str]) -> str:
    """The names of up to three models, else the first two and how many more."""
    return " and ".join(models) if len(models) <= 3 else f"{', '.join(models[:2])} and {len(models) - 2} more"


def _compared(comparison: Comparison | None) -> list[tuple[str, Estimate]]:
    if comparison is None:
        return []
    a, b = comparison.before, comparison.after
    shown = [("Average accuracy, before", a.accuracy), ("Average accuracy, after", b.accuracy)]
    if a.worst_group and b.worst_group:
        worst = [("Worst-group accuracy, before", a.worst_group[1]), ("Worst-group accuracy, after", b.worst_group[1])]
        shown = worst + shown
    return shown


def _audited(run: AuditResults) -> list[tuple[str, Estimate]]:
    audit = run.audit
    shown = [("Accuracy", audit.accuracy)]
    if audit.worst_group:
        shown.append(("Worst-group accuracy", audit.worst_group[1]))
    if audit.relevance_mass:
        shown.append(("Foreground relevance", audit.relevance_mass))
    if "background only" in audit.interventions:
        shown.append(("Accuracy, background only", audit.interventions["background only"]))
    return shown


def _trained(run: TrainingResults) -> str:
    if run.method == "train":
        return f"Trained on {run.data}."
    return f"Repaired on {run.data}, by {'keeping heads' if run.method == 'heads' else run.method}."


KINDS: dict[type, Kind] = {
    ComparisonResults: Kind(
        lambda run: f"{run.after} against {run.before}",
        lambda run: (
            f"Both models on the same {run.comparison.before.accuracy.count:,} images of {run.data}; every difference "
            "is paired, image by image."
        ),
        lambda run, folder, of: comparison_sections(run, folder),
        lambda run: _compared(run.comparison),
    ),
    AuditResults: Kind(
        lambda run: f"{run.model}: audit",
        lambda run: f"{run.audit.accuracy.count:,} images of {run.data}.",
        audit_sections,
        _audited,
    ),
    TrainingResults: Kind(
        lambda run: f"{run.model}: {'training' if run.method == 'train' else 'repair'}",
        _trained,
        lambda run, folder, of: training_sections(run),
        lambda run: _compared(run.test),
    ),
}
