"""A grid of optimizers as an analysis: a figure and a table for each of its questions."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np

from clearhead.analyses.subject import Subject
from clearhead.data.images import source_name
from clearhead.metrics.statistics import Estimate, format_value
from clearhead.options import Jobs, Option
from clearhead.progress import Progress
from clearhead.report import plots
from clearhead.report.page import Figure, Page, Row, Section, Table
from clearhead.study.optimizers.plan import Cell, read_plan
from clearhead.study.optimizers.run import CellResult, Moment, Trial, run_study

GROWS = True

Key = tuple[str, str, str, float]
"""A cell without its seed: model, optimizer, augmentation, fraction."""

Cells = Mapping[Key, Sequence[CellResult]]
"""The results of each cell, one per seed."""


@dataclass(frozen=True)
class OptimizerStudy:
    """A grid of trainings from random weights.

    Attributes:
        subject: the models and data.
        target: validation accuracy whose time is measured.
        trials: all settings that were tried.
        cells: the best setting of each cell, measured.
    """

    subject: Subject
    target: float
    trials: list[Trial]
    cells: list[CellResult]


def measure(
    plan: Path,
    *,
    jobs: Jobs = 1,
    storage: Annotated[
        str | None, Option("Database URL for several machines, as Optuna takes it. Default: a file in the run folder.")
    ] = None,
    folder: Path = Path(),
    device: str | None = None,
    progress: Progress | None = None,
) -> OptimizerStudy:
    """Train a grid of models, optimizers, learning rates, augmentations and amounts of data from one file.

    Measures how fast and how well each trains, and how flat its loss is. What is finished is not run again, so the plan
    may grow. The page shows what the plan names.

    Example:
        $ clearhead study optimizers plan.yaml --jobs 4

    Args:
        plan: YAML file (``clearhead.study.optimizers.plan``).
        jobs: number of parallel processes.
        storage: database URL as Optuna takes it, to share the work with other machines.
        folder: where the trainings are; one folder for each cell.
        device: where to train and measure; by default a GPU where there is one.
        progress: shows progress.

    Raises:
        StudyError: for a plan that cannot be run, a folder of another one, or a database that fails.
        DataError: for data that cannot be read.
    """
    read = read_plan(plan)
    trials = run_study(read, folder, jobs=jobs, storage=storage, device=device, progress=progress)
    subject = Subject(list(read.models), source_name(read.data))
    return OptimizerStudy(subject, read.target, trials.trials, trials.cells)


def page(result: OptimizerStudy) -> Page:
    """Show how fast, how good, how much the settings matter, how flat, and what data and augmentation do."""
    cells: dict[Key, list[CellResult]] = {}
    for cell in result.cells:
        cells.setdefault(_key(cell.best.cell), []).append(cell)
    sections: list[Section] = []
    if cells:
        names = _names(list(cells))
        sections = [_best(result, names), *_speed(result, cells, names), *_quality(cells, names)]
        sections += [*_sensitivity(result), *_flatness(cells, names), *_amount(cells)]
    if any(trial.ended != "finished" for trial in result.trials):
        sections.append(_unfinished(result))
    lead = f"{len(result.trials)} trainings on {result.subject.data}; settings selected on validation images."
    return Page(f"Optimizers on {result.subject.data}", lead, sections=sections)


def _best(result: OptimizerStudy, names: Mapping[Key, str]) -> Table:
    """List the best setting of each cell, how long it took to the target, and its accuracy."""
    seeds = {cell.best.cell.seed for cell in result.cells}
    rows = []
    for cell in result.cells:
        best, measures = cell.best, cell.measures
        reached = best.reached(result.target)
        name = names[_key(best.cell)] + (f", seed {best.cell.seed}" if len(seeds) > 1 else "")
        seconds = f"{reached.seconds:,.0f}" if reached else "never"
        setting = f"lr {best.lr:g}, weight decay {best.weight_decay:g}"
        rows.append(Row(name, [setting, seconds, measures.accuracy, measures.eigenvalue]))
    counts = Counter(trial.ended for trial in result.trials)
    title = f"Best settings ({', '.join(f'{count} settings {ended}' for ended, count in counts.items())})"
    text = "The setting of highest validation accuracy in each cell; accuracy is that on the test images."
    columns = ["setting", f"s to {format_value(result.target, '%')}", "accuracy", "largest eigenvalue"]
    return Table(title, columns, rows, text, names="model")


def _key(cell: Cell) -> Key:
    return cell.model, cell.optimizer, cell.augment, cell.fraction


def _names(keys: Sequence[Key]) -> dict[Key, str]:
    """Return names that distinguish the cells."""
    parts = [[f"{k[0]}, {k[1]}" if len({k[1] for k in keys}) > 1 else k[0] for k in keys]]
    if len({k[2] for k in keys}) > 1:
        parts.append([f"{k[2]} augmentation" for k in keys])
    if len({k[3] for k in keys}) > 1:
        parts.append([f"{k[3]:.0%} of the data" for k in keys])
    return {key: ", ".join(of_key) for key, of_key in zip(keys, zip(*parts, strict=True), strict=True)}


def _speed(result: OptimizerStudy, cells: Cells, names: Mapping[Key, str]) -> list[Section]:
    """Show accuracy against training time, model by model, and the time to the target."""
    sections: list[Section] = []
    _, _, augment, fraction = next(iter(cells))
    for model in dict.fromkeys(key[0] for key in cells):
        points = {
            key[1]: [(moment.seconds, moment.accuracy, 0.0) for moment in seeds[0].best.curve]
            for key, seeds in cells.items()
            if (key[0], *key[2:]) == (model, augment, fraction)
        }
        title = f"How fast does {model} train?"
        text = (
            "Validation accuracy after each epoch of the best setting against seconds of training, for the first seed, "
            "fraction and augmentation."
        )
        plot = plots.lines(points, title, "seconds of training", "validation accuracy", markers=False)
        sections.append(Figure(title, text, plot))
    rows = []
    for key, seeds in cells.items():
        reached = [cell.best.reached(result.target) for cell in seeds]
        cost = [
            _cost(reached, lambda m: f"{m.epoch}"),
            _cost(reached, lambda m: f"{m.images:,}"),
            _cost(reached, lambda m: f"{m.seconds:,.0f}"),
        ]
        rows.append(Row(names[key], cost))
    title = f"Time to {format_value(result.target, '%')} validation accuracy"
    text = "Of the best setting, one value per seed. Seconds of training alone, on one machine with that many jobs."
    return [*sections, Table(title, ["epochs", "images", "seconds"], rows, text, names="model")]


def _cost(reached: Sequence[Moment | None], text: Callable[[Moment], str]) -> str:
    return ", ".join("never" if moment is None else text(moment) for moment in reached)


def _quality(cells: Cells, names: Mapping[Key, str]) -> list[Section]:
    """Show accuracy, loss and calibration on the test images."""
    rows = []
    for key, seeds in cells.items():
        settings = {f"lr {cell.best.lr:g}, weight decay {cell.best.weight_decay:g}" for cell in seeds}
        measured = [[c.measures.accuracy, c.measures.loss, c.measures.ece] for c in seeds]
        note = "; ".join(sorted(settings)) + (f"; {len(seeds)} seeds" if len(seeds) > 1 else "")
        rows.append(Row(names[key], [_over_seeds(column) for column in zip(*measured, strict=True)], note))
    text = (
        "On the test images, for the setting of highest validation accuracy and its epoch of lowest validation loss. "
        "The interval is over images; with several seeds, mean ± standard deviation over them."
    )
    title = "How good does it get?"
    by_model: dict[str, list[tuple[str, Estimate]]] = {}
    for key, seeds in cells.items():
        name = names[key].removeprefix(f"{key[0]}, ")
        by_model.setdefault(key[0], []).append((name, seeds[0].measures.accuracy))
    plot = plots.intervals(list(by_model.items()), title)
    drawn = Figure(title, "Accuracy on the test images, first seed.", plot)
    return [drawn, Table(title, ["accuracy", "loss", "ECE"], rows, text, names="model")]


def _sensitivity(result: OptimizerStudy) -> list[Section]:
    """Show validation accuracy against the learning rate of each model, at the first augmentation, fraction, seed."""
    sections: list[Section] = []
    first = result.trials[0].cell
    for model in dict.fromkeys(trial.cell.model for trial in result.trials):
        best: dict[str, dict[float, float]] = {}
        for trial in result.trials:
            cell = trial.cell
            if cell == replace(first, model=model, optimizer=cell.optimizer):
                by_rate = best.setdefault(cell.optimizer, {})
                by_rate[trial.lr] = max(trial.accuracy, by_rate.get(trial.lr, 0.0))
        points = {name: [(lr, a, 0.0) for lr, a in sorted(by_rate.items())] for name, by_rate in best.items()}
        if max(map(len, points.values())) > 1:
            title = f"How much does the learning rate matter to {model}?"
            text = (
                "Validation accuracy of the best epoch and weight decay; of a stopped setting, that before it stopped."
            )
            plot = plots.lines(points, title, "learning rate", "validation accuracy", log_x=True)
            sections.append(Figure(title, text, plot))
    return sections


def _flatness(cells: Cells, names: Mapping[Key, str]) -> list[Section]:
    """Show how flat the loss on training images is."""
    rows = []
    for key, seeds in cells.items():
        measured = [[m.train_loss, m.eigenvalue, m.negative, m.sharpness] for m in (cell.measures for cell in seeds)]
        rows.append(Row(names[key], [_over_seeds(column) for column in zip(*measured, strict=True)]))
    text = (
        "After the last epoch, on training images without augmentation. Loss: mean negative log-likelihood. Largest "
        "eigenvalue of its Hessian and the share of negative values among the five of largest magnitude, on "
        "mini-batches. Sharpness: rise of the loss after a step of 0.05 along the gradient."
    )
    title = "How flat is the loss?"
    columns = ["training loss", "largest eigenvalue", "negative", "sharpness"]
    drawn: dict[str, list[tuple[str, Estimate]]] = {}
    for key, seeds in cells.items():
        name = names[key].removeprefix(f"{key[0]}, ")
        drawn.setdefault(key[0], []).append((name, seeds[0].measures.eigenvalue))
    plot = plots.intervals(list(drawn.items()), title, unit="")
    drawn_text = "Largest eigenvalue, mean over mini-batches, first seed."
    return [Figure(title, drawn_text, plot), Table(title, columns, rows, text, names="model")]


def _amount(cells: Cells) -> list[Section]:
    """Show error and training loss against the fraction of the data, at the first optimizer and augmentation."""
    if len({key[3] for key in cells}) == 1:
        return []
    _, optimizer, augment, _ = next(iter(cells))
    error: dict[str, list[tuple[float, float, float]]] = {}
    loss: dict[str, list[tuple[float, float, float]]] = {}
    for key, seeds in sorted(cells.items(), key=lambda pair: pair[0][3]):
        if key[1:3] == (optimizer, augment):
            errors = [1 - c.measures.accuracy.value for c in seeds]
            for lines, values in ((error, errors), (loss, [c.measures.train_loss.value for c in seeds])):
                lines.setdefault(key[0], []).append((key[3], float(np.mean(values)), 0.0))
    title, label = "What does the amount of data do?", "share of the training images"
    shown = plots.lines(error, title, label, "test error", log_x=True)
    fitted = plots.lines(loss, title, label, "training loss (nats)", unit="", log_x=True)
    text = (
        f"{optimizer}, augmentation {augment}, the same number of epochs of each. A model that overfits has a higher "
        "error on fewer images while its training loss falls."
    )
    return [
        Figure(title, text, shown),
        Figure(f"{title} Training loss", "After the last epoch, on training images without augmentation.", fitted),
    ]


def _unfinished(result: OptimizerStudy) -> Table:
    rows = []
    for trial in result.trials:
        if trial.ended != "finished":
            cell, last = trial.cell, trial.curve[-1].epoch if trial.curve else 0
            note = f"{cell.augment} augmentation, {cell.fraction:.0%} of the data, seed {cell.seed}"
            cells = [
                f"{trial.lr:g}",
                f"{trial.weight_decay:g}",
                trial.ended,
                str(last),
                format_value(trial.accuracy, "%"),
            ]
            rows.append(Row(f"{cell.model}, {cell.optimizer}", cells, note))
    text = "Stopped: validation accuracy below that of the finished settings. Diverged: a loss that is not finite."
    columns = ["learning rate", "weight decay", "ended", "after epoch", "accuracy"]
    return Table("Stopped settings", columns, rows, text, names="model")


def _over_seeds(values: Sequence[Estimate]) -> Estimate | str:
    if len(values) == 1:
        return values[0]
    numbers, unit = np.array([value.value for value in values]), values[0].unit
    spread = format_value(float(numbers.std(ddof=1)), unit)
    return f"{format_value(float(numbers.mean()), unit).removesuffix(unit).rstrip()} ± {spread}"
