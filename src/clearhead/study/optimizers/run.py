"""Run a plan of optimizers: Optuna hands out the settings of each cell, and stops those that fall behind.

Each cell is an Optuna study in a database, with one trial per setting: any number of processes, on any number of
machines that share the database and the folder, take what is waiting. From a third of the epochs on, a setting is
stopped if its best validation accuracy so far is below the median, at that epoch, of the finished ones (the median
rule of Google Vizier, Golovin et al. 2017). A killed process loses its heartbeat; another one continues its setting
from its last finished epoch.
"""

import hashlib
import json
import logging
import shutil
import time
import warnings
from dataclasses import dataclass
from functools import cache
from math import ceil, isfinite
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from clearhead.data.dataset import ImageIndex
from clearhead.data.fingerprint import fingerprint as data_fingerprint
from clearhead.data.images import read_images
from clearhead.data.splits import split_off, splits_of, subsample_fraction
from clearhead.distributed import run_all
from clearhead.models import Classifier, load_model, save_model
from clearhead.models.classifier import on_device
from clearhead.models.errors import cause
from clearhead.progress import Progress
from clearhead.study.cells import claim, read_result, write_result
from clearhead.study.optimizers.measures import Measures, measure
from clearhead.study.optimizers.plan import Cell, Plan, setting_name
from clearhead.study.plan_files import StudyError
from clearhead.training.loop import DivergedError, Epoch, best_epoch, cross_entropy, fit
from clearhead.training.optimizers import make_optimizer

if TYPE_CHECKING:
    import optuna

_BEAT, _PATIENCE = 5, 20
"""Seconds between two heartbeats of a process, and seconds without one until it counts as lost."""

MOST_VALIDATION = 2000
"""Images held out for model selection where the data has no split val; at most a tenth of the training images."""


@dataclass(frozen=True)
class Moment:
    """State after an epoch: images and seconds of training so far, validation accuracy and loss (nats)."""

    epoch: int
    images: int
    seconds: float
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Trial:
    """One learning rate and weight decay in a cell.

    Attributes:
        cell: where it was tried.
        lr, weight_decay: the setting.
        ended: ``finished``, ``stopped`` for falling behind, or ``diverged``: its loss was no longer finite.
        epoch: that of lowest validation loss, whose weights are the checkpoint; 0 is before training.
        accuracy: on the validation images, of those weights.
        curve: after each epoch, epoch 0 first.
    """

    cell: Cell
    lr: float
    weight_decay: float
    ended: str
    epoch: int
    accuracy: float
    curve: list[Moment]

    def reached(self, target: float) -> Moment | None:
        """Return the first moment of a validation accuracy; None where it was never reached."""
        return next((moment for moment in self.curve if moment.accuracy >= target), None)


@dataclass(frozen=True)
class CellResult:
    """A cell: the finished trial of highest validation accuracy, the training images, and its measures."""

    best: Trial
    images: int
    measures: Measures


@dataclass(frozen=True)
class Trials:
    """All trials, and the result of each cell with a finished one."""

    trials: list[Trial]
    cells: list[CellResult]


def run_study(
    plan: Plan,
    out: Path,
    *,
    jobs: int = 1,
    storage: str | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Trials:
    """Run what is not finished below `out`, and return the trials.

    Args:
        plan: what to run.
        out: a folder for each cell, in it one for each setting, with checkpoints of its best and its last epoch.
        jobs: number of parallel processes on this machine.
        storage: database URL as Optuna takes it, to share the work with other machines; by default a file in `out`.
        device: where to train and measure; by default a GPU where there is one.
        progress: shows progress.

    Raises:
        StudyError: without Optuna, for data without a split test, for a storage that cannot be opened.
        ClearheadError: for a model or an optimizer that is unavailable.
        StudyError: for a folder that holds cells of the same names from another plan.
    """
    _optuna()
    out.mkdir(parents=True, exist_ok=True)
    url = storage or f"sqlite:///{(out / 'optuna.db').resolve()}"
    train = _indices(str(plan.data))[0]
    for name in plan.models:  # mistakes show before hours of training
        model = _fresh(plan.models[name], train, 0)
        for choice in plan.optimizers.values():
            make_optimizer(choice.optimizer, model.module, 1e-3)
    for cell in plan.cells():
        claim(out / cell.folder, _deciding(plan, cell))
        _queue(_study(url, plan, cell), plan, cell, out)
    settings = [(plan, cell, out, url, device) for cell in plan.cells() for _ in plan.tried(cell)]
    run_all(_next, settings, jobs, progress, "settings")
    run_all(_finish, [(plan, cell, out, url, device) for cell in plan.cells()], jobs, progress, "cells")
    trials, cells = [], []
    for cell in plan.cells():
        trials += _trials(plan, cell, out)
        best = _best(plan, cell, out)
        result = _result(best, out) if best else None
        if result:
            cells.append(result)
    return Trials(trials, cells)


def _deciding(plan: Plan, cell: Cell) -> dict[str, Any]:
    """Return what decides the numbers of a cell, except the settings, of which there may be more later."""
    own = {"model": plan.models[cell.model], "optimizer": plan.optimizers[cell.optimizer].optimizer}
    fixed: dict[str, Any] = {"epochs": plan.epochs, "batch_size": plan.batch_size, "max_grad_norm": plan.max_grad_norm}
    fixed |= {"eigenvalue_batches": plan.eigenvalue_batches}
    return {"data": str(plan.data), **_data_fingerprints(str(plan.data)), "cell": vars(cell), **own, **fixed}


def _optuna() -> ModuleType:
    """Return Optuna without its messages about each trial and about experimental heartbeats. Raises StudyError."""
    try:
        import optuna
    except ImportError as error:
        raise StudyError("study optimizers needs Optuna: pip install 'clearhead[study]'") from error
    optuna.logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def _study(url: str, plan: Plan, cell: Cell) -> "optuna.Study":
    """Return the cell in the database, under a name of its own. Raises StudyError for a database that fails."""
    library = _optuna()
    digest = hashlib.sha256(json.dumps(_deciding(plan, cell), sort_keys=True).encode()).hexdigest()[:12]
    pruner = library.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=ceil(plan.epochs / 3))
    try:
        storage = library.storages.RDBStorage(url, heartbeat_interval=_BEAT, grace_period=_PATIENCE)
    except Exception as error:  # SQLAlchemy's, or that of a driver
        raise StudyError(f"storage: {url} cannot be opened: {cause(error)}") from error
    name = f"{cell.folder}-{digest}"
    study: optuna.Study = library.create_study(
        storage=storage, study_name=name, direction="maximize", pruner=pruner, load_if_exists=True
    )
    return study


def _queue(study: "optuna.Study", plan: Plan, cell: Cell, out: Path) -> tuple[int, int]:
    """Queue each setting that is neither finished nor running; return how many wait and how many run.

    A setting is finished if its folder has results, whatever the database says.
    """
    optuna = _optuna()
    optuna.storages.fail_stale_trials(study)
    by_setting: dict[str, set[Any]] = {}
    for trial in study.get_trials(deepcopy=False):
        setting = trial.system_attrs.get("fixed_params")
        if setting is None:  # another process took the last one that waited: Optuna made this one up, `_try` stopped it
            continue
        by_setting.setdefault(setting_name(setting["lr"], setting["weight_decay"]), set()).add(trial.state)
    waiting = running = 0
    for lr, weight_decay in plan.tried(cell):
        name = setting_name(lr, weight_decay)
        if (out / cell.folder / name / "results.json").is_file():
            continue
        states = by_setting.get(name, set())
        if optuna.trial.TrialState.RUNNING in states:
            running += 1
            continue
        if optuna.trial.TrialState.WAITING not in states:
            study.enqueue_trial({"lr": lr, "weight_decay": weight_decay})
        waiting += 1
    return waiting, running


def _next(plan: Plan, cell: Cell, out: Path, url: str, device: str | None) -> None:
    """Try the next waiting setting of a cell, if there is one."""
    study = _study(url, plan, cell)
    if _queue(study, plan, cell, out)[0]:
        _take(study, plan, cell, out, device)


def _take(study: "optuna.Study", plan: Plan, cell: Cell, out: Path, device: str | None) -> None:
    study.optimize(lambda trial: _try(trial, plan, cell, out, device), n_trials=1)


def _finish(plan: Plan, cell: Cell, out: Path, url: str, device: str | None) -> None:
    """Wait until all settings of a cell are finished, trying those that others left, and measure the best."""
    study = _study(url, plan, cell)
    while sum(counts := _queue(study, plan, cell, out)):
        if counts[0]:
            _take(study, plan, cell, out, device)
        else:
            time.sleep(2)
    best = _best(plan, cell, out)
    if best is None or _result(best, out):
        return
    train, _, test = _indices(str(plan.data))
    train = subsample_fraction(train, cell.fraction, cell.seed)
    folder = out / cell.folder / setting_name(best.lr, best.weight_decay)
    selected, last = (on_device(load_model(str(folder / name)), device) for name in ("checkpoint", "last"))
    measures = measure(selected, last, train, test, batches=plan.eigenvalue_batches, seed=cell.seed)
    write_result(out / cell.folder, CellResult(best, len(train.samples), measures))


def _try(trial: "optuna.Trial", plan: Plan, cell: Cell, out: Path, device: str | None) -> float:
    """Train with one setting and return its validation accuracy. Raises TrialPruned where it is stopped or diverges."""
    lr, weight_decay = (trial.suggest_float(name, 0, 1e6) for name in ("lr", "weight_decay"))  # the queued values
    folder = out / cell.folder / setting_name(lr, weight_decay)
    if (lr, weight_decay) not in plan.tried(cell) or (folder / "results.json").is_file():  # queued by another plan
        raise _optuna().TrialPruned
    setting = {"lr": lr, "weight_decay": weight_decay}
    running = trial.study.get_trials(deepcopy=False, states=(_optuna().trial.TrialState.RUNNING,))
    if any(t.number < trial.number and t.system_attrs.get("fixed_params") == setting for t in running):
        raise _optuna().TrialPruned  # two machines queued it at once, and the other one tries it
    train, validation, _ = _indices(str(plan.data))
    history: list[Epoch] = []

    def behind(epochs: list[Epoch], model: Classifier) -> bool:
        for epoch in epochs[len(history) :]:  # with those before an interruption
            trial.report(epoch.validation["accuracy"], epoch.number)
        history[:] = epochs
        if len(epochs) <= plan.epochs:
            return trial.should_prune()
        save_model(model, folder / "last")
        return False

    try:
        model, history[:] = fit(
            _fresh(plan.models[cell.model], train, cell.seed),
            cross_entropy,
            subsample_fraction(train, cell.fraction, cell.seed),
            validation,
            plan.settings(cell, lr, weight_decay),
            folder / "state",
            device=device,
            on_epoch_end=behind,
        )
        finite = isfinite(history[-1].validation["loss"])
        ended = "stopped" if history[-1].number < plan.epochs else "finished" if finite else "diverged"
    except DivergedError as error:
        ended, history[:] = "diverged", error.history
    best = best_epoch(history)
    accuracy = best.validation["accuracy"]
    if ended == "finished":
        save_model(model, folder / "checkpoint")
    write_result(folder, Trial(cell, lr, weight_decay, ended, best.number, accuracy, _curve(history)))
    shutil.rmtree(folder / "state", ignore_errors=True)
    if ended != "finished":
        raise _optuna().TrialPruned
    return accuracy


def _best(plan: Plan, cell: Cell, out: Path) -> Trial | None:
    """Return the finished trial of highest validation accuracy."""
    finished = [trial for trial in _trials(plan, cell, out) if trial.ended == "finished"]
    return max(finished, key=lambda trial: trial.accuracy, default=None)


def _result(best: Trial, out: Path) -> CellResult | None:
    """Return the cell's result if it is that of this trial."""
    folder = out / best.cell.folder
    result = read_result(folder, CellResult) if (folder / "results.json").is_file() else None
    return result if result and result.best == best else None


def _curve(history: list[Epoch]) -> list[Moment]:
    images, seconds = (np.cumsum([getattr(e, name) for e in history]) for name in ("images", "seconds"))
    return [
        Moment(e.number, int(images[i]), float(seconds[i]), e.validation["accuracy"], e.validation["loss"])
        for i, e in enumerate(history)
    ]


def _trials(plan: Plan, cell: Cell, out: Path) -> list[Trial]:
    """Return the trials of a cell that have ended."""
    folders = [out / cell.folder / setting_name(*setting) for setting in plan.tried(cell)]
    return [read_result(folder, Trial) for folder in folders if (folder / "results.json").is_file()]


def _fresh(name: str, data: ImageIndex, seed: int) -> Classifier:
    """Return a model of random weights drawn by the seed."""
    torch.manual_seed(seed)
    return load_model(name, num_classes=len(data.classes), classes=data.classes, pretrained=False)


@cache
def _data_fingerprints(data: str) -> dict[str, dict[str, str]]:
    names = ("training images", "validation images", "test images")
    return {name: data_fingerprint(index) for name, index in zip(names, _indices(data), strict=True)}


@cache
def _indices(data: str) -> tuple[ImageIndex, ImageIndex, ImageIndex]:
    """Return the images for training, for model selection, and for the test."""
    splits = splits_of(data)
    if not splits:
        read_images(data, check=False)  # its error is better where nothing can be read
    if not {"train", "test"} <= splits:
        raise StudyError(f"data: {data} needs the splits train and test; it has {', '.join(sorted(splits)) or 'none'}")
    train = read_images(data, split="train")
    test = read_images(data, split="test", classes=train.classes)
    if "val" in splits:
        return train, read_images(data, split="val", classes=train.classes), test
    return *split_off(train, min(0.1, MOST_VALIDATION / len(train.samples))), test
