"""Augmentation of images with their masks, and mixed batches with their soft labels."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clearhead.data.augment import augmentation, mix_batch, shift_and_flip, smooth_labels


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_image(width=40, height=32):
    """An image without black pixels."""
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(1, 256, (height, width, 3), dtype=np.uint8))


@given(st.integers(0, 10_000), st.sampled_from([(40, 32), (7, 9), (32, 32)]))
def test_a_shift_changes_image_and_mask_together_and_fills_with_black(seed, size):
    image = random_image(*size)
    mask = Image.fromarray(np.asarray(image)[..., 0])
    shifted, shifted_mask = shift_and_flip()(image, mask, generator(seed))
    result = np.asarray(shifted)
    assert np.array_equal(np.asarray(shifted_mask), result[..., 0])
    most = (size[1] // 8, size[0] // 8)
    padded = np.pad(np.asarray(image), [(n, n) for n in most] + [(0, 0)])
    windows = [
        window
        for top in range(2 * most[0] + 1)
        for left in range(2 * most[1] + 1)
        for window in [padded[top : top + size[1], left : left + size[0]]]
    ]
    assert any(np.array_equal(result, w) or np.array_equal(result, w[:, ::-1]) for w in windows)


def test_all_shifts_and_both_flips_occur():
    image, results = random_image(16, 16), set()
    for seed in range(500):
        results.add(np.asarray(shift_and_flip()(image, None, generator(seed))[0]).tobytes())
    assert len(results) == 5 * 5 * 2


def test_rand_augment_depends_only_on_its_generator():
    strong, image = augmentation("strong"), random_image()
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].copy()
    outcomes = [strong(image, image.convert("L"), generator(seed)) for seed in (0, 0, 1, 2)]
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert all(mask is None for _, mask in outcomes)  # it would no longer fit the image
    pixels = [np.asarray(changed) for changed, _ in outcomes]
    assert np.array_equal(pixels[0], pixels[1])
    assert not np.array_equal(pixels[0], pixels[2])
    assert all(changed.size == image.size for changed, _ in outcomes)


def test_augmentations_by_name():
    assert augmentation("none") is None
    image = random_image()
    window = [np.asarray(augmentation("crop", c)(image, None, generator(5))[0]).size for c in (0.1, 1.0)]
    assert window[0] < window[1] == 32 * 40 * 3
    with pytest.raises(ValueError, match="choose from crop, weak, strong, none"):
        augmentation("flip")


@given(
    st.integers(1, 9),
    st.sampled_from([(0.0, 0.0), (1.0, 0.0), (0.0, 0.8), (1.0, 0.8)]),
    st.integers(0, 2**32),
)
def test_soft_labels_are_the_mixture_of_the_image(count, parameters, seed):
    # image k is all k, of class k: its mean after any mixing is the mean of the target's classes
    values = torch.arange(count)
    images = values.float()[:, None, None, None].expand(-1, 3, 8, 8).clone()
    mixture, target = mix_batch(images, values, 10, mixup=parameters[0], cutmix=parameters[1], seed=(seed, 1, 2))
    torch.testing.assert_close(target.sum(1), torch.ones(count))
    assert target.min() >= 0
    torch.testing.assert_close(mixture.mean((1, 2, 3)), target @ torch.arange(10.0), rtol=1e-4, atol=1e-5)
    if count % 2:
        assert target[-1].argmax() == count - 1
        assert target[-1].max() == 1


def test_the_seed_decides_the_mixture():
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8)
    one, same, other = (mix_batch(images.clone(), labels, 8, mixup=1.0, cutmix=0.8, seed=(s, 3)) for s in (0, 0, 1))
    assert torch.equal(one[0], same[0])
    assert torch.equal(one[1], same[1])
    assert not torch.equal(one[0], other[0])
    windows = [
        bool((mixture == images).any())  # CutMix leaves pixels unchanged, Mixup does not
        for seed in range(40)
        for mixture in [mix_batch(images.clone(), labels, 8, mixup=1.0, cutmix=0.8, seed=(seed,))[0]]
    ]
    assert 10 < sum(windows) < 30


@given(st.floats(0, 0.99), st.integers(2, 6))
def test_label_smoothing_equals_torch(smoothing, classes):
    torch.manual_seed(0)
    logits, labels = torch.randn(5, classes), torch.randint(classes, (5,))
    ours = F.cross_entropy(logits, smooth_labels(F.one_hot(labels, classes).float(), smoothing))
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels, label_smoothing=smoothing))
