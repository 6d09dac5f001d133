"""The commands below ``clearhead reproduce``: experiments of papers."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from clearhead.cli.analyses import Device
from clearhead.cli.data import Cifar, Mnist
from clearhead.cli.options import Jobs, Seed, parse_pair
from clearhead.errors import ClearheadError

reproduce_app = typer.Typer(no_args_is_help=True, help="Run the experiments of papers on your copies of their data.")

_OUT_HELP = "Folder of the runs; finished ones are not run again."


@reproduce_app.command(
    "mnist-cifar", epilog="Example: clearhead reproduce mnist-cifar --mnist MNIST --cifar CIFAR-10 --seeds 3 --jobs 4"
)
def reproduce_mnist_cifar(
    mnist: Mnist,
    cifar: Cifar,
    out: Annotated[Path, typer.Option(help=_OUT_HELP)] = Path("runs/mnist-cifar"),
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 10,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each run.")] = 100,
    residual: Annotated[
        Literal["no", "yes", "both"],
        typer.Option(help="Residual connection in the last block; the public code has none."),
    ] = "both",
    jobs: Jobs = 1,
    device: Device = None,
) -> None:
    """Reproduce diverse heads and head selection on MNIST-CIFAR (arXiv 2308.16274)."""
    from clearhead.progress import show_progress
    from clearhead.reproduce.mnist_cifar import reproduce

    residuals = {"no": (False,), "yes": (True,), "both": (False, True)}[residual]
    options: dict[str, Any] = {"seeds": seeds, "epochs": epochs, "residuals": residuals, "jobs": jobs}
    _print_table(reproduce(out, mnist, cifar, **options, device=device, progress=show_progress), out)


@reproduce_app.command(
    "relevance",
    epilog="Example: clearhead reproduce relevance --model DeiT-B --images IMAGENET-S --test A=IMAGENET-A "
    "--test R=IMAGENET-R",
)
def reproduce_relevance(
    model: Annotated[
        str, typer.Option(help="The paper's name of the model: ViT-B, ViT-L, AR-S, AR-B, AR-L, DeiT-S or DeiT-B.")
    ],
    images: Annotated[
        Path, typer.Option(help="ImageNet images to train on: folders named by WordNet id, and masks/ (data masks).")
    ],
    test: Annotated[
        list[str],
        typer.Option(help="Name and folder of a test set with folders named by WordNet id: A=FOLDER. Repeat."),
    ],
    weights: Annotated[str | None, typer.Option(help="Model name for other weights. Default: timm's.")] = None,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Also run each part of the loss left out or changed.")
    ] = False,
    out: Annotated[Path, typer.Option(help=_OUT_HELP)] = Path("runs/relevance"),
    seeds: Annotated[int, typer.Option(min=1, help="Number of class seeds.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each training.")] = 50,
    jobs: Jobs = 1,
    device: Device = None,
) -> None:
    """Reproduce relevance repair, GradMask, RRR and fine-tuning on shifted data (arXiv 2206.01161, tables 4 to 9)."""
    from clearhead.progress import show_progress
    from clearhead.reproduce.relevance import plan_of, reproduce

    names = [value.partition("=")[0] for value in test]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ClearheadError(f"--test: {repeated[0]!r} is the name of two test sets")
    tests = {name: Path(folder) for name, folder in (parse_pair(value, "=", "test") for value in test)}
    plan = plan_of(model, images, tests, weights=weights, ablations=ablations, seeds=seeds, epochs=epochs)
    _print_table(reproduce(model, plan, out, jobs=jobs, device=device, progress=show_progress), out)


@reproduce_app.command("vits-work", epilog="Example: clearhead reproduce vits-work --cifar CIFAR-10")
def reproduce_vits_work(
    cifar: Annotated[str, typer.Option(help="CIFAR-10 or CIFAR-100 with the splits train and test.")],
    size: Annotated[
        Literal["small", "paper"], typer.Option(help="Small models on 3,000 images, or the paper's models and recipe.")
    ] = "small",
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of each training. Default: the size's.")] = None,
    train: Annotated[int | None, typer.Option(min=1, help="Number of training images. Default: the size's.")] = None,
    out: Annotated[Path, typer.Option(help=_OUT_HELP)] = Path("runs/vits-work"),
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Reproduce the figures of "How Do Vision Transformers Work?" on CIFAR (arXiv 2202.06709), and test its claims."""
    from clearhead.inputs import require_data
    from clearhead.reproduce.vits_work import reproduce

    require_data(cifar)
    _print_table(reproduce(out, cifar, size=size, epochs=epochs, train=train, seed=seed, device=device), out)


def _print_table(table: str, out: Path) -> None:
    from clearhead.storage import write_text

    write_text(out / "table.md", table)
    print(table)
    print(f"table: {out / 'table.md'}")
