"""Plots as inline SVG: valid, accessible, in the colours of the page."""

import re
import warnings
from xml.etree import ElementTree

import pytest

from clearhead.report import plots
from tests.report.samples import share, some_plots
from tests.report.test_plots import SVG, words


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
