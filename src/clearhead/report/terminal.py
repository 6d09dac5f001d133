"""Print a page in the terminal: verdicts, headline numbers and first table, from the same ``Page`` as the HTML.

Rows are laid out here and not by ``rich.table``, which shortens cells to the width of the console. No line is ever
wrapped or cut: on a narrow terminal the terminal itself continues a long line on the next one.
"""

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from clearhead.metrics.statistics import Estimate, format_interval, format_value
from clearhead.report.page import Cell, Page, Row, Table, is_measured, require_full_rows, sample_counts

_COLOURS = {
    "improved": "green",
    "regressed": "red",
    "inconclusive": "yellow",
    "gap": "red",
    "reliance": "red",
    "leak": "red",
}

_GAP = "  "


def print_page(page: Page, console: Console | None = None) -> None:
    """Print the verdicts, the headline numbers, the first table and the next steps of a page.

    Names are printed literally: square brackets are no markup and ``:word:`` is no emoji.

    Args:
        page: the page.
        console: where to print; None prints to standard output.

    Raises:
        ClearheadError: if a row of the table has too few or too many cells.
    """
    console = console or Console(highlight=False)
    for verdict in page.verdicts:
        word = verdict.word, f"bold {_COLOURS[verdict.word]}"
        data = f" on {_one_line(verdict.data)}" if verdict.data else ""
        reasons = f"{data}: {_one_line(verdict.sentence)} "
        _print(console, Text.assemble(word, reasons, (_one_line(verdict.basis), "dim")))
    if page.headline:
        _print_rows(console, Table("", [""], [Row(name, [estimate]) for name, estimate in page.headline]))
    table = next((section for section in page.sections if isinstance(section, Table)), None)
    if table is not None:
        _print(console, Text(_one_line(table.title), style="bold"))
        _print_rows(console, table)
    for step in page.steps:
        _print(console, Text.assemble(("next: ", "bold"), step.command, (f"  {_one_line(step.reason)}", "dim")))


def _print_rows(console: Console, table: Table) -> None:
    """Print a table: names to the left, cells to the right, notes last; a column is as wide as its longest cell."""
    require_full_rows(table)
    header, *rows = [[_one_line(cell) for cell in row] for row in _grid(table)]
    widths = [max(map(cell_len, column)) for column in zip(header, *rows, strict=True)]
    if any(header):
        _print(console, Text(_join(header, widths), style="dim"))
    for row, cells in zip(table.rows, rows, strict=True):
        _print(console, Text(_join(cells, widths)).append(_GAP + _one_line(row.note), style="dim"))


def _grid(table: Table) -> list[list[str]]:
    """Return the header and the rows of a table as text, with the sample counts where they are most compact."""
    counts = sample_counts(table)
    header = [table.names, *table.columns]
    rows = [[row.name, *(_format_cell(cell, counts.cells) for cell in row.cells)] for row in table.rows]
    if counts.columns:
        with_counts = zip(table.columns, counts.columns, strict=True)
        header[1:] = [name if count is None else f"{name}, n = {count:,}" for name, count in with_counts]
    if counts.table is not None or counts.rows:
        header.append("n")
        measured = [[cell.count for cell in row.cells if is_measured(cell)] for row in table.rows]
        rows = [[*row, f"{ns[0]:,}" if ns else ""] for row, ns in zip(rows, measured, strict=True)]
    return [header, *rows]


def _format_cell(cell: Cell, with_count: bool) -> str:
    if isinstance(cell, Estimate):
        text = f"{format_value(cell.value, cell.unit)} {format_interval(cell)}".rstrip()
        return f"{text}, n = {cell.count:,}" if with_count else text
    return cell if isinstance(cell, str) else f"{cell:,}"


def _join(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Align the first cell of a line to the left and the others to the right."""
    padding = [" " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)]
    first, *others = zip(cells, padding, strict=True)
    return _GAP.join(["".join(first), *(space + cell for cell, space in others)])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _print(console: Console, text: Text) -> None:
    text.rstrip()
    console.print(text, soft_wrap=True)
