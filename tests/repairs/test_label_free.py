"""AFR and JTT, which use no group labels: compared with independent forms, and on data with a known shortcut."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

from clearhead.errors import ClearheadError
from clearhead.repairs import JTTLoss, repair, reweight_head
from clearhead.training.config import TrainConfig
from clearhead.training.linear_head import Features, read_features
from tests.repairs.test_dfr import by_background, shades, stack, two, worst


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """Training and validation images with the same shortcut, and test images without it."""
    root = tmp_path_factory.mktemp("shortcut")
    counts = {(0, 0): 60, (0, 1): 12, (1, 0): 9, (1, 1): 60}
    few = {(0, 0): 30, (0, 1): 6, (1, 0): 6, (1, 1): 30}
    even = {(label, background): 20 for label in (0, 1) for background in (0, 1)}
    return shades(root / "train", counts, 0), shades(root / "val", few, 1), shades(root / "test", even, 2)


def without_groups(index):
    return replace(index, samples=tuple(replace(sample, groups={}) for sample in index.samples))


def test_afr_finds_the_shortcut_without_groups(splits):
    train, validation, test = splits
    model = two(by_background())
    new, report = reweight_head(model, without_groups(train), without_groups(validation))
    assert worst(model, test) < 0.2
    assert worst(new, test) > 0.75
    assert report.chosen.corrected > 0.5
    first = report.candidates[0]
    assert (first.gamma, first.corrected, first.retained) == (None, 0.0, 1.0)
    assert report.misclassified == round((1 - first.accuracy) * report.images) > 0
    assert 1 < report.effective_images < len(train.samples)
    assert report.chosen.accuracy >= first.accuracy - 0.01


def test_afr_minimises_the_objective_of_the_paper(splits):
    train, validation, _ = splits
    model = two(by_background())
    new, report = reweight_head(model, train, validation)
    gamma, penalty = report.chosen.gamma, report.chosen.penalty
    images, labels = stack(model, train)
    x = np.concatenate([model.normalize(images).mean((2, 3))[:, :2].double().numpy(), np.ones((len(labels), 1))], 1)
    scale = np.where(x.std(0) > 0, x.std(0), 1)
    z = (x - x.mean(0)) / scale
    layer = model.module.head
    w0, b0 = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    before = x @ w0.T + b0
    p = np.exp(before - np.logaddexp(*before.T)[:, None])[np.arange(len(labels)), labels]
    weights = np.exp(-gamma * p) / np.bincount(labels)[labels]
    weights /= weights.sum()
    start = np.concatenate([(w0 * scale).ravel(), b0 + w0 @ x.mean(0)])

    def objective(v):
        logits = z @ v[:6].reshape(2, 3).T + v[6:]
        losses = np.logaddexp(*logits.T) - logits[np.arange(len(labels)), labels]
        return weights @ losses + penalty / 2 * ((v - start) ** 2).sum()

    expected = scipy.optimize.minimize(objective, start, tol=1e-10).x
    logits = z @ expected[:6].reshape(2, 3).T + expected[6:]
    np.testing.assert_allclose(new(images).detach().numpy(), logits, atol=0.02 * np.abs(logits).max())


def test_afr_returns_the_original_head_where_nothing_improves(splits):
    train, _, test = splits
    perfect = nn.Linear(3, 2)
    with torch.no_grad():
        perfect.weight.copy_(torch.tensor([[-300.0, 0.0, 0.0], [300.0, 0.0, 0.0]]))
        perfect.bias.zero_()
    model = two(perfect)
    images, labels = stack(model, test)
    sure = np.flatnonzero(model(images).argmax(1).numpy() == labels)
    validation = replace(test, samples=tuple(test.samples[i] for i in sure))
    new, report = reweight_head(model, train, validation)
    assert report.misclassified == 0
    assert report.chosen == report.candidates[0]
    torch.testing.assert_close(new(images), model(images), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("method", ["afr", "dfr"])
def test_features_are_shared_between_methods(method, splits):
    train, validation, _ = splits
    model = two(by_background())
    features = read_features(model, train, validation)
    shared, report = repair(model, train, validation, method=method, features=features, device="cpu")
    computed, expected = repair(model, train, validation, method=method, device="cpu")
    assert report == expected
    assert torch.equal(shared.module.head.weight, computed.module.head.weight)
    with pytest.raises(ClearheadError, match=r"features: train is \(72, 3\), but 141 x 3 is needed"):
        repair(model, train, validation, method=method, features=Features(features.validation, features.train))


def test_jtt_gives_mistakes_more_weight(splits):
    train, validation, _ = splits
    model = two(by_background())
    images, labels = stack(model, train)
    logits = model(images)
    wrong = logits.argmax(1).numpy() != labels
    losses = nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="none").detach().numpy()
    batch = {"image": images, "label": torch.tensor(labels), "index": torch.arange(len(labels))}
    for upweight, expected in ((3.0, np.where(wrong, 3, 1)), (None, np.where(wrong, (~wrong).sum() / wrong.sum(), 1))):
        loss = JTTLoss.from_mistakes(model, train, validation, upweight=upweight)
        value = loss(model.train(), batch)["loss"].item()
        assert value == pytest.approx(np.average(losses, weights=expected), rel=1e-5)
        assert loss.validation.mean() == pytest.approx(1)
        images_of_validation, validation_labels = stack(model, validation)
        labelled = {"image": images_of_validation, "label": torch.tensor(validation_labels)}
        parts = loss(model.eval(), {**labelled, "index": torch.arange(len(validation_labels))})
        assert parts["loss"] > 0


def test_jtt_repairs_without_groups(splits):
    train, validation, test = splits
    model = two(by_background())
    config = TrainConfig(epochs=8, lr=0.3, batch_size=16, augment="none")
    hidden = [without_groups(index) for index in (train, validation)]
    new, outcome = repair(model, *hidden, method="jtt", config=config, device="cpu")
    assert outcome.monitor == "loss"
    assert worst(new, test) > worst(model, test) + 0.4


def test_jtt_needs_mistakes_and_a_positive_weight(splits):
    train, validation, _ = splits
    model = two(by_background())
    usual = replace(train, samples=tuple(s for s in train.samples if (s.label == 1) == (s.groups["background"] == "1")))
    with pytest.raises(ClearheadError, match=r"misclassifies none of the 120 training images.*such as afr"):
        repair(model, usual, validation, method="jtt", device="cpu")
    with pytest.raises(ClearheadError, match="upweight: got -1; a positive number is needed"):
        repair(model, train, validation, method="jtt", upweight=-1, device="cpu")
