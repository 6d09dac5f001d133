"""A report page: plain data in, one self-contained HTML file out.

A `Page` holds verdicts, headline numbers, sections and provenance. ``render`` turns it into HTML that makes no network
requests (images are data URIs, plots are inline SVG, a content security policy forbids scripts and requests) and is
readable in light and dark mode, on a phone and on paper. ``clearhead.report.terminal`` prints the same object.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

import jinja2
from markupsafe import Markup

from clearhead.errors import ClearheadError
from clearhead.metrics.statistics import Estimate, format_interval, format_value
from clearhead.metrics.verdict import Verdict
from clearhead.report.images import data_uri
from clearhead.storage import Pixels, write_text

Cell = Estimate | str | int


@dataclass(frozen=True)
class Row:
    """One row of a table: its name, one cell per column, and a note shown in small print under the name."""

    name: str
    cells: Sequence[Cell]
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: heading of the section.
        columns: headers of the cells.
        rows: one cell per column each.
        text: explains the numbers.
        names: header of the column of row names.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    text: str = ""
    names: str = ""


@dataclass(frozen=True)
class ExampleImages:
    """Captioned images (H x W x 3, uint8) of one sample in a row, such as image, map before, map after.

    Results contain them too: ``clearhead.storage`` saves the pixels as PNG files.
    """

    images: Sequence[tuple[str, Pixels]]
    title: str
    text: str = ""


@dataclass(frozen=True)
class Gallery:
    """Several rows of example images under one heading."""

    title: str
    text: str
    examples: Sequence[ExampleImages]


@dataclass(frozen=True)
class Figure:
    """A plot; `svg` is inserted without escaping and must come from ``clearhead.report.plots``."""

    title: str
    text: str
    svg: str


@dataclass(frozen=True)
class Step:
    """A command that follows from the results, and what it is for."""

    reason: str
    command: str


Section = Table | Gallery | Figure


@dataclass(frozen=True)
class Page:
    """The content of a report; `provenance` (model, data, seed, versions, command) is its footer.

    `steps` are what to do next.
    """

    title: str
    lead: str
    verdicts: Sequence[Verdict] = ()
    headline: Sequence[tuple[str, Estimate]] = ()
    sections: Sequence[Section] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    steps: Sequence[Step] = ()


def render(page: Page) -> str:
    """Return the page as HTML; all text is escaped.

    Raises:
        ClearheadError: if a row of a table has too few or too many cells.
    """
    for section in page.sections:
        if isinstance(section, Table):
            require_full_rows(section)
    return _template().render(page=page)


def write(page: Page, path: Path) -> None:
    """Write the page as HTML; after a failure the previous file is unchanged."""
    write_text(path, render(page))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {"value": format_value, "interval": format_interval, "data_uri": data_uri, "svg": Markup}
    tests: dict[str, Any] = {
        "table": lambda section: isinstance(section, Table),
        "gallery": lambda section: isinstance(section, Gallery),
        "estimate": lambda cell: isinstance(cell, Estimate),
    }
    environment.filters |= filters
    environment.tests |= tests
    environment.globals |= {"sample_counts": sample_counts, "numeric_columns": _numeric_columns}
    return environment.get_template("page.html.j2")


def require_full_rows(table: Table) -> None:
    """Raise ClearheadError unless each row of a table has one cell per column."""
    for row in table.rows:
        if len(row.cells) != len(table.columns):
            raise ClearheadError(
                f"table {table.title!r} has {len(table.columns)} columns {list(table.columns)}, but row {row.name!r} "
                f"has {len(row.cells)} cells: give one cell per column (the row's name is not one of them)"
            )


@dataclass(frozen=True)
class SampleCounts:
    """Where to show the sample counts of a table: one for all, else one per row, else per column, else per cell."""

    table: int | None = None
    rows: Sequence[int | None] = ()
    columns: Sequence[int | None] = ()
    cells: bool = False


def sample_counts(table: Table) -> SampleCounts:
    """Return the most compact way to show all sample counts of a table."""
    grid = [[cell.count if is_measured(cell) else None for cell in row.cells] for row in table.rows]
    rows = [{count for count in row if count is not None} for row in grid]
    columns = [{count for count in column if count is not None} for column in zip(*grid, strict=True)]
    counts: set[int] = set().union(*rows)
    if len(counts) <= 1:
        return SampleCounts(table=min(counts, default=None))
    if all(len(counts) <= 1 for counts in rows):
        return SampleCounts(rows=[min(counts, default=None) for counts in rows])
    if all(len(counts) <= 1 for counts in columns):
        return SampleCounts(columns=[min(counts, default=None) for counts in columns])
    return SampleCounts(cells=True)


def is_measured(cell: Cell) -> TypeGuard[Estimate]:
    """Return whether a cell is an estimate with a value."""
    return isinstance(cell, Estimate) and not math.isnan(cell.value)


def _numeric_columns(table: Table) -> list[bool]:
    """Return which columns contain numbers, which are aligned to the right."""
    return [any(not isinstance(row.cells[i], str) for row in table.rows) for i in range(len(table.columns))]
