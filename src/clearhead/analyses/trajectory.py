"""The training trajectory: how far and how straight the weights moved over the epochs that a training run has saved."""

from dataclasses import dataclass
from pathlib import Path

from clearhead.analyses.epochs import saved_epochs
from clearhead.analyses.subject import Subject
from clearhead.landscape import LandscapeError, Trajectory, trajectory, weight_vector
from clearhead.metrics.statistics import format_value
from clearhead.models import load_model
from clearhead.progress import Progress, track
from clearhead.report import plots
from clearhead.report.page import Figure, Page, Row, Section, Table


@dataclass(frozen=True)
class TrajectoryResult:
    """The trajectory of the weights through a training run, at its saved epochs."""

    subject: Subject
    epochs: list[int]
    trajectory: Trajectory


def measure(run: Path, *, progress: Progress | None = None) -> TrajectoryResult:
    """Measure how far and how straight the weights moved over the saved epochs of a training run.

    The run's checkpoint is one of its epochs, so it is no snapshot of its own.

    Example:
        $ clearhead landscape trajectory runs/train-vit

    Args:
        run: folder of ``train --save-epochs``.

    The other arguments are described in ``clearhead.options``.

    Raises:
        LandscapeError: for a folder with fewer than two saved epochs.
    """
    folders = saved_epochs(run)
    if len(folders) < 2:
        raise LandscapeError(
            f"run: {run} has {len(folders)} saved epochs; at least 2 are needed: train with --save-epochs 1,5,10"
        )
    snapshots = track(folders, progress, "snapshots")
    path = trajectory(weight_vector(load_model(str(folder)).module) for folder in snapshots)
    return TrajectoryResult(Subject([run.resolve().name]), [int(folder.name) for folder in folders], path)


def page(result: TrajectoryResult) -> Page:
    """Show distances and angles against the epoch, and their table."""
    path, epochs, name = result.trajectory, result.epochs, result.subject.model
    distances = {
        "from the first": [(float(e), x, 0.0) for e, x in zip(epochs, path.distance, strict=True)],
        "from the previous": [(float(e), x, 0.0) for e, x in zip(epochs[1:], path.step, strict=True)],
    }
    title = "Distance"
    text = "Distance of the weights (all parameters) of each saved epoch from the first one and from the previous one."
    sections: list[Section] = [Figure(title, text, plots.lines(distances, title, "epoch", "distance", unit=""))]
    turns = [(float(e), x, 0.0) for e, x in zip(epochs[1:-1], path.angle, strict=True) if x is not None]
    if turns:
        title = "Turn"
        text = "Angle in degrees between the step to an epoch and the step from it: 0 is straight, 90 a right angle."
        sections.append(Figure(title, text, plots.lines({name: turns}, title, "epoch", "degrees", unit="")))
    columns = zip(path.norm, path.distance, [None, *path.step], [None, *path.angle, None], strict=True)
    rows = [
        Row(f"epoch {e}", [_cell(norm), _cell(distance), _cell(step), _cell(angle, "°")])
        for e, (norm, distance, step, angle) in zip(epochs, columns, strict=True)
    ]
    heads = ["norm of the weights", "from the first", "from the previous", "turn"]
    table = Table("Snapshots", heads, rows, "Euclidean distances in weight space, in float64.")
    lead = f"{len(epochs)} saved epochs."
    return Page(f"{name}: training trajectory", lead, sections=[*sections, table])


def _cell(value: float | None, unit: str = "") -> str:
    return "–" if value is None else f"{format_value(value)}{unit}"
