"""The commands below ``clearhead data``: sets with a known shortcut."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from clearhead.cli.options import BatchSize, Device, Seed, Workers, numbers_of, parted

data_app = typer.Typer(no_args_is_help=True, help="Make data sets with a known shortcut.")


@data_app.command("demo")
def data_demo(out: Annotated[Path, typer.Argument(help="A new folder.")], seed: Seed = 0) -> None:
    """Animals among things that give their class away: the data of the demo."""
    from clearhead import console
    from clearhead.demo.data import make_demo

    make_demo(out, seed)
    console.out.print(f"data: {out}", markup=False)


@data_app.command("collage")
def data_collage(
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    images: Annotated[Path, typer.Option(help="Folder of class folders of images to cut out.")],
    masks: Annotated[Path, typer.Option(help="Their masks: MASKS/<class>/<stem>.png.")],
    background: Annotated[
        list[str], typer.Option(help="A kind of background and its folder: water=FOLDER. Give two or more.")
    ],
    pair: Annotated[
        list[str],
        typer.Option("--class", help="A class, its source folders and usual background: cat=Abyssinian,Bengal:water."),
    ],
    correlation: Annotated[
        float, typer.Option(min=0, max=1, help="Share of training images on the usual background.")
    ] = 0.95,
    size: Annotated[int, typer.Option(min=16, help="Side of the pictures in pixels.")] = 96,
    fractions: Annotated[str, typer.Option(help="Shares of the sources for train, val and test.")] = "0.6,0.15,0.25",
    seed: Seed = 0,
) -> None:
    """Cut-out objects on backgrounds that fit their class in training and are balanced in the test set."""
    from clearhead import console
    from clearhead.data.collage import make_collage

    backgrounds = dict(parted(value, "=", "background") for value in background)
    classes, pairing = {}, {}
    for value in pair:
        name, rest = parted(value, "=", "class")
        sources, usual = parted(rest, ":", "class")
        classes[name], pairing[name] = sources.split(","), usual
    try:
        train, val, test = (float(part) for part in fractions.split(","))
    except ValueError:
        raise typer.BadParameter(f"--fractions {fractions}: three numbers with commas, as in 0.6,0.15,0.25") from None
    issues = make_collage(
        out,
        images=images,
        masks=masks,
        backgrounds=backgrounds,
        classes=classes,
        pairing=pairing,
        correlation=correlation,
        size=size,
        fractions=(train, val, test),
        seed=seed,
    )
    console.tell_problems(issues)
    console.out.print(f"data: {out}", markup=False)


@data_app.command("masks")
def data_masks(
    images: Annotated[Path, typer.Argument(help="Folder of class folders of images.")],
    model: Annotated[
        str | None, typer.Option(help="Find the objects by this vision transformer's features (TokenCut).")
    ] = None,
    annotations: Annotated[
        str | None,
        typer.Option(
            "--from", help="Annotations: coco=FILE, coco-boxes, voc, voc-objects, voc-boxes, imagenet-s=FOLDER."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new folder for images and masks; by default the masks go to IMAGES/masks.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Layers whose keys are used, with commas; -1 is the last.")] = None,
    tau: Annotated[float | None, typer.Option(help="Cosine above which two patches are alike.")] = None,
    side: Annotated[
        Literal["inside", "strongest"],
        typer.Option(help="The object is the side less at the image's border, or that of the strongest patch."),
    ] = "inside",
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    device: Device = None,
) -> None:
    """Foreground masks for images that have none: found by a model, or from annotations."""
    from functools import partial

    from clearhead import console
    from clearhead.masks import FORMATS, write_masks
    from clearhead.workflows import load_backbone, on_device

    made = None
    if annotations is not None:
        kind, path = parted(annotations, "=", "from")
        if kind not in FORMATS:
            raise typer.BadParameter(f"--from {annotations}: there is {', '.join(FORMATS)}")
        made = partial(FORMATS[kind], Path(path))
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": console.progress}
    options |= {"side": side}
    options |= {"tau": tau} if tau is not None else {}
    options |= {"layers": numbers_of(layers)} if layers is not None else {}
    finder = None if model is None else on_device(load_backbone(model), device)
    console.tell_masks(write_masks(images, out, finder, annotations=made, **options))


@data_app.command("mnist-cifar")
def data_mnist_cifar(
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    mnist: Annotated[
        Path, typer.Option(help="Folder of MNIST: the Hub's Parquet files, or what torchvision downloads.")
    ],
    cifar: Annotated[Path, typer.Option(help="Folder of CIFAR-10, likewise.")],
    seed: Seed = 0,
) -> None:
    """A digit that gives the class away above a car or a truck: the data of arXiv 2308.16274."""
    from clearhead import console
    from clearhead.data.mnist_cifar import make_mnist_cifar

    make_mnist_cifar(out, mnist, cifar, seed)
    console.out.print(f"data: {out}", markup=False)


@data_app.command("waterbirds")
def data_waterbirds(
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    source: Annotated[Path, typer.Option(help="The official folder, waterbird_complete95_forest2water2.")],
    masks: Annotated[Path | None, typer.Option(help="The CUB segmentations, if you have them.")] = None,
) -> None:
    """Waterbirds from its official folder, as class folders with groups."""
    from clearhead import console
    from clearhead.data.waterbirds import make_waterbirds

    console.tell_problems(make_waterbirds(out, source, masks))
    console.out.print(f"data: {out}", markup=False)
