"""Calibration against torchmetrics and formulas by hand, the fit of a temperature, and balanced accuracy."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.optimize import minimize_scalar
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from clearhead.analyses.audit import balanced_accuracy
from clearhead.data.folder import read_folder
from clearhead.metrics.calibration import TEMPERATURES, calibration, fit_temperature
from clearhead.metrics.statistics import proportion
from clearhead.prediction.predict import logits_of, predict
from tests import cases


def drawn(count: int = 600, classes: int = 5, scale: float = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their softmax: a calibrated model."""
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(count, classes))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return logits, (p.cumsum(1) < rng.random((count, 1))).sum(1).clip(max=classes - 1)


def loss_at(temperature: float, logits: np.ndarray, labels: np.ndarray) -> float:
    return cross_entropy(torch.from_numpy(logits) / temperature, torch.from_numpy(labels)).item()


def test_all_numbers_are_those_of_torchmetrics_and_of_their_formulas():
    logits, labels = drawn(scale=4)
    p = torch.from_numpy(logits).softmax(1)
    confidence, predicted = (values.numpy() for values in p.max(1))
    brier = np.square(p.numpy() - np.eye(5)[labels]).sum(1)
    loss, correct = -np.log(p.numpy()[np.arange(600), labels]), predicted == labels
    result = calibration(confidence, loss, brier, correct)
    expected = multiclass_calibration_error(p, torch.from_numpy(labels), 5, n_bins=15, norm="l1").item()
    assert result.ece.value == pytest.approx(expected, abs=1e-6)
    assert result.overconfidence.value == pytest.approx(confidence.mean() - correct.mean())
    # each bin's confidence less its accuracy, weighted: the calibration error with signs (Park and Kim's ECE±)
    bins = result.bins
    gaps = np.subtract(bins.confidence, bins.accuracy)
    assert result.overconfidence.value == pytest.approx(np.average(gaps, weights=bins.counts))
    assert result.brier.value == pytest.approx(brier.mean())
    assert result.loss.value == pytest.approx(loss_at(1, logits, labels))
    sure = confidence > 0.9
    assert result.confident.value == pytest.approx(sure.mean())
    assert result.confident_accuracy.value == pytest.approx(correct[sure].mean())
    assert result.unconfident_errors.value == pytest.approx((~sure & ~correct).sum() / (~correct).sum())
    assert (result.confident.count, result.confident_accuracy.count, result.unconfident_errors.count) == (
        600,
        sure.sum(),
        sum(~correct),
    )


def test_a_model_that_is_never_sure_and_never_wrong_has_numbers_for_the_rest():
    result = calibration(np.full(4, 0.5), np.full(4, 0.7), np.full(4, 0.5), np.ones(4, bool))
    assert np.isnan([result.confident_accuracy.value, result.unconfident_errors.value]).all()
    assert (result.confident.value, result.overconfidence.value) == (0, -0.5)


@given(st.integers(0, 1000), st.floats(0.3, 8), st.integers(2, 12))
@settings(max_examples=25, deadline=None)
def test_the_temperature_is_the_lowest_place_of_the_loss(seed, scale, classes):
    logits, labels = drawn(80, classes, scale, seed)
    labels[:2] = logits[:2].argmin(1)  # not separable
    low, high = TEMPERATURES
    bounds = np.log(TEMPERATURES)
    expected = minimize_scalar(lambda t: loss_at(np.exp(t), logits, labels), bounds=bounds, method="bounded")
    with warnings.catch_warnings(action="ignore"):
        result = fit_temperature(logits, labels)
    assert low <= result <= high
    assert loss_at(result, logits, labels) <= expected.fun + 1e-9


@pytest.mark.parametrize("factor", [0.25, 1, 3])
def test_the_temperature_undoes_a_scale_and_changes_no_order(factor):
    logits, labels = drawn(4000)
    first_time = fit_temperature(logits, labels)
    assert first_time == pytest.approx(1, abs=0.08)
    assert fit_temperature(factor * logits + 100, labels) == pytest.approx(factor * first_time, rel=1e-6)


def test_where_no_temperature_is_best_the_bound_is_used_with_a_warning():
    logits = np.array([[3.0, 1.0], [0.0, 2.0]])
    with pytest.warns(UserWarning, match=r"using 0\.05"):
        assert fit_temperature(logits, np.array([0, 1])) == TEMPERATURES[0]
    with pytest.warns(UserWarning, match="using 20"):
        assert fit_temperature(logits, np.array([1, 0])) == TEMPERATURES[1]
    with pytest.warns(UserWarning, match="using 20"):
        fit_temperature(np.zeros((3, 2)), np.array([0, 1, 0]))  # tells nothing
    huge = 1e4 * drawn(50)[0]
    with pytest.warns(UserWarning, match="using"):
        assert np.isfinite(fit_temperature(huge, drawn(50)[1]))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((3, 2)), [0, 1], "N labels"),
        (np.zeros((0, 2)), [], "N labels"),
        (np.zeros(3), [0, 1, 0], "N x C"),
        (np.full((1, 2), np.nan), [0], "finite"),
        (np.zeros((2, 2)), [0, 2], r"0\.\.1"),
        (np.zeros((2, 2)), [-1, 0], r"0\.\.1"),
    ],
)
def test_logits_that_cannot_be_fitted_are_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, np.array(labels, dtype=int))


def test_balanced_accuracy_is_the_mean_of_the_recalls():
    rng = np.random.default_rng(0)
    labels, predicted = rng.choice(6, 300, p=[0.5, 0.3, 0.1, 0.05, 0.03, 0.02]), rng.integers(0, 6, 300)
    predicted = np.where(rng.random(300) < 0.6, labels, predicted)
    result = balanced_accuracy(predicted == labels, labels)
    expected = multiclass_accuracy(torch.from_numpy(predicted), torch.from_numpy(labels), 6, average="macro").item()
    assert result.value == pytest.approx(expected)
    assert (result.count, result.unit) == (300, "%")
    assert result.low < result.value < result.high


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=40))
@settings(deadline=None)
def test_balanced_accuracy_keeps_within_its_bounds_and_has_a_width(images):
    labels, correct = (np.array(values) for values in zip(*images, strict=True))
    result = balanced_accuracy(correct.astype(bool), labels)
    assert 0 <= result.low <= result.value <= result.high <= 1
    assert result.high - result.low > 0.01


def test_balanced_accuracy_of_nothing_and_of_other_images():
    assert np.isnan(balanced_accuracy(np.zeros(0, bool), np.zeros(0, int)).value)
    with pytest.raises(ValueError, match="give one per image"):
        balanced_accuracy(np.ones(3, bool), np.zeros(2, int))
    correct = np.arange(100) < 80
    one, wilson = balanced_accuracy(correct, np.zeros(100)), proportion(correct)
    assert [one.value, one.low, one.high] == pytest.approx([wilson.value, wilson.low, wilson.high], abs=0.01)


@pytest.mark.parametrize(
    ("true", "images"),
    [
        ([0.9], [20]),
        ([0.99, 0.6], [50, 50]),
        ([0.99, 0.5], [500, 10]),
        ([0.9] * 5, [3] * 5),
        ([0.98] * 100, [5] * 100),
        ([0.8] * 100, [2] * 100),
        ([0.8] * 30, [1] * 30),
        ([0.6, 0.7, 0.8, 0.9, 1.0], [30] * 5),
    ],
)
def test_the_interval_of_balanced_accuracy_covers_the_truth(true, images):
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(len(true)), images)
    held = 0
    for _ in range(400):
        result = balanced_accuracy(rng.random(len(labels)) < np.array(true)[labels], labels)
        held += result.low <= np.mean(true) <= result.high
    assert held / 400 > 0.915


def test_predictions_tell_the_probabilities_as_they_are_and_at_a_temperature(tmp_path):
    rng = np.random.default_rng(0)
    for name in "abcde":
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    model, folder = cases.classifier("timm-vit"), read_folder(tmp_path, classes=tuple("abcde"))
    result, logits = predict(model, folder, batch_size=4, temperature=2.5), logits_of(model, folder, batch_size=4)
    labels = np.repeat(np.arange(5), 3)
    for scale, numbers in ((1, vars(result)), (2.5, result.scaled)):
        p = (torch.from_numpy(logits.astype(np.float64)) / scale).softmax(1).numpy()
        np.testing.assert_allclose(numbers["confidence"], p.max(1), atol=1e-5)
        np.testing.assert_allclose(numbers["loss"], -np.log(p[np.arange(15), labels]), atol=1e-4)
        np.testing.assert_allclose(numbers["brier"], np.square(p - np.eye(5)[labels]).sum(1), atol=1e-5)
    columns = result.table(model.classes)
    assert {"brier", "brier, scaled", "confidence, scaled", "loss, scaled"} <= columns.keys()
    plain = predict(model, folder, batch_size=4)
    assert plain.scaled == {}
    np.testing.assert_array_equal(plain.predicted, result.predicted)
