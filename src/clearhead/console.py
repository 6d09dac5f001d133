"""What the terminal shows: progress on stderr, the numbers that matter and where the rest is on stdout."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clearhead.analyses.audit import Audit
from clearhead.data.dataset import DataIssue
from clearhead.distributed import rank_and_size
from clearhead.masks import MasksWritten
from clearhead.metrics.statistics import Estimate, format_interval, format_value
from clearhead.progress import Progress, show_progress
from clearhead.report.calibration import calibration_rows
from clearhead.report.trainings import CHOSEN_BY
from clearhead.results import (
    AuditResults,
    ComparisonResults,
    TrainingResults,
)
from clearhead.training.loop import best_epoch

_quiet = rank_and_size()[0] > 0  # of several processes the first one speaks
err = Console(stderr=True, highlight=False, soft_wrap=True, quiet=_quiet)
out = Console(highlight=False, soft_wrap=True, quiet=_quiet)

progress: Progress | None = None if _quiet else show_progress
_COLOURS = {"improved": "green", "regressed": "red", "inconclusive": "yellow"}


def fail(error: Exception) -> None:
    """Say what went wrong."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]Error:[/] {escape(str(error))}")


def tell_audit(results: AuditResults, folder: Path) -> None:
    """The main numbers of an audit."""
    tell_problems(results.issues)
    table = _table("", "95% interval", "n")
    rows = _audited(results.audit)
    if scaled := results.rescaled:
        after = calibration_rows(scaled.calibration).items()
        rows += [(f"{name}, temperature {format_value(scaled.temperature)}", estimate) for name, estimate in after]
    for name, estimate in rows:
        table.add_row(
            escape(name), format_value(estimate.value, estimate.unit), format_interval(estimate), f"{estimate.count:,}"
        )
    out.print(table)
    if scaled:
        out.print(f"temperature fitted on the {scaled.images:,} images of {escape(scaled.split)}")
    _tell_page(folder)


def _audited(audit: Audit) -> list[tuple[str, Estimate]]:
    rows = [("accuracy", audit.accuracy), ("balanced accuracy", audit.balanced)]
    if audit.worst_group:
        rows.append((f"worst group ({audit.worst_group[0]})", audit.worst_group[1]))
    rows += calibration_rows(audit.calibration).items()
    if audit.relevance_mass and audit.area:
        rows += [("foreground relevance", audit.relevance_mass), ("mask area", audit.area)]
    return rows + [(f"accuracy, {name}", value) for name, value in audit.interventions.items() if name != "clean"]


def tell_comparison(results: ComparisonResults, folder: Path) -> None:
    """The verdict and the differences of a comparison."""
    tell_problems(results.issues)
    tell_verdict(results)
    table = _table("difference", "95% interval", "n")
    for name, estimate in results.comparison.differences.items():
        table.add_row(
            escape(name), format_value(estimate.value, estimate.unit), format_interval(estimate), f"{estimate.count:,}"
        )
    out.print(table)
    _tell_page(folder)


def tell_verdict(results: ComparisonResults) -> None:
    """The verdict in words."""
    verdict = results.comparison.verdict
    colour = _COLOURS[verdict.word]
    out.print(f"[bold {colour}]{verdict.word}[/] on {escape(results.data)}: {escape(verdict.sentence)}")


def tell_training(results: TrainingResults, folder: Path) -> None:
    """The epoch that was kept, the check for harm, and where the checkpoint is."""
    tell_problems(results.issues)
    if results.history:
        _tell_epoch(results)
    if found := results.selection:
        removed = {name: [h for h, kept in enumerate(keep) if not kept] for name, keep in found.kept_heads.items()}
        told = "; ".join(f"{name} without {', '.join(map(str, heads))}" for name, heads in removed.items() if heads)
        out.print(f"heads: {escape(told) if told else 'all kept'}")
        most = "" if found.search == "exhaustive" else "at most "
        other = (
            "" if found.optimism is None else f", {most}{100 * (found.after - found.optimism):.1f}% expected on others"
        )
        out.print(
            f"{found.objective} on the {found.images:,} validation images: {100 * found.before:.1f}% -> "
            f"{100 * found.after:.1f}%{other} ({found.tried:,} candidates, {found.search})"
        )
    if results.last_layer:
        used = results.last_layer
        out.print(f"last layer: C = {used.chosen:g}, worst group {100 * used.worst_group_accuracy[used.chosen]:.1f}%")
    if results.linear:
        layer = results.linear
        accuracy = 100 * layer.accuracy[layer.chosen]
        out.print(f"last layer: λ = {layer.chosen:g}, {accuracy:.1f}% of the validation images right")
    for title, comparison in (("check on the validation images", results.check), ("test images", results.test)):
        if comparison:
            verdict = comparison.verdict
            out.print(f"{title}: [bold]{verdict.word}[/]. {escape(verdict.sentence)}")
    out.print(f"checkpoint: {escape(str(folder / 'checkpoint'))}")
    _tell_page(folder)


def _tell_epoch(results: TrainingResults) -> None:
    first, kept = results.history[0].validation, best_epoch(results.history, results.monitor)
    by = results.monitor
    out.print(
        f"epoch {kept.number} of {len(results.history) - 1} kept: {CHOSEN_BY[by]} {first[by]:.4f} -> "
        f"{kept.validation[by]:.4f}, accuracy {100 * first['accuracy']:.1f}% -> "
        f"{100 * kept.validation['accuracy']:.1f}%"
    )
    if kept.number == 0:
        out.print(f"No epoch lowered the {CHOSEN_BY[by]}: the checkpoint is the model as it was given.")


def tell_masks(written: MasksWritten) -> None:
    """How many images have a mask, what was dropped, and how good they are where that is known."""
    tell_problems(written.issues)
    area = f"{format_value(written.area.value, '%')} of the image on average"
    out.print(f"{written.masks:,} of {written.images:,} images have a mask, {area}")
    for name, overlap in (
        ("patches", written.patch_iou),
        ("all masks", written.all_iou),
        ("saved masks", written.saved_iou),
    ):
        if overlap:
            out.print(
                f"IoU with the true masks, {name}: {format_value(overlap.value)} {format_interval(overlap)}, "
                f"n {overlap.count:,}"
            )
    out.print(f"data: {escape(str(written.folder))}")


def tell_problems(issues: Sequence[DataIssue]) -> None:
    """How many problems of each kind the data has, with one example of each."""
    counts = Counter((issue.category, issue.action) for issue in issues)
    for (kind, action), count in counts.items():
        example = next(p for p in issues if (p.category, p.action) == (kind, action))
        err.print(
            f"[yellow]data:[/] {count:,} {kind} ({action}), such as {escape(example.file)}: {escape(example.detail)}"
        )


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _tell_page(folder: Path) -> None:
    out.print(f"page: {escape(str(folder / 'report.html'))}")
