"""A page in the terminal: verdicts, headline numbers and first table, from the same ``Page`` as the HTML."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from clearhead.metrics.statistics import Estimate, format_interval, format_value
from clearhead.report.page import Page, Table

WIDE = 10_000
"""Columns of a console that is not a terminal: nothing is cut or wrapped in a file or a pipe."""

_COLOURS = {"improved": "green", "regressed": "red", "inconclusive": "yellow"}


def print_page(page: Page, console: Console | None = None) -> None:
    """Print a page's verdicts, headline numbers and first table. Names are printed as they are, markup included."""
    console = console or Console(width=None if sys.stdout.isatty() else WIDE, highlight=False, emoji=False)
    for verdict in page.verdicts:
        line = Text(verdict.word, style=f"bold {_COLOURS[verdict.word]}")
        console.print(line.append(f" on {verdict.data}: {verdict.sentence}", style="default"), soft_wrap=True)
    if page.headline:
        rows: list[tuple[str, list[Estimate | str | int]]] = [(name, [e, f"{e.count:,}"]) for name, e in page.headline]
        console.print(_table("", ["", "n"], rows))
    table = next((section for section in page.sections if isinstance(section, Table)), None)
    if table is not None:
        console.print(Text(table.title, style="bold"), soft_wrap=True)
        console.print(_table(table.names, table.columns, [(row.name, row.cells) for row in table.rows]))


def _table(names: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Estimate | str | int]]]) -> RichTable:
    """Return a table whose rows are never wrapped; columns are as wide as their longest cell."""
    drawn = RichTable(box=None, pad_edge=False, header_style="dim")
    drawn.add_column(Text(names), no_wrap=True, overflow="ignore")
    for column in columns:
        drawn.add_column(Text(column), justify="right", no_wrap=True, overflow="ignore")
    for name, cells in rows:
        drawn.add_row(Text(name), *(Text(_cell(cell)) for cell in cells))
    return drawn


def _cell(cell: Estimate | str | int) -> str:
    if isinstance(cell, Estimate):
        return f"{format_value(cell.value, cell.unit)} {format_interval(cell)}".rstrip()
    return cell if isinstance(cell, str) else f"{cell:,}"
