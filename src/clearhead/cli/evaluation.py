"""explain, sis, audit, compare, heads, evaluate, report: what does a model rely on, and did a repair help?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from clearhead.cli.options import (
    BatchSize,
    Device,
    Out,
    Seed,
    Split,
    Workers,
    columns_of,
    default_out,
)


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
