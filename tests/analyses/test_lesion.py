"""A lesion equals the model with the last weights of the branch set to zero; the command and its folder."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clearhead.analyses.lesion import MOST_COSTLY, lesions, measure, page, whole, without
from clearhead.data.image_io import DataError
from clearhead.layers import find_branches, group_blocks
from clearhead.report.page import Figure, Table
from tests.cases import MODELS, classifier
from tests.command import clearhead, error, result
from tests.layers.conftest import build, images_of, small
from tests.layers.test_branches import Handmade


def last_layers(name, module):
    """The last layer of each branch."""
    if name == "resnet":
        return [block.bn3 for i in range(1, 5) for block in getattr(module, f"layer{i}")]
    if name == "torchvision-swin":
        blocks = [block for i in (1, 3) for block in module.features[i]]
        return [part for block in blocks for part in (block.attn.proj, block.mlp[3])]
    return [part for block in module.blocks for part in (block.attn.proj, block.mlp.fc2)]


@pytest.mark.parametrize("name", ["vit", "resnet", "torchvision-swin"])
def test_without_a_branch_is_with_its_last_weights_zero(name, folder):
    model = small(name)
    branches, (images, _) = find_branches(model), images_of(model, folder)
    for i in range(1, len(branches)):
        zeroed = copy.deepcopy(model.module)
        last = last_layers(name, zeroed)[i - 1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        with torch.inference_mode():
            torch.testing.assert_close(
                without(model, images, branches, [i]), zeroed(model.normalize(images)), rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("name", [*MODELS, "resnet", "resnet-preact", "pit", "convnext", "torchvision-swin"])
def test_starting_at_the_shortcut_gives_the_logits_of_a_whole_pass(name):
    model = classifier(name) if name in MODELS else small(name)
    branches = [branch for branch in find_branches(model) if branch.type != "embed"]
    images = torch.randn(3, 3, 32, 32)
    _, starts = whole(model, images, branches)
    for i in range(len(branches)):
        measured = without(model, images, branches, [i], starts)
        torch.testing.assert_close(measured, without(model, images, branches, [i]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["vit", "timm-swin", "resnet"])
def test_lesions_are_paired_differences(name, folder):
    model = small(name) if name != "timm-swin" else classifier(name)
    folder = replace(folder, classes=model.classes)  # swin has two more
    measured = lesions(model, folder, batch_size=5)
    branches = [branch for branch in find_branches(model) if branch.type != "embed"]
    images, labels = images_of(model, folder)
    with torch.inference_mode():
        whole = model(images)
    assert measured.accuracy.value == pytest.approx((whole.argmax(-1) == labels).float().mean().item())
    assert measured.nll.value == pytest.approx(F.cross_entropy(whole, labels).item(), rel=1e-4)
    expected = [[i] for i in range(len(branches))] + [block for block in group_blocks(branches) if len(block) > 1]
    assert len(measured.branches + measured.blocks) == len(expected)
    for lesion, removed in zip(measured.branches + measured.blocks, expected, strict=True):
        logits = without(model, images, branches, removed)
        change = (logits.argmax(-1) == labels).float().mean() - (whole.argmax(-1) == labels).float().mean()
        assert lesion.accuracy.value == pytest.approx(change.item(), abs=1e-6)
        loss = F.cross_entropy(logits, labels) - F.cross_entropy(whole, labels)
        assert lesion.nll.value == pytest.approx(loss.item(), rel=1e-3, abs=1e-4)
        assert lesion.nll.count == 12


def test_nan_logits_and_other_classes_raise_errors(folder):
    model = small("vit")
    with pytest.raises(DataError, match="read with 3 classes, but the model has 3, or another order"):
        lesions(replace(model, classes=("c", "b", "a")), folder)
    torch.nn.init.constant_(model.module.head.bias, torch.nan)
    with pytest.raises(ValueError, match="answers are NaN"):
        lesions(model, folder)


def test_half_of_the_work_is_shared_where_it_can_be(folder):
    measured = lesions(small("resnet"), folder)
    assert measured.passes == pytest.approx(1 + 1 + 4 / 5 + 3 / 5 + 2 / 5 + 1 / 5)
    assert lesions(small("vit"), folder).passes == pytest.approx(1 + 1 + 3 / 4 + 2 / 4 + 1 / 4 + 1 + 2 / 4)


def test_a_model_that_looks_back_is_run_whole(folder):
    def back(m, x):
        y = x + m.one(x)
        y = y + m.two(y)
        return y + m.one(y) * x.mean(1, keepdim=True)

    measured = lesions(build(Handmade(back)), folder)
    assert measured.passes == pytest.approx(1 + 1 + 1 + 1 / 3)  # all but the last are looked past


def test_the_embedding_cannot_be_removed():
    model = small("vit")
    with pytest.raises(ValueError, match="the embedding has no shortcut"):
        without(model, torch.randn(2, 3, 32, 32), find_branches(model), [0])


def test_measure_takes_classifiers_side_by_side_and_the_page_starts_with_the_most_costly(folder):
    measured = measure([small("vit"), small("resnet")], folder, limit=9)
    assert measured.subject.images == 9
    first, second = measured.subject.models
    assert list(measured.lesions) == [first, second]
    table, *rest = page(measured).sections
    vit, resnet = measured.lesions.values()
    assert [row.name for row in table.rows if row.note] == [first, second]
    assert len(table.rows) == 2 + min(MOST_COSTLY, len(vit.branches + vit.blocks)) + len(resnet.branches)
    costs = [row.cells[1].value for row in table.rows[1:7]]
    assert costs == sorted(costs, reverse=True)
    assert sum(isinstance(section, Figure) for section in rest) == 4
    assert {s.title for s in rest if isinstance(s, Table)} == {
        *(f"Branches: {name}" for name in (first, second)),
        f"Blocks: {first}",
    }


def test_the_command_leaves_a_whole_run(workspace):
    command = ("layers", "lesion", "model", "data", "--split", "test", "--out", "lesion")
    run = clearhead(*command, cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert "without blocks.0" in run.stdout
    measured = result(workspace / "lesion")["lesions"]["model"]
    assert [len(measured["branches"]), len(measured["blocks"])] == [4, 2]
    assert measured["accuracy"]["count"] == 12
    assert "Accuracy without each branch" in (workspace / "lesion" / "report.html").read_text()
    assert not (workspace / "lesion" / "state").exists()
    assert [branch["name"] for branch in measured["branches"]][:2] == ["blocks.0 attention", "blocks.0 mlp"]
    again = clearhead(*command, cwd=workspace)  # is read, not run again
    assert again.returncode == 0, again.stderr
    assert "finished earlier" in again.stderr
    assert again.stdout == run.stdout


def test_bad_input_is_reported(workspace):
    for arguments, message in (
        (("nowhere", "data"), "model: nowhere is not a folder"),
        (("model", "nothing"), "data: nothing: no such folder or file"),
        (("model", "data", "--split", "nowhere"), "nowhere"),
        (("model", "data", "--limit", 1), "--limit"),
        (("model", "data", "--out", "data"), "holds other files"),
    ):
        assert message in error(clearhead("layers", "lesion", *arguments, cwd=workspace))
    other = workspace / "other-classes" / "zebra"
    other.mkdir(parents=True)
    shutil.copy(workspace / "data" / "cat" / "00.png", other)
    assert "zebra" in error(clearhead("layers", "lesion", "model", "other-classes", cwd=workspace))
    assert not list(workspace.glob("runs/layers-lesion*"))
