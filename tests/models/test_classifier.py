"""The classifier itself, and modes of modules."""

import torch
from torch import nn

from clearhead.models.classifier import evaluation_mode
from tests import cases


def test_evaluation_mode_tells_modules_of_their_mode_again():
    class Merging(nn.Linear):  # as some adapters do, whose merged weights cannot be trained
        merged = False

        def train(self, mode: bool = True):
            self.merged = not mode
            return super().train(mode)

    module = nn.Sequential(Merging(2, 2), nn.BatchNorm1d(2))
    module[1].eval()
    with evaluation_mode(module):
        assert module[0].merged
    assert not module[0].merged
    assert [m.training for m in module.modules()] == [True, True, False]


def test_a_classifier_moves_switches_mode_and_lists_parameters_as_a_module_does():
    model = cases.classifier("timm-vit")
    assert model.device == torch.device("cpu")
    assert model.train() is model
    assert model.module.training
    assert not model.eval().module.training
    assert model.to(torch.float64).to("cpu") is model
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert len([*model.parameters()]) == len([*model.module.parameters()])
    pixels = cases.pixels(dtype=torch.float64)
    assert torch.equal(model(pixels), model.module((pixels - 0.5) / 0.5))
    assert torch.equal(model(pixels), model.from_normalized(model.normalize(pixels)))
