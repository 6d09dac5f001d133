"""explain, audit, compare, heads, report: what does a model rely on, and did a repair help?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from clearhead.cli.options import (
    BatchSize,
    Data,
    Device,
    Groups,
    Layers,
    Margin,
    Method,
    Model,
    Out,
    Seed,
    Split,
    Workers,
    columns_of,
    default_out,
    layers_of,
)


def explain(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder of the overlays (PNG) and raw maps (npz).")] = Path("maps"),
    method: Method = None,
    target: Annotated[
        str | None, typer.Option("--class", help="Class to explain, by name or number; the predicted one by default.")
    ] = None,
    batch_size: BatchSize = 16,
    workers: Workers = 0,
    device: Device = None,
) -> None:
    """Show where in each image the evidence for a class lies."""
    from clearhead import console, workflows
    from clearhead.data.folder import image_files
    from clearhead.models import load_model

    files = [file for image in images for file in (image_files(image) if image.is_dir() else [image])]
    if not files:
        raise typer.BadParameter(f"no images in {', '.join(map(str, images))}")
    classifier = workflows.on_device(load_model(model), device)
    index = None if target is None else workflows.class_index(classifier, target)
    options: dict[str, Any] = {"method": method, "target": index, "batch_size": batch_size, "workers": workers}
    for file, name, probability in workflows.run_explain(classifier, files, out, **options, track=console.progress):
        console.out.print(f"{file}: {name} ({100 * probability:.1f}%)")
    console.out.print(f"{len(files)} overlays and maps in {out}")


def audit(
    model: Model,
    data: Data,
    out: Out = None,
    split: Split = None,
    groups: Groups = None,
    method: Method = None,
    heads: Annotated[bool, typer.Option("--heads", help="Score every attention head too, as clearhead heads.")] = False,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """What does the model rely on, and how does it hold up?"""
    from clearhead import console, workflows

    folder = out or default_out("audit", data, model)
    options: dict[str, Any] = {"split": split, "groups": columns_of(groups), "method": method, "seed": seed}
    options |= {"batch_size": batch_size, "workers": workers, "device": device, "heads": heads}
    console.tell_audit(workflows.run_audit(model, data, folder, **options, track=console.progress), folder)


def compare(
    before: Model,
    after: Model,
    data: Data,
    out: Out = None,
    split: Split = None,
    groups: Groups = None,
    margin: Margin = 0.02,
    method: Method = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Did it help, did it harm, and is the difference real?"""
    from clearhead import console, workflows

    folder = out or default_out("compare", data, before, after)
    options: dict[str, Any] = {"split": split, "groups": columns_of(groups), "method": method, "seed": seed}
    options |= {"margin": margin, "batch_size": batch_size, "workers": workers, "device": device}
    console.tell_comparison(
        workflows.run_compare(before, after, data, folder, **options, track=console.progress), folder
    )


def heads(
    model: Model,
    data: Data,
    out: Out = None,
    split: Split = None,
    layers: Layers = "all",
    attributes: Annotated[
        str | None,
        typer.Option(help="Columns of metadata.csv that heads may follow, with commas; all that tell classes apart."),
    ] = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    device: Device = None,
) -> None:
    """What does each attention head follow, need and look at?"""
    from clearhead import console, workflows

    folder = out or default_out("heads", data, model)
    options: dict[str, Any] = {"split": split, "layers": layers_of(layers), "attributes": columns_of(attributes)}
    options |= {"batch_size": batch_size, "workers": workers, "device": device}
    console.tell_heads(workflows.run_heads(model, data, folder, **options, track=console.progress), folder)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Title of the page.")] = "",
) -> None:
    """Put several finished runs on one page."""
    from clearhead import console, workflows

    workflows.run_report(runs, out, title)
    console.out.print(f"page: {out}")
