"""The changes of the shortcut battery."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from clearhead.shifts.shortcuts import SHORTCUTS

FILL = (0.5, 0.4, 0.3)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def masks() -> Tensor:
    masks = torch.zeros(3, 1, 224, 224)
    masks[:, :, 60:150, 80:170] = 1
    return masks


@pytest.mark.parametrize("name", SHORTCUTS)
@pytest.mark.parametrize("side", [224, 40])
def test_a_change_gives_other_images_of_the_same_shape_and_range(name: str, side: int) -> None:
    images = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    masks = torch.zeros(3, 1, side, side)
    masks[:, :, side // 4 : side // 2, side // 4 : side // 2] = 1
    before, shortcut = images.clone(), SHORTCUTS[name]
    generator = torch.Generator().manual_seed(0)
    for changed in (shortcut.change(images, masks, FILL), shortcut.random(images, masks, FILL, generator)):
        assert (changed.shape, changed.dtype) == (images.shape, images.dtype)
        assert changed.min() >= 0
        assert changed.max() <= 1
        assert all(not torch.equal(one, other) for one, other in zip(changed, images, strict=True))
        assert torch.equal(images, before)
    assert torch.equal(shortcut.change(images, masks, FILL), shortcut.change(images, masks, FILL))


@pytest.mark.parametrize("name", [name for name, shortcut in SHORTCUTS.items() if shortcut.draw])
def test_half_of_the_images_are_under_a_random_form_that_repeats_for_a_seed(name: str) -> None:
    images, masks = torch.full((40, 3, 56, 56), 0.2), torch.zeros(40, 1, 56, 56)
    first, same, other = (
        SHORTCUTS[name].random(images, masks, FILL, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    itself = (first == SHORTCUTS[name].change(images, masks, FILL)).flatten(1).all(1)
    assert 10 < itself.sum() < 30
    drawn = first[~itself]
    assert not torch.equal(drawn[0], drawn[1])


def test_the_watermark_is_that_of_imagenet_w(images: Tensor, masks: Tensor) -> None:
    from imagenet_w import AddWatermark

    published = torch.stack([AddWatermark(224)(image) for image in images])
    assert (SHORTCUTS["watermark"].change(images, masks, FILL) - published).abs().max() < 2.5 / 255  # it rounds twice


def test_changes_of_frequency_sum_to_the_image(masks: Tensor) -> None:
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(2)) * 0.1 + 0.45  # nothing is clipped
    low = SHORTCUTS["high-frequencies-removed"].change(images, masks, FILL)
    high = SHORTCUTS["low-frequencies-removed"].change(images, masks, FILL)
    torch.testing.assert_close(low + high - images.mean((2, 3), keepdim=True), images)
    pixels = Image.fromarray((images[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8))
    blurred = np.asarray(pixels.filter(ImageFilter.GaussianBlur(224 / 75)), dtype=np.float32) / 255
    inner = slice(20, -20)
    assert np.abs(low[0].permute(1, 2, 0).numpy() - blurred)[inner, inner].max() < 0.01


def test_colour_removed_is_pillows_luminance(images: Tensor, masks: Tensor) -> None:
    pixels = Image.fromarray((images[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    grey = np.asarray(pixels.convert("L"), dtype=np.float32) / 255
    changed = SHORTCUTS["colour-removed"].change(images, masks, FILL)[0]
    assert np.abs(changed.numpy() - grey).max() < 3 / 255


def test_patches_are_the_same_pixels_in_another_order(images: Tensor, masks: Tensor) -> None:
    changed = SHORTCUTS["patches-shuffled"].change(images, masks, FILL)
    torch.testing.assert_close(changed.flatten(2).sort(-1).values, images.flatten(2).sort(-1).values)
    assert torch.equal(changed[0, :, :56, :56], changed[:1, :, :56, :56][0])


def test_a_change_of_the_background_leaves_the_object_or_the_rest(images: Tensor, masks: Tensor) -> None:
    inside = masks.bool().expand_as(images)
    for name, shortcut in SHORTCUTS.items():
        if shortcut.needs_mask:
            changed = shortcut.change(images, masks, FILL)
            unchanged = inside if shortcut.keeps_object else ~inside
            assert torch.equal(changed[unchanged], images[unchanged]), name
