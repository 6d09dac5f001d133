"""Draw the demo's animals as outlines: a list of parts each, in coordinates of about -1..1, x forward, y down."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from clearhead.demo.backgrounds import Array


@dataclass(frozen=True)
class Part:
    """Outlines (each n x 2) filled with one colour: `tint` mixes the animal's two colours, `light` scales them."""

    outlines: tuple[Array, ...]
    tint: float = 0.0
    light: float = 1.0
    relief: float = 1.0


def _smooth(points: list[tuple[float, float]], rng: Generator, wobble: float = 0.02) -> Array:
    """Return a closed smooth outline near randomly shifted corner points (Chaikin's corner cutting)."""
    outline = np.asarray(points, dtype=float)
    outline = outline + rng.normal(0, wobble, outline.shape)
    for _ in range(3):
        after = np.roll(outline, -1, axis=0)
        outline = np.stack([0.75 * outline + 0.25 * after, 0.25 * outline + 0.75 * after], axis=1).reshape(-1, 2)
    return outline


def _ellipse(x: float, y: float, width: float, height: float, turn: float = 0.0) -> Array:
    """Return the outline of an ellipse with half axes `width` and `height`, rotated by `turn`."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    across, down = width * np.cos(angle), height * np.sin(angle)
    return np.stack(
        [x + across * np.cos(turn) - down * np.sin(turn), y + across * np.sin(turn) + down * np.cos(turn)], 1
    )


def _stroke(points: list[tuple[float, float]], start: float, end: float) -> Array:
    """Return the outline of a line through the points, with half width from `start` to `end`."""
    line: Array = np.asarray(points, dtype=float)
    along = np.gradient(line, axis=0)
    side = np.stack([-along[:, 1], along[:, 0]], 1) / np.linalg.norm(along, axis=1, keepdims=True)
    side *= np.linspace(start, end, len(line))[:, None]
    return np.concatenate([line + side, (line - side)[::-1]])


def _scale(outline: Array, factor: float) -> Array:
    """Scale an outline about its centre."""
    centre: Array = outline.mean(0)
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
    above, below = (_smooth([(spread * x, y) for x, y in wing], rng) for wing in (upper, lower))
    mirror = np.array([-1.0, 1.0])
    spot, ring = rng.uniform(0.1, 0.16), _ellipse(0.68 * spread, -0.52, 0.2, 0.17)
    dots = [ring, _ellipse(0.55 * spread, 0.42, spot, spot)]
    feelers = [_stroke([(s * 0.03, -0.4), (s * 0.1, -0.7), (s * 0.24, -0.95)], 0.03, 0.035) for s in (-1, 1)]
    return [
        Part((*feelers,), 0.5, 0.3, 0),
        Part((below, below * mirror, above, above * mirror), 0.5, 0.3, 0.5),
        Part((_scale(below, 0.76), _scale(below, 0.76) * mirror), 0.45, 1.0, 0.6),
        Part((_scale(above, 0.76), _scale(above, 0.76) * mirror), 0, 1.15, 0.6),
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
