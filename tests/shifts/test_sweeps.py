import functools
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clearhead.data.dataset import ImageIndex
from clearhead.shifts.sets import generators, identity_mapping
from clearhead.shifts.sweeps import (
    SWEEPS,
    frequency_noise,
    location,
    occlusion,
    patch_shuffle,
    rotation,
    scale,
    sweep_sets,
)

LEVELS = {name: sweep.levels[len(sweep.levels) // 2] for name, sweep in SWEEPS.items()}


def random_images(batch: int = 3, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def make_generators(batch: int = 3, seed: int = 0) -> list[torch.Generator]:
    return generators(seed, range(batch))


def smooth(height: int = 33, width: int = 33) -> Tensor:
    """Return an image without sharp edges, 1 x 3 x H x W, that differs from its rotations and reflections."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack([x * (1 - y), y * y, 0.5 + 0.4 * (2 * x + y).sin()])[None]


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("size", [(32, 32), (30, 45)])
def test_every_level_gives_pixels_of_the_same_shape(name: str, size: tuple[int, int]) -> None:
    images = random_images(2, *size)
    before = images.clone()
    for level in SWEEPS[name].levels:
        changed = SWEEPS[name].function(images, make_generators(2), level)
        assert changed.shape == images.shape
        assert changed.dtype == images.dtype
        assert changed.min() >= 0
        assert changed.max() <= 1
        assert not torch.equal(changed, images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", [name for name, sweep in SWEEPS.items() if sweep.unchanged is not None])
def test_the_unchanged_level_changes_nothing(name: str) -> None:
    images = random_images(height=30, width=45)
    assert torch.equal(SWEEPS[name].function(images, make_generators(), SWEEPS[name].unchanged), images)


@pytest.mark.parametrize("name", SWEEPS)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    images = random_images(4)
    function = functools.partial(SWEEPS[name].function, level=LEVELS[name])
    together = function(images, generators(7, range(4)))
    alone = torch.cat([function(images[i : i + 1], generators(7, [i])) for i in range(4)])
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=0)
    assert torch.equal(together, function(images, generators(7, range(4))))


@pytest.mark.parametrize("name", ["frequency noise", "equal-energy noise", "occlusion", "patch shuffle", "location"])
def test_images_of_a_batch_are_changed_differently(name: str) -> None:
    images = random_images(1).expand(8, -1, -1, -1)
    changed = SWEEPS[name].function(images, make_generators(8), LEVELS[name])
    assert len(changed.flatten(1).unique(dim=0)) > 5  # moves of a small image may coincide


def added_noise(level: float, height: int, width: int, **options: float) -> np.ndarray:
    """Return the noise on mid-grey, where nothing is clipped: B x 3 x H x W."""
    grey = torch.full((2, 3, height, width), 0.5)
    return (frequency_noise(grey, make_generators(2), level, **options) - 0.5).double().numpy()


@given(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]), st.integers(30, 50), st.integers(30, 50))
@settings(max_examples=20, deadline=None)
def test_the_noise_has_only_the_frequencies_of_its_ring(level: float, height: int, width: int) -> None:
    energy = np.abs(np.fft.fft2(added_noise(level, height, width, eps=0.1))) ** 2
    y = 2 * np.pi * np.abs(np.fft.fftfreq(height))[:, None]
    x = 2 * np.pi * np.abs(np.fft.fftfreq(width))[None]
    inside = np.abs(np.maximum(x, y) - math.pi * level) <= 0.2 + 1e-9
    assert energy[..., ~inside].sum() < 1e-6 * energy.sum()
    assert energy[..., inside].min() > 0


@pytest.mark.parametrize("size", [(32, 32), (31, 40)])
def test_the_noise_is_filtered_random_signs(size: tuple[int, int]) -> None:
    """Compare with the published steps in NumPy: the full transform, shifted to the centre, masked by a square ring."""
    level, spread, eps = 0.5, 0.2, 0.05
    signs = (
        torch.stack([torch.rand(3, *size, generator=g) for g in make_generators(2)]).sub(0.5).sign().double().numpy()
    )
    spectrum = np.fft.fftshift(np.fft.fft2(eps * signs), axes=(-2, -1))
    ring = np.zeros(size)
    for i in range(size[0]):
        for j in range(size[1]):
            w = 2 * math.pi * max(abs(i - size[0] // 2) / size[0], abs(j - size[1] // 2) / size[1])
            ring[i, j] = math.pi * level - spread <= w < math.pi * level + spread
    expected = np.fft.ifft2(np.fft.ifftshift(spectrum * ring, axes=(-2, -1)))
    assert np.abs(expected.imag).max() < 1e-12
    np.testing.assert_allclose(added_noise(level, *size, eps=eps), expected.real, atol=1e-6)


def test_the_amplitude_of_the_noise() -> None:
    def rms(level: float, **options: float) -> float:
        return float(np.sqrt((added_noise(level, 224, 224, **options) ** 2).mean()))

    for level in (0.1, 0.5, 0.9):
        assert rms(level, rms=0.03) == pytest.approx(0.03, rel=1e-3)
        assert rms(level, eps=0.1) == pytest.approx(0.1 * math.sqrt(4 * level * 0.2 / math.pi), rel=0.05)


@pytest.mark.parametrize("level", [-0.5, 1.5])
def test_a_missing_frequency_raises_an_error(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        frequency_noise(random_images(), make_generators(), level)


@given(st.floats(0, 1), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_occlusion_drops_whole_patches(level: float, seed: int) -> None:
    images = random_images(2, 28, 42) * 0.5 + 0.25
    changed = occlusion(images, make_generators(2, seed), level, fill=1.0)
    hidden = (changed == 1).all(1)
    assert torch.equal(changed, torch.where(hidden[:, None], 1.0, images))
    patches = hidden.unflatten(2, (14, 3)).unflatten(1, (14, 2)).float().mean((2, 4))
    assert set(patches.unique().tolist()) <= {0.0, 1.0}
    assert patches.sum((1, 2)).tolist() == [math.floor(level * 196 + 1e-9)] * 2


def test_occlusion_at_the_published_fractions() -> None:
    for tenths in range(10):
        changed = occlusion(torch.ones(1, 3, 14, 14), make_generators(1), tenths / 10)
        assert (changed[0, 0] == 0).sum() == tenths * 196 // 10


def test_occlusion_at_a_higher_level_contains_that_at_a_lower() -> None:
    less, more = (occlusion(torch.ones(2, 3, 28, 28), make_generators(2), level) for level in (0.3, 0.5))
    assert (more <= less).all()


@pytest.mark.parametrize("level", [-0.1, 1.1])
def test_occlusion_outside_0_to_1_raises_an_error(level: float) -> None:
    with pytest.raises(ValueError, match=r"a fraction of the patches in 0\.\.1"):
        occlusion(random_images(), make_generators(), level)


@given(st.integers(1, 20), st.integers(20, 40), st.integers(20, 40), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_patch_shuffle_moves_whole_patches(n: int, height: int, width: int, seed: int) -> None:
    images = torch.arange(2 * 3 * height * width).reshape(2, 3, height, width).float()
    changed = patch_shuffle(images, make_generators(2, seed), n)
    assert torch.equal(changed.flatten(2).sort().values, images.flatten(2).sort().values)
    h, w = height // n, width // n
    assert torch.equal(changed[..., n * h :, :], images[..., n * h :, :])
    assert torch.equal(changed[..., n * w :], images[..., n * w :])

    def patches(image: Tensor) -> list[tuple[float, ...]]:
        cut = [image[:, i * h : i * h + h, j * w : j * w + w] for i in range(n) for j in range(n)]
        return sorted(tuple(patch.flatten().tolist()) for patch in cut)

    assert all(patches(changed[i]) == patches(images[i]) for i in range(2))


@pytest.mark.parametrize("level", [0, 2.5, 33, -1])
def test_patch_shuffle_needs_an_integer_grid(level: float) -> None:
    with pytest.raises(ValueError, match=r"integer number of patches per side in 1\.\.32"):
        patch_shuffle(random_images(), make_generators(), level)


@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
@pytest.mark.parametrize("side", [32, 33])
def test_rotation_by_quarter_turns(quarters: int, side: int) -> None:
    images = random_images(height=side, width=side)
    turned = rotation(images, make_generators(), 90 * quarters)
    torch.testing.assert_close(turned, torch.rot90(images, quarters, (2, 3)), atol=1e-3, rtol=0)


def test_rotation_is_inverted_and_fills_corners() -> None:
    there = rotation(smooth(), make_generators(1), 30, fill=0.7)
    back = rotation(there, make_generators(1), -30)
    middle = (..., slice(9, 24), slice(9, 24))
    torch.testing.assert_close(back[middle], smooth()[middle], atol=0.01, rtol=0)
    torch.testing.assert_close(there[..., 0, 0], torch.full((1, 3), 0.7))


def test_scale_by_integer_factors() -> None:
    images = random_images(height=32, width=48)
    large = scale(images, make_generators(), 2)
    expected = torch.nn.functional.interpolate(images[..., 8:24, 12:36], scale_factor=2, mode="bilinear")
    torch.testing.assert_close(large, expected)
    small = scale(images, make_generators(), 0.5, fill=0.3)
    frame = torch.ones(32, 48, dtype=torch.bool)
    frame[8:24, 12:36] = False
    assert (small[..., frame] == 0.3).all()
    constant = scale(torch.full((1, 3, 32, 48), 0.6), make_generators(1), 0.5)
    torch.testing.assert_close(constant[..., 8:24, 12:36], torch.full((1, 3, 16, 24), 0.6))


def test_scale_keeps_the_centre() -> None:
    image = smooth(64, 64)
    back = scale(scale(image, make_generators(1), 0.5), make_generators(1), 2)
    torch.testing.assert_close(back[..., 4:60, 4:60], image[..., 4:60, 4:60], atol=0.01, rtol=0)


@pytest.mark.parametrize("level", [0, -1, 0.01, 100])
def test_a_scale_that_leaves_nothing_raises_an_error(level: float) -> None:
    with pytest.raises(ValueError, match="leaves nothing of 32 x 32"):
        scale(random_images(), make_generators(), level)


@given(st.floats(0, 1.5), st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_location_moves_by_whole_pixels(level: float, seed: int) -> None:
    image = torch.arange(1, 20 * 30 + 1).reshape(1, 1, 20, 30).expand(1, 3, -1, -1) / 1000
    moved = location(image, make_generators(1, seed), level)[0, 0]
    visible = moved.nonzero()
    if not len(visible):
        assert level > 0.6
        return
    values = (moved[visible[:, 0], visible[:, 1]] * 1000).round().long() - 1
    offsets = (visible - torch.stack([values // 30, values % 30], 1)).unique(dim=0)
    assert len(offsets) == 1
    dy, dx = offsets[0].tolist()
    assert len(visible) == (20 - abs(dy)) * (30 - abs(dx))
    assert math.hypot(dy, dx) == pytest.approx(30 * level, abs=0.75)


def test_location_fills_pixels_from_outside() -> None:
    assert (location(torch.zeros(5, 3, 16, 16), make_generators(5), 3, fill=0.4) == 0.4).all()


def test_sweep_sets() -> None:
    folder = ImageIndex(Path("somewhere"), ("cat", "dog"), (), ())
    class_mappings = {"top": identity_mapping(2)}
    sets = sweep_sets(folder, class_mappings, "frequency noise")
    assert [s.name for s in sets] == [f"frequency noise 0.{i}" for i in range(1, 10)]
    assert all(
        s.family == "frequency noise" and s.folder is folder and s.class_mappings is class_mappings for s in sets
    )
    (one,) = sweep_sets(folder, class_mappings, "rotation", [20])
    assert (one.name, one.level) == ("rotation 20", 20)
    shift = pickle.loads(pickle.dumps(one.shift))  # goes to other processes
    images = random_images()
    assert torch.equal(shift(images, make_generators()), rotation(images, make_generators(), 20))


def test_an_unknown_sweep_raises_an_error() -> None:
    with pytest.raises(ValueError, match=r"name: 'spin' is unknown; choose from frequency noise, .*rotation"):
        sweep_sets(ImageIndex(Path("somewhere"), (), (), ()), {}, "spin")
