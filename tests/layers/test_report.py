"""What the page says of feature maps and similarity, also where there is nothing to tell."""

import math

import pytest

from clearhead.analyses.cka import Similarity
from clearhead.analyses.fourier import FeatureMap, FeatureMaps, Fourier, page
from clearhead.analyses.subject import Subject
from clearhead.metrics.statistics import Estimate
from clearhead.report.layers import cka_sections
from clearhead.results import CkaResults


def most_alike(matrix: list[list[float]]) -> list[list[str]]:
    names = [f"unit {i}" for i in range(len(matrix))]
    _, table = cka_sections(CkaResults("cka", ["model"], "data", Similarity(names, names, matrix, 8, 8), [], {}))
    return [row.cells for row in table.rows]


def test_a_unit_is_most_like_another_one():
    assert most_alike([[1, 0.2, 0.7], [0.2, 1, 0.3], [0.7, 0.3, 1]]) == [
        ["2  unit 2", "0.700"],
        ["2  unit 2", "0.300"],
        ["0  unit 0", "0.700"],
    ]


@pytest.mark.parametrize("dead", [[[1.0]], [[1.0, math.nan], [math.nan, math.nan]]])
def test_a_unit_that_is_like_no_other_is_told_so(dead):
    assert most_alike(dead) == [["–", "–"]] * len(dead)


def test_what_is_not_a_number_is_passed_over():
    matrix = [[1, math.nan, 0.4], [math.nan, math.nan, math.nan], [0.4, math.nan, 1]]
    assert most_alike(matrix) == [["2  unit 2", "0.400"], ["–", "–"], ["0  unit 0", "0.400"]]


def test_units_are_counted_whose_change_is_known():
    def unit(change: float | None) -> FeatureMap:
        high = None if change is None else Estimate(change, change, change, 8)
        one = Estimate(1.0, 1.0, 1.0, 8)
        return FeatureMap("a", "conv", 0.5, 4, 4, [0, 0.5], [0, -1], one, one, high, one)

    mean = Estimate(-0.5, -1, 0, 8)
    maps = FeatureMaps([unit(c) for c in (None, -2.0, 1.0)], {"conv": mean}, {"conv": mean, "mlp": mean}, [], 8)
    changes = page(Fourier(Subject(["model"]), {"model": maps})).sections[0]
    assert [(row.name, row.cells, row.note) for row in changes.rows] == [
        ("model, convolution", [mean, mean], "2 branches, 1 lower it"),
        ("model, MLP", ["", mean], ""),
    ]
