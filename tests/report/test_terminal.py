"""A page in the terminal: all columns, all rows, whole names, whatever the console."""

import io
import math

import pytest
from rich.console import Console

from clearhead.errors import ClearheadError
from clearhead.metrics.statistics import Estimate
from clearhead.metrics.verdict import Verdict
from clearhead.report.page import Figure, Page, Row, Table
from clearhead.report.terminal import print_page


def share(value: float, count: int = 100) -> Estimate:
    return Estimate(value, value - 0.05, value + 0.05, count, "%")


def page(*sections: Table | Figure, **parts: object) -> Page:
    return Page("title", "lead", sections=sections, **parts)  # type: ignore[arg-type]


def lines(shown: Page, width: int = 40) -> list[str]:
    console = Console(file=io.StringIO(), width=width, record=True)
    print_page(shown, console)
    return console.export_text().splitlines()


COLUMNS = [f"a long column number {i}" for i in range(12)]


@pytest.mark.parametrize("width", [10, 80, 1000])
def test_nothing_is_cut_or_wrapped_whatever_the_width(width):
    name = "a/long/folder/name/" * 10
    rows = [Row(name, [share(i / 20) for i in range(12)], "a note"), Row("short", [""] * 12)]
    result = lines(page(Table("Title", COLUMNS, rows, names="model")), width)
    assert len(result) == 4
    title, header, first, second = result
    assert title == "Title"
    assert header.split("  ")[0] == "model"
    assert all(column in header for column in COLUMNS)
    assert first.startswith(name)
    assert first.endswith("a note")
    assert all(f"{100 * i / 20:.1f}%" in first for i in range(12))
    assert second.startswith("short")


def test_a_pipe_gets_whole_rows(capsys):
    rows = [Row("m" * 90, [share(0.5)] * 12)]
    print_page(page(Table("Title", COLUMNS, rows)))
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 3
    assert out.count("50.0% [45.0, 55.0]") == 12
    assert "\x1b" not in out


@pytest.mark.parametrize("text", ["[bold]model[/bold]", "[/]", "a :smile: name", "\\[x]", "[link=x]y", "鳥 [red]"])
def test_names_come_out_literally(text):
    table = Table(text, [text], [Row(text, [text], text)], names=text)
    verdict = Verdict("improved", text, text, text)
    result = lines(page(table, verdicts=[verdict], headline=[(text, share(0.5))]))
    assert len(result) == 6
    assert result[0] == f"improved on {text}: {text} {text}"
    assert [line.count(text) for line in result[2:]] == [1, 1, 2, 3]


def test_values_come_with_interval_and_count_in_the_most_compact_form():
    def table(*counts: int) -> list[str]:
        rows = [Row(f"r{i}", [share(0.2, counts[2 * i]), share(0.3, counts[2 * i + 1])]) for i in range(2)]
        return lines(page(Table("T", ["a", "b"], rows)))

    assert table(10, 10, 10, 10)[1:] == [
        "                     a                   b   n",
        "r0  20.0% [15.0, 25.0]  30.0% [25.0, 35.0]  10",
        "r1  20.0% [15.0, 25.0]  30.0% [25.0, 35.0]  10",
    ]
    assert [line.split()[-1] for line in table(10, 10, 2000, 2000)[1:]] == ["n", "10", "2,000"]
    assert "a, n = 10" in table(10, 20, 10, 20)[1]
    assert "b, n = 20" in table(10, 20, 10, 20)[1]
    assert table(10, 20, 30, 40)[2].count("n = ") == 2


def test_headline_numbers_have_their_counts():
    headline = [("Accuracy", share(0.5, 1234)), ("Unmeasured", Estimate(math.nan, math.nan, math.nan, 0, "%"))]
    result = lines(page(headline=headline))
    assert result[1].split() == ["Accuracy", "50.0%", "[45.0,", "55.0]", "1,234"]
    assert result[2].split() == ["Unmeasured", "–"]


def test_only_the_first_table_is_printed_and_no_line_is_empty():
    first, second = (Table(title, ["x"], [Row("two\nlines\n\n", ["v\nw"])]) for title in ("First", "Second"))
    verdicts = [Verdict("regressed", "It fell.", "Rule.", "data"), Verdict("inconclusive", "Who knows.")]
    result = lines(page(Figure("F", "", "<svg/>"), first, second, verdicts=verdicts, headline=[("A", share(0.1))]))
    assert result[:2] == ["regressed on data: It fell. Rule.", "inconclusive: Who knows."]
    assert all(result)
    assert not any("Second" in line for line in result)
    assert result[-1].split() == ["two", "lines", "v", "w"]


def test_wide_characters_are_aligned():
    _, header, first, second = lines(page(Table("T", ["c"], [Row("鳥鳥", ["1"]), Row("abcd", ["2"])])))
    assert (header, first, second) == ("      c", "鳥鳥  1", "abcd  2")


def test_a_page_without_numbers_prints_nothing():
    assert lines(page(Figure("F", "", "<svg/>"))) == []


def test_a_row_with_missing_cells_raises_an_error():
    with pytest.raises(ClearheadError, match="give one cell per column"):
        lines(page(Table("T", ["a", "b"], [Row("r", ["1"])])))
