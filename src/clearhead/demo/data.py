"""A small generated data set in which the ground gives the class away.

Four kinds of animal lie on paper cards, the cards on four kinds of ground. In `train` and `val` nearly every animal of
a kind is on one kind of ground; in `test` every animal is on every ground equally often. A classifier that reads the
ground does well on `val` and fails on `test`. The animals differ in shape and, less surely, in colour; size, pose and
light are drawn alike for all. Exact object masks come with the pictures.

Each picture has its own random generator, made from the seed and its number, so it does not depend on the others.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from clearhead.data.backgrounds import GROUNDS, SIZE, noise
from clearhead.data.image_io import DataError
from clearhead.demo.animals import ANIMALS, Array, Part

NATURAL = {"beetle": "sand", "bird": "forest", "butterfly": "grass", "fish": "water"}
"""The ground on which each class is found in train and val, but for the exceptions."""
NATURAL_SHARE = 0.97
"""Share of the train and val pictures in which the animal is on its own ground."""
COUNTS = {"train": 2400, "val": 400, "test": 1200}
"""Pictures a split; divided evenly over the classes."""
HUES = {"beetle": 0.0, "bird": 0.14, "butterfly": 0.82, "fish": 0.55}
"""Usual hue of each class in turns; single animals stray from it."""
FINE = 4
"""Outlines are drawn this many times finer, then averaged: smooth edges."""

Place = Callable[[Array], Array]
"""Map from a shape's own coordinates (n x 2) to pixels."""


@dataclass(frozen=True)
class Planned:
    """What is fixed about a picture before it is drawn."""

    number: int
    split: str
    label: str
    ground: str

    @property
    def file(self) -> str:
        """Path of the picture below the root of the data set."""
        return f"{self.label}/{self.split}_{self.number:05d}.png"


def make_demo(root: str | Path, seed: int = 0) -> None:
    """Write the data set below `root`: `<class>/*.png`, `masks/<class>/*.png` (255 = object) and `metadata.csv`.

    The table has the columns file, split (train, val or test) and ground. It is written last: where it is there, the
    data set is complete. Raises DataError if `root` already holds a `metadata.csv`.
    """
    root = Path(root)
    table = root / "metadata.csv"
    if table.exists():
        raise DataError(f"{table} exists: give an empty folder, or delete this one to make the data set anew")
    for label in NATURAL:
        (root / label).mkdir(parents=True, exist_ok=True)
        (root / "masks" / label).mkdir(parents=True, exist_ok=True)
    planned = plan(seed)
    for picture in planned:
        image, mask = render(picture.label, picture.ground, np.random.default_rng([seed, picture.number]))
        Image.fromarray(image).save(root / picture.file)
        Image.fromarray(mask).save(root / "masks" / picture.file)
    unfinished = table.with_suffix(".tmp")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "split", "ground"])
        writer.writerows([picture.file, picture.split, picture.ground] for picture in planned)
    unfinished.replace(table)


def plan(seed: int = 0) -> list[Planned]:
    """Class, split and ground of every picture, the splits in order, mixed within each."""
    planned: list[Planned] = []
    for split, count in COUNTS.items():
        pairs = [(label, ground) for label in NATURAL for ground in _grounds_of(label, split, count // len(NATURAL))]
        for i in np.random.default_rng(seed).permutation(len(pairs)):
            planned.append(Planned(len(planned), split, *pairs[i]))
    return planned


def _grounds_of(label: str, split: str, count: int) -> Iterator[str]:
    """The grounds of the `count` pictures of one class in one split; exceptions spread evenly over the others."""
    own, grounds = NATURAL[label], sorted(NATURAL.values())
    others = [ground for ground in grounds if ground != own]
    exceptions = count - round(NATURAL_SHARE * count)
    for i in range(count):
        if split == "test":
            yield grounds[i % len(grounds)]
        else:
            yield others[i % len(others)] if i < exceptions else own


def render(label: str, ground: str, rng: Generator) -> tuple[Array, Array]:
    """One image (SIZE x SIZE x 3) and its mask (SIZE x SIZE, 0 or 255), both uint8."""
    scene = GROUNDS[ground](rng)
    light = rng.uniform(0, 2 * np.pi)
    scene = _with_card(scene, rng, light)
    animal = ANIMALS[label](rng)
    covers = _covers(animal, _pose(animal, rng))
    shape = covers.max(0)
    scene = _painted(scene, animal, covers, _skin(rng, label), light)
    scene = _lit(scene, rng)
    return np.clip(scene * 255 + 0.5, 0, 255).astype(np.uint8), np.where(shape >= 0.5, 255, 0).astype(np.uint8)


def _with_card(scene: Array, rng: Generator, light: float) -> Array:
    """The scene with a sheet of paper lying in its middle, and the sheet's shadow."""
    half = SIZE * rng.uniform(0.36, 0.39)
    corners = half * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) @ _turned(rng.uniform(-0.08, 0.08), False).T
    corners = corners + SIZE / 2 + rng.uniform(-1.5, 1.5, 2)
    cover = _cover((corners,), lambda outline: outline)
    shadow = np.roll(gaussian_filter(cover, 1.2), (round(1.5 * np.sin(light)), round(1.5 * np.cos(light))), axis=(0, 1))
    paper = rng.uniform(0.72, 0.92) * np.array([1, 0.98, 0.93]) * (1 + 0.02 * noise(rng, slope=1))[..., None]
    scene = scene * (1 - 0.4 * shadow[..., None])
    return scene + cover[..., None] * (paper - scene)


def _turned(angle: float, mirrored: bool) -> Array:
    """2 x 2 matrix that mirrors (x to -x) and then turns."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag(
        [1 - 2.0 * mirrored, 1.0]
    )


def _pose(parts: list[Part], rng: Generator) -> Place:
    """Random mirror image, turn, size and place of an animal, wholly inside the image and near its middle."""
    turn = _turned(rng.uniform(-0.3, 0.3), bool(rng.integers(2)))
    points = np.concatenate([outline for part in parts for outline in part.outlines]) @ turn.T
    low, high = points.min(0), points.max(0)
    scale = SIZE * rng.uniform(0.52, 0.64) / (high - low).max()
    corner = (SIZE - scale * (high - low)) / 2 + rng.uniform(-2.5, 2.5, 2)
    return lambda outline: (outline @ turn.T - low) * scale + corner


def _covers(parts: list[Part], place: Place) -> Array:
    """Share of each pixel that lies inside each part: parts x SIZE x SIZE in 0..1."""
    return np.stack([_cover(part.outlines, place) for part in parts])


def _painted(scene: Array, parts: list[Part], covers: Array, skin: Array, light: float) -> Array:
    """The scene (SIZE x SIZE x 3) with the parts and their soft shadow on it."""
    shadow = gaussian_filter(covers.max(0), 1.8, truncate=2.5)
    shadow = np.roll(shadow, (round(2.5 * np.sin(light)), round(2.5 * np.cos(light))), axis=(0, 1))
    scene = scene * (1 - 0.5 * shadow[..., None])
    for part, cover, shade in zip(parts, covers, _relief(parts, covers, light), strict=True):
        colour = (skin[0] + part.tint * (skin[1] - skin[0])) * shade[..., None]
        scene += cover[..., None] * (colour - scene)
    return scene


def _cover(outlines: tuple[Array, ...], place: Place) -> Array:
    """Share of each pixel that lies inside any of the outlines: SIZE x SIZE in 0..1."""
    canvas = Image.new("L", (SIZE * FINE, SIZE * FINE))
    draw = ImageDraw.Draw(canvas)
    for outline in outlines:
        draw.polygon((place(outline) * FINE).ravel().tolist(), fill=255)
    return np.asarray(canvas.reduce(FINE), dtype=np.float32) / 255


def _relief(parts: list[Part], covers: Array, light: float) -> Array:
    """Brightness of each part (n x SIZE x SIZE) as a rounded surface, lit from the side opposite to the shadow."""
    height = gaussian_filter(covers, (0, 2.2, 2.2), truncate=2.5)
    slope = np.zeros_like(height)
    slope[:, 1:-1] += np.float32(0.5 * np.sin(light)) * (height[:, 2:] - height[:, :-2])
    slope[:, :, 1:-1] += np.float32(0.5 * np.cos(light)) * (height[:, :, 2:] - height[:, :, :-2])
    relief, bright = (
        np.array([[[v]] for v in values], np.float32)
        for values in zip(*[(p.relief, p.light) for p in parts], strict=True)
    )
    return bright * (0.82 + 0.25 * height + 2.6 * relief * slope)


def _skin(rng: Generator, label: str) -> Array:
    """Two colour fields of the animal (2 x SIZE x SIZE x 3): natural hues, blotches and, at times, bands or spots."""
    hue = HUES[label] + 0.1 * rng.normal()
    main = _colour(hue, rng.uniform(0.35, 0.8), rng.uniform(0.45, 0.95))
    second = _colour(hue + rng.uniform(-0.2, 0.2), rng.uniform(0.2, 0.8), rng.uniform(0.15, 0.9))
    pattern = noise(rng, slope=rng.uniform(0.5, 1.5), stretch=rng.uniform(1, 4), angle=rng.uniform(0, np.pi), low_cut=3)
    blend = rng.uniform(0.15, 0.7) / (1 + np.exp(-4 * (pattern - rng.uniform(-0.5, 1))))
    grain = 1 + 0.07 * noise(rng, slope=0.5)
    field = (main + blend[..., None] * (second - main)) * grain[..., None]
    return np.stack([field, np.clip(second * grain[..., None], 0.05, 1)])


def _colour(hue: float, saturation: float, value: float) -> Array:
    """Colour (3) of a hue in turns."""
    wheel = np.clip(np.abs((hue + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1, 0, 1)
    return value * (1 - saturation + saturation * wheel)


def _lit(scene: Array, rng: Generator) -> Array:
    """The scene under a soft slope of light of random direction, strength and warmth."""
    angle, fall = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.25)
    down, right = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    slope = 1 + fall * (np.cos(angle) * right + np.sin(angle) * down)
    warmth = rng.normal(0, 0.03)
    return scene * slope[..., None] * rng.uniform(0.85, 1.12) * np.array([1 + warmth, 1, 1 - warmth])
