"""A lesion is the model with the branch's last weights put to zero."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clearhead.analyses.lesion import lesions, whole, without
from clearhead.data.image_io import DataError
from clearhead.layers import find_branches, group_blocks
from tests.cases import MODELS, classifier
from tests.layers.conftest import build, images_of, small
from tests.layers.test_branches import Handmade


def last_layers(name, module):
    """What each unit's branch ends in."""
    if name == "resnet":
        return [block.bn3 for i in range(1, 5) for block in getattr(module, f"layer{i}")]
    if name == "torchvision-swin":
        blocks = [block for i in (1, 3) for block in module.features[i]]
        return [part for block in blocks for part in (block.attn.proj, block.mlp[3])]
    return [part for block in module.blocks for part in (block.attn.proj, block.mlp.fc2)]


@pytest.mark.parametrize("name", ["vit", "resnet", "torchvision-swin"])
def test_without_a_unit_is_with_its_last_weights_zero(name, folder):
    model = small(name)
    units, (images, _) = find_branches(model), images_of(model, folder)
    for i in range(1, len(units)):
        zeroed = copy.deepcopy(model.module)
        last = last_layers(name, zeroed)[i - 1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        with torch.inference_mode():
            torch.testing.assert_close(
                without(model, images, units, [i]), zeroed(model.normalize(images)), rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("name", [*MODELS, "resnet", "resnet-preact", "pit", "convnext", "torchvision-swin"])
def test_to_go_on_from_the_shortcut_is_to_run_it_all(name):
    model = classifier(name) if name in MODELS else small(name)
    units = [unit for unit in find_branches(model) if unit.kind != "embed"]
    images = torch.randn(3, 3, 32, 32)
    _, starts = whole(model, images, units)
    for i in range(len(units)):
        found = without(model, images, units, [i], starts)
        torch.testing.assert_close(found, without(model, images, units, [i]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["vit", "timm-swin", "resnet"])
def test_lesions_are_paired_differences(name, folder):
    model = small(name) if name != "timm-swin" else classifier(name)
    folder = replace(folder, classes=model.classes)  # swin has two more
    found = lesions(model, folder, batch_size=5)
    units = [unit for unit in find_branches(model) if unit.kind != "embed"]
    images, labels = images_of(model, folder)
    with torch.inference_mode():
        whole = model(images)
    assert found.accuracy.value == pytest.approx((whole.argmax(-1) == labels).float().mean().item())
    assert found.nll.value == pytest.approx(F.cross_entropy(whole, labels).item(), rel=1e-4)
    expected = [[i] for i in range(len(units))] + [block for block in group_blocks(units) if len(block) > 1]
    assert len(found.units + found.blocks) == len(expected)
    for lesion, removed in zip(found.units + found.blocks, expected, strict=True):
        logits = without(model, images, units, removed)
        change = (logits.argmax(-1) == labels).float().mean() - (whole.argmax(-1) == labels).float().mean()
        assert lesion.accuracy.value == pytest.approx(change.item(), abs=1e-6)
        loss = F.cross_entropy(logits, labels) - F.cross_entropy(whole, labels)
        assert lesion.nll.value == pytest.approx(loss.item(), rel=1e-3, abs=1e-4)
        assert lesion.nll.count == 12


def test_nan_is_no_answer_and_other_classes_are_refused(folder):
    model = small("vit")
    with pytest.raises(DataError, match="other classes"):
        lesions(replace(model, classes=("c", "b", "a")), folder)
    torch.nn.init.constant_(model.module.head.bias, torch.nan)
    with pytest.raises(ValueError, match="answers are NaN"):
        lesions(model, folder)


def test_half_of_the_work_is_shared_where_it_can_be(folder):
    found = lesions(small("resnet"), folder)
    assert found.passes == pytest.approx(1 + 1 + 4 / 5 + 3 / 5 + 2 / 5 + 1 / 5)
    assert lesions(small("vit"), folder).passes == pytest.approx(1 + 1 + 3 / 4 + 2 / 4 + 1 / 4 + 1 + 2 / 4)


def test_a_model_that_looks_back_is_run_whole(folder):
    def back(m, x):
        y = x + m.one(x)
        y = y + m.two(y)
        return y + m.one(y) * x.mean(1, keepdim=True)

    found = lesions(build(Handmade(back)), folder)
    assert found.passes == pytest.approx(1 + 1 + 1 + 1 / 3)  # all but the last are looked past


def test_the_embedding_cannot_be_removed():
    model = small("vit")
    with pytest.raises(ValueError, match="the embedding has no shortcut"):
        without(model, torch.randn(2, 3, 32, 32), find_branches(model), [0])
