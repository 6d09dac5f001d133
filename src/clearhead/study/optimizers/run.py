"""Running a plan: Optuna hands the settings of each cell out, and stops those that fall behind.

Each cell is an Optuna study with one trial a setting, kept in a database: any number of processes, on any number of
machines that share the database and the folder, take what is waiting. From a third of the epochs on a setting is
stopped whose best validation accuracy so far is below the median, at that epoch, of those that finished (the median
rule of Google Vizier, Golovin et al. 2017). A process that is killed loses its heartbeat; its setting is taken up by
another, from its last finished epoch.
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
from clearhead.data.images import read_images
from clearhead.data.splits import split_off, splits_of, subsample_fraction
from clearhead.distributed import run_all
from clearhead.models import Classifier, load_model, save_model
from clearhead.models.classifier import on_device
from clearhead.models.errors import cause
from clearhead.progress import Progress
from clearhead.runs import begin, read_results, write_results
from clearhead.study.files import StudyError
from clearhead.study.optimizers.measures import Measures, measure
from clearhead.study.optimizers.plan import Cell, Plan, setting_name
from clearhead.training.loop import DivergedError, Epoch, best_epoch, cross_entropy, fit
from clearhead.training.optimizers import make_optimizer

if TYPE_CHECKING:
    import optuna

_BEAT, _PATIENCE = 5, 20
"""Seconds between two heartbeats of a process, and without one until it counts as gone."""

MOST_VALIDATION = 2000
"""Images held out to choose by, where the data has none to choose by; a tenth of fewer than ten times that."""


@dataclass(frozen=True)
class Moment:
    """After an epoch: images trained on and seconds of training so far, the validation accuracy and loss (nats)."""

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
        epoch: whose weights were kept, that of lowest validation loss; 0 is before training.
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
        """The first moment of a validation accuracy; None where it was never reached."""
        return next((moment for moment in self.curve if moment.accuracy >= target), None)


@dataclass(frozen=True)
class CellResult:
    """A cell: the trial that was kept, of highest validation accuracy among those that finished, and its measures."""

    best: Trial
    images: int
    measures: Measures


@dataclass(frozen=True)
class OptimizerStudy:
    """All trials, and of each cell with a finished one its result."""

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
) -> OptimizerStudy:
    """Do what is not done yet below `out`, and gather the table.

    Args:
        plan: what to run.
        out: a folder for each cell, in it one for each setting, with the checkpoints of its kept and its last epoch.
        jobs: processes on this machine.
        storage: database URL as Optuna takes it, to share the work with other machines; a file in `out` by default.
        device: where to train and measure; a GPU where there is one by default.
        track: shows progress: ``track(pieces, count, title)``.

    Raises:
        StudyError: without Optuna, for data without a split test, for a storage that cannot be opened.
        ModelError, ValueError: for a model or an optimizer that cannot be had.
        RunError: for a folder that holds cells of the same names from another plan.
    """
    _optuna()
    out.mkdir(parents=True, exist_ok=True)
    url = storage or f"sqlite:///{(out / 'optuna.db').resolve()}"
    train = _folders(str(plan.data))[0]
    for name in plan.models:  # a mistake shows before hours of training
        model = _fresh(plan.models[name], train, 0)
        for choice in plan.optimizers.values():
            make_optimizer(choice.optimizer, model.module, 1e-3)
    for cell in plan.cells():
        begin(out / cell.folder, "study optimizers", _arguments(plan, cell))
        _queue(_study(url, plan, cell), plan, cell, out)
    pieces = [(plan, cell, out, url, device) for cell in plan.cells() for _ in plan.tried(cell)]
    run_all(_next, pieces, jobs, progress, "settings")
    run_all(_finish, [(plan, cell, out, url, device) for cell in plan.cells()], jobs, progress, "cells")
    trials, cells = [], []
    for cell in plan.cells():
        trials += _trials(plan, cell, out)
        best = _best(plan, cell, out)
        result = _result(best, out) if best else None
        if result:
            cells.append(result)
    return OptimizerStudy(trials, cells)


def _arguments(plan: Plan, cell: Cell) -> dict[str, Any]:
    """What decides the numbers of a cell, but for the settings, of which there may be more later."""
    own = {"model": plan.models[cell.model], "optimizer": plan.optimizers[cell.optimizer].optimizer}
    fixed = {"epochs": plan.epochs, "batch_size": plan.batch_size, "max_grad_norm": plan.max_grad_norm}
    return {"data": str(plan.data), "cell": vars(cell), **own, **fixed, "eigenvalue_batches": plan.eigenvalue_batches}


def _optuna() -> ModuleType:
    """Optuna, without the news of each trial and of how experimental its heartbeats are. Raises StudyError."""
    try:
        import optuna
    except ImportError as error:
        raise StudyError("a study of optimizers needs Optuna: pip install 'clearhead[study]'") from error
    optuna.logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def _study(url: str, plan: Plan, cell: Cell) -> "optuna.Study":
    """The cell in the database, under a name that no other plan's has. Raises StudyError for a URL that is none."""
    optuna = _optuna()
    digest = hashlib.sha256(json.dumps(_arguments(plan, cell), sort_keys=True).encode()).hexdigest()[:12]
    pruner = optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=ceil(plan.epochs / 3))
    try:
        storage = optuna.storages.RDBStorage(url, heartbeat_interval=_BEAT, grace_period=_PATIENCE)
    except Exception as error:  # SQLAlchemy's, or that of a driver
        raise StudyError(f"storage: {url} cannot be opened: {cause(error)}") from error
    return optuna.create_study(
        storage=storage, study_name=f"{cell.folder}-{digest}", direction="maximize", pruner=pruner, load_if_exists=True
    )


def _queue(study: "optuna.Study", plan: Plan, cell: Cell, out: Path) -> tuple[int, int]:
    """Have each setting wait for a process that is not done, by its folder, nor in work; how many wait and are in work.

    What the folder does not hold counts as not done, whatever the database says.
    """
    optuna = _optuna()
    optuna.storages.fail_stale_trials(study)
    by_setting: dict[str, set[Any]] = {}
    for trial in study.get_trials(deepcopy=False):
        asked = trial.system_attrs.get("fixed_params")
        if asked is None:  # another process took the last that waited, so this one was made up, and stopped by `_try`
            continue
        by_setting.setdefault(setting_name(asked["lr"], asked["weight_decay"]), set()).add(trial.state)
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
    """Try the next setting of a cell that is waiting, if one is."""
    study = _study(url, plan, cell)
    if _queue(study, plan, cell, out)[0]:
        _take(study, plan, cell, out, device)


def _take(study: "optuna.Study", plan: Plan, cell: Cell, out: Path, device: str | None) -> None:
    study.optimize(lambda trial: _try(trial, plan, cell, out, device), n_trials=1)


def _finish(plan: Plan, cell: Cell, out: Path, url: str, device: str | None) -> None:
    """Wait until all settings of a cell are done, doing those that others have left, and measure the best."""
    study = _study(url, plan, cell)
    while sum(counts := _queue(study, plan, cell, out)):
        if counts[0]:
            _take(study, plan, cell, out, device)
        else:
            time.sleep(2)
    best = _best(plan, cell, out)
    if best is None or _result(best, out):
        return
    train, _, test = _folders(str(plan.data))
    train = subsample_fraction(train, cell.fraction, cell.seed)
    folder = out / cell.folder / setting_name(best.lr, best.weight_decay)
    kept, last = (on_device(load_model(str(folder / name)), device) for name in ("checkpoint", "last"))
    measures = measure(kept, last, train, test, batches=plan.eigenvalue_batches, seed=cell.seed)
    write_results(out / cell.folder, CellResult(best, len(train.samples), measures))


def _try(trial: "optuna.Trial", plan: Plan, cell: Cell, out: Path, device: str | None) -> float:
    """Train with one setting; its validation accuracy. Raises TrialPruned for one that is stopped or diverges."""
    lr, weight_decay = (trial.suggest_float(name, 0, 1e6) for name in ("lr", "weight_decay"))  # as they were queued
    folder = out / cell.folder / setting_name(lr, weight_decay)
    if (lr, weight_decay) not in plan.tried(cell) or (folder / "results.json").is_file():  # queued by another plan
        raise _optuna().TrialPruned
    setting = {"lr": lr, "weight_decay": weight_decay}
    running = trial.study.get_trials(deepcopy=False, states=(_optuna().trial.TrialState.RUNNING,))
    if any(t.number < trial.number and t.system_attrs.get("fixed_params") == setting for t in running):
        raise _optuna().TrialPruned  # two machines queued it at once, and the other one is at it
    train, validation, _ = _folders(str(plan.data))
    history: list[Epoch] = []

    def behind(epochs: list[Epoch], model: Classifier) -> bool:
        for epoch in epochs[len(history) :]:  # those before a run was interrupted too
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
    kept = best_epoch(history)
    accuracy = kept.validation["accuracy"]
    if ended == "finished":
        save_model(model, folder / "checkpoint")
    write_results(folder, Trial(cell, lr, weight_decay, ended, kept.number, accuracy, _curve(history)))
    shutil.rmtree(folder / "state", ignore_errors=True)
    if ended != "finished":
        raise _optuna().TrialPruned
    return accuracy


def _best(plan: Plan, cell: Cell, out: Path) -> Trial | None:
    """The trial of highest validation accuracy among those that finished."""
    finished = [trial for trial in _trials(plan, cell, out) if trial.ended == "finished"]
    return max(finished, key=lambda trial: trial.accuracy, default=None)


def _result(best: Trial, out: Path) -> CellResult | None:
    """The measures of a trial, where they are taken."""
    folder = out / best.cell.folder
    found = read_results(folder, CellResult) if (folder / "results.json").is_file() else None
    return found if found and found.best == best else None


def _curve(history: list[Epoch]) -> list[Moment]:
    images, seconds = (np.cumsum([getattr(e, name) for e in history]) for name in ("images", "seconds"))
    return [
        Moment(e.number, int(images[i]), float(seconds[i]), e.validation["accuracy"], e.validation["loss"])
        for i, e in enumerate(history)
    ]


def _trials(plan: Plan, cell: Cell, out: Path) -> list[Trial]:
    """The trials of a cell that are done."""
    folders = [out / cell.folder / setting_name(*setting) for setting in plan.tried(cell)]
    return [read_results(folder, Trial) for folder in folders if (folder / "results.json").is_file()]


def _fresh(name: str, data: ImageIndex, seed: int) -> Classifier:
    """A model of random weights drawn by the seed."""
    torch.manual_seed(seed)
    return load_model(name, num_classes=len(data.classes), classes=data.classes, pretrained=False)


@cache
def _folders(data: str) -> tuple[ImageIndex, ImageIndex, ImageIndex]:
    """The images to train on, to choose by, and to measure on."""
    splits = splits_of(data)
    if not splits:
        read_images(data, check=False)  # what cannot be read at all says so
    if not {"train", "test"} <= splits:
        raise StudyError(f"data: {data} needs the splits train and test; it has {', '.join(sorted(splits)) or 'none'}")
    train = read_images(data, split="train")
    test = read_images(data, split="test", classes=train.classes)
    if "val" in splits:
        return train, read_images(data, split="val", classes=train.classes), test
    return *split_off(train, min(0.1, MOST_VALIDATION / len(train.samples))), test
