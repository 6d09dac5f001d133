"""Batches: tensors, order, augmentation and balanced sampling."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clearhead.data.folder import read_folder
from clearhead.data.image_io import DataError
from clearhead.data.loading import ImageDataset, SeededSampler, loader
from tests.data.helpers import Pixels, save_noise, speckle, truncate


def test_an_unchecked_broken_file_raises_a_data_error_when_loaded(root: Path) -> None:
    truncate(save_noise(root / "cat/a.jpg"))
    images = ImageDataset(read_folder(root, check=False), Pixels())
    with pytest.raises(DataError, match=r"cat/a\.jpg"):
        images[0]


def test_items_always_have_a_mask_tensor(root: Path) -> None:
    images = ImageDataset(read_folder(root), Pixels())
    assert len(images) == 4
    without, masked = images[0], images[1]
    assert (without["image"].shape, without["mask"].shape) == ((3, 6, 10), (1, 6, 10))
    assert without["mask"].sum() == 0
    assert (without["has_mask"], masked["has_mask"]) == (False, True)
    assert masked["mask"].unique().tolist() == [0, 1]
    assert (masked["label"], masked["index"], images[-1]["index"]) == (0, 1, 3)


def test_batches_in_order(root: Path) -> None:
    batches = list(loader(ImageDataset(read_folder(root), Pixels()), 3, 0))
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2], [3]]
    assert batches[0]["image"].shape == (3, 3, 6, 10)
    assert batches[0]["has_mask"].tolist() == [False, True, False]
    assert batches[1]["label"].tolist() == [1]


def draw(
    root: Path, workers: int, seed: int, epochs: int, augment: Callable | None = speckle
) -> list[list[list[float]]]:
    batches = loader(ImageDataset(read_folder(root), Pixels(), augment), 2, workers, shuffle=True, seed=seed)
    return [
        [[float(i), float(x)] for b in batches for i, x in zip(b["index"], b["image"][:, 0, 0, 0], strict=True)]
        for _ in range(epochs)
    ]


def test_shuffling_and_augmentation_depend_only_on_seed_and_epoch(root: Path) -> None:
    first = draw(root, workers=0, seed=3, epochs=4)
    torch.rand(5)  # the global random state has no effect
    assert draw(root, workers=2, seed=3, epochs=4) == first
    assert draw(root, workers=0, seed=4, epochs=4) != first
    assert all(sorted(i for i, _ in epoch) == [0, 1, 2, 3] for epoch in first)
    assert len({str(epoch) for epoch in first}) == 4
    assert len({dict(map(tuple, epoch))[0.0] for epoch in first}) > 1  # another augmentation of the same image


def test_the_sampler_resumes_at_an_epoch() -> None:
    whole = SeededSampler(50, seed=1)
    passes = [list(whole) for _ in range(3)]
    resumed = SeededSampler(50, seed=1)
    resumed.set_epoch(2)
    assert list(resumed) == passes[2] != passes[0]
    assert len(resumed) == 50


def test_augmented_items_repeat_by_index(root: Path) -> None:
    images = ImageDataset(read_folder(root), Pixels(), speckle)
    assert torch.equal(images[0]["image"], images[0]["image"])
    assert not torch.equal(images[0]["image"], images[0, 99]["image"])


def test_balanced_batches_sample_groups_uniformly() -> None:
    groups = ["common"] * 97 + ["rare"] * 3
    sampler = SeededSampler(100, seed=1, groups=groups)
    passes = [[index for index, _ in sampler] for _ in range(30)]
    share = sum(groups[index] == "rare" for indices in passes for index in indices) / 3000
    assert share == pytest.approx(0.5, abs=0.04)
    assert {97, 98, 99} <= set(passes[0])
    assert passes[0] != passes[1]
    sampler.set_epoch(0)
    assert [index for index, _ in sampler] == passes[0]
