"""Overlays, outlines and images as data URIs."""

import base64
import io
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clearhead.attribution import overlay
from clearhead.report.images import data_uri, outline

NAN = math.nan


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8)])
@pytest.mark.parametrize(
    "draw",
    [lambda i: overlay(i, np.zeros((4, 4))), lambda i: outline(i, np.zeros((4, 4), bool)), data_uri],
    ids=["overlay", "outline", "data_uri"],
)
def test_what_is_no_image_is_refused(image: np.ndarray, draw: Callable[[np.ndarray], object]) -> None:
    with pytest.raises(ValueError, match=rf"image must be H x W x 3 of uint8, got shape {re.escape(str(image.shape))}"):
        draw(image)


def test_an_outline_is_white_inside_the_edge_and_dark_around() -> None:
    image = np.full((12, 14, 3), 200, np.uint8)
    mask = np.zeros((12, 14), bool)
    mask[3:9, 4:11] = True
    drawn = outline(image, mask)
    rim = mask.copy()
    rim[4:8, 5:10] = False
    np.testing.assert_array_equal((drawn == 255).all(2), rim)
    assert (drawn[2, 4:11] == 70).all()  # just outside
    assert (drawn[4, 5:10] == 70).all()  # just inside the line
    np.testing.assert_array_equal(drawn[5:7, 6:9], image[5:7, 6:9])
    np.testing.assert_array_equal(drawn[[0, -1]], image[[0, -1]])
    assert (image == 200).all(), "the image given must stay as it was"


@given(st.integers(0, 999), st.integers(2, 30), st.integers(2, 30))
def test_an_outline_is_drawn_only_near_the_edge_and_accepts_masks_of_numbers(
    seed: int, height: int, width: int
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) > 0.5
    image = noise(height, width, seed)
    drawn = outline(image, mask)
    np.testing.assert_array_equal(outline(image, mask.astype(np.int64) * 3), drawn)
    near = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        around = mask[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        near[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] |= not around.all()
    np.testing.assert_array_equal(drawn[~near], image[~near])


@pytest.mark.parametrize("value", [False, True])
def test_a_mask_without_an_edge_draws_nothing(value: bool) -> None:
    np.testing.assert_array_equal(outline(noise(9, 9), np.full((9, 9), value)), noise(9, 9))


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask must be H x W like the image, got \(4, 5\) for an image of \(4, 4\)"):
        outline(noise(4, 4), np.zeros((4, 5), bool))


def decoded(uri: str) -> Image.Image:
    media_type, _, data = uri.partition(";base64,")
    assert media_type == "data:image/webp"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


@given(st.integers(1, 96), st.integers(1, 96), st.integers(0, 99))
def test_a_tiny_image_survives_a_data_uri_to_the_bit(height: int, width: int, seed: int) -> None:
    image = noise(height, width, seed)
    np.testing.assert_array_equal(np.asarray(decoded(data_uri(image)).convert("RGB")), image)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(97, 20, (20, 97)), (320, 320, (320, 320)), (640, 320, (160, 320)), (480, 1280, (320, 120)), (2000, 3, (1, 320))],
)
def test_a_large_image_is_made_smaller_and_keeps_its_shape(height: int, width: int, size: tuple[int, int]) -> None:
    y, x = np.mgrid[:height, :width]
    image = np.stack([255 * y / height, 255 * x / width, 0 * x + 128], 2).astype(np.uint8)
    picture = decoded(data_uri(image)).convert("RGB")
    assert picture.size == size
    np.testing.assert_allclose(np.asarray(picture).mean((0, 1)), image.mean((0, 1)), atol=4)
