"""Arguments and options that several commands share, and what makes library arguments of them."""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Literal

import typer

Model = Annotated[
    str,
    typer.Argument(
        help="timm:NAME, hf:NAME, torchvision:NAME, zoo:NAME, timm:NAME@FILE (a checkpoint of that kind) or a folder",
        show_default=False,
    ),
]
Data = Annotated[
    str,
    typer.Argument(
        help="Folder of class folders, with masks/ and metadata.csv if any; .parquet, .tar or .npz files, on disk or "
        "behind a URL; hf-dataset:OWNER/NAME"
    ),
]
Out = Annotated[Path | None, typer.Option(help="Folder of the run; made from the command and its input by default.")]
Split = Annotated[str | None, typer.Option(help="Use the images of this split; all by default.")]
Groups = Annotated[
    str | None, typer.Option(help="Columns of metadata.csv that make the groups, with commas; all by default.")
]
Method = Annotated[
    str | None,
    typer.Option(help="gae, rollout, attention, legrad, attnlrp, libragrad, input-gradient or input-x-gradient."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images a batch.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that load images; 0 loads in this one.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; a GPU where there is one by default.")]
Margin = Annotated[float, typer.Option(min=0, max=1, help="Loss of accuracy that is still no harm: 0.02 is 2 points.")]
TrainSplit = Annotated[
    str, typer.Option(help="Split to train on; without one to choose by a fifth of each class is held out.")
]
ValSplit = Annotated[str, typer.Option(help="Split that decides which epoch is kept.")]
TestSplit = Annotated[
    str | None, typer.Option(help="Split to compare the models on at the end; nothing is trained or chosen on it.")
]
Layers = Annotated[str, typer.Option(help="last, all, or positions of attention layers with commas: 0,5,11.")]
Precision = Annotated[Literal["no", "bf16", "fp16"], typer.Option(help="Precision of the forward pass.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn by chance.")]


_LONGEST = 120
"""Bytes of a run folder's name; file systems take 255."""


def default_out(command: str, data: str | Path, *models: str) -> Path:
    """runs/COMMAND-MODEL-DATA; of many models the beginning, and letters that tell it from others that begin so."""
    from clearhead.data.images import source_name
    from clearhead.workflows import model_name

    parts = [command, *map(model_name, models), source_name(data)]
    name = re.sub(r"[/\\:*?{}\[\]]+", "-", "-".join(parts))
    if len(letters := name.encode()) > _LONGEST:
        name = f"{letters[:_LONGEST].decode(errors='ignore')}-{hashlib.sha256(letters).hexdigest()[:8]}"
    return Path("runs") / name


def layers_of(value: str) -> str | list[int]:
    """--layers as the library takes it."""
    if value in ("last", "all"):
        return value
    try:
        return [int(part) for part in value.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--layers {value}: last, all, or positions with commas, as in 0,5,11") from None


def columns_of(groups: str | None) -> list[str] | None:
    """Names with commas as a list."""
    return None if groups is None else [column.strip() for column in groups.split(",") if column.strip()]


def numbers_of(value: str) -> list[int]:
    """Whole numbers with commas as a list."""
    try:
        return [int(part) for part in value.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{value}: whole numbers with commas are needed, as in 1,10") from None


def parted(value: str, mark: str, option: str) -> tuple[str, str]:
    """The two parts of an option's value around a mark."""
    left, found, right = value.partition(mark)
    if not (left and found and right):
        raise typer.BadParameter(f"--{option} {value}: a '{mark}' is missing between two parts")
    return left, right
