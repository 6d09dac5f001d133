"""Plots as inline SVG: valid, accessible, in the colours of the page."""

import re
import warnings
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from clearhead.metrics.statistics import Estimate
from clearhead.report import layer_plots, plots
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


def drawn_texts(figure: Figure) -> list[Text]:
    """All texts of a figure except the labels of ticks outside the axes, which are not drawn."""
    outside: set[Text] = set()
    for axes in figure.axes:
        for axis, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))):
            outside |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    return [text for text in figure.findobj(Text) if text not in outside]


LONG = "a label that is far longer than any axis of a plot can hold, even when it takes two lines"


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.intervals([(LONG, [(LONG, Estimate(0.5, 0.4, 0.6, 9, LONG))])], "t"),
        lambda: plots.heatmap([[0.1, 0.2]], "t", [LONG], LONG, "pp", LONG),
        lambda: plots.lines({LONG: [(1e-5, 0.1, 0.0), (123456.0, 0.2, 0.0)]}, "t", LONG, LONG),
        lambda: plots.lines({"a": [(1.0, 1e-12, 0.0), (2.0, 1e12, 0.0)]}, "t", "x", LONG, "", log_y=True),
        lambda: plots.curves({LONG: [12345678.0, 12345679.0]}, "t", LONG, chosen=2),
        lambda: plots.scatter({LONG: [(0.1, 0.2), (0.3, 0.4)]}, "t", LONG, LONG),
        lambda: plots.contours([[1.0, 2.0], [3.0, 4.0]], [-1.0, 1.0], "t", LONG, LONG, (1.0, 4.0)),
        lambda: layer_plots.through_depth([("mlp", 0.5, share(0.5))], "t", LONG),
        lambda: layer_plots.matrix([[0.5, 1.0]], "t", LONG, LONG),
        lambda: layer_plots.amplitudes([(0.5, [0.0, 0.5], [0.0, -1234.5])], "t"),
    ],
)
def test_no_text_is_clipped(draw: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[tuple[Figure, Bbox]] = []
    save = Figure.savefig

    def recorded(figure: Figure, *args: object, bbox_inches: Bbox | None, **options: object) -> None:
        saved.append((figure, bbox_inches or figure.bbox_inches))
        save(figure, *args, bbox_inches=bbox_inches, **options)

    monkeypatch.setattr(Figure, "savefig", recorded)
    draw()
    ((figure, area),) = saved
    for text in drawn_texts(figure):
        if text.get_visible() and text.get_text():
            extent = text.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
            assert area.x0 <= extent.x0 <= extent.x1 <= area.x1, text.get_text()
            assert area.y0 <= extent.y0 <= extent.y1 <= area.y1, text.get_text()


def test_short_labels_leave_the_size_of_a_plot_unchanged() -> None:
    for name, svg in some_plots().items():
        if not name.startswith("no "):  # their ticks are arbitrary
            assert 'width="338.4pt"' in svg, name
