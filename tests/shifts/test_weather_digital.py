"""Snow, frost, fog, brightness, spatter; contrast, elastic, pixelate, JPEG, saturate: against the published formulas.

The references are the published code (hendrycks/robustness, make_imagenet_c.py) for one image in NumPy, SciPy, Pillow
and colorsys, fed with the random numbers that ours draws; OpenCV's part is written out.
"""

import colorsys
import io
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from clearhead.data.image_io import DataError
from clearhead.shifts.corruptions import digital, edges, weather
from clearhead.shifts.corruptions.random_fields import normal, smooth, uniform
from clearhead.shifts.sets import generators

ALL = {
    f.__name__: f
    for f in (
        *(weather.snow, weather.frost, weather.fog, weather.brightness, weather.spatter),
        *(digital.contrast, digital.elastic_transform, digital.pixelate, digital.jpeg_compression, digital.saturate),
    )
}
SEVERITIES = range(1, 6)


def sample_image(height=48, width=48, seed=0):
    """Return a smooth coloured 8-bit image with some grey, black and white, as uint8 and as a batch of one."""
    rng = np.random.default_rng(seed)
    smooth_noise = ndimage.gaussian_filter(rng.normal(size=(height, width, 3)), (3, 3, 0), mode="wrap")
    pixels = (128 + 127 * np.clip(smooth_noise / smooth_noise.std() / 2, -1, 1)).astype(np.uint8)
    pixels[:4, :4], pixels[:4, 4:8], pixels[:4, 8:12] = 0, 255, rng.integers(0, 256, (4, 4, 1))
    return pixels, batch(pixels)


def batch(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def array(result):
    return result[0].permute(1, 2, 0).double().numpy()


def ours(name, images, severity, **more):
    return array(ALL[name](images, severity, generators(3, [5]), **more))


def random_numbers(draw, images, *shapes):
    """Return the numbers that our code draws for the image, in order."""
    generator = generators(3, [5])
    return [draw(images, generator, *shape)[0].double().numpy() for shape in shapes]


def close(got, expected, within=1e-5, share=0.999):
    """Compare all but a few pixels, where float32 and float64 are on different sides of a threshold."""
    assert got.shape == expected.shape
    off = np.abs(got - expected) > within
    assert off.mean() <= 1 - share, f"{off.mean():.2%} of the values are off, at most by {np.abs(got - expected).max()}"


@pytest.fixture(scope="module", autouse=True)
def photographs(tmp_path_factory):
    """Generated photographs of frost with the published names, in the folder of the environment variable."""
    folder = tmp_path_factory.mktemp("frost")
    rng = np.random.default_rng(1)
    pictures = {}
    for i, name in enumerate(("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")):
        Image.fromarray(rng.integers(0, 256, (300 + i, 260 - i, 3), dtype=np.uint8)).save(folder / name)
        with Image.open(folder / name) as image:
            pictures[name] = np.array(image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLEARHEAD_FROST", str(folder))
        yield list(pictures.values())


# --- weather


SNOW = [
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
]


@pytest.mark.parametrize("severity", SEVERITIES)
def test_snow_is_the_published_formula(severity):
    pixels, images = sample_image(50, 50)
    generator = generators(3, [5])
    layer = normal(images, generator, 1, 50, 50)[0, 0].double().numpy()
    angle = np.radians(uniform(images, generator).item() * 90 - 135)
    mean, deviation, zoom, threshold, radius, sigma, keep = SNOW[severity - 1]

    layer = layer * deviation + mean
    cut = int(np.ceil(50 / zoom))
    top = (50 - cut) // 2
    layer = ndimage.zoom(layer[top : top + cut, top : top + cut], zoom, order=1)
    top = (len(layer) - 50) // 2
    layer = layer[top : top + 50, top : top + 50]
    layer[layer < threshold] = 0
    layer = (np.clip(layer, 0, 1) * 255).astype(np.uint8)
    taps = np.arange(2 * radius + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    y, x = np.mgrid[:50, :50]
    blurred = np.zeros((50, 50))
    for i, weight in zip(taps, weights / weights.sum(), strict=True):
        dy, dx = np.ceil(i * np.sin(angle) - 0.5), np.ceil(i * np.cos(angle) - 0.5)
        blurred += weight * layer[np.clip(y + dy, 0, 49).astype(int), np.clip(x + dx, 0, 49).astype(int)]
    layer = np.round(blurred)[..., None] / 255

    x = pixels / 255
    grey = (x @ [0.299, 0.587, 0.114])[..., None]
    x = keep * x + (1 - keep) * np.maximum(x, grey * 1.5 + 0.5)
    close(ours("snow", images, severity), np.clip(x + layer + np.rot90(layer, k=2), 0, 1), share=0.98)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_frost_is_the_published_formula(severity, photographs):
    pixels, images = sample_image(40, 60)
    choice, *corner = random_numbers(uniform, images, (3,))[0]
    photograph = photographs[int(choice * 5)]
    top, left = (int(u * (n - size)) for u, n, size in zip(corner, photograph.shape, pixels.shape, strict=False))
    keep, add = [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)][severity - 1]
    expected = np.clip(keep * pixels + add * photograph[top : top + 40, left : left + 60].astype(float), 0, 255) / 255
    close(ours("frost", images, severity), expected, share=1)


def test_frost_for_cifar_uses_every_fifth_pixel(photographs):
    pixels, images = sample_image(32, 32)
    choice, *corner = random_numbers(uniform, images, (3,))[0]
    photograph = photographs[int(choice * 5)][2::5, 2::5]
    top, left = (int(u * (n - 32)) for u, n in zip(corner, photograph.shape, strict=False))
    expected = np.clip(0.9 * pixels + 0.4 * photograph[top : top + 32, left : left + 32].astype(float), 0, 255) / 255
    close(ours("frost", images, 3, constants="cifar"), expected, share=1)


def test_frost_uses_all_five_photographs_and_covers_large_images(photographs):
    _, images = sample_image(310, 300)  # larger than any of them
    assert weather.frost(images, 5, generators(0, [1])).shape == images.shape
    dark = torch.zeros(40, 3, 200, 200)
    means = weather.frost(dark, 1, generators(0, range(40))).mean((1, 2, 3))
    assert len(means.unique()) == 40


def test_missing_frost_photographs_raise_an_error_with_a_solution(monkeypatch, tmp_path):
    _, images = sample_image(32, 32)
    monkeypatch.setenv("CLEARHEAD_FROST", str(tmp_path))
    with pytest.raises(DataError, match=r"frost1\.png cannot be read.*pip install --no-deps imagecorruptions-imaug"):
        ours("frost", images, 1)
    monkeypatch.delenv("CLEARHEAD_FROST")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install --no-deps imagecorruptions-imaug.*CLEARHEAD_FROST"):
        ours("frost", images, 1)


def published_plasma(numbers, mapsize, decay):
    """plasma_fractal of the published code; `numbers` in -1..1 in its order of drawing."""
    numbers = iter(numbers)
    grid = np.zeros((mapsize, mapsize))
    step, wibble = mapsize, 100

    def wibbled(a):
        return a / 4 + wibble * np.array([wibble * next(numbers) for _ in range(a.size)]).reshape(a.shape)

    while step >= 2:
        h = step // 2
        corner = grid[::step, ::step]
        square = corner + np.roll(corner, -1, axis=0)
        square += np.roll(square, -1, axis=1)
        grid[h::step, h::step] = wibbled(square)
        dr, ul = grid[h::step, h::step], grid[::step, ::step]
        grid[::step, h::step] = wibbled(dr + np.roll(dr, 1, axis=0) + ul + np.roll(ul, -1, axis=1))
        grid[h::step, ::step] = wibbled(dr + np.roll(dr, 1, axis=1) + ul + np.roll(ul, -1, axis=0))
        step, wibble = h, wibble / decay
    grid -= grid.min()
    return grid / grid.max()


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("constants", ["imagenet", "cifar"])
def test_fog_is_the_published_formula(severity, constants):
    pixels, images = sample_image(40, 60)
    numbers = random_numbers(uniform, images, (64 * 64 - 1,))[0] * 2 - 1
    amplitude, decay = {
        "imagenet": [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
        "cifar": [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
    }[constants][severity - 1]
    x = pixels / 255
    most = x.max()
    x = x + amplitude * published_plasma(numbers, 64, decay)[:40, :60, None]
    close(ours("fog", images, severity, constants=constants), np.clip(x * most / (most + amplitude), 0, 1), share=1)


def by_hsv(pixels, change):
    """Map every pixel (h, s, v) to (h, *change(s, v)) with colorsys."""
    out = np.empty(pixels.shape)
    for index in np.ndindex(pixels.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*(pixels[index] / 255))
        out[index] = colorsys.hsv_to_rgb(h, *change(s, v))
    return out


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_and_saturate_are_changes_of_hsv(severity):
    pixels, images = sample_image()
    more = [0.1, 0.2, 0.3, 0.4, 0.5][severity - 1]
    close(ours("brightness", images, severity), by_hsv(pixels, lambda s, v: (s, min(v + more, 1))), share=1)
    factor, added = [(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)][severity - 1]
    expected = by_hsv(pixels, lambda s, v: (min(s * factor + added, 1), v))
    close(ours("saturate", images, severity), expected, share=1)


def opencv_canny(image, low, high):
    """cv2.Canny (aperture 3, L1 gradient), pixel by pixel."""
    padded = np.pad(image.astype(int), 1, mode="edge")
    dx = ndimage.correlate(padded, [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])[1:-1, 1:-1]
    dy = ndimage.correlate(padded, [[-1, -2, -1], [0, 0, 0], [1, 2, 1]])[1:-1, 1:-1]
    size = np.pad(abs(dx) + abs(dy), 1)
    weak = np.zeros(image.shape, dtype=bool)
    for i, j in np.ndindex(image.shape):
        m, x, y = size[i + 1, j + 1], abs(int(dx[i, j])), abs(int(dy[i, j])) << 15
        if m > low:
            if y < x * 13573:
                weak[i, j] = m > size[i + 1, j] and m >= size[i + 1, j + 2]
            elif y > x * 13573 + (x << 16):
                weak[i, j] = m > size[i, j + 1] and m >= size[i + 2, j + 1]
            else:
                s = -1 if dx[i, j] * dy[i, j] < 0 else 1
                weak[i, j] = m > size[i, j + 1 - s] and m > size[i + 2, j + 1 + s]
    strong = weak & (size[1:-1, 1:-1] > high)
    return ndimage.binary_propagation(strong, np.ones((3, 3)), mask=weak)


def opencv_distance(zeros):
    """cv2.distanceTransform(DIST_L2, 5) in units of 1 / 65,536: the norm of its steps, to the nearest of all edges."""
    a, b, c = 65536, 91750, 143976
    y, x = np.mgrid[: zeros.shape[0], : zeros.shape[1]]
    best = np.full(zeros.shape, 1 << 30)
    for i, j in np.argwhere(zeros):
        long, short = np.maximum(abs(y - i), abs(x - j)), np.minimum(abs(y - i), abs(x - j))
        near = np.where(
            long >= 2 * short, a * (long - 2 * short) + c * short, c * (long - short) + b * (2 * short - long)
        )
        best = np.minimum(best, near)
    return best


def opencv_equalized(image):
    """cv2.equalizeHist."""
    counts = np.bincount(image.ravel(), minlength=256)
    lowest = np.flatnonzero(counts)[0]
    if counts[lowest] == image.size:
        return image
    sums = (counts.cumsum() - counts[lowest]).astype(np.float32)
    table = np.round(sums * np.float32(255 / (image.size - counts[lowest])))
    return table.astype(np.uint8)[image]


def published_water(layer, strength):
    """Return the water of the published spatter, H x W, from the 8-bit layer of drops."""
    near = np.minimum(opencv_distance(opencv_canny(layer, 50, 150)) / 65536, 20)
    near = opencv_equalized(ndimage.uniform_filter(near, 3, mode="mirror").__add__(1e-9).astype(np.uint8))
    lit = ndimage.correlate(near.astype(int), [[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], mode="mirror").clip(0, 255)
    drops = layer * np.round(ndimage.uniform_filter(lit.astype(float), 3, mode="mirror"))
    return drops / drops.max() * strength


SPATTER = [
    (0.65, 0.3, 4, 0.69, 0.6, 0),
    (0.65, 0.3, 3, 0.68, 0.6, 0),
    (0.65, 0.3, 2, 0.68, 0.5, 0),
    (0.65, 0.3, 1, 0.65, 1.5, 1),
    (0.67, 0.4, 1, 0.65, 1.5, 1),
]


@pytest.mark.parametrize("severity", SEVERITIES)
def test_spatter_is_the_published_formula(severity):
    pixels, images = sample_image(56, 64)
    mean, deviation, sigma, threshold, strength, mud = SPATTER[severity - 1]
    layer = ndimage.gaussian_filter(
        random_numbers(normal, images, (56, 64))[0] * deviation + mean, sigma, mode="nearest"
    )
    layer[layer < threshold] = 0
    x = pixels / 255
    if mud:
        m = ndimage.gaussian_filter((layer > threshold).astype(float), strength, mode="nearest")
        m[m < 0.8] = 0
        expected = x * (1 - m[..., None]) + m[..., None] * np.array([63, 42, 20]) / 255
    else:
        water = published_water((layer * 255).astype(np.uint8), strength)
        expected = x + water[..., None] * np.array([175, 238, 238]) / 255
    assert np.abs(expected - x).max() > 0.05
    close(ours("spatter", images, severity), np.clip(expected, 0, 1), within=2e-3, share=0.995)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 24), st.integers(3, 24), st.integers(0, 10**6), st.sampled_from([0, 0.7, 2]))
def test_edges_distances_and_equalisation_equal_opencv(height, width, seed, sigma):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(2, height, width)), (0, sigma, sigma))
    images = np.clip(128 + 90 * noise / noise.std(), 0, 255).astype(np.uint8)
    tensor = torch.from_numpy(images).float()
    result = edges.canny(tensor, 50, 150)
    for one, image, level in zip(result, images, edges.equalize_histogram(tensor), strict=True):
        np.testing.assert_array_equal(one.numpy(), opencv_canny(image, 50, 150))
        np.testing.assert_array_equal(level.numpy(), opencv_equalized(image))
        if one.any():
            np.testing.assert_array_equal(edges.distance(one[None])[0].numpy(), opencv_distance(one.numpy()))


def test_images_without_edges():
    plain = torch.full((1, 8, 9), 7.0)
    assert not edges.canny(plain, 50, 150).any()
    assert (edges.distance(torch.zeros(1, 8, 9, dtype=torch.bool)) >= 17 * edges.UNIT).all()
    assert torch.equal(edges.equalize_histogram(plain), plain)


def test_spatter_without_drops_leaves_the_image_unchanged():
    # the smallest image has one smoothed number to pass the threshold; among many seeds some do not
    images = torch.full((30, 3, 4, 4), 0.5)
    result = weather.spatter(images, 1, generators(0, range(30)))
    assert result.isfinite().all()
    assert (result == images).flatten(1).all(1).any()


@pytest.mark.parametrize("border", ["nearest", "reflect"])
@pytest.mark.parametrize("sigma", [0, 0.4, 2, 60])
def test_smoothing_equals_scipy(border, sigma):
    fields = np.random.default_rng(0).normal(size=(2, 17, 30))
    expected = [ndimage.gaussian_filter(field, sigma, mode=border, truncate=3) for field in fields]
    np.testing.assert_allclose(smooth(torch.from_numpy(fields), sigma, border, 3), expected, atol=1e-12)


# --- digital


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_is_the_published_formula(severity):
    pixels, images = sample_image(30, 40)
    share = [0.4, 0.3, 0.2, 0.1, 0.05][severity - 1]
    means = (pixels / 255).mean((0, 1), keepdims=True)
    close(ours("contrast", images, severity), (pixels / 255 - means) * share + means, share=1)


ELASTIC = {
    "imagenet": [(488, 170.8, 24.4), (488, 19.52, 48.8), (12.2, 2.44, 4.88), (17.08, 2.44, 4.88), (29.28, 2.44, 4.88)],
    "cifar": [(0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)],
}


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("constants", ["imagenet", "cifar"])
def test_elastic_transform_is_the_published_formula(severity, constants):
    height, width = 40, 52
    pixels, images = sample_image(height, width)
    moves, shifts = random_numbers(uniform, images, (3, 2), (2, height, width))
    amplitude, sigma, reach = ELASTIC[constants][severity - 1]

    centre, third = np.array([height // 2, width // 2]), min(height, width) // 3
    before = np.stack([centre + third, [centre[0] + third, centre[1] - third], centre - third])
    after = before + (2 * moves - 1) * reach
    # OpenCV's getAffineTransform gives the forward map; warpAffine looks up with its inverse
    forward = np.linalg.solve(np.c_[before, np.ones(3)], after).T
    inverse = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))
    y, x = np.mgrid[:height, :width].astype(float)
    at_x, at_y = (inverse[i, 0] * x + inverse[i, 1] * y + inverse[i, 2] for i in (0, 1))
    dx, dy = (ndimage.gaussian_filter(2 * s - 1, sigma, mode="reflect", truncate=3) * amplitude for s in shifts)
    expected = np.empty(pixels.shape)
    for channel in range(3):
        turned = ndimage.map_coordinates(pixels[..., channel] / 255, [at_y, at_x], order=1, mode="mirror")
        expected[..., channel] = ndimage.map_coordinates(turned, [y + dy, x + dx], order=1, mode="reflect")
    close(ours("elastic_transform", images, severity, constants=constants), expected, within=1e-3, share=1)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("constants", ["imagenet", "cifar"])
def test_pixelate_equals_pillow(severity, constants):
    height, width = 75, 112
    pixels, images = sample_image(height, width)
    share = {"imagenet": [0.6, 0.5, 0.4, 0.3, 0.25], "cifar": [0.95, 0.9, 0.85, 0.75, 0.65]}[constants][severity - 1]
    small = Image.fromarray(pixels).resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    expected = np.array(small.resize((width, height), Image.Resampling.BOX)) / 255
    close(ours("pixelate", images, severity, constants=constants), expected, share=1)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_equals_pillow(severity):
    pixels, images = sample_image(50, 70)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=[25, 18, 15, 10, 7][severity - 1])
    close(ours("jpeg_compression", images, severity), np.array(Image.open(file)) / 255, share=1)


# --- all


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=12, deadline=None)
@given(
    st.integers(1, 4),
    st.tuples(st.integers(4, 40), st.integers(4, 40)),
    st.sampled_from(SEVERITIES),
    st.sampled_from(["imagenet", "cifar"]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.integers(0, 2**31),
)
def test_results_are_images_and_depend_only_on_the_generator(name, count, size, severity, constants, dtype, seed):
    images = torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed)).to(dtype)
    before = images.clone()
    together = ALL[name](images, severity, generators(seed, range(count)), constants)
    assert torch.equal(images, before)
    assert together.shape == images.shape
    assert together.dtype == dtype
    assert together.min() >= 0
    assert together.max() <= 1
    assert torch.equal(together, ALL[name](images, severity, generators(seed, range(count)), constants))
    alone = ALL[name](images[-1:], severity, generators(seed, [count - 1]), constants)
    torch.testing.assert_close(together[-1:], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["snow", "frost", "fog", "spatter", "elastic_transform"])
def test_another_generator_gives_another_image(name):
    images = torch.full((2, 3, 64, 64), 0.4)
    images[:, :, ::7] = 0.8
    one, other = ALL[name](images, 3, generators(0, [0, 1]))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", ["brightness", "contrast", "pixelate", "jpeg_compression", "saturate"])
@pytest.mark.parametrize("constants", ["imagenet", "cifar"])
def test_every_severity_gives_another_image(name, constants):
    _, images = sample_image(64, 64)
    results = [ours(name, images, severity, constants=constants) for severity in SEVERITIES]
    assert all(np.abs(a - b).max() > 0.01 for a, b in itertools.pairwise(results))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("severity", [0, 6, -1])
def test_another_severity_raises_an_error(name, severity):
    with pytest.raises(ValueError, match=f"severity: got {severity}"):
        ALL[name](torch.rand(1, 3, 32, 32), severity, generators(0, [0]))


def test_one_generator_per_image_is_needed():
    with pytest.raises(ValueError, match="generators: got 1 for 2 images"):
        weather.fog(torch.rand(2, 3, 32, 32), 1, generators(0, [0]))
