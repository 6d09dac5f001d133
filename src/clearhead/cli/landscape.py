"""landscape: the loss around the weights."""

from typing import Annotated, Any

import typer

from clearhead.cli.options import Data, Device, Out, Seed, Split, Workers, default_out

landscape_app = typer.Typer(no_args_is_help=True, help="The loss around the weights.")


@landscape_app.callback()
def _landscape() -> None:
    """The loss around the weights."""


@landscape_app.command("hessian")
def landscape_hessian(
    models: Annotated[list[str], typer.Argument(help="One model or several, named as for audit.")],
    data: Data,
    out: Out = None,
    split: Split = None,
    top: Annotated[int, typer.Option(min=1, help="Eigenvalues of largest magnitude of each mini-batch.")] = 5,
    batches: Annotated[int, typer.Option(min=2, help="Mini-batches, at most a pass over the images.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a mini-batch.")] = 16,
    weight_decay: Annotated[float, typer.Option(min=0, help="Adds to every eigenvalue, as it does in training.")] = 0.0,
    crop: Annotated[
        float | None, typer.Option(min=0.01, max=1, help="Random windows of at least this share, mirrored; none else.")
    ] = None,
    tolerance: Annotated[float, typer.Option(min=1e-6, help="Relative error of an eigenvalue.")] = 1e-2,
    workers: Workers = 0,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """How flat and how convex is the loss? The largest eigenvalues of its Hessian, mini-batch by mini-batch."""
    from clearhead import console, workflows

    folder = out or default_out("hessian", data, *models)
    options: dict[str, Any] = {"split": split, "k": top, "batches": batches, "batch_size": batch_size, "crop": crop}
    options |= {"weight_decay": weight_decay, "tolerance": tolerance}
    options |= {"workers": workers, "seed": seed, "device": device}
    console.tell_spectra(workflows.run_hessian(models, data, folder, **options, track=console.progress), folder)
