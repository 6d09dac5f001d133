"""explain, sis, audit, compare, heads, evaluate, report: what does a model rely on, and did a repair help?"""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from clearhead.cli.options import (
    BatchSize,
    Data,
    Device,
    Method,
    Model,
    Out,
    Seed,
    Split,
    Workers,
    columns_of,
    default_out,
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
    from clearhead.models import load_model

    files = _files(images)
    classifier = workflows.on_device(load_model(model), device)
    index = None if target is None else workflows.class_index(classifier.classes, target)
    options: dict[str, Any] = {"method": method, "target": index, "batch_size": batch_size, "workers": workers}
    for file, name, probability in workflows.run_explain(classifier, files, out, **options, progress=console.progress):
        console.out.print(f"{file}: {name} ({100 * probability:.1f}%)", markup=False)
    console.out.print(f"{len(files)} overlays and maps in {out}", markup=False)


def sis(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    target: Annotated[
        list[str] | None, typer.Option("--class", help="A label besides the predicted one, by name or number; repeat.")
    ] = None,
    confidence: Annotated[float, typer.Option(min=0.01, max=1, help="Probability that is enough.")] = 0.9,
    steps: Annotated[int, typer.Option(min=1, help="Of the search: a forward and a backward pass each.")] = 50,
    fill: Annotated[Literal["mean", "black"], typer.Option(help="What takes the place of a pixel.")] = "mean",
    out: Out = None,
    batch_size: BatchSize = 8,
    workers: Workers = 0,
    device: Device = None,
) -> None:
    """How few pixels are enough for a label, the predicted one or any other? (Sufficient input subsets.)"""
    from clearhead import console, workflows

    options: dict[str, Any] = {"targets": target or [], "confidence": confidence, "steps": steps, "fill": fill}
    options |= {"batch_size": batch_size, "workers": workers, "device": device}
    files = _files(images)
    folder = out or default_out("sis", Path(files[0].stem), model)
    console.tell_sufficient(workflows.run_sis(model, files, folder, **options, progress=console.progress), folder)


def _files(images: list[Path]) -> list[Path]:
    """The images named and those in the folders named."""
    from clearhead.data.folder import image_files

    files = [file for image in images for file in (image_files(image) if image.is_dir() else [image])]
    if not files:
        raise typer.BadParameter(f"no images in {', '.join(map(str, images))}")
    return files


def slices(
    model: Model,
    data: Data,
    out: Out = None,
    split: Split = None,
    space: Annotated[
        Literal["features", "relevance", "both"],
        typer.Option(help="Divide classes by what the last layer is given, by where the relevance lies, or by both."),
    ] = "both",
    method: Method = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Which groups of images does the model fail on? Found without group labels."""
    from clearhead import console, workflows

    folder = out or default_out("slices", data, model)
    options: dict[str, Any] = {"split": split, "space": space, "method": method, "seed": seed}
    options |= {"batch_size": batch_size, "workers": workers, "device": device}
    console.tell_slices(workflows.run_slices(model, data, folder, **options, progress=console.progress), folder)


def evaluate(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... DATA",
            help="One model or several, named as for audit, the first being what the others are held against; then the "
            "data, unless --root names it.",
            show_default=False,
        ),
    ],
    suite: Annotated[
        str,
        typer.Option(
            help="Shifted sets, with commas: imagenet, imagenet-c, cifar-c (as published, in --root); corruptions or a "
            "sweep, such as rotation (made of the images of DATA)."
        ),
    ],
    root: Annotated[str | None, typer.Option(help="Folder of the published sets, or DATA.")] = None,
    sets: Annotated[str | None, typer.Option(help="Take these sets of the suite, with commas; all by default.")] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="table.csv of other models: effective robustness is measured from their line.")
    ] = None,
    most_unreadable: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a set's images that may be broken before the run stops.")
    ] = 0.01,
    out: Out = None,
    split: Split = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Evaluate robustness to distribution shift."""
    from clearhead import console, workflows

    models, data = (names, root) if root else (names[:-1], names[-1])
    if not models:
        raise typer.BadParameter("a model and data are needed: MODEL DATA, or MODEL --root DATA")
    options: dict[str, Any] = {"split": split, "batch_size": batch_size, "workers": workers, "seed": seed}
    suites = columns_of(suite) or []
    folder = out or default_out("-".join(["evaluate", *suites]), data, *models)
    options |= {"sets": columns_of(sets), "baseline": baseline, "most_unreadable": most_unreadable}
    results = workflows.run_suite(models, suites, data, folder, **options, device=device, progress=console.progress)
    console.tell_suite(results, folder)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Title of the page.")] = "",
) -> None:
    """Put several finished runs on one page."""
    from clearhead import console, workflows

    workflows.run_report(runs, out, title)
    console.out.print(f"page: {out}", markup=False)
