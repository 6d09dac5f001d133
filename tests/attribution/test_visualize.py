"""Maps over images, and figures of both."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clearhead.attribution import explain, overlay, show
from tests.cases import SIZE, classifier, pixels


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_an_overlay_shows_the_greyed_image_where_there_is_no_relevance_and_the_colour_where_there_is_all() -> None:
    image = noise(16, 24)
    saved = image.copy()
    ground = 0.5 * image + 0.5 * image.mean(2, keepdims=True)
    np.testing.assert_allclose(overlay(image, np.zeros((16, 24))), ground, atol=0.51)
    np.testing.assert_allclose(overlay(image, np.ones((16, 24)), strength=0), ground, atol=0.51)
    full = overlay(image, np.ones((4, 6)), strength=1)
    assert full.shape == image.shape
    assert full.dtype == np.uint8
    assert (full == full[0, 0]).all()
    red, green, blue = full[0, 0].astype(int)
    assert red > green > blue, "warm"
    np.testing.assert_array_equal(image, saved)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_an_overlay_changes_more_where_relevance_is_more(height: int, width: int, h: int, w: int, seed: int) -> None:
    image = np.full((height, width, 3), 100, np.uint8)
    heat = np.random.default_rng(seed).random((h, w))
    assert overlay(image, heat).shape == (height, width, 3)
    heat = np.random.default_rng(seed).random((height, width))
    red = overlay(image, heat)[..., 0].astype(int)
    assert (np.diff(red.ravel()[np.argsort(heat, axis=None)]) >= -1).all()  # the colours come in 256 steps


@pytest.mark.parametrize(
    ("heat", "message"),
    [
        (np.full((4, 4), 1.01), r"got values in 1\.01\.\.1\.01; 0\.\.1 is needed: scale it"),
        (np.full((4, 4), -0.5), r"got values in -0\.5"),
        (np.full((4, 4), np.nan), r"got values in nan"),
        (np.zeros((1, 4, 4)), r"relevance: got shape \(1, 4, 4\); one map"),
    ],
)
def test_a_map_out_of_range_is_refused(heat: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overlay(noise(4, 4), heat)


def test_an_overlay_takes_images_as_people_have_them(tmp_path: Path) -> None:
    image, heat = noise(SIZE, SIZE), np.random.default_rng(0).random((SIZE, SIZE), dtype=np.float32)
    expected = overlay(image, heat)
    Image.fromarray(image).save(tmp_path / "1.png")
    tensor = torch.from_numpy(image).permute(2, 0, 1) / 255
    model = classifier("timm-vit")
    for same in (Image.fromarray(image), tmp_path / "1.png", str(tmp_path / "1.png"), tensor, tensor[None]):
        np.testing.assert_array_equal(overlay(same, torch.from_numpy(heat)), expected)
        np.testing.assert_array_equal(overlay(same, torch.from_numpy(heat)[None], model=model), expected)


def test_a_photograph_of_other_proportions_needs_the_model() -> None:
    photograph, heat = Image.fromarray(noise(40, 60)), np.zeros((SIZE, SIZE))
    with pytest.raises(ValueError, match=r"40 x 60 pixels, of other proportions than its map of 32 x 32; pass model="):
        overlay(photograph, heat)
    assert overlay(photograph, heat, model=classifier("timm-vit")).shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("several", [False, True])
def test_a_figure_has_each_image_beside_its_maps_and_a_colour_bar(several: bool, tmp_path: Path) -> None:
    model, photographs = classifier("timm-vit"), [Image.fromarray(noise(40, 60, seed)) for seed in range(3)]
    maps = {name: explain(model, photographs, method=name) for name in ("gae", "rollout")}
    figure = show(photographs, maps if several else maps["gae"], model=model, titles=["a", "b", "c"])
    *cells, bar = figure.axes
    assert len(cells) == 3 * (3 if several else 2)
    assert bar.get_ylabel().startswith("relevance")
    shown = [cell.get_images()[0].get_array() for cell in cells]
    pixels_of_first = model.preprocess.image(photographs[0])
    np.testing.assert_array_equal(shown[0], (pixels_of_first * 255).round().byte().permute(1, 2, 0))
    np.testing.assert_array_equal(shown[1], overlay(shown[0], maps["gae"][0]))
    assert cells[0].get_title() == "a"
    figure.savefig(tmp_path / "figure.png")


def test_a_figure_of_the_tensor_that_was_explained() -> None:
    batch = pixels(2)
    assert len(show(batch, explain(classifier("timm-vit"), batch)).axes) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"maps": torch.zeros(3, 4, 4)}, r"maps: 3 \(relevance\) for 2 images"),
        ({"maps": torch.zeros(2, 4, 4), "titles": ["one"]}, "titles: 1 for 2 images"),
        ({"maps": torch.full((2, 4, 4), 2.0)}, "relevance: got values in 2..2"),
    ],
)
def test_a_figure_that_cannot_be(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        show(pixels(2), **arguments)
