"""Averages of the weights of two models."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from clearhead.data.dataset import ImageIndex
from clearhead.data.folder import read_folder
from clearhead.errors import ClearheadError
from clearhead.models import Classifier, Preprocessing, from_module
from clearhead.repairs.interpolation import best_interpolation, interpolated
from clearhead.training.losses import cross_entropy


class Net(nn.Module):
    """One linear layer, whose output is the bias where the weights are 0, behind batch norm."""

    def __init__(self, bias: tuple[float, float] = (0.0, 0.0), width: int = 8) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3 * width * width, 2)
        nn.init.zeros_(self.head.weight)
        self.head.bias.data = torch.tensor(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x).flatten(1))


def classifier(bias: tuple[float, float], width: int = 8) -> Classifier:
    preprocess = Preprocessing((width, width), (width, width), (0.5,) * 3, (0.5,) * 3)
    return from_module(Net(bias, width), preprocess=preprocess, classes=("beetle", "bird"))


@pytest.fixture
def images(tmp_path: Path) -> ImageIndex:
    """Two beetles and four birds."""
    for i in range(6):
        file = tmp_path / ("beetle" if i < 2 else "bird") / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(file)
    return read_folder(tmp_path)


def test_average_of_a_linear_models_weights_is_the_average_of_its_logits() -> None:
    first, second = classifier((1.0, 0.0)), classifier((0.0, 3.0))
    second.module.norm.num_batches_tracked += 5
    average = interpolated(first, second, 0.25)
    torch.testing.assert_close(average(torch.rand(2, 3, 8, 8)), torch.tensor([[0.75, 0.75]] * 2))
    assert average.module.norm.num_batches_tracked == 5
    assert not average.module.training
    torch.testing.assert_close(first.module.head.bias.data, torch.tensor([1.0, 0.0]))
    for weight, model in ((0.0, first), (1.0, second)):
        assert torch.equal(interpolated(first, second, weight).module.head.bias, model.module.head.bias)


def test_selects_the_weight_of_lowest_validation_loss(images: ImageIndex) -> None:
    odds = float(torch.logit(torch.tensor(4 / 6)))  # the best bias; it lies halfway between those of the models
    first, second = classifier((0.0, odds - 1.5)), classifier((0.0, odds + 1.5))
    best, losses = best_interpolation(first, second, cross_entropy, images, batch_size=3)
    assert list(losses) == [0.0, 0.25, 0.5, 0.75, 1.0]
    torch.testing.assert_close(best.module.head.bias.data, torch.tensor([0.0, odds]))
    labels = torch.tensor([sample.label for sample in images.samples])
    for weight, loss in losses.items():
        logits = torch.tensor([0.0, odds - 1.5 + 3 * weight]).expand(len(labels), 2)
        assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_of_equally_good_models_the_original_is_taken(images: ImageIndex) -> None:
    first, second = classifier((0.0, 1.0)), classifier((2.0, 3.0))  # the same probabilities
    best, _ = best_interpolation(first, second, cross_entropy, images)
    assert torch.equal(best.module.head.bias, first.module.head.bias)


def test_errors() -> None:
    with pytest.raises(ClearheadError, match=r"weight: got 1.5; a number in 0..1"):
        interpolated(classifier((0.0, 0.0)), classifier((0.0, 0.0)), 1.5)
    with pytest.raises(ClearheadError, match="the parameters of"):
        interpolated(classifier((0.0, 0.0)), classifier((0.0, 0.0), width=4), 0.5)
