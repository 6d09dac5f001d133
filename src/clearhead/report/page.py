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
from typing import TypeGuard

import jinja2
from markupsafe import Markup

from clearhead.errors import ClearheadError
from clearhead.metrics.statistics import Estimate, format_interval, format_value
from clearhead.metrics.verdict import Verdict
from clearhead.report.overlay import data_uri
from clearhead.storage import Pixels


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
class ExampleImages:
    """Captioned images (H x W x 3, uint8) of one sample side by side, such as image, map before, map after.

    Part of results too: ``clearhead.storage`` saves the pixels as PNG files.
    """

    images: Sequence[tuple[str, Pixels]]
    title: str
    text: str = ""


@dataclass(frozen=True)
class Gallery:
    """Example images under one heading."""

    title: str
    text: str
    examples: Sequence[ExampleImages]


@dataclass(frozen=True)
class Figure:
    """A plot: `svg` is put into the page as it is and must come from `clearhead.report.plots`."""

    title: str
    text: str
    svg: str


Section = Table | Gallery | Figure


@dataclass(frozen=True)
class Page:
    """All that a report shows; `facts` (model, data, seed, versions, command) close it."""

    title: str
    lead: str
    verdicts: Sequence[Verdict] = ()
    headline: Sequence[tuple[str, Estimate]] = ()
    sections: Sequence[Table | Gallery | Figure] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)


def render(page: Page) -> str:
    """The page as HTML; all text is escaped. ClearheadError where a table's row has too few or too many cells."""
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
        unfinished.write_text(html, encoding="utf-8", errors="replace")  # file names need not be valid text
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
    environment.filters |= {
        "format_value": format_value,
        "format_interval": format_interval,
        "data_uri": data_uri,
        "svg": Markup,
    }
    environment.tests |= {
        "table": lambda section: isinstance(section, Table),
        "gallery": lambda section: isinstance(section, Gallery),
        "estimate": lambda cell: isinstance(cell, Estimate),
    }
    environment.globals |= {"counts": _counts, "numeric_columns": _numeric_columns}
    return environment.get_template("page.html.j2")


def _check(table: Table) -> None:
    for row in table.rows:
        if len(row.cells) != len(table.columns):
            raise ClearheadError(
                f"table {table.title!r} has {len(table.columns)} columns {list(table.columns)}, but row {row.name!r} "
                f"has {len(row.cells)} cells: give one cell for each column (the row's name is not one of them)"
            )


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
    return isinstance(cell, Estimate) and not math.isnan(cell.value)


def _numeric_columns(table: Table) -> list[bool]:
    """Which columns hold numbers, to be set flush right."""
    return [any(not isinstance(row.cells[i], str) for row in table.rows) for i in range(len(table.columns))]
