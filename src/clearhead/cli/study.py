"""study: grids of runs from one file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from clearhead.cli.options import Device

study_app = typer.Typer(no_args_is_help=True, help="Grids of runs from one file: resumed, measured, drawn.")
Jobs = Annotated[int, typer.Option(min=1, help="Processes.")]


@study_app.callback()
def _study() -> None:
    """Grids of runs from one file: resumed, measured, drawn."""


@study_app.command("repairs")
def study_repairs(
    plan: Annotated[
        Path, typer.Argument(help="A YAML file: model, data, tests, methods and what they are tried with.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the runs; runs/study-PLAN by default.")] = None,
    jobs: Jobs = 1,
    device: Device = None,
) -> None:
    """A grid of repairs: methods, terms, images a class, classes, seeds."""
    from clearhead import console, workflows

    folder = out or Path("runs") / f"study-{plan.stem}"
    console.tell_study(workflows.run_repairs(plan, folder, jobs=jobs, device=device, progress=console.progress), folder)


@study_app.command("optimizers")
def study_optimizers(
    plan: Annotated[Path, typer.Argument(help="A YAML file: data, models, optimizers and what they are tried with.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the runs; runs/study-PLAN by default.")] = None,
    jobs: Jobs = 1,
    storage: Annotated[
        str | None, typer.Option(help="Database URL for several machines, as Optuna takes it; a file in --out else.")
    ] = None,
    device: Device = None,
) -> None:
    """How fast, how well and to how flat a loss models train: optimizers, learning rates, augmentation, data."""
    from clearhead import console, workflows

    folder = out or Path("runs") / f"study-{plan.stem}"
    options: dict[str, Any] = {"jobs": jobs, "storage": storage, "device": device, "progress": console.progress}
    console.tell_optimizers(workflows.run_optimizers(plan, folder, **options), folder)
