"""The HTML page: its structure, its text, its counts, and how it is written to disk."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearhead.metrics.statistics import Estimate
from clearhead.metrics.verdict import Verdict
from clearhead.report import plots
from clearhead.report.page import ExampleImages, Figure, Gallery, Page, Row, Table, render, write
from tests.report.samples import NAN, full_page, share


class Parsed(HTMLParser):
    """The page taken apart: open and close tags must match, each element is (tag, attributes, its text)."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, dict[str, str], list[str]]] = []
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {[tag for tag, _, _ in self.open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"attribute twice in {tag}"
        element = (tag, {name: value or "" for name, value in attrs}, [])
        self.elements.append(element)
        if tag not in self.VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop()[0] == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        for _, _, text in self.open:
            text.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes, _ in self.elements if name == tag]

    def texts(self, tag: str, of_class: str = "") -> list[str]:
        """The text of each such element, its white space made single."""
        return [
            " ".join("".join(text).split())
            for name, attributes, text in self.elements
            if name == tag and (not of_class or of_class in attributes.get("class", "").split())
        ]

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes, _ in self.elements if name in attributes]


def one_table(*rows: Row, columns: int | None = None) -> Page:
    names = [f"column {i}" for i in range(len(rows[0].cells) if columns is None else columns)]
    return Page("title", "lead", sections=[Table("Results", names, rows)])


@pytest.fixture(scope="module")
def full() -> str:
    return render(full_page(examples=3))


def test_the_page_is_well_formed_and_its_references_meet(full: str) -> None:
    page = Parsed(full)
    ids = page.attributes("id")
    assert len(ids) == len(set(ids)), "an id is used twice"
    wanted = [
        one
        for name in ("aria-labelledby", "aria-describedby")
        for value in page.attributes(name)
        for one in value.split()
    ]
    wanted += [
        href.removeprefix("#") for href in page.attributes("href") + page.attributes("xlink:href") if href[0] == "#"
    ]
    wanted += re.findall(r"url\(#([^)]+)\)", full)
    assert len(wanted) > 20
    assert set(wanted) <= set(ids)
    assert page.texts("title")[0] == full_page(0).title
    assert len(page.all("h1")) == 1
    assert full.startswith("<!doctype html>")
    assert page.all("html") == [{"lang": "en"}]


def test_the_page_asks_nothing_of_the_network(full: str) -> None:
    page = Parsed(full)
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert page.attributes("src")
    assert all(src.startswith("data:image/webp;base64,") for src in page.attributes("src"))
    links = page.attributes("href") + page.attributes("xlink:href")
    assert all(href.startswith(("#", "data:")) for href in links)
    assert not re.search(r"url\((?!#)|@import|@font-face", full)
    assert not {tag for tag, _, _ in page.elements} & {"script", "iframe", "object", "embed", "form", "base"}
    assert not [name for _, attributes, _ in page.elements for name in attributes if name.startswith("on")]
    spaces = {value for tag in ("svg",) for a in page.all(tag) for name, value in a.items() if name.startswith("xmlns")}
    assert set(re.findall(r"https?:[^\s\"'<>]*", full)) <= spaces, "no address but the names of XML"


HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)></style><!-- {{ 7 * 7 }} &lt; ${x} % 鳥"


def test_hostile_text_is_shown_as_it_is_wherever_it_stands() -> None:
    words = HOSTILE
    image = np.zeros((8, 8, 3), np.uint8)
    estimate = Estimate(0.5, 0.4, 0.6, 10, words)
    page = Page(
        title=words,
        lead=words,
        verdicts=[Verdict("improved", words, words, words)],
        headline=[(words, estimate)],
        sections=[
            Table(words, [words, words], [Row(words, [words, estimate], words)], words, words),
            Gallery(words, words, [ExampleImages([(words, image)], words, words)]),
            Figure(words, words, plots.intervals([(words, [(words, estimate)])], words, unit="")),
            Figure(words, words, plots.curves({words: [1.0, 2.0]}, words, words)),
        ],
        provenance={words: words, "Command": words},
    )
    text = render(page)
    parsed = Parsed(text)
    assert not parsed.all("script")
    assert [image["src"][:5] for image in parsed.all("img")] == ["data:"]
    assert not parsed.attributes("onerror")
    assert "49" not in "".join(parsed.texts("body")), "template code in a text was run"
    shown = " ".join(words.split())
    assert parsed.all("img")[0]["alt"] == f"{words}: {words}"
    for tag, of_class, times in (
        ("title", "", 3),  # the page's and the two plots'
        ("h1", "", 1),
        ("h2", "", 4),
        ("h3", "", 1),
        ("p", "lead", 1),
        ("p", "sentence", 1),
        ("span", "data", 1),
        ("dt", "", 1),
        ("caption", "", 1),
        ("p", "text", 4),
        ("span", "note", 1),
        ("code", "", 1),
    ):
        assert parsed.texts(tag, of_class).count(shown) == times, (tag, of_class)
    assert parsed.texts("th").count(shown) == 4  # three heads of columns, one fact
    assert parsed.texts("td").count(shown) == 3  # one cell, two facts
    for title in ElementTree.fromstring(
        f"<all>{''.join(s.svg for s in page.sections if isinstance(s, Figure))}</all>"
    ).iter("{http://www.w3.org/2000/svg}title"):
        assert title.text == words


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40))
def test_any_text_comes_back_from_the_page(text: str) -> None:
    parsed = Parsed(
        render(Page("title", text, sections=[Table(text, [text], [Row(text, [text])])], provenance={"x": text}))
    )
    shown = " ".join(text.split())
    assert parsed.texts("td")[-1] == shown
    assert parsed.texts("caption")[0] == shown
    assert parsed.texts("p", "lead") == ([shown] if text else [])


def test_a_page_of_nothing_but_its_title_is_a_page() -> None:
    parsed = Parsed(render(Page("title", "")))
    assert parsed.texts("h1") == ["title"]
    assert not parsed.all("section")
    assert not parsed.all("footer")
    assert not parsed.all("nav")


def test_estimates_are_shown_with_interval_and_unit(full: str) -> None:
    cells = Parsed(full).texts("td")
    assert "93.0% [91.2, 94.8]" in cells
    assert "+1.0 pp [−0.4, +2.4]" in cells
    assert "0.312 [0.291, 0.334]" in cells
    assert "–" in cells, "a number that could not be measured is a dash, with no interval and no count"
    assert "1,200" in cells
    assert Parsed(full).texts("dd")[0] == "83.1% [81.3, 84.9] n = 1,600"


def test_a_count_is_told_once_at_the_widest_place_where_it_holds() -> None:
    def reported(*rows: Row) -> list[str]:
        parsed = Parsed(render(one_table(*rows)))
        result = [text for tag in ("th", "td", "p") for text in parsed.texts(tag) if "n = " in text or "n:" in text]
        return [re.sub(r"\d+\.\d% \[[^]]*\]", "e", text) for text in result]

    def estimate(count: int) -> Estimate:
        return share(0.5, count=count)

    nothing = Estimate(NAN, NAN, NAN, 0, "%")
    both = "In brackets: 95% intervals. "
    assert reported(Row("a", [estimate(1600), 3]), Row("b", [nothing, "x"])) == [both + "n = 1,600 samples."]
    assert reported(Row("a", [estimate(5), estimate(5)]), Row("b", [estimate(6), nothing])) == [
        "a n = 5",
        "b n = 6",
        both + "n: number of samples.",
    ]
    assert reported(Row("a", [estimate(5), estimate(6)]), Row("b", [estimate(5), nothing])) == [
        "column 0 n = 5",
        "column 1 n = 6",
        both + "n: number of samples.",
    ]
    assert reported(Row("a", [estimate(5), estimate(6)]), Row("b", [estimate(7), estimate(8)])) == [
        *(f"e n = {count}" for count in (5, 6, 7, 8)),
        both + "n: number of samples.",
    ]
    assert reported(Row("a", ["x", 3])) == []


@pytest.mark.parametrize("columns", [1, 3])
def test_a_row_that_does_not_fit_its_columns_is_refused(columns: int) -> None:
    page = one_table(Row("first", ["x"] * columns), Row("seeds", [1, 2]), columns=columns)
    message = rf"table 'Results' has {columns} columns .*row 'seeds' has 2 cells: give one cell per column"
    with pytest.raises(ValueError, match=message):
        render(page)


def test_long_pages_have_a_list_of_contents() -> None:
    sections = [Table(f"part {i}", ["x"], [Row("r", [i])]) for i in range(4)]
    parsed = Parsed(render(Page("title", "", sections=sections)))
    assert parsed.texts("a") == [f"part {i}" for i in range(4)]
    assert [link["href"] for link in parsed.all("a")] == [f"#s{i}" for i in range(1, 5)]
    assert not Parsed(render(Page("title", "", sections=sections[:3]))).all("nav")


def test_a_page_is_written_with_its_folders(tmp_path: Path) -> None:
    page = full_page(0)
    path = tmp_path / "a" / "b" / "report.html"
    write(page, path)
    assert path.read_text(encoding="utf-8") == render(page)
    assert os.listdir(path.parent) == ["report.html"]


def test_names_that_are_no_valid_text_do_not_lose_the_page(tmp_path: Path) -> None:
    name = os.fsdecode(b"bird_\xff.png")
    write(one_table(Row(name, [1])), tmp_path / "report.html")
    assert "bird_?.png" in Parsed((tmp_path / "report.html").read_text(encoding="utf-8")).texts("th")


@pytest.mark.parametrize("failing", ["render", "full disk", "replace"])
def test_a_failure_leaves_the_old_page_and_nothing_else(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    page = full_page(0)
    if failing == "render":
        page = one_table(Row("r", [1, 2]), columns=1)

    def fail(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    def half(self: Path, text: str, **_options: object) -> None:
        self.write_bytes(text[:100].encode())
        fail()

    if failing == "full disk":
        monkeypatch.setattr(Path, "write_text", half)
    if failing == "replace":
        monkeypatch.setattr(os, "replace", fail)
    with pytest.raises((OSError, ValueError), match=r"No space left|columns"):
        write(page, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["report.html"]
