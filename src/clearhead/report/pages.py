"""Finished runs to one page: the verdict first, then the numbers, then the pictures."""

from collections.abc import Sequence
from pathlib import Path

from clearhead.data.folder import Problem
from clearhead.evaluate.audit import Audit
from clearhead.evaluate.compare import Comparison
from clearhead.evaluate.statistics import Estimate
from clearhead.report.calibration import calibration_sections
from clearhead.report.comparisons import MEASURES, comparison_sections
from clearhead.report.evaluations import evaluation_sections, sufficient_sections
from clearhead.report.heads import head_sections
from clearhead.report.landscape import spectrum_sections, surface_sections, trajectory_sections
from clearhead.report.layers import cka_sections, fourier_sections, lesion_sections
from clearhead.report.optimizers import optimizer_sections
from clearhead.report.page import Page, Row, Section, Table, Verdict, write
from clearhead.report.slices import slice_sections
from clearhead.report.strips import gallery, map_text
from clearhead.report.studies import study_sections
from clearhead.report.suites import suite_sections, verdicts
from clearhead.report.trainings import training_sections
from clearhead.results import (
    AuditResults,
    CkaResults,
    ComparisonResults,
    EvaluationResults,
    FourierResults,
    HeadsResults,
    LesionResults,
    OptimizerResults,
    Results,
    SlicesResults,
    SpectrumResults,
    StudyResults,
    SufficientResults,
    SuiteResults,
    SurfaceResults,
    TrainingResults,
    TrajectoryResults,
)

MOST_CLASSES = 20
"""Tables of classes show this many, those of lowest accuracy first."""


def write_page(runs: Sequence[tuple[Results, Path]], path: Path, title: str = "") -> None:
    """Write `page` to a file."""
    write(page(runs, title), path)


def page(runs: Sequence[tuple[Results, Path]], title: str = "") -> Page:
    """The page of runs and the folders their pictures are in.

    Its verdicts, headline and title come from the comparisons, or the first audit where there is no comparison.
    """
    comparisons = [run for run, _ in runs if isinstance(run, ComparisonResults)]
    several = len(runs) > 1
    sections: list[Section] = []
    for run, folder in sorted(runs, key=lambda pair: not isinstance(pair[0], ComparisonResults)):
        sections += _sections(run, folder, several)
    main = comparisons[0] if comparisons else runs[0][0]
    facts: dict[str, str] = {}
    for run, _ in runs:
        facts |= {
            (f"{name}, {run.kind}" if several and name != "versions" else name): v for name, v in run.facts.items()
        }
    return Page(
        title=title or _title(main),
        lead=_lead(main),
        verdicts=[Verdict(c.judgement.word, data, c.judgement.sentence) for c, data in _judged([r for r, _ in runs])]
        + [verdict for run, _ in runs if isinstance(run, SuiteResults) for verdict in verdicts(run)],
        headline=_headline(main),
        sections=sections,
        facts=facts,
    )


def _judged(runs: Sequence[Results]) -> list[tuple[Comparison, str]]:
    """What has a verdict: comparisons, and repairs that were compared on test images, with the name of the images."""
    found = [(run.comparison, run.data) for run in runs if isinstance(run, ComparisonResults)]
    return found + [
        (run.test, f"{run.data}, test images") for run in runs if isinstance(run, TrainingResults) and run.test
    ]


def _title(run: Results) -> str:
    if isinstance(run, ComparisonResults):
        return f"{run.after} against {run.before}"
    if isinstance(run, TrainingResults):
        return f"{run.model}: {'training' if run.method == 'train' else 'repair'}"
    if isinstance(run, StudyResults):
        return f"{run.model}: study"
    if isinstance(run, OptimizerResults):
        return f"Optimizers on {run.data}"
    if isinstance(run, EvaluationResults):
        return f"{_listed(run.models)}: evaluation"
    if isinstance(run, SufficientResults):
        return f"{run.model}: sufficient input subsets"
    if isinstance(run, SuiteResults):
        return f"{_listed(run.models)} on shifted data"
    if isinstance(run, SpectrumResults):
        return f"{_listed(run.models)}: Hessian spectra"
    if isinstance(run, SurfaceResults):
        return f"{_listed(run.models)}: loss surface"
    if isinstance(run, TrajectoryResults):
        return f"{run.model}: the way of the weights"
    if isinstance(run, FourierResults):
        return f"{_listed(run.models)}: frequencies through depth"
    if isinstance(run, LesionResults):
        return f"{_listed(run.models)}: lesions"
    if isinstance(run, CkaResults):
        return f"{_listed(run.models)}: similarity of layers"
    if isinstance(run, SlicesResults):
        return f"{run.model}: where it fails"
    return f"{run.model}: {'audit' if isinstance(run, AuditResults) else 'attention heads'}"


def _listed(models: Sequence[str]) -> str:
    """The names of up to three models, else the first two and how many more."""
    return " and ".join(models) if len(models) <= 3 else f"{', '.join(models[:2])} and {len(models) - 2} more"


def _lead(run: Results) -> str:
    if isinstance(run, ComparisonResults):
        count = run.comparison.before.accuracy.count
        return f"Both models on the same {count:,} images of {run.data}; every difference is paired, image by image."
    if isinstance(run, AuditResults | HeadsResults | SlicesResults):
        return f"{_accuracy(run).count:,} images of {run.data}."
    if isinstance(run, StudyResults):
        return f"Repairs on parts of {run.data}, measured on images that chose nothing."
    if isinstance(run, OptimizerResults):
        return f"{len(run.trials)} trainings on {run.data}; settings chosen on validation images."
    if isinstance(run, EvaluationResults):
        return f"On {run.data}."
    if isinstance(run, FourierResults | LesionResults | CkaResults):
        return f"Feature maps of images of {run.data}, unit by unit."
    if isinstance(run, SpectrumResults):
        return f"The loss on mini-batches of {run.data}."
    if isinstance(run, SurfaceResults):
        return f"The loss on {max(found.images for found in run.surfaces.values()):,} images of {run.data}."
    if isinstance(run, TrajectoryResults):
        return f"{len(run.epochs)} epochs that training kept."
    if isinstance(run, SuiteResults):
        return f"{len({row.set for row in run.rows})} sets of {run.data}."
    if isinstance(run, SufficientResults):
        return f"The fewest pixels that are enough for a label with {100 * run.confidence:g}% confidence."
    if run.method != "train":
        return f"Repaired on {run.data}, by {'keeping heads' if run.method == 'heads' else run.method}."
    return f"Trained on {run.data}."


def _headline(run: Results) -> list[tuple[str, Estimate]]:
    comparison = run.comparison if isinstance(run, ComparisonResults) else None
    if isinstance(run, TrainingResults):
        comparison = run.test
    if comparison:
        a, b = comparison.before, comparison.after
        shown = [("Average accuracy, before", a.accuracy), ("Average accuracy, after", b.accuracy)]
        if a.worst_group and b.worst_group:
            worst = [
                ("Worst-group accuracy, before", a.worst_group[1]),
                ("Worst-group accuracy, after", b.worst_group[1]),
            ]
            shown = worst + shown
        return shown
    if isinstance(run, AuditResults):
        audit = run.audit
        shown = [("Accuracy", audit.accuracy)]
        if audit.worst_group:
            shown.append(("Worst-group accuracy", audit.worst_group[1]))
        if audit.foreground:
            shown.append(("Relevance in the foreground", audit.foreground))
        if "background alone" in audit.intervened:
            shown.append(("Accuracy on the background alone", audit.intervened["background alone"]))
        return shown
    if isinstance(run, SuiteResults):
        return [(f"{row.model}, {row.set}", row.top1) for row in run.rows if row.set == run.reference][:4]
    if isinstance(run, HeadsResults):
        return [("Accuracy, all heads", run.scores.accuracy)]
    if isinstance(run, SlicesResults):
        worst = [(f"Errors in slice {part.name}", part.error) for part in run.slices[:3] if part.worse]
        return [("Accuracy", run.accuracy), *worst]
    return []


def _accuracy(run: AuditResults | HeadsResults | SlicesResults) -> Estimate:
    if isinstance(run, SlicesResults):
        return run.accuracy
    return run.scores.accuracy if isinstance(run, HeadsResults) else run.audit.accuracy


def _sections(run: Results, folder: Path, several: bool) -> list[Section]:
    if isinstance(run, ComparisonResults):
        sections = comparison_sections(run, folder)
    elif isinstance(run, AuditResults):
        sections = _audit_sections(run, folder, f": {run.model}" if several else "")
    elif isinstance(run, HeadsResults):
        sections = head_sections(run.scores, f": {run.model}" if several else "")
    elif isinstance(run, StudyResults):
        sections = study_sections(run)
    elif isinstance(run, OptimizerResults):
        sections = optimizer_sections(run)
    elif isinstance(run, EvaluationResults):
        sections = evaluation_sections(run)
    elif isinstance(run, FourierResults):
        sections = fourier_sections(run)
    elif isinstance(run, LesionResults):
        sections = lesion_sections(run)
    elif isinstance(run, CkaResults):
        sections = cka_sections(run)
    elif isinstance(run, SpectrumResults):
        sections = spectrum_sections(run)
    elif isinstance(run, SurfaceResults):
        sections = surface_sections(run)
    elif isinstance(run, TrajectoryResults):
        sections = trajectory_sections(run)
    elif isinstance(run, SuiteResults):
        sections = suite_sections(run)
    elif isinstance(run, SlicesResults):
        sections = slice_sections(run, folder, f": {run.model}" if several else "")
    elif isinstance(run, SufficientResults):
        sections = sufficient_sections(run, folder)
    else:
        sections = training_sections(run)
    return sections + ([_problems(run.problems)] if run.problems else [])


# --- an audit --------------------------------------------------------------------------------------------------------


def _audit_sections(run: AuditResults, folder: Path, of: str) -> list[Section]:
    audit = run.audit
    sections: list[Section] = []
    if audit.foreground and audit.area:
        sections.append(_reliance(audit, of))
    if audit.groups:
        text = "The worst group is what a model can be counted on for." + _caution(audit)
        sections.append(Table(f"Groups{of}", ["accuracy"], [Row(n, [e]) for n, e in audit.groups.items()], text))
    sections.append(_classes(audit, of))
    sections += calibration_sections(audit.calibration, run.rescaled, of)
    if run.least:
        text = f"The images whose relevance lies least on the object. {map_text(audit)}"
        sections.append(gallery(f"Least on the object{of}", text, run.least, folder))
    return sections + (head_sections(run.heads, of) if run.heads else [])


def _caution(audit: Audit) -> str:
    small = [name for name, e in audit.groups.items() if e.count < 30]
    return f" {len(small)} of them have fewer than 30 images: read those with care." if small else ""


def _reliance(audit: Audit, of: str) -> Table:
    rows = [
        Row(
            "Relevance in the foreground", [audit.foreground or "", ""], f"map: {audit.method}, of the predicted class"
        ),
        Row("Area of the foreground", [audit.area or "", ""], "what a map that is the same everywhere would score"),
    ]
    rows += [Row(f"Accuracy, {name}", ["", value]) for name, value in audit.intervened.items()]
    return Table(f"What it relies on{of}", ["share", "accuracy"], rows, MEASURES.split(". ", 1)[1])


def _classes(audit: Audit, of: str) -> Table:
    worst = sorted(audit.classes.items(), key=lambda item: (item[1].value, item[0]))
    shown = worst[:MOST_CLASSES]
    text = "" if len(shown) == len(worst) else f"The {len(shown)} of lowest accuracy out of {len(worst)} with images."
    balanced = Row("Mean of the classes", [audit.balanced], "balanced accuracy: each class counts alike")
    return Table(f"Classes{of}", ["accuracy"], [balanced, *(Row(name, [value]) for name, value in shown)], text)


# --- all of them -----------------------------------------------------------------------------------------------------


def _problems(problems: Sequence[Problem], most: int = 20) -> Table:
    rows = [Row(p.file, [p.kind, p.action, p.detail]) for p in problems[:most]]
    text = f"{len(problems):,} in all, the first {most} are shown." if len(problems) > most else ""
    return Table("Problems with the data", ["kind", "what was done", "detail"], rows, text, names="file")
