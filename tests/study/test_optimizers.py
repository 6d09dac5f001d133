"""A study of optimizers: its plan, what it keeps, stops and refuses, and that a killed one goes on."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from torch import nn

from clearhead.data.dataset import ImageIndex, Sample
from clearhead.data.image_io import DataError
from clearhead.data.splits import subsample_fraction
from clearhead.landscape.sharpness import sharpness
from clearhead.models import ModelError
from clearhead.study.optimizers import Cell, read_plan, run, run_study
from clearhead.study.plan_files import StudyError
from tests.command import clearhead, error, result
from tests.training.interrupt import interrupted_after

SMALL = "{epochs: 3, batch_size: 4, eigenvalue_batches: 2, data: DATA, models: {ViT: MODEL}, target: 0.5, "


@pytest.fixture
def plan_of(workspace, tmp_path):
    """A plan on the small data, written and read."""

    def read(rest: str, model: str | None = None):
        text = (
            SMALL.replace("DATA", str(workspace / "data")).replace("MODEL", model or str(workspace / "model"))
            + rest
            + "}"
        )
        (tmp_path / "plan.yaml").write_text(text)
        return read_plan(tmp_path / "plan.yaml")

    return read


def test_the_plan_is_a_grid_of_cells_with_settings(plan_of):
    plan = plan_of(
        "optimizers: {SGD: {optimizer: sgd, lr: [0.1, 1.0e-2], weight_decay: [0, 5e-4]}, SAM: {optimizer: sam-sgd, "
        "lr: 1}}, augment: [weak, strong], fractions: [1, 0.5], seeds: [0, 1]"
    )
    cells = plan.cells()
    assert len(cells) == len({cell.folder for cell in cells}) == 2 * 2 * 2 * 2
    assert plan.tried(cells[0]) == [(0.1, 0), (0.1, 5e-4), (0.01, 0), (0.01, 5e-4)]
    strong = plan.settings(Cell("ViT", "SAM", "strong", 1, 1), 1.0, 0.05)
    assert (strong.optimizer, strong.mixup, strong.cutmix, strong.label_smoothing, strong.seed) == (
        *("sam-sgd", 1.0, 0.8, 0.1),
        1,
    )
    assert plan.settings(Cell("ViT", "SGD", "weak", 1, 0), 0.1, 0).mixup == 0


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("optimizers: {}", "optimizers"),
        ("optimizers: {SGD: {optimizer: sgd, lr: -1}}", "greater than 0"),
        ("optimizers: {SGD: {optimizer: sgd, lr: 1}}, fractions: 2", "less than or equal to 1"),
        ("optimizers: {SGD: {optimizer: sgd, lr: 1}}, augment: odd", "'none', 'weak' or 'strong'"),
        ("optimizers: {A b: {optimizer: sgd, lr: 1}, A-b: {optimizer: sgd, lr: 1}}", "the same folder"),
        ("optimizers: {SGD: {optimizer: sdg, lr: 1}}", "sgd"),
        ("optimizers: {SGD: {optimizer: sgd, lr: [0.1, 0.1]}}", "listed twice"),
    ],
)
def test_plans_that_cannot_be(plan_of, rest, message):
    with pytest.raises(StudyError, match=message):
        plan_of(rest)


def test_parts_are_nested_and_have_every_class():
    samples = tuple(Sample(f"{i}.png", Path(f"{i}.png"), i % 2, None, {}) for i in range(40))
    folder = ImageIndex(Path(), ("a", "b"), samples, ())
    parts = [{s.file for s in subsample_fraction(folder, fraction, 3).samples} for fraction in (0.03, 0.1, 0.3, 1)]
    assert [len(part) for part in parts] == [2, 4, 12, 40]
    assert all(small < large for small, large in itertools.pairwise(parts))
    assert {s.file for s in subsample_fraction(folder, 0.3, 4).samples} != parts[2]


def test_sharpness_is_the_rise_along_the_gradient_and_leaves_the_weights_alone():
    torch.manual_seed(0)
    module = nn.Linear(3, 1, bias=False).double()
    x = torch.randn(8, 3, dtype=torch.float64)
    before = module.weight.detach().clone()
    actual = sharpness(module, lambda: module(x).square().mean(), radius=0.1)
    hessian = 2 * x.T @ x / len(x)  # of a quadratic, so the rise is known: ρ ||g|| + ρ² g'Hg / 2g'g
    gradient = hessian @ before[0]
    size = gradient.norm()
    expected = 0.1 * size + 0.5 * 0.01 * (gradient @ hessian @ gradient) / size**2
    assert actual == pytest.approx(expected.item(), rel=1e-9)
    assert torch.equal(module.weight, before)


def test_it_keeps_the_best_setting_stops_none_twice_and_grows(plan_of, tmp_path):
    rest = "optimizers: {SGD: {optimizer: sgd, lr: [1.0e-2, LAST], weight_decay: 0}}"
    plan = plan_of(rest.replace("LAST", "1.0e+5"))
    actual = run_study(plan, tmp_path / "study", device="cpu")
    by_rate = {trial.lr: trial for trial in actual.trials}
    assert by_rate[1e5].ended == "stopped"
    good = by_rate[1e-2]
    assert good.ended == "finished"
    assert [moment.epoch for moment in good.curve] == [0, 1, 2, 3]
    assert [moment.images for moment in good.curve] == [0, 12, 24, 36]
    assert np.all(np.diff([moment.seconds for moment in good.curve]) > 0)
    (cell,) = actual.cells
    assert cell.best == good
    assert cell.images == 12
    assert cell.measures.accuracy.count == 12  # the split test
    assert cell.measures.sharpness.value > 0
    first = tmp_path / "study" / good.cell.folder / "lr0.01-wd0" / "results.json"
    written = first.stat().st_mtime_ns
    grown = run_study(plan_of(rest.replace("LAST", "1.0e-3")), tmp_path / "study", device="cpu")
    assert first.stat().st_mtime_ns == written
    assert {trial.lr for trial in grown.trials} == {1e-2, 1e-3}
    with pytest.raises(StudyError, match="epochs was 3, now 4"):
        run_study(plan.model_copy(update={"epochs": 4}), tmp_path / "study", device="cpu")
    with pytest.raises(StudyError, match="optimizer was 'sgd', now 'adamw'"):
        run_study(plan_of(rest.replace("optimizer: sgd", "optimizer: adamw").replace("LAST", "1")), tmp_path / "study")
    shutil.rmtree(tmp_path / "study" / good.cell.folder)  # what the folder does not hold is done again
    again = run_study(plan_of(rest.replace(", LAST", "")), tmp_path / "study", device="cpu")
    assert [(trial.lr, trial.accuracy) for trial in again.trials] == [(1e-2, good.accuracy)]


def test_a_loss_that_is_no_longer_finite_ends_its_setting(plan_of, tmp_path):
    plan = plan_of("max_grad_norm: null, optimizers: {SGD: {optimizer: sgd, lr: 1.0e+6}}")
    actual = run_study(plan, tmp_path / "study", device="cpu")
    assert [trial.ended for trial in actual.trials] == ["diverged"]
    assert actual.cells == []


def test_data_without_test_images_is_refused(workspace, plan_of, tmp_path):
    plan = plan_of("optimizers: {SGD: {optimizer: sgd, lr: 1}}")
    shutil.copytree(workspace / "data", tmp_path / "data", ignore=shutil.ignore_patterns("metadata.csv"))
    with pytest.raises(StudyError, match="needs the splits train and test"):
        run_study(plan.model_copy(update={"data": str(tmp_path / "data")}), tmp_path / "study")
    with pytest.raises(DataError, match="nowhere"):
        run_study(plan.model_copy(update={"data": str(workspace / "nowhere")}), tmp_path / "study")


def test_what_cannot_be_had_is_told_before_anything_is_trained(plan_of, tmp_path):
    fine = "optimizers: {SGD: {optimizer: sgd, lr: 1}}"
    with pytest.raises(ModelError, match="vit_mini_patch4_32"):
        run_study(plan_of(fine, "'zoo:vit_mini_patch4_33'"), tmp_path / "study")
    with pytest.raises(StudyError, match="storage: nonsense cannot be opened"):
        run_study(plan_of(fine), tmp_path / "study", storage="nonsense")


@pytest.mark.slow
def test_a_stopped_run_that_goes_on_is_looked_at_from_its_first_epoch(plan_of, tmp_path):
    plan = plan_of("optimizers: {SGD: {optimizer: sgd, lr: [1.0e-3, 1.0e-2]}}").model_copy(update={"epochs": 4})
    with interrupted_after(2):
        run_study(plan, tmp_path / "study", device="cpu")
    actual = run_study(plan, tmp_path / "study", device="cpu")
    whole = run_study(plan, tmp_path / "whole", device="cpu")
    assert [(t.lr, t.ended, t.accuracy) for t in actual.trials] == [(t.lr, t.ended, t.accuracy) for t in whole.trials]
    storage = f"sqlite:///{tmp_path}/study/optuna.db"
    seen = optuna.load_study(study_name=optuna.get_all_study_names(storage)[0], storage=storage).trials
    assert any(sorted(trial.intermediate_values) == [0, 1, 2, 3, 4] for trial in seen if trial.state.name == "COMPLETE")


def test_a_setting_that_nobody_asked_for_is_passed_over(plan_of, tmp_path):
    plan = plan_of("optimizers: {SGD: {optimizer: sgd, lr: [1.0e-3]}}").model_copy(update={"epochs": 1})
    actual = run_study(plan, tmp_path / "study", device="cpu")
    storage = f"sqlite:///{tmp_path}/study/optuna.db"
    study = optuna.load_study(study_name=optuna.get_all_study_names(storage)[0], storage=storage)
    study.tell(study.ask(), state=optuna.trial.TrialState.PRUNED)  # as where two processes want the last that waits
    for results in (tmp_path / "study").rglob("results.json"):
        results.unlink()
    again = run_study(plan, tmp_path / "study", device="cpu")
    assert [(t.lr, t.accuracy) for t in again.trials] == [(t.lr, t.accuracy) for t in actual.trials]


def test_a_setting_that_two_machines_queued_at_once_is_tried_by_the_first(plan_of, tmp_path):
    plan = plan_of("optimizers: {SGD: {optimizer: sgd, lr: [1.0e-3]}}").model_copy(update={"epochs": 1})
    (cell,) = plan.cells()
    study = run._study(f"sqlite:///{tmp_path}/optuna.db", plan, cell)
    for _ in range(2):
        study.enqueue_trial({"lr": 1e-3, "weight_decay": plan.tried(cell)[0][1]})
    study.ask()  # the other machine is at it
    run._take(study, plan, cell, tmp_path / "study", "cpu")
    assert [trial.state.name for trial in study.trials] == ["RUNNING", "PRUNED"]
    assert not (tmp_path / "study" / cell.folder).exists()


def test_a_setting_whose_last_step_broke_it_has_diverged(plan_of, tmp_path, monkeypatch):
    plan = plan_of("optimizers: {SGD: {optimizer: sgd, lr: [1.0e-3]}}").model_copy(update={"epochs": 1})
    fit = run.fit

    def broken(*args, **kwargs):
        model, history = fit(*args, **kwargs)
        return model, [*history[:-1], replace(history[-1], validation=history[-1].validation | {"loss": float("nan")})]

    monkeypatch.setattr(run, "fit", broken)
    actual = run_study(plan, tmp_path / "study", device="cpu")
    assert [trial.ended for trial in actual.trials] == ["diverged"]
    assert not actual.cells


@pytest.mark.slow
def test_a_killed_study_goes_on(plan_of, tmp_path):
    plan_of("optimizers: {AdamW: {optimizer: adamw, lr: [1.0e-3, 3.0e-3]}}")
    text = (tmp_path / "plan.yaml").read_text().replace("epochs: 3", "epochs: 25")
    (tmp_path / "plan.yaml").write_text(text)
    command = [sys.executable, "-m", "clearhead", "study", "optimizers", "plan.yaml", "--out", "s", "--device", "cpu"]
    run = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    state = tmp_path / "s" / "vit-adamw-weak-1-0" / "lr0.001-wd0.05" / "state" / "history.json"
    while not state.is_file() and run.poll() is None:
        time.sleep(0.1)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert state.is_file()
    done = subprocess.run([*command, "--jobs", "2"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = result(tmp_path / "s")
    assert {trial["lr"] for trial in results["trials"]} == {1e-3, 3e-3}
    assert [moment["epoch"] for moment in results["trials"][0]["curve"]][:3] == [0, 1, 2]
    assert len(results["cells"]) == 1


def test_a_study_of_optimizers(workspace):
    plan = "{data: data, models: {ViT: MODEL}, optimizers: {SGD: {optimizer: sgd, lr: [1.0e-2, 1.0e-3]}}, target: 0.3, "
    plan += "fractions: [1, 0.5], epochs: 1, batch_size: 4, eigenvalue_batches: 2}"
    (workspace / "optimizers.yaml").write_text(plan.replace("MODEL", str(workspace / "model")))
    run = clearhead("study", "optimizers", "optimizers.yaml", "--out", "optimizers", cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert "4 settings finished" in run.stdout
    page = (workspace / "optimizers" / "report.html").read_text()
    for question in ("How fast does ViT train?", "How flat is the loss?", "What does the amount of data do?"):
        assert question in page
    (workspace / "optimizers.yaml").write_text(plan.replace("MODEL", str(workspace / "model")).replace("sgd", "sdg"))
    run = clearhead("study", "optimizers", "optimizers.yaml", "--out", "optimizers-2", cwd=workspace)
    assert "'sdg' is unknown" in error(run)
    assert not (workspace / "optimizers-2").exists()
