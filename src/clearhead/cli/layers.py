"""layers: feature maps through the depth of a model."""

from typing import Annotated, Any

import typer

from clearhead.cli.options import BatchSize, Data, Device, Out, Seed, Split, Workers, default_out

layers_app = typer.Typer(
    no_args_is_help=True, help="Feature maps through the depth of a model, and what each unit is for."
)

_Models = Annotated[list[str], typer.Argument(help="One model or several, named as for audit.")]
_Images = Annotated[int | None, typer.Option(min=2, help="At most so many images, drawn at random; all by default.")]


@layers_app.callback()
def _layers() -> None:
    """Feature maps through the depth of a model, and what each unit is for."""


@layers_app.command("lesion")
def layers_lesion(
    models: _Models,
    data: Data,
    out: Out = None,
    split: Split = None,
    images: _Images = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """What is lost without each unit and each block?"""
    from clearhead import console, workflows

    folder = out or default_out("lesion", data, *models)
    options: dict[str, Any] = {"split": split, "images": images, "batch_size": batch_size}
    options |= {"workers": workers, "seed": seed}
    found = workflows.run_lesion(models, data, folder, **options, device=device, progress=console.progress)
    console.tell_lesions(found, folder)


@layers_app.command("cka")
def layers_cka(
    models: Annotated[list[str], typer.Argument(help="One model, or two to hold against each other.")],
    data: Data,
    out: Out = None,
    split: Split = None,
    images: _Images = None,
    batch_size: Annotated[int, typer.Option(min=4, help="Images a mini-batch.")] = 64,
    workers: Workers = 0,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """How alike are the representations in different units, of one model or of two?"""
    from clearhead import console, workflows

    folder = out or default_out("cka", data, *models)
    options: dict[str, Any] = {"split": split, "images": images, "batch_size": batch_size}
    options |= {"workers": workers, "seed": seed}
    found = workflows.run_cka(models, data, folder, **options, device=device, progress=console.progress)
    console.tell_cka(found, folder)
