"""The table of a suite as files for other programs: table.csv, table.parquet, table.md, table.tex; and back."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from clearhead.analyses.robustness import SeedRow, SetRow
from clearhead.data.image_io import DataError
from clearhead.metrics.statistics import Estimate, format_interval, format_value
from clearhead.storage import write_table, write_text

_ESTIMATES = ("top1", "top5", "effective")


def write_tables(rows: Sequence[SetRow], folder: Path, seeds: Sequence[SeedRow] = ()) -> None:
    """Write one line per model, set and class mapping, then the means over seeds.

    Fractions are in 0..1 in table.csv and table.parquet, in percent in table.md and table.tex.
    """
    rows = [*rows, *(_mean_row(row, rows) for row in seeds)]
    columns = columns_of(rows)
    write_table(folder / "table.parquet", {name: np.array(values) for name, values in columns.items()})
    text = io.StringIO(newline="")
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(columns)
    lines.writerows(zip(*columns.values(), strict=True))
    write_text(folder / "table.csv", text.getvalue())
    header = ["model", "set", "scoring", "images", "top-1", "95% interval", "top-5", "NLL", "ECE"]
    with_effective = any(row.effective for row in rows)
    header += ["effective robustness"] if with_effective else []
    cells = [[*_cells(row), *([_number(row.effective)] if with_effective else [])] for row in rows]
    for name, form in (("table.md", "github"), ("table.tex", "latex_booktabs")):
        write_text(folder / name, tabulate(cells, header, form, disable_numparse=True) + "\n")


def _mean_row(mean: SeedRow, rows: Sequence[SetRow]) -> SetRow:
    """Return a mean over seeds as a row of the table."""
    first = next(row for row in rows if (row.set, row.scoring) == (mean.set, mean.scoring))
    name = f"{mean.label}, mean of {mean.top1.count}"
    first = replace(first, model=name, top1=mean.top1, top5=None, effective=None, unreadable=0)
    return replace(first, loss=math.nan, ece=math.nan)


def columns_of(rows: Sequence[SetRow]) -> dict[str, list[Any]]:
    """Return the rows as columns of plain values; an estimate takes three: its value and the ends of its interval."""
    columns: dict[str, list[Any]] = {}
    for column in fields(SetRow):
        values = [getattr(row, column.name) for row in rows]
        if column.name in _ESTIMATES:
            for part, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
                columns[column.name + suffix] = [getattr(v, part) if v else math.nan for v in values]
        elif column.name == "level":
            columns["level"] = [math.nan if v is None else v for v in values]
        else:
            columns[column.name] = values
    return columns


def _cells(row: SetRow) -> list[str]:
    return [
        row.model,
        row.set,
        row.scoring,
        f"{row.images:,}",
        _number(row.top1),
        format_interval(row.top1),
        _number(row.top5),
        format_value(row.loss),
        format_value(row.ece, "%"),
    ]


def _number(estimate: Estimate | None) -> str:
    return format_value(estimate.value, estimate.unit) if estimate else ""


def read_baselines(file: Path) -> Mapping[tuple[str, str], dict[str, float]]:
    """Return top-1 accuracy in a ``table.csv``, by set and class mapping, then model. Raises DataError."""
    accuracy: dict[tuple[str, str], dict[str, float]] = {}
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            for line in csv.DictReader(opened):
                accuracy.setdefault((line["set"], line["scoring"]), {})[line["model"]] = float(line["top1"])
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"table: {file} cannot be read: {error!r}; give a CSV file with the columns model, set, scoring and top1 "
            "(0..1), such as table.csv of clearhead evaluate"
        ) from error
    return accuracy
