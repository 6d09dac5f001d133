"""The commands below ``clearhead data`` that are not analyses: data sets with a known shortcut, and masks."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from clearhead.cli.analyses import Device
from clearhead.cli.options import BatchSize, Seed, Workers, parse_integers, parse_pair
from clearhead.errors import ClearheadError

data_app = typer.Typer(no_args_is_help=True, help="Audit data, make data sets with a known shortcut, and masks.")

NewFolder = Annotated[Path, typer.Argument(help="A new folder.", metavar="FOLDER", show_default=False)]
Mnist = Annotated[
    Path, typer.Option(help="Folder of MNIST: Parquet files of the Hugging Face Hub, or torchvision's download.")
]
Cifar = Annotated[
    Path, typer.Option(help="Folder of CIFAR-10: Parquet files of the Hugging Face Hub, or torchvision's download.")
]


@data_app.command("demo", epilog="Example: clearhead data demo demo-data")
def data_demo(out: NewFolder, seed: Seed = 0) -> None:
    """Generate the images of the demo: animals whose background predicts the class in training but not at test time."""
    from clearhead.demo.data import make_demo

    make_demo(out, seed)
    print(f"data: {out}")


@data_app.command(
    "collage",
    epilog="Example: clearhead data collage pets --images PETS --masks MASKS --background water=SEA "
    "--background sand=DESERT --class cat=Abyssinian,Bengal:water --class dog=beagle,pug:sand",
)
def data_collage(
    out: NewFolder,
    images: Annotated[Path, typer.Option(help="Folder of class folders; the objects are cut out of these images.")],
    masks: Annotated[Path, typer.Option(help="Folder of their masks: MASKS/CLASS/STEM.png.")],
    background: Annotated[
        list[str], typer.Option(help="Name and folder of a background: water=FOLDER. Repeat for two or more.")
    ],
    pair: Annotated[
        list[str],
        typer.Option("--class", help="A class, its source folders and usual background: cat=Abyssinian,Bengal:water."),
    ],
    correlation: Annotated[
        float, typer.Option(min=0, max=1, help="Fraction of training images on the usual background.")
    ] = 0.95,
    size: Annotated[int, typer.Option(min=16, help="Side of the images in pixels.")] = 96,
    fractions: Annotated[
        str, typer.Option(help="Fractions of the source images for train, val and test, comma-separated.")
    ] = "0.6,0.15,0.25",
    seed: Seed = 0,
) -> None:
    """Paste objects on backgrounds that are correlated with the class in training and not at test time."""
    from clearhead.cli.output import log_issues
    from clearhead.data.collage import make_collage

    backgrounds = dict(parse_pair(value, "=", "background") for value in background)
    classes, pairing = {}, {}
    for value in pair:
        name, rest = parse_pair(value, "=", "class")
        sources, usual = parse_pair(rest, ":", "class")
        classes[name], pairing[name] = sources.split(","), usual
    try:
        train, val, test = (float(part) for part in fractions.split(","))
    except ValueError:
        raise ClearheadError(
            f"--fractions: got {fractions!r}; give three comma-separated numbers, as in 0.6,0.15,0.25"
        ) from None
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
    log_issues(issues)
    print(f"data: {out}")


@data_app.command("masks", epilog="Example: clearhead data masks IMAGES --model timm:vit_small_patch16_224.dino")
def data_masks(
    images: Annotated[Path, typer.Argument(help="Folder of class folders of images.", show_default=False)],
    model: Annotated[
        str | None, typer.Option(help="Vision transformer whose features segment the objects (TokenCut).")
    ] = None,
    annotations: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Annotations in place of a model: coco=FILE, coco-boxes=FILE, voc=FOLDER, voc-objects=FOLDER, "
            "voc-boxes=FOLDER or imagenet-s=FOLDER.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new folder for images and masks. Default: the masks go to IMAGES/masks.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Layers whose keys are used, comma-separated; -1 is the last. Default: all.")
    ] = None,
    tau: Annotated[float | None, typer.Option(help="Cosine similarity above which two patches are connected.")] = None,
    side: Annotated[
        Literal["inside", "strongest"],
        typer.Option(help="The object is the side with less at the image's border, or that of the strongest patch."),
    ] = "inside",
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    device: Device = None,
) -> None:
    """Make foreground masks for images without any: with a model's features (TokenCut), or from annotations."""
    from functools import partial

    from clearhead.cli.output import log_issues
    from clearhead.inputs import require_model
    from clearhead.masks import FORMATS, write_masks
    from clearhead.metrics.statistics import format_interval, format_value
    from clearhead.models.source import ModelSource
    from clearhead.progress import show_progress

    read = None
    if annotations is not None:
        name, path = parse_pair(annotations, "=", "from")
        if name not in FORMATS:
            raise ClearheadError(f"--from: format {name!r} is unknown; choose from {', '.join(FORMATS)}")
        read = partial(FORMATS[name], Path(path))
    if model is not None:
        require_model(model)
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": show_progress, "side": side}
    options |= {"tau": tau} if tau is not None else {}
    options |= {"layers": parse_integers(layers, "layers")} if layers is not None else {}
    backbone = None if model is None else ModelSource(model, device).load_backbone()
    written = write_masks(images, out, backbone, annotations=read, **options)
    log_issues(written.issues)
    area = f"mean area {format_value(written.area.value, '%')} of the image"
    print(f"{written.masks:,} of {written.images:,} images have a mask, {area}")
    compared = (("patches", written.patch_iou), ("all masks", written.all_iou), ("saved masks", written.saved_iou))
    for name, overlap in compared:
        if overlap:
            value = f"{format_value(overlap.value)} {format_interval(overlap)}, n = {overlap.count:,}"
            print(f"IoU with the true masks, {name}: {value}")
    print(f"data: {written.folder}")


@data_app.command("mnist-cifar", epilog="Example: clearhead data mnist-cifar digits --mnist MNIST --cifar CIFAR-10")
def data_mnist_cifar(out: NewFolder, mnist: Mnist, cifar: Cifar, seed: Seed = 0) -> None:
    """Make the data of arXiv 2308.16274: a digit that predicts the class in training, above a car or a truck."""
    from clearhead.data.mnist_cifar import make_mnist_cifar

    make_mnist_cifar(out, mnist, cifar, seed)
    print(f"data: {out}")


@data_app.command(
    "waterbirds",
    epilog="Example: clearhead data waterbirds waterbirds --source waterbird_complete95_forest2water2",
)
def data_waterbirds(
    out: NewFolder,
    source: Annotated[Path, typer.Option(help="The official folder, waterbird_complete95_forest2water2.")],
    masks: Annotated[Path | None, typer.Option(help="Folder of the CUB segmentations, for masks.")] = None,
) -> None:
    """Convert the official folder of Waterbirds to class folders with groups."""
    from clearhead.cli.output import log_issues
    from clearhead.data.waterbirds import make_waterbirds

    log_issues(make_waterbirds(out, source, masks))
    print(f"data: {out}")
