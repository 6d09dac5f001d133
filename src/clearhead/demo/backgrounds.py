"""Draw the demo's backgrounds: random images of sand, grass, water or fallen leaves."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.random import Generator
from PIL import Image, ImageDraw

SIZE = 64
"""Height and width of an image in pixels."""

Array = npt.NDArray[Any]


def noise(rng: Generator, slope: float, stretch: float = 1.0, angle: float = 0.0, low_cut: float = 0.0) -> Array:
    """Return a random field (SIZE x SIZE, mean 0, standard deviation 1) with amplitude ~ 1 / frequency ** slope.

    Features are `stretch` times longer along `angle` (radians from the x axis towards y) than across. Waves with at
    most `low_cut` periods per image are left out.
    """
    v, u = np.fft.fftfreq(SIZE, 1 / SIZE)[:, None], np.fft.rfftfreq(SIZE, 1 / SIZE)[None]
    along = u * np.cos(angle) + v * np.sin(angle)
    across = v * np.cos(angle) - u * np.sin(angle)
    frequency = np.hypot(along * stretch, across)
    weight = np.where(frequency > low_cut, np.maximum(frequency, 1) ** -slope, 0)
    weight[0, 0] = 0
    field: Array = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((SIZE, SIZE))) * weight, s=(SIZE, SIZE))
    field /= field.std()
    return field


def _colour_ramp(value: Array, *colours: tuple[int, int, int]) -> Array:
    """Map values to colours (SIZE x SIZE x 3 in 0..1) by linear interpolation: -2 is the first colour, 2 the last."""
    stops = np.linspace(-2, 2, len(colours))
    return np.stack([np.interp(value, stops, channel) for channel in np.asarray(colours).T / 255], axis=-1)


def _water(rng: Generator) -> Array:
    angle = rng.normal(0, 0.15)
    swell = noise(rng, slope=1.6, stretch=4, angle=angle)
    ripple = noise(rng, slope=1.1, stretch=4, angle=angle, low_cut=4)
    glint = np.maximum(1 - 2.5 * np.abs(ripple), 0) / (1 + np.exp(-6 * (swell - 0.4)))
    return _colour_ramp(
        0.9 * swell + 0.5 * ripple + 0.9 * glint, (10, 48, 84), (22, 88, 122), (56, 132, 158), (176, 216, 222)
    )


def _grass(rng: Generator) -> Array:
    blades = [noise(rng, slope=0.7, stretch=7, angle=np.pi / 2 + rng.normal(0, 0.35), low_cut=3) for _ in range(3)]
    value = 1.1 * np.max(blades, axis=0) - 1.1 + 0.6 * noise(rng, slope=2)
    return _colour_ramp(value, (22, 44, 14), (58, 100, 30), (104, 148, 48), (176, 200, 96))


def _sand(rng: Generator) -> Array:
    dune = noise(rng, slope=2.2)
    angle, waves = rng.uniform(-0.6, 0.6), rng.uniform(5, 9)
    y, x = np.mgrid[0 : 1 : SIZE * 1j, 0 : 1 : SIZE * 1j]
    phase = 2 * np.pi * waves * (y * np.cos(angle) + x * np.sin(angle)) + 1.3 * dune
    value = 0.65 * np.sin(phase) + 0.3 * np.sin(2 * phase + 1) + 0.45 * dune + 0.4 * noise(rng, slope=0.2)
    return _colour_ramp(value, (146, 110, 70), (196, 160, 110), (222, 192, 142), (244, 226, 186))


def _forest(rng: Generator) -> Array:
    """Draw fallen leaves on dark soil."""
    soil = _colour_ramp(noise(rng, slope=1.2), (24, 18, 12), (46, 34, 22), (66, 50, 32))
    canvas = Image.fromarray((soil * 255).astype(np.uint8)).resize((2 * SIZE, 2 * SIZE))
    draw = ImageDraw.Draw(canvas)
    shades = np.array([(122, 70, 30), (150, 96, 40), (96, 52, 28), (84, 78, 36), (134, 116, 58), (72, 44, 28)])
    count = 80
    centres, lengths, rotations = (
        rng.uniform(0, 2 * SIZE, (count, 1, 2)),
        rng.uniform(7, 14, count),
        rng.uniform(0, 2 * np.pi, count),
    )
    ahead = (lengths * np.stack([np.cos(rotations), np.sin(rotations)])).T[:, None]
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
    return leaves * (1 + 0.12 * noise(rng, slope=1))[..., None]


BACKGROUNDS: dict[str, Callable[[Generator], Array]] = {
    "forest": _forest,
    "grass": _grass,
    "sand": _sand,
    "water": _water,
}
