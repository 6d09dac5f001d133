"""The commands below ``clearhead reproduce``: the papers' experiments."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from clearhead.cli.options import Device, Seed, parted

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

    residuals = {"no": (False,), "yes": (True,), "both": (False, True)}[residual]
    options: dict[str, Any] = {"seeds": seeds, "epochs": epochs, "residuals": residuals, "jobs": jobs}
    _tell(reproduce(out, mnist, cifar, **options, device=device, progress=console.progress), out)


@reproduce_app.command("relevance")
def reproduce_relevance(
    model: Annotated[str, typer.Option(help="By the paper's name: ViT-B, ViT-L, AR-S, AR-B, AR-L, DeiT-S, DeiT-B.")],
    images: Annotated[
        Path, typer.Option(help="ImageNet images to train on, in folders by WordNet id, with masks/ (data masks).")
    ],
    test: Annotated[
        list[str], typer.Option(help="A test set in folders by WordNet id: A=FOLDER. Repeat; the paper's names.")
    ],
    weights: Annotated[str | None, typer.Option(help="The model as audit takes it; timm's by default.")] = None,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Each part of the loss left out or changed too.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder of the runs; those that are there are not done again.")] = Path(
        "runs/relevance"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Number of class seeds.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Of each run.")] = 50,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    device: Device = None,
) -> None:
    """Relevance repair against GradMask, RRR and fine-tuning on shifted sets (arXiv 2206.01161, tables 4 to 9)."""
    from clearhead import console
    from clearhead.reproduce.relevance import plan_of, reproduce

    names = [value.partition("=")[0] for value in test]
    if len(set(names)) < len(names):
        raise typer.BadParameter(f"--test {', '.join(names)}: a name is given twice")
    tests = {name: Path(folder) for name, folder in (parted(value, "=", "test") for value in test)}
    plan = plan_of(model, images, tests, weights=weights, ablations=ablations, seeds=seeds, epochs=epochs)
    _tell(reproduce(model, plan, out, jobs=jobs, device=device, progress=console.progress), out)


@reproduce_app.command("vits-work")
def reproduce_vits_work(
    cifar: Annotated[
        Path, typer.Option(help="CIFAR-10 or CIFAR-100 with the splits train and test, as audit takes it.")
    ],
    size: Annotated[
        Literal["small", "paper"],
        typer.Option(help="Small models on 3,000 images, or the paper's and its recipe."),
    ] = "small",
    epochs: Annotated[int | None, typer.Option(min=1, help="Of each training, in place of the size's.")] = None,
    train: Annotated[int | None, typer.Option(min=1, help="Training images, in place of the size's.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs; those that are there are not done again.")] = Path(
        "runs/vits-work"
    ),
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """How vision transformers work (arXiv 2202.06709): its figures on CIFAR, and which of its claims hold."""
    from clearhead import console
    from clearhead.reproduce.vits_work import reproduce

    options: dict[str, Any] = {"size": size, "epochs": epochs, "train": train, "seed": seed, "device": device}
    _tell(reproduce(out, cifar, **options, progress=console.progress), out)


def _tell(table: str, out: Path) -> None:
    from clearhead import console
    from clearhead.runs import written

    with written(out / "table.md") as path:
        path.write_text(table, encoding="utf-8")
    console.out.print(table, markup=False)
    console.out.print(f"table: {out / 'table.md'}", markup=False)
