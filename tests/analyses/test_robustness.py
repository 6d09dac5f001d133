"""The table over many sets: Holm by its definition, lines that are known, seeds, files that can be read back."""

import csv
import math
import re
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from clearhead.analyses.robustness import (
    SuiteResult,
    baseline_line,
    changes,
    effective_robustness,
    over_seeds,
    set_row,
)
from clearhead.analyses.subject import Subject
from clearhead.analyses.suite_page import verdicts
from clearhead.analyses.suite_tables import read_baselines, write_tables
from clearhead.data.image_io import DataError
from clearhead.metrics.power import images_needed
from clearhead.metrics.statistics import holm, proportion
from clearhead.prediction.suite_predictions import SuitePredictions


def predictions_of(correct, seed=0) -> SuitePredictions:
    """Return predictions of N images, correct where `correct` is true."""
    correct = np.asarray(correct, dtype=bool)
    count = len(correct)
    label = np.array(["a"] * count, dtype=object)
    return SuitePredictions(
        file=np.array([f"{i}.png" for i in range(count)], dtype=object),
        label=label,
        predicted=np.where(correct, "a", "b"),
        correct=correct,
        top5=np.ones(count, dtype=bool),
        confidence=np.random.default_rng(seed).uniform(0.3, 1, count).astype(np.float32),
        loss=np.linspace(0, 2, count, dtype=np.float32),
        unreadable={"x.png": "truncated"},
    )


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.001, 0.999))
def test_holm_rejects_what_stepping_down_rejects(p_values, level):
    adjusted = holm(p_values)
    rejected = set()
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[index] * (len(p_values) - step) > level:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(adjusted) if p <= level} == rejected


def test_a_row_holds_the_numbers_of_its_answers():
    correct = np.arange(40) % 4 != 0
    row = set_row("m", "imagenet-a", "200 classes", 200, predictions_of(correct))
    assert (row.images, row.unreadable) == (40, 1)
    assert row.top1 == proportion(correct)
    assert row.top5.value == 1
    assert row.loss == pytest.approx(1)
    assert set_row("m", "cue-conflict", "16 classes", 16, predictions_of(correct)).top5 is None


def test_a_set_is_flagged_only_where_it_stands_out_among_all():
    rng = np.random.default_rng(0)
    base = rng.random(500) < 0.7
    harmed = base & (rng.random(500) > 0.2)
    sets = {("m", "hard", "s"): (predictions_of(base), predictions_of(harmed))}
    for i in range(20):  # as many flips each way
        flipped = base.copy()
        flipped[np.flatnonzero(base)[: 10 + i % 3]] = False
        flipped[np.flatnonzero(~base)[:10]] = True
        sets["m", f"set {i}", "s"] = (predictions_of(base), predictions_of(flipped))
    by_set = {change.set: change for change in changes(sets)}
    assert by_set["hard"].word == "regressed"
    assert by_set["hard"].change.value == pytest.approx(harmed.mean() - base.mean())
    assert {change.word for name, change in by_set.items() if name != "hard"} == {"no difference detected"}
    assert all(change.adjusted >= change.p_value for change in by_set.values())


def test_an_inconclusive_suite_names_the_images_that_would_show_its_clearest_change():
    sets = {}
    for name, up, down in (("fog", 12, 8), ("snow", 12, 2), ("clean", 0, 0)):
        before = np.repeat([False, True], [up, 400 - up])
        after = np.repeat([True, False, True], [up, down, 400 - up - down])
        sets["b", name, "s"] = (predictions_of(before), predictions_of(after))
    of_all = changes(sets | {("b", f"other {i}", "s"): sets["b", "clean", "s"] for i in range(20)})
    result = SuiteResult(Subject(["a", "b"]), "clean", [], {}, changes=of_all)
    [verdict] = verdicts(result)
    assert verdict.word == "inconclusive"
    images = images_needed(10 / 400, 14 / 400, level=1 - 0.05 / 23)
    named = re.search(r"About (\d+) images \(now 400\) would show the change on snow \(\+2.5 pp\)", verdict.sentence)
    assert int(named[1]) == pytest.approx(images, rel=0.03)
    same = replace(result, changes=[change for change in of_all if change.set == "clean"])
    assert verdicts(same)[0].sentence.endswith("was detected on any of 1 sets.")


def test_answers_to_other_images_are_not_compared():
    a, b = predictions_of([True, False]), predictions_of([True, False, True])
    with pytest.raises(ValueError, match="predictions of v2 are of different images"):
        changes({("m", "v2", "s"): (a, b)})


def test_seeds_of_one_label_have_a_mean():
    rows = [
        set_row(f"m ({i})", "v2", "s", 10, predictions_of(np.arange(10) < correct))
        for i, correct in enumerate((5, 6, 7))
    ]
    rows.append(set_row("other", "v2", "s", 10, predictions_of(np.arange(10) < 9)))
    (row,) = over_seeds(rows, {"m (0)": "m", "m (1)": "m", "m (2)": "m", "other": "other"})
    assert (row.label, row.top1.value, row.top1.count) == ("m", pytest.approx(0.6), 3)
    assert row.top1.high - 0.6 == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)


@given(st.floats(-1, 1), st.floats(0.2, 2), st.floats(0.05, 0.95))
def test_a_model_on_the_line_has_no_effective_robustness(intercept, slope, reference):
    x = np.array([0.3, 0.5, 0.7, 0.9])
    line = baseline_line(x, expit(intercept + slope * logit(x)))
    assert line == pytest.approx((intercept, slope), abs=1e-6)
    on_line = proportion(np.arange(1000) < 1000 * expit(intercept + slope * logit(reference)))
    assert effective_robustness(on_line, reference, line).value == pytest.approx(0, abs=1.1e-3)


@pytest.mark.parametrize("x", [[0.5], [0.5, 0.5], [0.5, 1.0], [0.0, 0.5]])
def test_a_line_needs_baselines_that_differ(x):
    assert baseline_line(x, x) is None


def test_a_baseline_that_gets_nothing_right_is_left_out():
    x, y = [0.7, 0.76, 0.8], [0.3, 0.0, 0.5]
    assert baseline_line(x, y) == pytest.approx(baseline_line([0.7, 0.8], [0.3, 0.5]))


def test_the_tables_hold_the_rows_and_can_be_read_back(tmp_path):
    names = [(model, name) for model in "ab" for name in ("val", "v2 & x_y")]
    rows = [set_row(*pair, "1,000 classes", 1000, predictions_of(np.arange(40) % 3 > 0)) for pair in names]
    write_tables(rows, tmp_path)
    assert read_baselines(tmp_path / "table.csv")["val", "1,000 classes"] == dict.fromkeys("ab", rows[0].top1.value)
    with (tmp_path / "table.csv").open() as opened:
        lines = list(csv.DictReader(opened))
    assert [float(line["top1_low"]) for line in lines] == [row.top1.low for row in rows]
    assert pyarrow.parquet.read_table(tmp_path / "table.parquet")["set"].to_pylist() == [row.set for row in rows]
    markdown = (tmp_path / "table.md").read_text().splitlines()
    assert len(markdown) == 2 + len(rows)
    assert "| 65.0% " in markdown[2]
    latex = (tmp_path / "table.tex").read_text()
    assert r"v2 \& x\_y" in latex
    assert r"65.0\%" in latex


def test_a_file_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("set,model\nval,a\n")
    with pytest.raises(DataError, match=r"x\.csv cannot be read.* columns model, set, scoring and top1"):
        read_baselines(tmp_path / "x.csv")
