"""Assertions on models: what passes, what fails, and what the messages name."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from clearhead.data.image_io import DataError
from clearhead.errors import ClearheadError
from clearhead.models import Classifier, Preprocessing, from_module
from clearhead.shifts.shortcuts import SHORTCUTS
from clearhead.testing import accuracy_drop, assert_not_reliant_on

CLASSES = ("bird", "cat", "fish")


class Brightest(nn.Module):
    """Classify by the brightest channel of a part of the image."""

    def __init__(self, rows: slice):
        super().__init__()
        self.rows = rows
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, self.rows].mean((2, 3)) * self.weight


def classifier(rows: slice) -> Classifier:
    plain = Preprocessing((32, 32), (32, 32), (0.0,) * 3, (1.0,) * 3)
    return from_module(Brightest(rows), preprocess=plain, classes=CLASSES, name="brightest")


def coloured(folder):
    """41 images per class, an odd number in all: a square on a background, both of the colour of the class."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        for part in (folder / name, folder / "masks" / name):
            part.mkdir(parents=True)
        for i in range(41):
            image = np.full((32, 32, 3), 90) + rng.integers(0, 20, (32, 32, 1))
            image[..., label] += 100
            image[12:20, 12:20] = 0
            image[12:20, 12:20, label] = 255
            mask = np.zeros((32, 32), np.uint8)
            mask[12:20, 12:20] = 255
            Image.fromarray(image.astype(np.uint8)).save(folder / name / f"{i}.png")
            Image.fromarray(mask).save(folder / "masks" / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return coloured(tmp_path_factory.mktemp("data") / "data")


OBJECT, BORDER = slice(12, 20), slice(0, 4)


def test_a_model_that_reads_the_object_does_not_rely_on_the_background(data):
    drop = assert_not_reliant_on(classifier(slice(15, 16)), data, "sticker", margin=0.04)
    assert (drop.value, drop.count, drop.unit) == (0, 123, "pp")
    assert drop.high <= 0.04


def test_a_model_that_reads_the_background_fails_with_the_loss_and_its_interval(data):
    with pytest.raises(AssertionError) as failure:
        assert_not_reliant_on(classifier(BORDER), data, "background", batch_size=2)
    drop = accuracy_drop(classifier(BORDER), data, "background swapped")
    assert 0.5 < drop.value < 0.8  # another class's background in two of three images
    assert str(failure.value).startswith(
        "background-swapped: the model relies on the background: accuracy changes by −"
    )
    assert "n = 123; the margin is 2 pp" in str(failure.value)


def test_too_few_images_to_exclude_a_loss_fail_with_the_number_that_would_do(data):
    model = classifier(slice(15, 16))
    with pytest.raises(AssertionError, match="a loss of accuracy above 2 pp is not excluded") as failure:
        assert_not_reliant_on(model, data, "sticker")
    assert "+0.0 pp [−" in str(failure.value)
    assert "images would exclude it" in str(failure.value)
    assert accuracy_drop(model, data, "sticker").low <= 0.02  # the looser rule: only shown losses fail


@pytest.mark.parametrize("shortcut", [name for name, change in SHORTCUTS.items() if change.keeps_object])
def test_every_change_that_keeps_the_object_is_measured_on_the_same_images(shortcut, data):
    model = classifier(OBJECT)
    drop = accuracy_drop(model, data, shortcut, limit=21, batch_size=5)
    assert drop.count == 21
    assert drop.low <= drop.value <= drop.high


def test_the_drop_is_that_of_the_change_image_by_image(data):
    """By hand: without colours all channels are equal, and the first class is predicted."""
    drop = accuracy_drop(classifier(OBJECT), data, "colour")
    assert drop.value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shortcut": "backdrop"}, "'backdrop' is unknown; choose from watermark"),
        ({"shortcut": ""}, "'' is unknown"),
        ({"shortcut": "background-only"}, "removes the object"),
        ({"shortcut": "sticker", "margin": 2}, "margin: got 2"),
    ],
)
def test_arguments_that_do_not_work(arguments, message, data):
    with pytest.raises(ClearheadError, match=message):
        assert_not_reliant_on(classifier(OBJECT), data, **arguments)


def test_data_that_do_not_work(data, maskless, tmp_path):
    with pytest.raises(ClearheadError, match="background-swapped needs foreground masks, and 0 of 36 images have one"):
        assert_not_reliant_on(classifier(OBJECT), maskless, "background")
    with pytest.raises(DataError, match="no such folder"):
        assert_not_reliant_on(classifier(OBJECT), tmp_path / "nowhere", "sticker")
