"""The content of plots: values in words, units, ticks, legends."""

import html
import re
from xml.etree import ElementTree

import pytest

from clearhead.metrics.statistics import Estimate
from clearhead.report import plots
from tests.report.samples import NAN, share, some_plots

SVG = "{http://www.w3.org/2000/svg}"


def words(svg: str) -> list[str]:
    return ["".join(e.itertext()).strip() for e in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_plots_repeat_their_values_in_words() -> None:
    described = {
        name: html.unescape(re.search("<desc[^>]*>(.*?)</desc>", svg)[1]) for name, svg in some_plots().items()
    }
    assert described["intervals"] == (
        "average: before 81.0% [79.2, 82.8], after –; worst group: before 42.0% [40.2, 43.8], after 66.0%"
    )
    assert described["reliability"] == (
        "confidence 40.0%: accuracy 30.0%, 10 samples; confidence 90.0%: accuracy 85.0%, 1,200 samples"
    )
    assert described["curves"] == (
        "training: from 0.500 to 0.250 in 2 epochs; validation: from 0.600 to 0.450 in 2 epochs; epoch 2 selected"
    )


def test_text_in_plots_stays_text_in_the_units_asked_for() -> None:
    shown = words(some_plots()["intervals"])
    assert {"average", "worst group", "before", "after", "81.0%", "–", "66.0%"} <= set(shown)
    assert any(re.fullmatch(r"\d+%", word) for word in shown), "ticks in per cent"
    points = plots.intervals([("gain", [("a", Estimate(0.02, -0.01, 0.05, 9, "pp"))])], "Gain", unit="pp")
    assert {"+2.0 pp", "+4", "−1"} & set(words(points)) >= {"+2.0 pp"}
    assert "epoch 2 selected" in words(some_plots()["curves"])


def test_epochs_are_counted_from_where_they_begin() -> None:
    from_zero = plots.curves({"loss": [0.3, 0.2, 0.1]}, "Loss", "loss", chosen=2, first=0)
    assert {"0", "2", "epoch 2 selected"} <= set(words(from_zero))
    assert "3" not in {w for w in words(from_zero) if w.isdigit()}


def test_a_line_with_gaps_has_its_one_marker_at_its_highest_point() -> None:
    whole, gaps = (
        plots.lines({"a": [(float(i), y, 0.0) for i, y in enumerate(values)]}, "t", "x", "y", "", markers=False)
        for values in ([1.0, 2.0, 3.0, 2.0], [1.0, NAN, 3.0, 2.0])
    )
    assert whole.count("<use") == gaps.count("<use")
    plots.lines({"a": [(0.0, NAN, 0.0)]}, "t", "x", "y", "", markers=False)


def test_many_models_and_long_names_stay_inside_the_plot() -> None:
    models = [(f"model number {i} with a name that is much longer than any plot is wide", share(0.5)) for i in range(8)]
    svg = plots.intervals([("accuracy", models)], "Accuracy")
    names = [word for word in words(svg) if "…" in word]
    assert len(names) == 8
    assert max(len(name) for name in names) <= 46


def test_bins_of_unlike_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        plots.reliability([0.5, 0.6], [0.5], [1, 2])
