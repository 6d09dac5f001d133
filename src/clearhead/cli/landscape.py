"""landscape: the loss around the weights."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from clearhead.cli.options import BatchSize, Data, Device, Out, Seed, Split, Workers, default_out

Models = Annotated[
    list[str],
    typer.Argument(help="Models, named as for audit; a run of train --save-epochs stands for the epochs it kept."),
]
landscape_app = typer.Typer(no_args_is_help=True, help="The loss around the weights.")


@landscape_app.callback()
def _landscape() -> None:
    """The loss around the weights."""


@landscape_app.command("hessian")
def landscape_hessian(
    models: Models,
    data: Data,
    out: Out = None,
    split: Split = None,
    top: Annotated[int, typer.Option(min=1, help="Eigenvalues of largest magnitude of each mini-batch.")] = 5,
    batches: Annotated[int, typer.Option(min=2, help="Mini-batches, at most a pass over the images.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a mini-batch.")] = 16,
    weight_decay: Annotated[float, typer.Option(min=0, help="Adds to every eigenvalue, as it does in training.")] = 0.0,
    augment: Annotated[
        Literal["none", "crop", "weak", "strong"], typer.Option(help="The training augmentation, as for train.")
    ] = "none",
    mixup: Annotated[float, typer.Option(min=0, help="As for train: images and labels mixed, once a batch.")] = 0.0,
    cutmix: Annotated[float, typer.Option(min=0, help="The same for windows cut out of one image.")] = 0.0,
    label_smoothing: Annotated[
        float, typer.Option(min=0, max=1, help="As for train: share of a label spread over all classes.")
    ] = 0.0,
    tolerance: Annotated[float, typer.Option(min=1e-6, help="Relative error of an eigenvalue.")] = 1e-3,
    density: Annotated[
        bool, typer.Option("--density", help="The density and the trace of the whole spectrum too: 110 products more.")
    ] = False,
    workers: Workers = 0,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """How flat and how convex is the loss? The largest eigenvalues of its Hessian, mini-batch by mini-batch."""
    from clearhead import console, workflows

    folder = out or default_out("hessian", data, *models)
    options: dict[str, Any] = {"split": split, "k": top, "batches": batches, "batch_size": batch_size}
    options |= {"augment": augment, "mixup": mixup, "cutmix": cutmix, "weight_decay": weight_decay}
    options |= {"label_smoothing": label_smoothing, "tolerance": tolerance, "whole": density}
    options |= {"workers": workers, "seed": seed, "device": device}
    console.tell_spectra(workflows.run_hessian(models, data, folder, **options, progress=console.progress), folder)


@landscape_app.command("surface")
def landscape_surface(
    models: Models,
    data: Data,
    out: Out = None,
    split: Split = None,
    dims: Annotated[int, typer.Option(min=1, max=3, help="Directions: a line, a plane, or slices of a block.")] = 2,
    points: Annotated[int, typer.Option(min=3, help="Points along each direction, an odd number.")] = 21,
    span: Annotated[float, typer.Option(help="From -span to span; 1 adds a direction as long as the weights.")] = 1.0,
    along: Annotated[
        Literal["random", "eigenvectors"],
        typer.Option(
            help="Random filter-normalised directions, or eigenvectors of the Hessian: there try --span 0.02."
        ),
    ] = "random",
    weight_decay: Annotated[float, typer.Option(min=0, help="The L2 term of training, drawn apart.")] = 0.0,
    images: Annotated[int, typer.Option(min=1, help="Images, drawn at random; all where there are fewer.")] = 1000,
    batch_size: BatchSize = 64,
    workers: Workers = 0,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """What does the loss look like around the weights? On a grid of them, in points^dims passes over the images."""
    from clearhead import console, workflows

    folder = out or default_out("surface", data, *models)
    options: dict[str, Any] = {"split": split, "dims": dims, "points": points, "span": span, "along": along}
    options |= {"weight_decay": weight_decay, "images": images, "batch_size": batch_size}
    options |= {"workers": workers, "seed": seed, "device": device}
    console.tell_surfaces(workflows.run_surface(models, data, folder, **options, progress=console.progress), folder)


@landscape_app.command("trajectory")
def landscape_trajectory(
    run: Annotated[Path, typer.Argument(help="Folder of a run of train --save-epochs.", show_default=False)],
    out: Out = None,
) -> None:
    """How far and how straight did the weights go? Distances and angles over the epochs that a training run kept."""
    from clearhead import console, workflows

    folder = out or Path("runs") / f"trajectory-{run.resolve().name}"
    console.tell_trajectory(workflows.run_trajectory(run, folder, progress=console.progress), folder)
