"""Predictions for a data set: of the model's own classes, in eval mode, and never NaN."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from clearhead.analyses.faithfulness import faithfulness
from clearhead.analyses.head_scores import score_heads
from clearhead.data.dataset import ImageIndex
from clearhead.data.image_io import DataError
from clearhead.prediction.predict import logits_of, predict, relevance_masses
from clearhead.shifts.shortcuts import table_name
from tests import cases
from tests.masked_images import folder

__all__ = ["folder"]


def test_a_model_in_train_mode_predicts_as_in_eval_mode_and_is_left_unchanged(folder: ImageIndex) -> None:
    model = cases.classifier("timm-vit")
    expected, logits, masses = predict(model, folder), logits_of(model, folder), relevance_masses(model, folder)
    model.module.blocks[0].mlp.drop1.p = 0.5
    model.module.train()
    result = predict(model, folder)
    np.testing.assert_allclose(result.loss, expected.loss, rtol=1e-5)
    np.testing.assert_allclose(result.relevance_mass, expected.relevance_mass, rtol=1e-5)
    np.testing.assert_array_equal(result.interventions["background only"], expected.interventions["background only"])
    np.testing.assert_allclose(logits_of(model, folder), logits, rtol=1e-5)
    np.testing.assert_allclose(relevance_masses(model, folder), masses, rtol=1e-5)
    assert model.module.training
    assert model.module.blocks[0].mlp.drop1.training


@pytest.mark.parametrize("function", [predict, score_heads, lambda *both: faithfulness(*both, ["gae"])])
def test_data_of_other_classes_raises_an_error(function, folder: ImageIndex) -> None:
    model = replace(cases.classifier("timm-vit"), classes=tuple("edcba"))
    with pytest.raises(DataError, match=r"read with 5 classes, but the model has 5, or another order"):
        function(model, folder)


@pytest.mark.parametrize("function", [predict, logits_of, score_heads, lambda *both: faithfulness(*both, ["gae"])])
@pytest.mark.parametrize("masked", [True, False])
def test_nan_logits_raise_an_error(function, masked: bool, folder: ImageIndex) -> None:
    model = cases.classifier("timm-vit")
    nn.init.constant_(model.module.head.bias[2:3], torch.nan)
    some = tuple(sample for sample in folder.samples if (sample.mask is not None) == masked)
    with pytest.raises(ValueError, match="answers are NaN"):
        function(model, replace(folder, samples=some))


def test_each_change_is_predicted_and_observed(folder: ImageIndex) -> None:
    model, seen = cases.classifier("timm-vit"), []
    names = ["colour-removed", "background-only"]
    result = predict(model, folder, shortcuts=names, maps=False, observe=seen.append)
    assert list(result.interventions) == ["colour removed", "background only"]
    masked = np.array([sample.mask is not None for sample in folder.samples])
    assert 0 < masked.sum() < len(masked)
    assert (result.interventions["colour removed"] >= 0).all()
    np.testing.assert_array_equal(result.interventions["background only"] >= 0, masked)
    assert np.isnan(result.relevance_mass).all()
    index = torch.cat([changed.index for changed in seen if changed.shortcut == "colour-removed"])
    assert sorted(index.tolist()) == list(range(len(folder.samples)))
    for changed in seen:
        predicted = torch.from_numpy(result.interventions[table_name(changed.shortcut)])
        assert torch.equal(changed.logits_after.argmax(-1), predicted[changed.index])
        assert torch.equal(changed.logits_before.argmax(-1), torch.from_numpy(result.predicted)[changed.index])
        torch.testing.assert_close(model(changed.after), changed.logits_after)


def test_an_unknown_change_raises_an_error(folder: ImageIndex) -> None:
    with pytest.raises(ValueError, match="shortcuts: 'waterwark' is unknown; choose from watermark"):
        predict(cases.classifier("timm-vit"), folder, shortcuts=["waterwark"])
