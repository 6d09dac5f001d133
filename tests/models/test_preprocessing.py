"""Preprocessing against the libraries' own transforms."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.models import ModelError, Preprocessing, load_model
from clearhead.models.preprocessing import to_uint8
from tests.models.build import NORM, PLAIN, hf_folder, network_input, picture

import timm  # isort: skip  (after clearhead, which lets torchvision import)
import torchvision  # isort: skip
import transformers  # isort: skip


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(8, 60), st.integers(8, 60)),
    square=st.booleans(),
    crop_pct=st.sampled_from([0.7, 0.875, 0.9, 0.95, 0.965, 1.0]),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
    interpolation=st.sampled_from(["bilinear", "bicubic", "lanczos"]),
    width=st.integers(5, 120),
    height=st.integers(5, 120),
)
def test_image_is_timms_own_bit_for_bit(size, square, crop_pct, crop_mode, interpolation, width, height):
    size = (size[0], size[0]) if square else size
    data = {"crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation, **NORM}
    expected = timm.data.create_transform(input_size=(3, *size), is_training=False, **data)(picture(width, height))
    box = (int(size[0] / crop_pct), int(size[1] / crop_pct))
    ours = Preprocessing(size=size, resize=box, crop_mode=crop_mode, interpolation=interpolation, **NORM)
    assert torch.equal(network_input(ours, picture(width, height)), expected)


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "swin_t"])
def test_image_is_torchvisions_own(name):
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    model = load_model(f"torchvision:{name}", pretrained=False) if name == "resnet18" else None
    interpolation, (box,), (size,) = preset.interpolation.value, preset.resize_size, preset.crop_size
    ours = Preprocessing((size, size), (box, box), NORM["mean"], NORM["std"], interpolation=interpolation)
    if model is not None:
        assert model.preprocess == ours
    for width, height in [(300, 411), (640, 333), (224, 224), (40, 50)]:
        assert torch.equal(network_input(ours, picture(width, height)), preset(picture(width, height)))


@pytest.mark.parametrize("category", ["vit", "deit", "clip", "dino", "resnet"])
def test_image_is_the_hf_processors_own(category, tmp_path):
    """Exactly, for its Pillow backend; torchvision's rounds between its two passes and is off by one level or so."""
    _, processor = hf_folder(tmp_path, category)
    preprocess = load_model(str(tmp_path)).preprocess
    std = torch.tensor(preprocess.std)[:, None, None]
    pillow = getattr(transformers, type(processor).__name__ + "Pil", None)
    for width, height in [(90, 71), (57, 120), (301, 200)]:
        ours = network_input(preprocess, picture(width, height))
        theirs = processor(images=picture(width, height), return_tensors="pt")["pixel_values"][0]
        assert ((ours - theirs) * std).abs().mean() < 0.5 / 255
        if pillow is not None:
            exact = pillow.from_pretrained(tmp_path)(images=picture(width, height), return_tensors="pt")
            assert torch.allclose(ours, torch.as_tensor(exact["pixel_values"][0]), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    crop_mode=st.sampled_from(["center", "squash", "border"]),
    size=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    margin=st.integers(0, 9),
    odd_margin=st.sampled_from(["even", "down"]),
    width=st.integers(3, 90),
    height=st.integers(3, 90),
)
def test_a_mask_has_the_images_geometry(crop_mode, size, margin, odd_margin, width, height):
    preprocess = Preprocessing(
        size, (size[0] + margin, size[1] + margin), (0.0,) * 3, (1.0,) * 3, crop_mode=crop_mode, odd_margin=odd_margin
    )
    grey = picture(width, height).convert("L")
    mask = preprocess.mask(grey)
    assert mask.shape == (1, *size)
    assert torch.equal(mask[0], preprocess.image(grey.convert("RGB"))[0])
    assert 0 <= mask.min() <= mask.max() <= 1


def test_pixels_are_in_0_to_1_and_become_the_image_again():
    preprocess = Preprocessing((30, 40), (30, 40), **NORM)
    pixels = preprocess.image(picture(40, 30))
    assert 0 <= pixels.min() < 0.01 < 0.99 < pixels.max() <= 1
    shown = to_uint8(pixels)
    assert shown.dtype == np.uint8
    assert np.array_equal(shown, np.asarray(picture(40, 30)))


def test_an_image_of_another_mode_is_taken_as_rgb():
    grey = picture().convert("L")
    assert torch.equal(PLAIN.image(grey), PLAIN.image(grey.convert("RGB")))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"resize": (20, 48)}, "no \\(32, 48\\) can be cut out of \\(20, 48\\)"),
        ({"interpolation": "cubic"}, "bilinear"),
        ({"crop_mode": "crop"}, "center, squash, border"),
        ({"std": (0.0, 1.0, 1.0)}, "std > 0"),
        ({"size": (0, 4)}, "at least 1 pixel"),
    ],
)
def test_a_wrong_preprocessing_is_refused(wrong, message):
    with pytest.raises(ModelError, match=message):
        replace(PLAIN, **wrong)
