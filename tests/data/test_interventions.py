"""What is left of an image when its background, or its object, goes."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from clearhead.data.interventions import remove_background, remove_object, swap_backgrounds

FILL = (0.25, 0.5, 0.75)
CHANGES = remove_background, swap_backgrounds, remove_object


def scene(batch: int = 3, side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(batch, 1, side, side)
    mask[:, :, 2:5, 3:6] = 1
    mask[:, :, 2, 3] = 0  # the box is larger than the object
    return images, mask


def test_each_intervention_changes_the_right_pixels():
    images, mask = scene()
    removed, shuffled, alone = (change(images, mask, FILL) for change in CHANGES)
    inside = mask.bool().expand_as(images)
    box = torch.zeros_like(images, dtype=torch.bool)
    box[:, :, 2:5, 3:6] = True
    assert torch.equal(removed[inside], images[inside])
    fill = torch.tensor(FILL)[:, None, None].expand_as(images)
    assert torch.equal(removed[~inside], fill[~inside])
    assert torch.equal(alone[~box], images[~box])
    assert torch.equal(alone[box], fill[box])
    assert torch.equal(shuffled[inside], images[inside])
    before = images.roll(1, 0)
    assert torch.equal(shuffled[~box], before[~box])
    mean = before[:, :, ~box[0, 0]].mean(-1)
    torch.testing.assert_close(shuffled[:, :, 2, 3], mean)  # where the other's object was


@given(st.integers(0, 8), st.integers(0, 8))
def test_empty_and_full_masks_give_finite_values(top, bottom):
    images, mask = scene()
    mask[:] = 0
    mask[:, :, top:bottom] = 1
    assert all(torch.isfinite(change(images, mask, FILL)).all() for change in CHANGES)
