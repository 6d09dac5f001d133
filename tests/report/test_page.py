"""The page of results: text, numbers, pictures, plots, and how all looks in headless Chromium where there is one."""

import base64
import html
import io
import math
import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clearhead.metrics.statistics import Estimate, format_interval, format_value
from clearhead.metrics.verdict import Verdict
from clearhead.report import plots
from clearhead.report.overlay import data_uri, outline, overlay
from clearhead.report.page import ExampleImages, Figure, Gallery, Page, Row, Table, render, write
from clearhead.report.renderers import KINDS
from clearhead.results import Results

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
NAN = math.nan


def share(value: float, half: float = 0.018, count: int = 1600, unit: str = "%") -> Estimate:
    return Estimate(value, value - half, value + half, count, unit)


def scene(seed: int, size: int = 224) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image of a disc on a ground, the disc's mask, and a map about another place."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    cy, cx = random.uniform(0.35, 0.65, 2)
    mask = (y - cy) ** 2 + ((x - cx) * 0.7) ** 2 < 0.04
    ground = random.uniform(60, 200, 3) + 40 * np.sin(9 * x + 7 * y)[..., None] + random.normal(0, 12, (size, size, 3))
    image = np.where(mask[..., None], random.uniform(20, 240, 3) + random.normal(0, 8, (size, size, 3)), ground)
    by, bx = random.uniform(0.1, 0.9, 2)
    return image.clip(0, 255).astype(np.uint8), mask, np.exp(-((y - by) ** 2 + (x - bx) ** 2) / 0.03)


def full_page(examples: int = 12) -> Page:
    def example(i: int) -> ExampleImages:
        image, mask, heat = scene(i)
        after = np.clip(mask * 0.8 + 0.25 * heat, 0, 1)
        after = after.reshape(14, 16, 14, 16).mean((1, 3))
        more = [("rollout", overlay(image, heat**2)), ("attention", overlay(image, heat**0.5))] if i == 11 else []
        return ExampleImages(
            [
                *more,
                ("image with mask", outline(image, mask)),
                ("before", overlay(image, heat)),
                ("after", overlay(image, after)),
            ],
            f"test/bird/{i:05d}_on_water.png",
            f"bird; before: fish (71.{i}%), after: bird (88.{i}%)",
        )

    shifts = ["train background", "swapped background", "grey background", "noise, severity 3", "blur, severity 3"]
    return Page(
        title="Relevance repair of vit_small_patch16_224 on the demo set",
        lead="The model before the repair against the model after it, on images that no training or choice has seen.",
        verdicts=[
            Verdict(
                "improved",
                "The repair raised accuracy on shifted backgrounds by 20.9 points, from 62.2% to 83.1%.",
                data="demo, shifted backgrounds",
            ),
            Verdict(
                "inconclusive",
                "On the usual backgrounds the difference of −0.4 points is within what chance explains.",
                data="/srv/data/a_folder_whose_name_is_long_and_has_no_place_to_break/usual_backgrounds/test",
            ),
            Verdict("regressed", "On blurred images accuracy fell by 3.1 points.", data="demo, blurred"),
        ],
        headline=[
            ("Accuracy on shifted backgrounds, after", share(0.831)),
            ("Gain over the model before", Estimate(0.209, 0.181, 0.237, 1600, "pp")),
            ("Relevance on the object", share(0.774, 0.011, 400)),
            ("Calibration error", Estimate(0.0412, 0.0331, 0.0520, 1600)),
        ],
        sections=[
            Table(
                "Accuracy under shift",
                ["before", "after", "difference", "p (McNemar)"],
                [
                    Row(
                        name,
                        [
                            share(0.93 - 0.08 * i),
                            share(0.94 - 0.03 * i),
                            Estimate(0.01 + 0.05 * i, -0.004 + 0.05 * i, 0.024 + 0.05 * i, 1600, "pp"),
                            "< 0.001" if i else "0.21",
                        ],
                    )
                    for i, name in enumerate(shifts)
                ],
                "Share of images whose most likely class is the right one. Both models saw the same images.",
                "data",
            ),
            Figure(
                "Before and after",
                "Dots are estimates, lines their 95% intervals. The paired differences are in the table.",
                plots.intervals(
                    [
                        (
                            name,
                            [
                                ("before", share(0.93 - 0.08 * i)),
                                ("after", share(0.94 - 0.03 * i) if i != 4 else Estimate(NAN, NAN, NAN, 0)),
                            ],
                        )
                        for i, name in enumerate(shifts)
                    ],
                    "Accuracy before and after, by kind of shift",
                ),
            ),
            Table(
                "Where the relevance lies",
                [
                    "images",
                    "on the object, before",
                    "on the object, after",
                    "pointing game, before",
                    "pointing game, after",
                    "deletion AUC",
                ],
                [
                    Row(
                        name,
                        [
                            400,
                            share(0.41, 0.02, 400),
                            share(0.77, 0.02, 400),
                            share(0.52, 0.05, 400),
                            share(0.9, 0.03, 400),
                            Estimate(0.312, 0.291, 0.334, 400) if name != "fish" else Estimate(NAN, NAN, NAN, 0),
                        ],
                        "masks from the data set" if name == "beetle" else "",
                    )
                    for name in ("beetle", "bird", "butterfly", "fish")
                ],
                "Share of the relevance map that falls inside the object's mask (GAE maps for the true class).",
                "class",
            ),
            Figure(
                "Is its confidence deserved?",
                "On the dashed line, of the images held with 80% confidence 80% are right.",
                plots.reliability(
                    np.linspace(0.35, 0.98, 8), np.linspace(0.3, 0.93, 8) ** 1.1, [12, 31, 0, 88, 130, 202, 401, 733]
                ),
            ),
            Gallery(
                "What it looks at",
                "Drawn at random (seed 0). Warm colours: relevant for the true class.",
                [example(i) for i in range(examples)],
            ),
            Figure(
                "How the repair went",
                "The epoch was chosen on validation images only.",
                plots.curves(
                    {"training": [0.6, 0.41, 0.33, 0.3, 0.29], "validation": [0.61, 0.46, 0.4, 0.42, 0.45]},
                    "Loss by epoch",
                    "loss",
                    chosen=3,
                ),
            ),
            Table(
                "Seeds",
                ["accuracy", "steps", "remark"],
                [
                    Row(
                        "a_long_" * 9 * (s == 2) + f"seed_{s}",
                        [share(0.83 + s / 300), 1200, "" if s else "shown above"],
                    )
                    for s in range(3)
                ],
            ),
        ],
        provenance={
            "Model": "timm:vit_small_patch16_224.augreg_in21k_ft_in1k",
            "Data": "clearhead demo, 1,600 test images, sha256 3f786850e387550fdab836ed7e6dc881de23001b",
            "Seed": "0",
            "Versions": "clearhead 0.1.0, torch 2.9.1, timm 1.0.22, Python 3.11.7",
            "Command": "clearhead repair timm:vit_small_patch16_224 ./demo --method relevance --epochs 5 --out runs/a",
        },
    )


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


# Numbers


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.8312, "%", "83.1%"),
        (1.0, "%", "100.0%"),
        (0.0, "%", "0.0%"),
        (-0.0, "%", "0.0%"),
        (-0.0001, "%", "0.0%"),
        (0.024, "pp", "+2.4 pp"),
        (-0.024, "pp", "−2.4 pp"),
        (-0.0, "pp", "+0.0 pp"),
        (-0.0004, "pp", "+0.0 pp"),
        (0.0412, "", "0.0412"),
        (-0.0412, "", "−0.0412"),
        (0.0, "", "0"),
        (-0.0, "", "0"),
        (1.0, "", "1.00"),
        (123.4, "", "123"),
        (999.6, "", "1,000"),
        (12400.0, "", "12,400"),
        (0.000012, "", "1.20×10⁻⁵"),
        (-0.000012, "", "−1.20×10⁻⁵"),
        (2.5, "nats", "2.50 nats"),
        (math.inf, "", "∞"),
        (-math.inf, "", "−∞"),
        (NAN, "", "–"),
        (NAN, "%", "–"),
        (NAN, "pp", "–"),
        (NAN, "nats", "–"),
    ],
)
def test_numbers_read_as_people_write_them(value: float, unit: str, text: str) -> None:
    assert format_value(value, unit) == text


@given(st.floats(-1e6, 1e6), st.sampled_from(["%", "pp", "", "nats"]))
def test_a_number_as_written_is_the_number_to_its_last_digit(value: float, unit: str) -> None:
    text = format_value(value, unit)
    assert "-" not in text
    assert not re.search(r"−0(\.0+)?(?!\.?\d)", text), "minus nothing"
    plain = text.removesuffix(unit).strip().replace("−", "-").replace("+", "").replace(",", "")
    mantissa, _, exponent = plain.partition("×10")
    read = float(mantissa) * 10.0 ** int(exponent.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")) or 0)
    if unit in ("%", "pp"):
        assert read == pytest.approx(100 * value, abs=0.0501)
    else:
        assert read == pytest.approx(value, rel=0.00501, abs=1e-300)


def test_intervals_are_without_unit_and_empty_where_an_end_is_unknown() -> None:
    assert format_interval(Estimate(0.831, 0.81, 0.852, 5, "%")) == "[81.0, 85.2]"
    assert format_interval(Estimate(0.02, -0.0001, 0.04, 5, "pp")) == "[+0.0, +4.0]"
    assert format_interval(Estimate(2.5, 2.25, 2.75, 5, "nats")) == "[2.25, 2.75]"
    assert format_interval(Estimate(0.0, -1e-5, 12400.0, 5)) == "[−1.00×10⁻⁵, 12,400]"
    assert format_interval(Estimate(0.5, NAN, 0.6, 5, "%")) == ""
    assert format_interval(Estimate(0.5, 0.4, NAN, 5, "%")) == ""


# The page


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
    def told(*rows: Row) -> list[str]:
        parsed = Parsed(render(one_table(*rows)))
        found = [text for tag in ("th", "td", "p") for text in parsed.texts(tag) if "n = " in text or "n:" in text]
        return [re.sub(r"\d+\.\d% \[[^]]*\]", "e", text) for text in found]

    def estimate(count: int) -> Estimate:
        return share(0.5, count=count)

    nothing = Estimate(NAN, NAN, NAN, 0, "%")
    both = "In brackets: 95% intervals. "
    assert told(Row("a", [estimate(1600), 3]), Row("b", [nothing, "x"])) == [both + "n = 1,600 samples."]
    assert told(Row("a", [estimate(5), estimate(5)]), Row("b", [estimate(6), nothing])) == [
        "a n = 5",
        "b n = 6",
        both + "n: number of samples.",
    ]
    assert told(Row("a", [estimate(5), estimate(6)]), Row("b", [estimate(5), nothing])) == [
        "column 0 n = 5",
        "column 1 n = 6",
        both + "n: number of samples.",
    ]
    assert told(Row("a", [estimate(5), estimate(6)]), Row("b", [estimate(7), estimate(8)])) == [
        *(f"e n = {count}" for count in (5, 6, 7, 8)),
        both + "n: number of samples.",
    ]
    assert told(Row("a", ["x", 3])) == []


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


# Written to disk


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


# Pictures


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_an_overlay_shows_the_greyed_image_where_there_is_no_relevance_and_the_colour_where_there_is_all() -> None:
    image = noise(16, 24)
    kept = image.copy()
    ground = 0.5 * image + 0.5 * image.mean(2, keepdims=True)
    np.testing.assert_allclose(overlay(image, np.zeros((16, 24))), ground, atol=0.51)
    np.testing.assert_allclose(overlay(image, np.ones((16, 24)), strength=0), ground, atol=0.51)
    full = overlay(image, np.ones((4, 6)), strength=1)
    assert full.shape == image.shape
    assert full.dtype == np.uint8
    assert (full == full[0, 0]).all()
    red, green, blue = full[0, 0].astype(int)
    assert red > green > blue, "warm"
    np.testing.assert_array_equal(image, kept)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_an_overlay_changes_more_where_relevance_is_more(height: int, width: int, h: int, w: int, seed: int) -> None:
    image = np.full((height, width, 3), 100, np.uint8)
    heat = np.random.default_rng(seed).random((h, w))
    assert overlay(image, heat).shape == (height, width, 3)
    heat = np.random.default_rng(seed).random((height, width))
    red = overlay(image, heat)[..., 0].astype(int)
    assert (np.diff(red.ravel()[np.argsort(heat, axis=None)]) >= -1).all()  # the colours come in 256 steps


@pytest.mark.parametrize(
    ("heat", "message"),
    [
        (np.full((4, 4), 1.01), r"0\.\.1, got 1\.01\.\.1\.01: scale it"),
        (np.full((4, 4), -0.5), r"0\.\.1, got -0\.5"),
        (np.full((4, 4), NAN), r"0\.\.1, got nan"),
        (np.zeros((1, 4, 4)), r"H x W, got shape \(1, 4, 4\): give one map"),
    ],
)
def test_a_map_out_of_range_is_refused(heat: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overlay(noise(4, 4), heat)


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8)])
@pytest.mark.parametrize(
    "draw",
    [lambda i: overlay(i, np.zeros((4, 4))), lambda i: outline(i, np.zeros((4, 4), bool)), data_uri],
    ids=["overlay", "outline", "data_uri"],
)
def test_what_is_no_image_is_refused(image: np.ndarray, draw: Callable[[np.ndarray], object]) -> None:
    with pytest.raises(ValueError, match=rf"image must be H x W x 3 of uint8, got shape {re.escape(str(image.shape))}"):
        draw(image)


def test_an_outline_is_white_inside_the_edge_and_dark_around() -> None:
    image = np.full((12, 14, 3), 200, np.uint8)
    mask = np.zeros((12, 14), bool)
    mask[3:9, 4:11] = True
    drawn = outline(image, mask)
    rim = mask.copy()
    rim[4:8, 5:10] = False
    np.testing.assert_array_equal((drawn == 255).all(2), rim)
    assert (drawn[2, 4:11] == 70).all()  # just outside
    assert (drawn[4, 5:10] == 70).all()  # just inside the line
    np.testing.assert_array_equal(drawn[5:7, 6:9], image[5:7, 6:9])
    np.testing.assert_array_equal(drawn[[0, -1]], image[[0, -1]])
    assert (image == 200).all(), "the image given must stay as it was"


@given(st.integers(0, 999), st.integers(2, 30), st.integers(2, 30))
def test_an_outline_is_drawn_only_near_the_edge_and_accepts_masks_of_numbers(
    seed: int, height: int, width: int
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) > 0.5
    image = noise(height, width, seed)
    drawn = outline(image, mask)
    np.testing.assert_array_equal(outline(image, mask.astype(np.int64) * 3), drawn)
    near = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        around = mask[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        near[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] |= not around.all()
    np.testing.assert_array_equal(drawn[~near], image[~near])


@pytest.mark.parametrize("value", [False, True])
def test_a_mask_without_an_edge_draws_nothing(value: bool) -> None:
    np.testing.assert_array_equal(outline(noise(9, 9), np.full((9, 9), value)), noise(9, 9))


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask must be H x W like the image, got \(4, 5\) for an image of \(4, 4\)"):
        outline(noise(4, 4), np.zeros((4, 5), bool))


def decoded(uri: str) -> Image.Image:
    kind, _, data = uri.partition(";base64,")
    assert kind == "data:image/webp"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


@given(st.integers(1, 96), st.integers(1, 96), st.integers(0, 99))
def test_a_tiny_image_survives_a_data_uri_to_the_bit(height: int, width: int, seed: int) -> None:
    image = noise(height, width, seed)
    np.testing.assert_array_equal(np.asarray(decoded(data_uri(image)).convert("RGB")), image)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(97, 20, (20, 97)), (320, 320, (320, 320)), (640, 320, (160, 320)), (480, 1280, (320, 120)), (2000, 3, (1, 320))],
)
def test_a_large_image_is_made_smaller_and_keeps_its_shape(height: int, width: int, size: tuple[int, int]) -> None:
    y, x = np.mgrid[:height, :width]
    image = np.stack([255 * y / height, 255 * x / width, 0 * x + 128], 2).astype(np.uint8)
    picture = decoded(data_uri(image)).convert("RGB")
    assert picture.size == size
    np.testing.assert_allclose(np.asarray(picture).mean((0, 1)), image.mean((0, 1)), atol=4)


# Plots

SVG = "{http://www.w3.org/2000/svg}"


def some_plots() -> dict[str, str]:
    return {
        "intervals": plots.intervals(
            [
                ("average", [("before", share(0.81)), ("after", Estimate(NAN, NAN, NAN, 0, "%"))]),
                ("worst group", [("before", share(0.42)), ("after", Estimate(0.66, NAN, NAN, 1, "%"))]),
            ],
            "Accuracy & more",
        ),
        "reliability": plots.reliability([0.4, 0.6, 0.9], [0.3, 0.5, 0.85], [10, 0, 1200]),
        "curves": plots.curves(
            {"training": [NAN, 0.5, 0.25], "validation": [0.6, 0.45, NAN]}, "Loss", "loss", chosen=2
        ),
        "heat": plots.heat([[0.02, -0.101], [NAN]], "Lost", ["0", "1"], "head", "pp", "layer"),
        "scatter": plots.scatter({"last": [(0.4, 0.8)], "before": [(0.6, 0.5)]}, "Heads", "follows", "accuracy"),
        "no estimates": plots.intervals([], "Nothing"),
        "no bins": plots.reliability([], [], []),
        "no lines": plots.curves({"training": [], "validation": [NAN]}, "Nothing yet", "loss"),
    }


@pytest.mark.parametrize("name", some_plots())
def test_a_plot_is_valid_xml_with_a_name_and_a_description(name: str) -> None:
    svg = ElementTree.fromstring(some_plots()[name])
    assert svg.tag == f"{SVG}svg"
    assert svg.get("role") == "img"
    title, description = svg.find(f"{SVG}title"), svg.find(f"{SVG}desc")
    assert title is not None
    assert description is not None
    assert title.text
    assert svg.get("aria-labelledby") == title.get("id")
    assert svg.get("aria-describedby") == description.get("id")
    assert svg.get("viewBox")


def test_no_id_is_in_two_plots_and_none_is_missing() -> None:
    ids: list[str] = []
    for text in some_plots().values():
        here = [value for e in ElementTree.fromstring(text).iter() if (value := e.get("id"))]
        assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)) <= {(i, "") for i in here} | {
            ("", i) for i in here
        }
        ids += here
    assert len(ids) == len(set(ids))


def test_plots_repeat_their_values_in_words() -> None:
    told = {name: html.unescape(re.search("<desc[^>]*>(.*?)</desc>", svg)[1]) for name, svg in some_plots().items()}
    assert told["intervals"] == (
        "average: before 81.0% [79.2, 82.8], after –; worst group: before 42.0% [40.2, 43.8], after 66.0%"
    )
    assert told["reliability"] == (
        "confidence 40.0%: accuracy 30.0%, 10 samples; confidence 90.0%: accuracy 85.0%, 1,200 samples"
    )
    assert told["curves"] == (
        "training: from 0.500 to 0.250 in 2 epochs; validation: from 0.600 to 0.450 in 2 epochs; epoch 2 kept"
    )


def words(svg: str) -> list[str]:
    return ["".join(e.itertext()).strip() for e in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_text_in_plots_stays_text_in_the_units_asked_for() -> None:
    shown = words(some_plots()["intervals"])
    assert {"average", "worst group", "before", "after", "81.0%", "–", "66.0%"} <= set(shown)
    assert any(re.fullmatch(r"\d+%", word) for word in shown), "ticks in per cent"
    points = plots.intervals([("gain", [("a", Estimate(0.02, -0.01, 0.05, 9, "pp"))])], "Gain", unit="pp")
    assert {"+2.0 pp", "+4", "−1"} & set(words(points)) >= {"+2.0 pp"}
    assert "epoch 2 kept" in words(some_plots()["curves"])


def test_epochs_are_counted_from_where_they_begin() -> None:
    from_zero = plots.curves({"loss": [0.3, 0.2, 0.1]}, "Loss", "loss", chosen=2, first=0)
    assert {"0", "2", "epoch 2 kept"} <= set(words(from_zero))
    assert "3" not in {w for w in words(from_zero) if w.isdigit()}


def test_a_line_with_gaps_has_its_one_marker_at_its_highest_point() -> None:
    whole, gaps = (
        plots.lines({"a": [(float(i), y, 0.0) for i, y in enumerate(values)]}, "t", "x", "y", "", markers=False)
        for values in ([1.0, 2.0, 3.0, 2.0], [1.0, NAN, 3.0, 2.0])
    )
    assert whole.count("<use") == gaps.count("<use")
    plots.lines({"a": [(0.0, NAN, 0.0)]}, "t", "x", "y", "", markers=False)


def test_plots_take_their_colours_from_the_page() -> None:
    for name, text in some_plots().items():
        svg = re.sub("<desc.*?</desc>|<title.*?</title>", "", text, flags=re.DOTALL)
        assert "currentColor" in svg
        plain = re.sub(r"var\(--series-\d, #[0-9a-f]{6}\)", "", svg)
        left = set(re.findall(r"#[0-9a-f]{6}\b", plain))
        assert not left, f"{name} has colours of its own: {left}"


def test_the_same_values_draw_the_same_plot() -> None:
    assert some_plots() == some_plots()


def test_names_of_any_script_are_drawn_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = plots.intervals([("鳥 🐦 $x_1$", [("前", share(0.5))])], "鳥")
    assert {"鳥 🐦 $x_1$", "前"} <= set(words(svg))


def test_many_models_and_long_names_stay_inside_the_plot() -> None:
    models = [(f"model number {i} with a name that is much longer than any plot is wide", share(0.5)) for i in range(8)]
    svg = plots.intervals([("accuracy", models)], "Accuracy")
    names = [word for word in words(svg) if "…" in word]
    assert len(names) == 8
    assert max(len(name) for name in names) <= 46


def test_bins_of_unlike_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        plots.reliability([0.5, 0.6], [0.5], [1, 2])


# In a browser


def screenshot(
    page: Path, picture: Path, profile: Path, *flags: str, width: int, height: int
) -> tuple[np.ndarray, list[str]]:
    """What Chromium shows, H x W x 3, and what it wrote to its console."""
    assert CHROMIUM is not None
    quiet = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr --v=0"
    )
    command = [CHROMIUM, *quiet.split(), *flags, f"--user-data-dir={profile}", f"--screenshot={picture}"]
    ran = subprocess.run(
        [*command, f"--window-size={width},{height}", page.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert picture.exists(), ran.stderr[-2000:]
    return np.asarray(Image.open(picture).convert("RGB")), [li for li in ran.stderr.splitlines() if "CONSOLE" in li]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium in PATH to render the page with")
def test_the_page_renders_in_light_in_dark_and_on_a_phone(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write(full_page(), path)
    dark = ("--force-dark-mode", "--blink-settings=preferredColorScheme=0")
    grounds = {}
    for name, width, height, flags in (("light", 1280, 6000, ()), ("dark", 1280, 6000, dark), ("phone", 390, 9000, ())):
        shown, console = screenshot(path, tmp_path / f"{name}.png", tmp_path / name, *flags, width=width, height=height)
        assert not console, (name, console)
        assert shown.shape == (height, width, 3)
        grounds[name] = shown[2, 2].astype(int)
        assert (shown[:, -12:] == shown[2, 2]).all(), f"{name}: something sticks out to the right"
        assert shown[: height // 2].std() > 10, f"{name}: nothing is drawn"
    assert grounds["light"].min() > 240
    assert grounds["phone"].min() > 240
    assert grounds["dark"].max() < 40

    path.write_text(path.read_text().replace("<main>", '<main><img src="https://example.invalid/a.png">'))
    _, console = screenshot(path, tmp_path / "request.png", tmp_path / "request", width=390, height=400)
    assert any("Content Security Policy" in line for line in console), "a request must be refused, and seen here"


def test_every_kind_of_results_has_its_page() -> None:
    assert set(KINDS) == set(get_args(Results))
