"""Counterfactual augmentation compared with an independent form, and the part of a model that is trained."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import scipy.special
import torch
from PIL import Image

from clearhead.data.dataset import ImageIndex
from clearhead.data.folder import read_folder
from clearhead.data.image_io import DataError
from clearhead.data.loading import ImageDataset, loader
from clearhead.errors import ClearheadError
from clearhead.repairs import COUNTERFACTUALS, CounterfactualLoss, repair
from clearhead.shifts.shortcuts import SHORTCUTS
from clearhead.training.config import TrainConfig
from clearhead.training.trainable import merged, with_trainable
from tests import cases

CONFIG = TrainConfig(epochs=2, lr=1e-3, batch_size=5, augment="none")
COLOURS = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40), (40, 200, 200)]
"""The background of each class."""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    """Five classes, each on a plain background of its own; a grey square is the object. One image has no mask."""
    root, rng = tmp_path_factory.mktemp("counterfactual"), np.random.default_rng(0)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    for label, colour in enumerate(COLOURS):
        name = "abcde"[label]
        (root / name).mkdir()
        (root / "masks" / name).mkdir(parents=True)
        for i in range(4):
            pixels = np.full((32, 32, 3), colour, np.uint8)
            pixels[8:24, 8:24] = rng.integers(60, 180, (16, 16, 1))
            Image.fromarray(pixels).save(root / name / f"{i}.png")
            if (label, i) != (0, 0):
                Image.fromarray(mask).save(root / "masks" / name / f"{i}.png")
    return read_folder(root)


@pytest.fixture
def splits(index: ImageIndex) -> tuple[ImageIndex, ImageIndex]:
    return replace(index, samples=index.samples[::2]), replace(index, samples=index.samples[1::2])


def batch_of(index: ImageIndex) -> dict[str, torch.Tensor]:
    return next(iter(loader(ImageDataset(index, cases.classifier("timm-vit").preprocess), len(index.samples), 0)))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_loss_matches_its_formula(mode: str, index: ImageIndex) -> None:
    teacher, student = cases.classifier("timm-vit"), cases.classifier("timm-vit")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(0.9)
    weights = {"consistency": 0.7, "clean": 1.3, "classification": 0.4}
    loss = CounterfactualLoss.from_model(teacher, index, shortcuts=["sticker", "background-swapped"], **weights)
    batch = batch_of(index)
    getattr(student, mode)()
    torch.manual_seed(3)
    changed = loss.changed(batch["image"], batch, random=mode == "train")
    torch.manual_seed(3)
    parts = loss(student, batch)
    with torch.no_grad():
        clean, moved, target = (
            model(x).double().numpy()
            for model, x in ((student, batch["image"]), (student, changed), (teacher, batch["image"]))
        )
    p = scipy.special.softmax(target, 1)
    labels = batch["label"].numpy()[:, None]
    expected = {
        name: scipy.special.rel_entr(p, scipy.special.softmax(logits, 1)).sum(1).mean()
        for name, logits in (("consistency", moved), ("clean", clean))
    }
    expected["classification"] = np.mean(
        [-np.take_along_axis(scipy.special.log_softmax(x, 1), labels, 1).mean() for x in (clean, moved)]
    )
    for name, value in expected.items():
        assert parts[name].item() == pytest.approx(value, rel=1e-4)
    assert parts["loss"].item() == pytest.approx(sum(weights[name] * value for name, value in expected.items()))
    np.testing.assert_allclose(parts["logits"].detach().numpy(), clean, atol=1e-5)
    assert loss(teacher, batch)["clean"].item() == pytest.approx(0, abs=1e-6)


def test_backgrounds_are_those_of_another_class_and_objects_stay(index: ImageIndex) -> None:
    loss = CounterfactualLoss.from_model(cases.classifier("timm-vit"), index, shortcuts=["background-swapped"])
    batch = batch_of(index)
    colours = torch.tensor(COLOURS) / 255
    for random in (False, True):
        changed = loss.changed(batch["image"], batch, random)
        assert torch.equal(changed[0], batch["image"][0])  # it has no mask
        torch.testing.assert_close(changed[..., 8:24, 8:24], batch["image"][..., 8:24, 8:24])
        corner = changed[:, :, 0, 0]
        distances = torch.cdist(corner[1:], colours)
        assert distances.amin(1).max() < 0.01
        assert (distances.argmin(1) != batch["label"][1:]).all()


def test_changes_are_random_in_training_and_fixed_in_validation(index: ImageIndex) -> None:
    loss = CounterfactualLoss.from_model(cases.classifier("timm-vit"), index, shortcuts=["sticker", "watermark"])
    batch = batch_of(index)
    fixed = [loss.changed(batch["image"], batch, random=False) for _ in range(2)]
    assert torch.equal(*fixed)
    assert (fixed[0] != batch["image"]).flatten(1).any(1).all()
    torch.manual_seed(0)
    first, second = (loss.changed(batch["image"], batch, random=True) for _ in range(2))
    torch.manual_seed(0)
    assert not torch.equal(first, second)
    assert torch.equal(first, loss.changed(batch["image"], batch, random=True))


@pytest.mark.parametrize(("trainable", "lr"), [("all", 1e-4), ("head", 1e-3), ("lora", 1e-3)])
def test_the_repair_trains_one_part_and_leaves_an_ordinary_model(
    trainable: str, lr: float, splits: tuple[ImageIndex, ImageIndex]
) -> None:
    if trainable == "lora":
        pytest.importorskip("peft")
    model = cases.classifier("timm-vit")
    model.module.pos_embed.requires_grad_(False)
    before = copy.deepcopy(model.module.state_dict())
    options = {"shortcuts": ["sticker"], "trainable": trainable, "device": "cpu"}
    repaired, outcome = repair(model, *splits, method="counterfactual", config=replace(CONFIG, lr=lr), **options)
    first, last = outcome.history[0].validation, outcome.history[-1].validation
    assert first["clean"] == pytest.approx(0, abs=1e-6)
    assert first["loss"] == pytest.approx(first["consistency"] + first["clean"])
    assert last["loss"] < first["loss"]
    after = repaired.module.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "pos_embed" not in changed
    assert changed >= {"head.weight"}
    if trainable == "head":
        assert changed == {"head.weight", "head.bias"}
    if trainable == "lora":
        assert changed == {n for n in before if n.endswith("weight") and before[n].ndim == 2}
    assert [p.requires_grad for p in repaired.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


@pytest.mark.parametrize("name", ["timm-vit", "torchvision-vit", "hf-vit"])
def test_low_rank_updates_start_at_the_model_and_are_merged_exactly(name: str) -> None:
    pytest.importorskip("peft")
    model, pixels = cases.classifier(name), cases.pixels()
    updated = with_trainable(model, "lora", seed=1)
    torch.testing.assert_close(updated(pixels), model(pixels))
    trained = {n: p for n, p in updated.module.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in n and min(p.shape) <= 8 for n, p in trained.items())
    with torch.no_grad():
        for p in trained.values():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    expected = updated(pixels)
    assert not torch.allclose(expected, model(pixels), atol=1e-3)
    result = merged(updated, model)
    torch.testing.assert_close(result(pixels), expected, rtol=1e-4, atol=1e-4)
    assert result.module.state_dict().keys() == model.module.state_dict().keys()


def without_masks(index: ImageIndex) -> ImageIndex:
    return replace(index, samples=tuple(replace(sample, mask=None) for sample in index.samples))


def test_by_default_all_changes_are_used_that_apply(index: ImageIndex) -> None:
    model = cases.classifier("timm-vit")
    assert "background-only" not in COUNTERFACTUALS
    assert CounterfactualLoss.from_model(model, index).shortcuts == COUNTERFACTUALS
    unmasked = CounterfactualLoss.from_model(model, without_masks(index)).shortcuts
    assert unmasked == tuple(name for name in COUNTERFACTUALS if not SHORTCUTS[name].needs_mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shortcuts": ["fog"]}, "shortcuts: 'fog' is unknown; choose from watermark"),
        ({"shortcuts": ["background-only"]}, "'background-only' removes the object"),
        ({"shortcuts": []}, "shortcuts: got none"),
        ({"clean": -1.0}, "clean: got -1.0; a weight of at least 0 is needed"),
        ({"consistency": 0.0}, "consistency, classification: one of them must be above 0"),
        ({"trainable": "tail"}, "trainable: 'tail' is unknown; choose from all, head, lora"),
        ({"method": "afr", "trainable": "head"}, "trainable: got 'head', but the method afr does not fine-tune"),
        ({"method": "background-swap", "shortcuts": ["sticker"]}, "not an option of the method background-swap"),
    ],
)
def test_invalid_options_raise_an_error(
    options: dict[str, object], message: str, splits: tuple[ImageIndex, ImageIndex]
) -> None:
    with pytest.raises(ClearheadError, match=message):
        repair(cases.classifier("timm-vit"), *splits, **{"method": "counterfactual", "device": "cpu"} | options)


def test_masks_are_needed_for_backgrounds(splits: tuple[ImageIndex, ImageIndex]) -> None:
    train, validation = splits
    model = cases.classifier("timm-vit")
    options = {"shortcuts": ["sticker", "background-removed"]}
    with pytest.raises(DataError, match="the shortcuts background-removed need foreground masks, and none of the 10"):
        repair(model, without_masks(train), validation, method="counterfactual", device="cpu", **options)
    with pytest.raises(DataError, match="background-swap needs foreground masks"):
        repair(model, without_masks(train), validation, method="background-swap", device="cpu")


def test_the_head_alone_needs_a_linear_head(splits: tuple[ImageIndex, ImageIndex]) -> None:
    with pytest.raises(ClearheadError, match="has no classifier head that can be trained alone"):
        repair(cases.classifier("timm-deit-distilled"), *splits, method="counterfactual", trainable="head")
