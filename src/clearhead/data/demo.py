"""A small generated data set in which the background gives the class away.

Four kinds of animal stand on four kinds of ground. In `train` and `val` an animal is nearly always on its own ground
(fish on water, bird on forest floor, ...); in `test` every animal is on every ground equally often. A classifier that
reads the ground does well on `val` and fails on `test`. Colour, size, pose and light are drawn alike for all classes,
so that only the shape tells them apart. Exact object masks come with the images. Needs numpy, SciPy and Pillow only.

An animal is a list of parts (outlines in its own coordinates, about -1..1, x forward, y down); a ground is a function
from a random generator to a picture; `render` puts one on the other. Each image has its own random generator, made
from the seed and its number, so it does not depend on the others.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt, gaussian_filter

SIZE = 64
"""Height and width of an image in pixels."""
FINE = 4
"""Outlines are drawn this many times finer, then averaged: smooth edges."""
NATURAL = {"beetle": "mushrooms", "bird": "leaves", "butterfly": "flowers", "fish": "shells"}
"""The ground on which each class is found in train and val, but for the exceptions."""
THING_COUNT, THING_RADIUS = (3, 5), (5.5, 7.0)
COUNTS = {"train": 2000, "val": 400, "test": 1600}
"""Images a split; divided evenly over the classes."""
NATURAL_SHARE = 0.95
"""Share of the train and val images in which the animal is on its own ground."""

Array = np.ndarray
Place = Callable[[Array], Array]
"""Map from a shape's own coordinates (n x 2) to pixels."""


@dataclass(frozen=True)
class Part:
    """Outlines (each n x 2) filled with one colour: `tint` mixes the animal's two colours, `light` scales them."""

    outlines: tuple[Array, ...]
    tint: float = 0.0
    light: float = 1.0
    relief: float = 1.0


@dataclass(frozen=True)
class Sample:
    """What is fixed about an image before it is drawn."""

    number: int
    split: str
    label: str
    background: str

    @property
    def file(self) -> str:
        """Path of the image below the root of the data set."""
        return f"{self.label}/{self.split}_{self.number:05d}.png"


def make_demo(root: Path, seed: int = 0) -> None:
    """Write the data set below `root`: `<class>/*.png`, `masks/<class>/*.png` (255 = object) and `metadata.csv`.

    The table has the columns file, split (train, val or test) and background. Its file is written last: where it is
    there, the data set is complete. Raises FileExistsError if `root` already holds a `metadata.csv`.
    """
    root = Path(root)
    table = root / "metadata.csv"
    if table.exists():
        raise FileExistsError(f"{table} exists: give an empty folder, or delete this one to make the data set anew")
    for label in NATURAL:
        (root / label).mkdir(parents=True, exist_ok=True)
        (root / "masks" / label).mkdir(parents=True, exist_ok=True)
    samples = plan(seed)
    for sample in samples:
        image, mask = render(sample.label, sample.background, np.random.default_rng([seed, sample.number]))
        Image.fromarray(image).save(root / sample.file)
        Image.fromarray(mask).save(root / "masks" / sample.file)
    unfinished = table.with_suffix(".tmp")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "split", "background"])
        writer.writerows([sample.file, sample.split, sample.background] for sample in samples)
    unfinished.replace(table)


def plan(seed: int = 0) -> list[Sample]:
    """Class, split and ground of every image. The exceptions of a class are spread evenly over the other grounds."""
    samples: list[Sample] = []
    for split, count in COUNTS.items():
        each = count // len(NATURAL)
        for label in NATURAL:
            for ground in _grounds_of(label, split, each):
                samples.append(Sample(len(samples), split, label, ground))
    return samples


def _grounds_of(label: str, split: str, count: int) -> Iterator[str]:
    """The grounds of the `count` images of one class in one split."""
    own, grounds = NATURAL[label], sorted(NATURAL.values())
    others = [ground for ground in grounds if ground != own]
    for i in range(count):
        if split == "test":
            yield grounds[i % len(grounds)]
        else:
            exceptions = count - round(NATURAL_SHARE * count)
            yield others[i % len(others)] if i < exceptions else own


def render(label: str, background: str, rng: Generator) -> tuple[Array, Array]:
    """One image (SIZE x SIZE x 3) and its mask (SIZE x SIZE, 0 or 255), both uint8."""
    ground = GROUNDS[rng.choice(list(GROUNDS))]
    scene = _softened(ground(rng))
    light = rng.uniform(0, 2 * np.pi)
    animal = ANIMALS[label](rng)
    covers = _covers(animal, _pose(animal, rng))
    shape = covers.max(0)
    skin = _skin(rng)
    for spot in _free_spots(shape, rng):
        thing = THINGS[background](rng)
        scene = _painted(scene, thing, _covers(thing, spot), skin, light)
    scene = _painted(scene, animal, covers, _skin(rng), light)
    scene = _lit(scene, rng)
    return np.clip(scene * 255 + 0.5, 0, 255).astype(np.uint8), np.where(shape >= 0.5, 255, 0).astype(np.uint8)


# --- placing and painting --------------------------------------------------------------------------------------------


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
    scale = SIZE * rng.uniform(0.58, 0.74) / (high - low).max()
    corner = (SIZE - scale * (high - low)) / 2 + rng.uniform(-4, 4, 2)
    return lambda outline: (outline @ turn.T - low) * scale + corner


def _free_spots(shape: Array, rng: Generator) -> list[Place]:
    """Random places for the small things: clear of the animal, of each other and of the image's edge."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    clear = distance_transform_edt(np.pad(shape == 0, 1))[1:-1, 1:-1]
    spots: list[Place] = []
    for _ in range(rng.integers(*THING_COUNT, endpoint=True)):
        radius = rng.uniform(*THING_RADIUS)
        free = np.flatnonzero(clear > radius + 0.5)
        if len(free) == 0:
            continue
        row, column = divmod(int(rng.choice(free)), SIZE)
        clear = np.minimum(clear, np.hypot(rows - row, columns - column) - radius)
        spots.append(
            _spot(np.array([column, row]) + 0.5, radius * _turned(rng.uniform(-0.5, 0.5), bool(rng.integers(2))))
        )
    return spots


def _spot(centre: Array, matrix: Array) -> Place:
    return lambda outline: outline @ matrix.T + centre


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


def _skin(rng: Generator) -> Array:
    """Two colour fields of the animal (2 x SIZE x SIZE x 3): natural hues, blotches and, at times, bands or spots."""
    hue = rng.uniform()
    main = _colour(hue, rng.uniform(0.35, 0.8), rng.uniform(0.45, 0.95))
    second = _colour(hue + rng.uniform(-0.2, 0.2), rng.uniform(0.2, 0.8), rng.uniform(0.15, 0.9))
    pattern = _noise(
        rng, slope=rng.uniform(0.5, 1.5), stretch=rng.uniform(1, 4), angle=rng.uniform(0, np.pi), low_cut=3
    )
    blend = rng.uniform(0.15, 0.7) / (1 + np.exp(-4 * (pattern - rng.uniform(-0.5, 1))))
    grain = 1 + 0.07 * _noise(rng, slope=0.5)
    field = (main + blend[..., None] * (second - main)) * grain[..., None]
    return np.stack([field, np.clip(second * grain[..., None], 0.05, 1)])


def _colour(hue: float, saturation: float, value: float) -> Array:
    """Colour (3) of a hue in turns."""
    wheel = np.clip(np.abs((hue + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1, 0, 1)
    return value * (1 - saturation + saturation * wheel)


# --- the animals -----------------------------------------------------------------------------------------------------


def _smooth(points: list[tuple[float, float]], rng: Generator, wobble: float = 0.02) -> Array:
    """Closed smooth outline near the corner points, which are first moved a little (Chaikin's corner cutting)."""
    outline = np.asarray(points, dtype=float)
    outline = outline + rng.normal(0, wobble, outline.shape)
    for _ in range(3):
        after = np.roll(outline, -1, axis=0)
        outline = np.stack([0.75 * outline + 0.25 * after, 0.25 * outline + 0.75 * after], axis=1).reshape(-1, 2)
    return outline


def _ellipse(x: float, y: float, width: float, height: float, turn: float = 0.0) -> Array:
    """Outline of an ellipse with the given half axes."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    across, down = width * np.cos(angle), height * np.sin(angle)
    return np.stack(
        [x + across * np.cos(turn) - down * np.sin(turn), y + across * np.sin(turn) + down * np.cos(turn)], 1
    )


def _stroke(points: list[tuple[float, float]], start: float, end: float) -> Array:
    """Outline of a line through the points whose half width goes from `start` to `end`."""
    line = np.asarray(points, dtype=float)
    along = np.gradient(line, axis=0)
    side = np.stack([-along[:, 1], along[:, 0]], 1) / np.linalg.norm(along, axis=1, keepdims=True)
    side *= np.linspace(start, end, len(line))[:, None]
    return np.concatenate([line + side, (line - side)[::-1]])


def _shrunk(outline: Array, factor: float) -> Array:
    """The outline made smaller about its centre."""
    centre = outline.mean(0)
    return centre + factor * (outline - centre)


def _eye(x: float, y: float, size: float) -> list[Part]:
    return [Part((_ellipse(x, y, size, size),), 0, 1.7, 0), Part((_ellipse(x, y, 0.6 * size, 0.6 * size),), 0, 0.08, 0)]


def _fish(rng: Generator) -> list[Part]:
    deep = rng.uniform(0.3, 0.52)
    fork = rng.uniform(0.25, 0.45)
    tail = [(-0.5, 0), (-0.75, -0.15), (-1.05, -fork - 0.08), (-0.9, 0), (-1.05, fork + 0.08), (-0.75, 0.15)]
    back = [(0.45, -0.8 * deep), (0.05, -deep - 0.25), (-0.35, -deep - 0.05), (-0.3, -0.5 * deep)]
    belly = [(0.1, 0.8 * deep), (-0.05, deep + 0.22), (-0.3, deep + 0.05), (-0.25, 0.5 * deep)]
    body = [(1, 0), (0.75, -0.7 * deep), (0.2, -1.12 * deep), (-0.4, -0.5 * deep), (-0.72, -0.1)]
    body += [(x, -y) for x, y in reversed(body[1:])]
    bands = []
    for x in (0.32, 0.0, -0.32):
        half = deep * (0.78 - 0.35 * abs(x - 0.12) ** 0.8) * (1 if x > -0.2 else 0.75)
        bands.append(_stroke([(x, -half), (x + 0.06, 0), (x, half)], 0.075, 0.075))
    fin = [(0.25, 0.02), (0.0, 0.2), (-0.15, 0.12), (0.0, -0.02)]
    return [
        Part((_smooth(tail, rng), _smooth(back, rng), _smooth(belly, rng)), 0.6, 0.85, 0.6),
        Part((_smooth(body, rng),)),
        Part((*bands,), 0.9, 1.15, 0.4),
        Part((_smooth(fin, rng, 0.01),), 0.8, 0.7, 0.5),
        *_eye(0.68, -0.12 * deep / 0.4, 0.085),
    ]


def _bird(rng: Generator) -> list[Part]:
    plump = rng.uniform(0.85, 1.15)
    lift = rng.uniform(-0.1, 0.12)
    head = (0.55, -0.5 + lift)
    body = [
        (0.62, -0.25 + lift),
        (0.6, 0.2),
        (0.2, 0.46 * plump),
        (-0.4, 0.28),
        (-0.7, 0.05),
        (-0.2, -0.3),
        (0.35, -0.62 + lift),
    ]
    tail = [(-0.45, -0.05), (-1.2, 0.0 - lift), (-1.25, 0.22 - lift), (-0.45, 0.25)]
    wing = [(0.3, -0.2), (-0.1, -0.3), (-0.9, 0.05), (-0.35, 0.24), (0.2, 0.16)]
    belly = [(0.58, -0.2 + lift), (0.56, 0.16), (0.2, 0.38 * plump), (-0.25, 0.28), (0.1, 0.15), (0.4, -0.1)]
    x, y = head
    beak = [(x + 0.15, y - 0.13), (x + 0.58, y + 0.04), (x + 0.15, y + 0.13)]
    legs = [
        _stroke([(s, 0.3), (s + 0.02, 0.62), (s + 0.03, 0.85), (s + 0.2, 0.88)], 0.045, 0.035) for s in (-0.02, 0.2)
    ]
    return [
        Part((*legs, np.asarray(beak)), 0.7, 0.7, 0.3),
        Part((_smooth(tail, rng),), 0.6, 0.8),
        Part((_smooth(body, rng), _ellipse(x, y, 0.27, 0.25))),
        Part((_smooth(belly, rng),), 0, 1.5, 0.5),
        Part((_smooth(wing, rng),), 0.75, 0.6),
        *_eye(x + 0.09, y - 0.05, 0.07),
    ]


def _butterfly(rng: Generator) -> list[Part]:
    spread = rng.uniform(0.8, 1.05)
    upper = [(0.05, -0.1), (0.3, -0.75), (0.95, -0.95), (1.1, -0.6), (0.75, 0.0), (0.1, 0.1)]
    lower = [(0.05, 0.0), (0.7, 0.0), (0.9, 0.45), (0.6, 0.9), (0.3, 0.7), (0.05, 0.25)]
    upper, lower = (_smooth([(spread * x, y) for x, y in wing], rng) for wing in (upper, lower))
    mirror = np.array([-1.0, 1.0])
    spot, ring = rng.uniform(0.1, 0.16), _ellipse(0.68 * spread, -0.52, 0.2, 0.17)
    dots = [ring, _ellipse(0.55 * spread, 0.42, spot, spot)]
    feelers = [_stroke([(s * 0.03, -0.4), (s * 0.1, -0.7), (s * 0.24, -0.95)], 0.03, 0.035) for s in (-1, 1)]
    return [
        Part((*feelers,), 0.5, 0.3, 0),
        Part((lower, lower * mirror, upper, upper * mirror), 0.5, 0.3, 0.5),
        Part(tuple(_shrunk(wing, 0.76) * s for wing in (lower,) for s in (1, mirror)), 0.45, 1.0, 0.6),
        Part(tuple(_shrunk(wing, 0.76) * s for wing in (upper,) for s in (1, mirror)), 0, 1.15, 0.6),
        Part((*dots, *[dot * mirror for dot in dots]), 1, 0.95, 0.2),
        Part((_ellipse(0, 0.05, 0.085, 0.5), _ellipse(0, -0.42, 0.1, 0.1)), 0.5, 0.35),
    ]


def _beetle(rng: Generator) -> list[Part]:
    wide = rng.uniform(0.46, 0.6)
    legs = []
    for start, knee, foot in ((-0.3, -0.5, -0.85), (0.05, 0.02, 0.2), (0.4, 0.55, 0.95)):
        sway = rng.normal(0, 0.05, 2)
        for side in (-1, 1):
            reach = [(0, start), (side * (wide + 0.2), knee + sway[0]), (side * (wide + 0.38), foot + sway[1])]
            legs.append(_stroke(reach, 0.085, 0.045))
    feelers = [_stroke([(s * 0.1, -0.7), (s * 0.22, -0.95), (s * 0.42, -1.1)], 0.04, 0.035) for s in (-1, 1)]
    chest = [(-0.4, -0.35), (-0.36, -0.7), (0.36, -0.7), (0.4, -0.35)]
    shell = _smooth([(-wide, -0.4), (-wide - 0.08, 0.3), (0, 1.12), (wide + 0.08, 0.3), (wide, -0.4)], rng)
    size = rng.uniform(0.1, 0.14)
    spots = [
        _ellipse(s * a * wide, b, size, size) for s in (-1, 1) for a, b in ((0.5, -0.12), (0.65, 0.32), (0.32, 0.66))
    ]
    return [
        Part((*legs, *feelers), 0.5, 0.4, 0.3),
        Part((_ellipse(0, -0.72, 0.2, 0.17),), 0.6, 0.5),
        Part((_smooth(chest, rng),), 0.7, 0.75),
        Part((shell,), 0, 1.0, 1.3),
        Part((*spots,), 0.5, 0.2, 0),
        Part((_stroke([(0, -0.42), (0, 0.3), (0, 0.92)], 0.028, 0.02),), 0.6, 0.35, 0),
    ]


ANIMALS: dict[str, Callable[[Generator], list[Part]]] = {
    "beetle": _beetle,
    "bird": _bird,
    "butterfly": _butterfly,
    "fish": _fish,
}


# --- the small things around it --------------------------------------------------------------------------------------


def _flower(rng: Generator) -> list[Part]:
    angles = rng.uniform(0, 2 * np.pi) + np.arange(5) * 2 * np.pi / 5
    petals = [_ellipse(0.62 * np.cos(a), 0.62 * np.sin(a), 0.4, 0.3, a) for a in angles]
    return [Part((*petals,), 0, 1.3), Part((_ellipse(0, 0, 0.3, 0.3),), 1, 0.6)]


def _mushroom(rng: Generator) -> list[Part]:
    cap = [(-1, 0.15), (-0.8, -0.6), (0, -1.05), (0.8, -0.6), (1, 0.15), (0, 0.3)]
    dots = [_ellipse(x, y, 0.15, 0.13) for x, y in ((-0.45, -0.25), (0.05, -0.55), (0.4, -0.1))]
    return [
        Part((_smooth([(-0.28, 0), (-0.35, 1), (0.35, 1), (0.28, 0)], rng),), 1, 1.6),
        Part((_smooth(cap, rng),)),
        Part((*dots,), 1, 1.9),
    ]


def _shell(rng: Generator) -> list[Part]:
    angles = np.linspace(-0.42 * np.pi, 0.42 * np.pi, 5)
    fan = [(0, 0.85), *[(1.0 * np.sin(a), 0.5 - 1.4 * np.cos(a)) for a in np.linspace(-0.55 * np.pi, 0.55 * np.pi, 9)]]
    ribs = [_stroke([(0.1 * np.sin(a), 0.6), (0.85 * np.sin(a), 0.5 - 1.2 * np.cos(a))], 0.03, 0.09) for a in angles]
    return [Part((_smooth(fan, rng),), 0, 1.15), Part((*ribs,), 1, 0.6, 0.2)]


def _leaf(rng: Generator) -> list[Part]:
    blade = [(-1, 0), (-0.4, -0.55), (0.35, -0.5), (1, 0), (0.35, 0.5), (-0.4, 0.55)]
    veins = [_stroke([(-1.15, 0), (0, 0.02), (0.8, 0)], 0.08, 0.03)]
    veins += [_stroke([(x, 0), (x + 0.3, side * 0.38)], 0.05, 0.03) for x in (-0.5, 0.0) for side in (-1, 1)]
    spin = np.linalg.matrix_power(_turned(1.0, False), int(rng.integers(6)))
    return [Part((_smooth(blade, rng) @ spin,), 0, 0.9), Part(tuple(v @ spin for v in veins), 1, 0.5, 0)]


THINGS: dict[str, Callable[[Generator], list[Part]]] = {
    "flowers": _flower,
    "leaves": _leaf,
    "mushrooms": _mushroom,
    "shells": _shell,
}


# --- the grounds -----------------------------------------------------------------------------------------------------


def _noise(rng: Generator, slope: float, stretch: float = 1.0, angle: float = 0.0, low_cut: float = 0.0) -> Array:
    """Random field (SIZE x SIZE, mean 0, deviation 1) with amplitude ~ 1 / frequency ** slope.

    Features are `stretch` times longer along `angle` (radians from the x axis, towards y) than across; waves with
    fewer than `low_cut` periods an image are left out.
    """
    down, right = np.fft.fftfreq(SIZE, 1 / SIZE)[:, None], np.fft.rfftfreq(SIZE, 1 / SIZE)[None]
    along = right * np.cos(angle) + down * np.sin(angle)
    across = down * np.cos(angle) - right * np.sin(angle)
    frequency = np.hypot(along * stretch, across)
    weight = np.where(frequency > low_cut, np.maximum(frequency, 1) ** -slope, 0)
    weight[0, 0] = 0
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((SIZE, SIZE))) * weight, s=(SIZE, SIZE))
    return field / field.std()


def _tinted(value: Array, *colours: tuple[int, int, int]) -> Array:
    """Colours (SIZE x SIZE x 3 in 0..1) for values: -2 is the first colour, 2 the last, between them a ramp."""
    stops = np.linspace(-2, 2, len(colours))
    return np.stack([np.interp(value, stops, channel) for channel in np.asarray(colours).T / 255], axis=-1)


def _softened(scene: Array) -> Array:
    """The scene a little out of focus and paler, so that the animal in front stands out."""
    scene = gaussian_filter(scene, (0.7, 0.7, 0), truncate=2.5)
    average = scene.mean((0, 1))
    return average + 0.6 * (scene - average)


def _lit(scene: Array, rng: Generator) -> Array:
    """The scene under a soft slope of light of random direction, strength and warmth."""
    angle, fall = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.25)
    down, right = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    slope = 1 + fall * (np.cos(angle) * right + np.sin(angle) * down)
    warmth = rng.normal(0, 0.03)
    return scene * slope[..., None] * rng.uniform(0.85, 1.12) * np.array([1 + warmth, 1, 1 - warmth])


def _water(rng: Generator) -> Array:
    angle = rng.normal(0, 0.15)
    swell = _noise(rng, slope=1.6, stretch=4, angle=angle)
    ripple = _noise(rng, slope=1.1, stretch=4, angle=angle, low_cut=4)
    glint = np.maximum(1 - 2.5 * np.abs(ripple), 0) / (1 + np.exp(-6 * (swell - 0.4)))
    return _tinted(
        0.9 * swell + 0.5 * ripple + 0.9 * glint, (10, 48, 84), (22, 88, 122), (56, 132, 158), (176, 216, 222)
    )


def _grass(rng: Generator) -> Array:
    blades = [_noise(rng, slope=0.7, stretch=7, angle=np.pi / 2 + rng.normal(0, 0.35), low_cut=3) for _ in range(3)]
    value = 1.1 * np.max(blades, axis=0) - 1.1 + 0.6 * _noise(rng, slope=2)
    return _tinted(value, (22, 44, 14), (58, 100, 30), (104, 148, 48), (176, 200, 96))


def _sand(rng: Generator) -> Array:
    dune = _noise(rng, slope=2.2)
    angle, waves = rng.uniform(-0.6, 0.6), rng.uniform(5, 9)
    down, right = np.mgrid[0 : 1 : SIZE * 1j, 0 : 1 : SIZE * 1j]
    phase = 2 * np.pi * waves * (down * np.cos(angle) + right * np.sin(angle)) + 1.3 * dune
    value = 0.65 * np.sin(phase) + 0.3 * np.sin(2 * phase + 1) + 0.45 * dune + 0.4 * _noise(rng, slope=0.2)
    return _tinted(value, (146, 110, 70), (196, 160, 110), (222, 192, 142), (244, 226, 186))


def _forest(rng: Generator) -> Array:
    """Fallen leaves on dark soil."""
    soil = _tinted(_noise(rng, slope=1.2), (24, 18, 12), (46, 34, 22), (66, 50, 32))
    canvas = Image.fromarray((soil * 255).astype(np.uint8)).resize((2 * SIZE, 2 * SIZE))
    draw = ImageDraw.Draw(canvas)
    shades = np.array([(122, 70, 30), (150, 96, 40), (96, 52, 28), (84, 78, 36), (134, 116, 58), (72, 44, 28)])
    count = 80
    centres, lengths, turns = (
        rng.uniform(0, 2 * SIZE, (count, 1, 2)),
        rng.uniform(7, 14, count),
        rng.uniform(0, 2 * np.pi, count),
    )
    ahead = (lengths * np.stack([np.cos(turns), np.sin(turns)])).T[:, None]
    aside = 0.45 * ahead[..., ::-1] * [-1, 1]
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)[:, None]
    outlines = centres + np.cos(angle) * ahead + np.sin(angle) * aside
    tones = (
        shades[rng.integers(len(shades), size=count)]
        * (np.linspace(0.4, 1, count) * rng.uniform(0.8, 1.15, count))[:, None]
    )
    for outline, tone in zip(outlines, tones, strict=True):
        draw.polygon(outline.ravel().tolist(), fill=tuple(tone.astype(int).tolist()))
        draw.line(outline[[0, 6]].ravel().tolist(), fill=tuple((0.7 * tone).astype(int).tolist()))
    leaves = np.asarray(canvas.reduce(2), dtype=np.float32) / 255
    return leaves * (1 + 0.12 * _noise(rng, slope=1))[..., None]


GROUNDS: dict[str, Callable[[Generator], Array]] = {
    "forest": _forest,
    "grass": _grass,
    "sand": _sand,
    "water": _water,
}
