"""Options of the commands that are not analyses, and parsers of their values."""

from typing import Annotated

import typer

from clearhead.errors import ClearheadError

BatchSize = Annotated[int, typer.Option(min=1, help="Batch size.")]
Workers = Annotated[int, typer.Option(min=0, help="Number of data-loading processes; 0 loads in the main process.")]
Seed = Annotated[int, typer.Option(min=0, help="Random seed.")]
Jobs = Annotated[int, typer.Option(min=1, help="Number of parallel processes.")]


def parse_integers(value: str, option: str) -> list[int]:
    """Return comma-separated whole numbers as a list."""
    try:
        return [int(part) for part in value.split(",")]
    except ValueError:
        raise ClearheadError(f"--{option}: got {value!r}; give comma-separated whole numbers, as in 1,10") from None


def parse_pair(value: str, separator: str, option: str) -> tuple[str, str]:
    """Return the two parts of an option's value around a separator."""
    first, _, second = value.partition(separator)
    if not (first and second):
        raise ClearheadError(f"--{option}: got {value!r}; give two parts with {separator!r} between them")
    return first, second
