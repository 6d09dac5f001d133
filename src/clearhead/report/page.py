"""The page of results: plain data in, one self-contained HTML file out.

A `Page` holds verdicts, headline numbers, sections and facts. `render` turns it into HTML that asks nothing of the
network (pictures are data URIs, plots inline SVG, a content security policy forbids scripts and requests) and that
reads in light, in dark, on a phone and on paper.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal, Protocol, TypeGuard

import jinja2
import numpy as np
from markupsafe import Markup

from clearhead.report.pictures import data_uri

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Estimate(Protocol):
    """A number with its 95% interval and sample count; unit '%' or 'pp' holds fractions, '' a plain number."""

    @property
    def value(self) -> float:
        """The number itself; NaN where it could not be measured."""

    @property
    def low(self) -> float:
        """Lower end of the 95% interval."""

    @property
    def high(self) -> float:
        """Upper end of the 95% interval."""

    @property
    def count(self) -> int:
        """How many samples it rests on."""

    @property
    def unit(self) -> str:
        """'%' for a fraction, 'pp' for a signed difference of fractions, '' for a plain number, or a unit's name."""


@dataclass(frozen=True)
class Verdict:
    """What the comparison says on one data set."""

    word: Literal["helped", "harmed", "cannot tell"]
    data: str
    sentence: str


@dataclass(frozen=True)
class Row:
    """One line of a table: its name, one cell for each column, and a remark set small under the name."""

    name: str
    cells: Sequence[Estimate | str | int]
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table; `columns` heads the cells, `names` the column of row names, `text` says what the numbers mean."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    text: str = ""
    names: str = ""


@dataclass(frozen=True)
class Picture:
    """A row of captioned pictures (H x W x 3, uint8) of one sample, such as image, map before, map after."""

    images: Sequence[tuple[str, np.ndarray]]
    title: str
    text: str = ""


@dataclass(frozen=True)
class Gallery:
    """Pictures under one heading."""

    title: str
    text: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Figure:
    """A plot: `svg` is put into the page as it is and must come from `clearhead.report.plots`."""

    title: str
    text: str
    svg: str


@dataclass(frozen=True)
class Page:
    """All that a report shows; `facts` (model, data, seed, versions, command) close it."""

    title: str
    lead: str
    verdicts: Sequence[Verdict] = ()
    headline: Sequence[tuple[str, Estimate]] = ()
    sections: Sequence[Table | Gallery | Figure] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def number(value: float, unit: str = "") -> str:
    """A number as people read it: '83.1%', '+2.4 pp', '0.0412', '1.20×10⁻⁵', '12,400'; '–' where it is NaN."""
    if math.isnan(value):
        return "–"
    if unit == "%":
        text = f"{100 * value:z.1f}%"
    elif unit == "pp":
        text = f"{100 * value:+z.1f} pp"
    else:
        text = f"{_three_digits(value)} {unit}".rstrip()
    return text.replace("-", "−").replace("inf", "∞")


def interval(estimate: Estimate) -> str:
    """The 95% interval without its unit, '[81.0, 85.2]'; empty where an end is NaN."""
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return ""
    ends = (number(end, estimate.unit).removesuffix(estimate.unit).rstrip() for end in (estimate.low, estimate.high))
    return f"[{', '.join(ends)}]"


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    if not 1e-3 <= abs(rounded) < math.inf:
        if math.isinf(rounded):
            return f"{rounded}"
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return f"{value:,.0f}" if abs(rounded) >= 1000 else f"{value:#.3g}".rstrip(".")


def render(page: Page) -> str:
    """The page as HTML; all text is escaped. ValueError where a table's row has too few or too many cells."""
    for section in page.sections:
        if isinstance(section, Table):
            _check(section)
    return _template().render(page=page)


def write(page: Page, path: Path) -> None:
    """Render to `path`; a failure on the way leaves what was there before untouched."""
    html = render(page)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(html, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "interval": interval, "data_uri": data_uri, "svg": Markup}
    environment.tests |= {
        "table": lambda section: isinstance(section, Table),
        "gallery": lambda section: isinstance(section, Gallery),
        "estimate": _is_estimate,
    }
    environment.globals |= {"counts": _counts, "numeric_columns": _numeric_columns}
    return environment.get_template("page.html.j2")


def _check(table: Table) -> None:
    for row in table.rows:
        if len(row.cells) != len(table.columns):
            raise ValueError(
                f"table {table.title!r} has {len(table.columns)} columns {list(table.columns)}, but row {row.name!r} "
                f"has {len(row.cells)} cells: give one cell for each column (the row's name is not one of them)"
            )


def _is_estimate(cell: object) -> TypeGuard[Estimate]:
    return hasattr(cell, "low") and hasattr(cell, "high")


@dataclass(frozen=True)
class _Counts:
    """Sample counts, said once: for the whole table, else for its rows, else its columns, else each cell."""

    table: int | None = None
    rows: Sequence[int | None] = ()
    columns: Sequence[int | None] = ()
    cells: bool = False


def _counts(table: Table) -> _Counts:
    grid = [[cell.count if _measured(cell) else None for cell in row.cells] for row in table.rows]
    rows = [{count for count in row if count is not None} for row in grid]
    columns = [{count for count in column if count is not None} for column in zip(*grid, strict=True)]
    everything = set().union(*rows)
    if len(everything) <= 1:
        return _Counts(table=min(everything, default=None))
    if all(len(counts) <= 1 for counts in rows):
        return _Counts(rows=[min(counts, default=None) for counts in rows])
    if all(len(counts) <= 1 for counts in columns):
        return _Counts(columns=[min(counts, default=None) for counts in columns])
    return _Counts(cells=True)


def _measured(cell: Estimate | str | int) -> TypeGuard[Estimate]:
    return _is_estimate(cell) and not math.isnan(cell.value)


def _numeric_columns(table: Table) -> list[bool]:
    """Which columns hold numbers, to be set flush right."""
    return [any(not isinstance(row.cells[i], str) for row in table.rows) for i in range(len(table.columns))]
