"""study: grids of runs from one file."""

import time
from pathlib import Path

from clearhead.results import OptimizerResults, StudyResults
from clearhead.runs import RunError, told_by, written
from clearhead.study import optimizers, repairs
from clearhead.workflows.pieces import Progress, data_name, finish, model_name, versions_told


def run_repairs(
    file: Path, out: Path, *, jobs: int = 1, device: str | None = None, progress: Progress | None = None
) -> StudyResults:
    """A grid of repairs from one file (``clearhead.study.repairs``). ``clearhead study repairs``.

    What is there already is not done again, so a plan may grow. The page shows what the plan names.
    """
    started = time.perf_counter()
    plan = repairs.read_plan(file)
    _claim(out, file)
    rows = repairs.run_study(plan, out, jobs=jobs, device=device, progress=progress)
    provenance = {"model": plan.model, "data": str(plan.data), "plan": str(file), "epochs": str(plan.epochs)}
    provenance |= {"learning rate": f"{plan.lr:g}", "seeds": ", ".join(map(str, plan.seeds))}
    provenance |= {"time": f"{time.perf_counter() - started:.0f} s", "versions": versions_told()}
    results = StudyResults("study", model_name(plan.model), data_name(plan.data, None), rows, provenance)
    finish(out, results)
    return results


def run_optimizers(
    file: Path,
    out: Path,
    *,
    jobs: int = 1,
    storage: str | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> OptimizerResults:
    """A grid of trainings from one file (``clearhead.study.optimizers``). ``clearhead study optimizers``.

    What is there already is not done again, so a plan may grow. The page shows what the plan names.
    """
    started = time.perf_counter()
    plan = optimizers.read_plan(file)
    _claim(out, file)
    found = optimizers.run_study(plan, out, jobs=jobs, storage=storage, device=device, progress=progress)
    provenance = {
        "data": str(plan.data),
        "plan": str(file),
        "epochs": str(plan.epochs),
        "batch size": str(plan.batch_size),
    }
    provenance |= {f"model {name}": model for name, model in plan.models.items()}
    provenance |= {"seeds": ", ".join(map(str, plan.seeds)), "jobs": str(jobs)}
    provenance |= {"time": f"{time.perf_counter() - started:.0f} s", "versions": versions_told()}
    name = data_name(plan.data, None)
    results = OptimizerResults("optimizers", name, plan.target, found.trials, found.cells, provenance)
    finish(out, results)
    return results


def _claim(out: Path, file: Path) -> None:
    """Leave a study's plan in its folder, by which the folder is known. Raises RunError for one of something else."""
    told_by(out / "plan.yaml", ["data"], "study")
    if (out / "config.yaml").exists():
        raise RunError(f"{out} is the folder of a run, not of a study: give a new or an empty folder as --out")
    with written(out / "plan.yaml") as path:
        path.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
