"""The table of a suite as files for other programs: table.csv, table.parquet, table.md, table.tex; and back."""

import csv
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
from clearhead.runs import write_table, written


def write_tables(rows: Sequence[SetRow], out: Path, seeds: Sequence[SeedRow] = ()) -> None:
    """One line a model, set and scoring, then the means over seeds.

    Shares are in 0..1 in the first two files, in percent in the other two.
    """
    rows = [*rows, *(_mean(row, rows) for row in seeds)]
    columns = columns_of(rows)
    write_table(out / "table.parquet", {name: np.array(values) for name, values in columns.items()})
    with written(out / "table.csv") as path, path.open("w", encoding="utf-8", newline="") as opened:
        lines = csv.writer(opened)
        lines.writerow(columns)
        lines.writerows(zip(*columns.values(), strict=True))
    header = ["model", "set", "scoring", "images", "top-1", "95% interval", "top-5", "NLL", "ECE"]
    robust = any(row.effective for row in rows)
    header += ["effective robustness"] if robust else []
    told = [[*_told(row), *([_number(row.effective)] if robust else [])] for row in rows]
    for name, form in (("table.md", "github"), ("table.tex", "latex_booktabs")):
        with written(out / name) as path:
            path.write_text(tabulate(told, header, form, disable_numparse=True) + "\n", encoding="utf-8")


def _mean(mean: SeedRow, rows: Sequence[SetRow]) -> SetRow:
    """A mean over seeds as a line of the table."""
    like = next(row for row in rows if (row.set, row.scoring) == (mean.set, mean.scoring))
    name = f"{mean.label}, mean of {mean.top1.count}"
    like = replace(like, model=name, top1=mean.top1, top5=None, effective=None, unreadable=0)
    return replace(like, loss=math.nan, ece=math.nan)


def columns_of(rows: Sequence[SetRow]) -> dict[str, list[Any]]:
    """The rows as columns of plain values: an estimate takes three, its value and the ends of its interval."""
    found: dict[str, list[Any]] = {}
    for field in fields(SetRow):
        values = [getattr(row, field.name) for row in rows]
        if field.name in ("top1", "top5", "effective"):
            for part, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
                found[field.name + suffix] = [getattr(v, part) if v else float("nan") for v in values]
        elif field.name == "level":
            found["level"] = [float("nan") if v is None else v for v in values]
        else:
            found[field.name] = values
    return found


def _told(row: SetRow) -> list[str]:
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
    """Top-1 accuracy in a ``table.csv``: by set and scoring, then model. Raises DataError."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            for line in csv.DictReader(opened):
                found.setdefault((line["set"], line["scoring"]), {})[line["model"]] = float(line["top1"])
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"baseline {file}: a table with the columns model, set, scoring, top1 (0..1) is needed, as "
            f"clearhead evaluate --suite leaves it in table.csv: {error!r}"
        ) from error
    return found
