"""Generate a small data set in which the background is spuriously correlated with the class.

Animals of four classes lie on paper cards, on four backgrounds. In `train` and `val` nearly all animals of a class have
the same background; in `test` every class has every background equally often. A classifier that relies on the
background does well on `val` and fails on `test`. The animals differ in shape and, less reliably, in colour; size, pose
and light have the same distribution for all. The images come with exact object masks.

Each image has its own random generator, made from the seed and its number, so it does not depend on the others.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from clearhead.data.writing import require_no_metadata, write_metadata
from clearhead.demo.animals import ANIMALS, Part
from clearhead.demo.backgrounds import BACKGROUNDS, SIZE, Array, noise

USUAL_BACKGROUND = {"beetle": "sand", "bird": "forest", "butterfly": "grass", "fish": "water"}
"""The background of most training and validation images of each class."""
CORRELATION = 0.97
"""Fraction of the training and validation images that have the usual background."""
COUNTS = {"train": 2400, "val": 400, "test": 1200}
"""Images per split, divided evenly over the classes."""
HUES = {"beetle": 0.0, "bird": 0.14, "butterfly": 0.82, "fish": 0.55}
"""Mean hue of each class, in 0..1; single animals deviate from it."""
SUPERSAMPLING = 4
"""Outlines are drawn at this multiple of the size, then averaged to smooth the edges."""

Transform = Callable[[Array], Array]
"""Map from a shape's own coordinates (n x 2) to pixels."""


@dataclass(frozen=True)
class PlannedImage:
    """An image before it is drawn."""

    number: int
    split: str
    label: str
    background: str

    @property
    def file(self) -> str:
        """The path relative to the root of the data set."""
        return f"{self.label}/{self.split}_{self.number:05d}.png"


def make_demo(root: str | Path, seed: int = 0) -> None:
    """Write the data set: `<class>/*.png`, `masks/<class>/*.png` (255 = object) and `metadata.csv`.

    The table has the columns file, split (train, val or test) and background. It is written last: if it exists, the
    data set is complete. Raises DataError if `root` already holds a `metadata.csv`.
    """
    root = Path(root)
    require_no_metadata(root)
    for label in USUAL_BACKGROUND:
        (root / label).mkdir(parents=True, exist_ok=True)
        (root / "masks" / label).mkdir(parents=True, exist_ok=True)
    planned = plan(seed)
    for one in planned:
        image, mask = render(one.label, one.background, np.random.default_rng([seed, one.number]))
        Image.fromarray(image).save(root / one.file)
        Image.fromarray(mask).save(root / "masks" / one.file)
    write_metadata(root, ("file", "split", "background"), ((one.file, one.split, one.background) for one in planned))


def plan(seed: int = 0) -> list[PlannedImage]:
    """Return class, split and background of every image: the splits in order, shuffled within each."""
    planned: list[PlannedImage] = []
    for split, count in COUNTS.items():
        per_class = count // len(USUAL_BACKGROUND)
        pairs = [(label, name) for label in USUAL_BACKGROUND for name in _backgrounds_of(label, split, per_class)]
        for i in np.random.default_rng(seed).permutation(len(pairs)):
            planned.append(PlannedImage(len(planned), split, *pairs[i]))
    return planned


def _backgrounds_of(label: str, split: str, count: int) -> Iterator[str]:
    """Yield the backgrounds of one class in one split; exceptions are spread evenly over the other backgrounds."""
    usual, backgrounds = USUAL_BACKGROUND[label], sorted(USUAL_BACKGROUND.values())
    others = [name for name in backgrounds if name != usual]
    exceptions = count - round(CORRELATION * count)
    for i in range(count):
        if split == "test":
            yield backgrounds[i % len(backgrounds)]
        else:
            yield others[i % len(others)] if i < exceptions else usual


def render(label: str, background: str, rng: Generator) -> tuple[Array, Array]:
    """Return one image (SIZE x SIZE x 3) and its mask (SIZE x SIZE, 0 or 255), both uint8."""
    scene = BACKGROUNDS[background](rng)
    light = rng.uniform(0, 2 * np.pi)
    scene = _add_card(scene, rng, light)
    animal = ANIMALS[label](rng)
    coverage = _coverage(animal, _random_pose(animal, rng))
    shape = coverage.max(0)
    scene = _paint(scene, animal, coverage, _random_skin(rng, label), light)
    scene = _illuminate(scene, rng)
    return np.clip(scene * 255 + 0.5, 0, 255).astype(np.uint8), np.where(shape >= 0.5, 255, 0).astype(np.uint8)


def _add_card(scene: Array, rng: Generator, light: float) -> Array:
    """Draw a sheet of paper and its shadow in the middle of the scene."""
    half = SIZE * rng.uniform(0.36, 0.39)
    corners = half * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) @ _rotation(rng.uniform(-0.08, 0.08), False).T
    corners = corners + SIZE / 2 + rng.uniform(-1.5, 1.5, 2)
    cover = _rasterize((corners,), lambda outline: outline)
    shadow = np.roll(gaussian_filter(cover, 1.2), (round(1.5 * np.sin(light)), round(1.5 * np.cos(light))), axis=(0, 1))
    paper = rng.uniform(0.72, 0.92) * np.array([1, 0.98, 0.93]) * (1 + 0.02 * noise(rng, slope=1))[..., None]
    scene = scene * (1 - 0.4 * shadow[..., None])
    return scene + cover[..., None] * (paper - scene)


def _rotation(angle: float, flipped: bool) -> Array:
    """Return the 2 x 2 matrix that flips (x to -x), if asked for, and then rotates."""
    rotation: Array = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return rotation @ np.diag([1 - 2.0 * flipped, 1.0])


def _random_pose(parts: list[Part], rng: Generator) -> Transform:
    """Return a random flip, rotation, scale and shift that keeps an animal inside the image and near its middle."""
    rotation = _rotation(rng.uniform(-0.3, 0.3), bool(rng.integers(2)))
    points = np.concatenate([outline for part in parts for outline in part.outlines]) @ rotation.T
    low, high = points.min(0), points.max(0)
    scale = SIZE * rng.uniform(0.52, 0.64) / (high - low).max()
    corner = (SIZE - scale * (high - low)) / 2 + rng.uniform(-2.5, 2.5, 2)
    return lambda outline: (outline @ rotation.T - low) * scale + corner


def _coverage(parts: list[Part], pose: Transform) -> Array:
    """Return the fraction of each pixel inside each part: parts x SIZE x SIZE."""
    return np.stack([_rasterize(part.outlines, pose) for part in parts])


def _paint(scene: Array, parts: list[Part], coverage: Array, skin: Array, light: float) -> Array:
    """Draw the parts and their soft shadow onto the scene (SIZE x SIZE x 3)."""
    shadow = gaussian_filter(coverage.max(0), 1.8, truncate=2.5)
    shadow = np.roll(shadow, (round(2.5 * np.sin(light)), round(2.5 * np.cos(light))), axis=(0, 1))
    scene = scene * (1 - 0.5 * shadow[..., None])
    for part, cover, shade in zip(parts, coverage, _shading(parts, coverage, light), strict=True):
        colour = (skin[0] + part.tint * (skin[1] - skin[0])) * shade[..., None]
        scene += cover[..., None] * (colour - scene)
    return scene


def _rasterize(outlines: tuple[Array, ...], transform: Transform) -> Array:
    """Return the fraction of each pixel inside any of the outlines: SIZE x SIZE."""
    canvas = Image.new("L", (SIZE * SUPERSAMPLING, SIZE * SUPERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    for outline in outlines:
        draw.polygon((transform(outline) * SUPERSAMPLING).ravel().tolist(), fill=255)
    return np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32) / 255


def _shading(parts: list[Part], coverage: Array, light: float) -> Array:
    """Return the brightness of each part (n x SIZE x SIZE) as a rounded surface, lit from opposite its shadow."""
    height = gaussian_filter(coverage, (0, 2.2, 2.2), truncate=2.5)
    slope = np.zeros_like(height)
    slope[:, 1:-1] += np.float32(0.5 * np.sin(light)) * (height[:, 2:] - height[:, :-2])
    slope[:, :, 1:-1] += np.float32(0.5 * np.cos(light)) * (height[:, :, 2:] - height[:, :, :-2])
    relief, bright = (
        np.array([[[v]] for v in values], np.float32)
        for values in zip(*[(p.relief, p.light) for p in parts], strict=True)
    )
    shading: Array = bright * (0.82 + 0.25 * height + 2.6 * relief * slope)
    return shading


def _random_skin(rng: Generator, label: str) -> Array:
    """Return two colour fields of the animal (2 x SIZE x SIZE x 3): a natural hue, blotches and some bands or spots."""
    hue = HUES[label] + 0.1 * rng.normal()
    main = _colour(hue, rng.uniform(0.35, 0.8), rng.uniform(0.45, 0.95))
    second = _colour(hue + rng.uniform(-0.2, 0.2), rng.uniform(0.2, 0.8), rng.uniform(0.15, 0.9))
    pattern = noise(rng, slope=rng.uniform(0.5, 1.5), stretch=rng.uniform(1, 4), angle=rng.uniform(0, np.pi), low_cut=3)
    blend = rng.uniform(0.15, 0.7) / (1 + np.exp(-4 * (pattern - rng.uniform(-0.5, 1))))
    grain = 1 + 0.07 * noise(rng, slope=0.5)
    field = (main + blend[..., None] * (second - main)) * grain[..., None]
    return np.stack([field, np.clip(second * grain[..., None], 0.05, 1)])


def _colour(hue: float, saturation: float, value: float) -> Array:
    """Return the RGB colour (3 values) of a hue in 0..1."""
    wheel: Array = np.clip(np.abs((hue + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1, 0, 1)
    colour: Array = value * (1 - saturation + saturation * wheel)
    return colour


def _illuminate(scene: Array, rng: Generator) -> Array:
    """Light the scene with a soft gradient of random direction, strength and warmth."""
    angle, falloff = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.25)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    slope = 1 + falloff * (np.cos(angle) * x + np.sin(angle) * y)
    warmth = rng.normal(0, 0.03)
    lit: Array = scene * slope[..., None] * rng.uniform(0.85, 1.12) * np.array([1 + warmth, 1, 1 - warmth])
    return lit
