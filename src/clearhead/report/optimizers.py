"""A study of optimizers on the page: a figure and a table for each of its questions."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from clearhead.metrics.statistics import Estimate, format_value
from clearhead.report import plots
from clearhead.report.page import Figure, Row, Section, Table
from clearhead.results import OptimizerResults
from clearhead.study.optimizers import Cell, CellResult, Moment

_Key = tuple[str, str, str, float]
"""A cell but for its seed: model, optimizer, augmentation, fraction."""


def optimizer_sections(run: OptimizerResults) -> list[Section]:
    """How fast, how good, how much the settings matter, how flat, and what data and augmentation do."""
    cells: dict[_Key, list[CellResult]] = {}
    for found in run.cells:
        cells.setdefault(key_of(found.best.cell), []).append(found)
    if not cells:
        return [_unfinished(run)]
    names = names_of(list(cells))
    sections = [*_speed(run, cells, names), *_quality(cells, names), *_sensitivity(run), *_flatness(cells, names)]
    sections += _amount(cells)
    return sections + ([_unfinished(run)] if any(trial.ended != "finished" for trial in run.trials) else [])


def key_of(cell: Cell) -> _Key:
    """A cell but for its seed."""
    return cell.model, cell.optimizer, cell.augment, cell.fraction


def names_of(keys: Sequence[_Key]) -> dict[_Key, str]:
    """What tells the cells apart."""
    told = [[f"{k[0]}, {k[1]}" if len({k[1] for k in keys}) > 1 else k[0] for k in keys]]
    if len({k[2] for k in keys}) > 1:
        told.append([f"{k[2]} augmentation" for k in keys])
    if len({k[3] for k in keys}) > 1:
        told.append([f"{k[3]:.0%} of the data" for k in keys])
    return {key: ", ".join(parts) for key, parts in zip(keys, zip(*told, strict=True), strict=True)}


def _speed(run: OptimizerResults, cells: dict[_Key, list[CellResult]], names: dict[_Key, str]) -> list[Section]:
    """Accuracy against time of training, model by model, and what it took to the target."""
    sections: list[Section] = []
    _, _, augment, fraction = next(iter(cells))
    for model in dict.fromkeys(key[0] for key in cells):
        points = {
            key[1]: [(moment.seconds, moment.accuracy, 0.0) for moment in found[0].best.curve]
            for key, found in cells.items()
            if (key[0], *key[2:]) == (model, augment, fraction)
        }
        title = f"How fast does {model} train?"
        text = "Validation accuracy after each epoch of the setting that was kept, against the seconds of training; "
        text += "of the first seed, fraction and augmentation."
        plot = plots.lines(points, title, "seconds of training", "validation accuracy", markers=False)
        sections.append(Figure(title, text, plot))
    rows = []
    for key, found in cells.items():
        reached = [cell.best.reached(run.target) for cell in found]
        rows.append(Row(names[key], [_took(reached, lambda m: f"{m.epoch}"), *_images_and_seconds(reached)]))
    title = f"Until {format_value(run.target, '%')} of the validation images are right"
    text = "Of the setting that was kept. Seconds are those of training alone, on one machine with that many jobs."
    return [*sections, Table(title, ["epochs", "images", "seconds"], rows, text, names="model")]


def _images_and_seconds(reached: Sequence[Moment | None]) -> list[str]:
    return [_took(reached, lambda m: f"{m.images:,}"), _took(reached, lambda m: f"{m.seconds:,.0f}")]


def _took(reached: Sequence[Moment | None], told: Callable[[Moment], str]) -> str:
    return ", ".join("never" if moment is None else told(moment) for moment in reached)


def _quality(cells: dict[_Key, list[CellResult]], names: dict[_Key, str]) -> list[Section]:
    """The test images."""
    rows = []
    for key, found in cells.items():
        settings = {f"lr {cell.best.lr:g}, weight decay {cell.best.weight_decay:g}" for cell in found}
        measured = [[c.measures.accuracy, c.measures.loss, c.measures.ece] for c in found]
        note = "; ".join(sorted(settings)) + (f"; {len(found)} seeds" if len(found) > 1 else "")
        rows.append(Row(names[key], [_over_seeds(column) for column in zip(*measured, strict=True)], note))
    text = (
        "On the test images, of the setting of highest validation accuracy and its epoch of lowest validation loss. "
        "The interval is over images; with several seeds, mean ± standard deviation over them."
    )
    title = "How good does it get?"
    by_model: dict[str, list[tuple[str, Estimate]]] = {}
    for key, found in cells.items():
        told = names[key].removeprefix(f"{key[0]}, ")
        by_model.setdefault(key[0], []).append((told, found[0].measures.accuracy))
    plot = plots.intervals(list(by_model.items()), title)
    drawn = Figure(title, "Accuracy on the test images, of the first seed.", plot)
    return [drawn, Table(title, ["accuracy", "loss", "ECE"], rows, text, names="model")]


def _sensitivity(run: OptimizerResults) -> list[Section]:
    """Validation accuracy against the learning rate, model by model, at the first augmentation, fraction and seed."""
    sections: list[Section] = []
    first = run.trials[0].cell
    for model in dict.fromkeys(trial.cell.model for trial in run.trials):
        best: dict[str, dict[float, float]] = {}
        for trial in run.trials:
            cell = trial.cell
            if cell == replace(first, model=model, optimizer=cell.optimizer):
                by_rate = best.setdefault(cell.optimizer, {})
                by_rate[trial.lr] = max(trial.accuracy, by_rate.get(trial.lr, 0.0))
        points = {name: [(lr, a, 0.0) for lr, a in sorted(found.items())] for name, found in best.items()}
        if max(map(len, points.values())) > 1:
            title = f"How much does the learning rate matter to {model}?"
            text = "Validation accuracy of the epoch kept, of the best weight decay; of a stopped setting, what it had."
            plot = plots.lines(points, title, "learning rate", "validation accuracy", log=True)
            sections.append(Figure(title, text, plot))
    return sections


def _flatness(cells: dict[_Key, list[CellResult]], names: dict[_Key, str]) -> list[Section]:
    """The loss on training images."""
    rows = []
    for key, found in cells.items():
        measured = [[m.train_loss, m.eigenvalue, m.negative, m.sharpness] for m in (cell.measures for cell in found)]
        rows.append(Row(names[key], [_over_seeds(column) for column in zip(*measured, strict=True)]))
    text = (
        "After the last epoch, on training images as they are. Loss: mean negative log-likelihood. Largest eigenvalue "
        "of its Hessian and the share of negative ones among the five of largest magnitude, of mini-batches. "
        "Sharpness: rise of the loss one step of 0.05 up the gradient."
    )
    title = "How flat is the loss?"
    columns = ["training loss", "largest eigenvalue", "negative", "sharpness"]
    drawn: dict[str, list[tuple[str, Estimate]]] = {}
    for key, found in cells.items():
        told = names[key].removeprefix(f"{key[0]}, ")
        drawn.setdefault(key[0], []).append((told, found[0].measures.eigenvalue))
    plot = plots.intervals(list(drawn.items()), title, unit="")
    drawn_text = "Largest eigenvalue, mean over mini-batches, of the first seed."
    return [Figure(title, drawn_text, plot), Table(title, columns, rows, text, names="model")]


def _amount(cells: dict[_Key, list[CellResult]]) -> list[Section]:
    """Error and training loss against the fraction of the data, at the first optimizer and augmentation."""
    if len({key[3] for key in cells}) == 1:
        return []
    _, optimizer, augment, _ = next(iter(cells))
    error: dict[str, list[tuple[float, float, float]]] = {}
    loss: dict[str, list[tuple[float, float, float]]] = {}
    for key, found in sorted(cells.items(), key=lambda pair: pair[0][3]):
        if key[1:3] == (optimizer, augment):
            wrong, of_train = (
                [1 - c.measures.accuracy.value for c in found],
                [c.measures.train_loss.value for c in found],
            )
            for lines, values in ((error, wrong), (loss, of_train)):
                lines.setdefault(key[0], []).append((key[3], float(np.mean(values)), 0.0))
    title, across = "What does the amount of data do?", "share of the training images"
    shown = plots.lines(error, title, across, "test error", log=True)
    fitted = plots.lines(loss, title, across, "training loss (nats)", unit="", log=True)
    text = f"{optimizer}, augmentation {augment}, as many epochs of each. "
    return [
        Figure(title, text + "A model that overfits errs more on fewer images while its training loss falls.", shown),
        Figure(f"{title} Training loss", "After the last epoch, on training images as they are.", fitted),
    ]


def _unfinished(run: OptimizerResults) -> Table:
    rows = []
    for trial in run.trials:
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
    text = "For falling behind the settings that finished in validation accuracy, or a loss that was no longer finite."
    columns = ["learning rate", "weight decay", "ended", "after epoch", "accuracy"]
    return Table("Settings that were stopped", columns, rows, text, names="model")


def _over_seeds(values: Sequence[Estimate]) -> Estimate | str:
    if len(values) == 1:
        return values[0]
    numbers, unit = np.array([value.value for value in values]), values[0].unit
    spread = format_value(float(numbers.std(ddof=1)), unit)
    return f"{format_value(float(numbers.mean()), unit).removesuffix(unit).rstrip()} ± {spread}"
