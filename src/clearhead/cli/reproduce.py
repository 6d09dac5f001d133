"""The commands below ``clearhead reproduce``: the papers' experiments."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from clearhead.cli.options import Device

reproduce_app = typer.Typer(no_args_is_help=True, help="The papers' experiments on your copies of their data.")


@reproduce_app.command("mnist-cifar")
def reproduce_mnist_cifar(
    mnist: Annotated[
        Path, typer.Option(help="Folder of MNIST: the Hub's Parquet files, or what torchvision downloads.")
    ],
    cifar: Annotated[Path, typer.Option(help="Folder of CIFAR-10, likewise.")],
    out: Annotated[Path, typer.Option(help="Folder of the runs; those that are there are not done again.")] = Path(
        "runs/mnist-cifar"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 10,
    epochs: Annotated[int, typer.Option(min=1, help="Of each run.")] = 100,
    residual: Annotated[
        Literal["no", "yes", "both"], typer.Option(help="The last block's residual; the public code has none.")
    ] = "both",
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    device: Device = None,
) -> None:
    """Diverse heads and their selection (arXiv 2308.16274): ERM and Div, every subset of heads, ID and OOD."""
    from clearhead import console
    from clearhead.reproduce.mnist_cifar import reproduce
    from clearhead.runs import written

    residuals = {"no": (False,), "yes": (True,), "both": (False, True)}[residual]
    options: dict[str, Any] = {"seeds": seeds, "epochs": epochs, "residuals": residuals, "jobs": jobs}
    table = reproduce(out, mnist, cifar, **options, device=device, track=console.progress)
    with written(out / "table.md") as path:
        path.write_text(table, encoding="utf-8")
    console.out.print(table, markup=False)
    console.out.print(f"table: {out / 'table.md'}")
