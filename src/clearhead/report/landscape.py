"""The loss around the weights on the page: spectra, surfaces, the way of training."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import gaussian_kde

from clearhead.analyses.surface import Surface
from clearhead.landscape import SpectralDensity, Trajectory, pool_densities
from clearhead.metrics.statistics import Estimate, format_value
from clearhead.report import plots
from clearhead.report.page import Figure, Row, Section, Table
from clearhead.results import SpectrumResults, SurfaceResults, TrajectoryResults

MOST_CURVES = 8
"""Figures draw this many models, the first; the table has all."""

# --- spectra ---------------------------------------------------------------------------------------------------------


def spectrum_sections(run: SpectrumResults) -> list[Section]:
    """A density for the negative and the positive end, the whole spectrum, its change by epoch, a table of models."""
    sections = _by_epoch(run)
    shown, of = _first(run.spectra)
    values = {name: np.concatenate([b.values for b in found.batches]) for name, found in shown.items()}
    for end, sign in (("Negative", -1), ("Positive", 1)):
        one = {name: v[v * sign > 0] for name, v in values.items() if len(np.unique(v[v * sign > 0])) > 1}
        if one:
            middles = [abs(float(np.median(v))) for v in one.values()]
            log = max(middles) > 10 * min(middles)
            title = f"{end} eigenvalues"
            text = (
                f"Density of the {run.k} eigenvalues of largest magnitude of every mini-batch that are {end.lower()}"
                + (", by power of ten: the models are far apart." if log else ".")
            )
            across = "magnitude of the eigenvalue" if log and sign < 0 else "eigenvalue"
            points = {name: _density(v, log) for name, v in one.items()}
            plot = plots.lines(points, title, across, "density", unit="", markers=False, log=log)
            sections.append(Figure(title, text + of, plot))
    whole = {
        name: pool_densities(b.density for b in found.batches if b.density)
        for name, found in shown.items()
        if found.batches[0].density
    }
    if whole:
        title = "Whole spectrum"
        text = (
            "Density of all eigenvalues, mean over mini-batches, by stochastic Lanczos quadrature; smoothed by a "
            "Gaussian of 1% of the range, in powers of ten: most eigenvalues are near 0."
        )
        plot = plots.lines(_whole(whole), title, "eigenvalue", "density", unit="", markers=False, log_up=True)
        sections.append(Figure(title, text + of, plot))
    rows = []
    for name, found in run.spectra.items():
        cells = [found.largest, found.lowest, found.negative, found.positive, found.loss]
        cells += [found.trace] if found.trace else []
        products = float(np.mean([b.products for b in found.batches]))
        rows.append(Row(name, cells, f"{len(found.batches)} batches, {format_value(products)} products each"))
    text = (
        f"Means over mini-batches. Negative: share of the {run.k} eigenvalues of largest magnitude that are; positive: "
        "mean of those that are. Highest and lowest: the two ends of the whole spectrum."
    )
    columns = ["highest", "lowest", "negative", "positive", "loss", *(["trace"] if whole else [])]
    return [*sections, Table("Spectra", columns, rows, text, names="model")]


def _by_epoch(run: SpectrumResults) -> list[Section]:
    """The highest eigenvalue and the share of negative ones against the epoch, for each run of several epochs."""
    epochs: dict[str, list[tuple[int, str]]] = {}
    for name in run.spectra:
        if found := re.fullmatch(r"(?:(.*), )?epoch (\d+)", name):
            epochs.setdefault(found[1] or "epochs", []).append((int(found[2]), name))
    several, of_all = _first({of: kept for of, kept in epochs.items() if len(kept) > 1})
    sections: list[Section] = []
    for title, label, unit, measure in (
        ("Highest eigenvalue by epoch", "eigenvalue", "", "largest"),
        ("Negative eigenvalues by epoch", "share", "%", "negative"),
    ):
        points = {
            of: [(float(epoch), *_bar(getattr(run.spectra[name], measure))) for epoch, name in kept]
            for of, kept in several.items()
        }
        if not any(y for line in points.values() for _, y, _ in line):
            continue
        text = f"Mean over mini-batches, the bar its 95% interval.{of_all}"
        sections.append(Figure(title, text, plots.lines(points, title, "epoch", label, unit=unit)))
    return sections


def _first(found: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The models that a figure draws, and a sentence where they are not all."""
    shown = dict(list(found.items())[:MOST_CURVES])
    return shown, "" if len(shown) == len(found) else f" The first {MOST_CURVES} of {len(found)} models."


def _bar(estimate: Estimate) -> tuple[float, float]:
    half = (estimate.high - estimate.low) / 2
    return estimate.value, half if math.isfinite(half) else 0.0


def _density(values: np.ndarray, log: bool) -> list[tuple[float, float, float]]:
    """A Gaussian kernel density (Scott's rule) of values of one sign, or of their magnitudes' powers of ten."""
    at = np.log10(np.abs(values)) if log else values
    margin = 0.1 * float(np.ptp(at))
    low, high = float(at.min() - margin), float(at.max() + margin)
    if not log:
        low, high = (max(low, 0.0), high) if values[0] > 0 else (low, min(high, 0.0))
    grid = np.linspace(low, high, 100)
    return [(float(x), float(y), 0.0) for x, y in zip(10**grid if log else grid, gaussian_kde(at)(grid), strict=True)]


def _whole(densities: Mapping[str, SpectralDensity]) -> dict[str, list[tuple[float, float, float]]]:
    """Smooth densities on one grid, cut off a little below the lowest bump of a node at either end."""
    every = np.concatenate([part for d in densities.values() for part in d.nodes])
    low, high = float(every.min()), float(every.max())
    width = 0.01 * (high - low) or 1e-3 * max(abs(high), 1e-30)
    grid = np.linspace(low - 4 * width, high + 4 * width, 432)  # four points a width
    curves = {name: d.smooth(grid, width) for name, d in densities.items()}
    ends = [
        float(d.smooth(np.array([min(map(min, d.nodes)), max(map(max, d.nodes))]), width).min())
        for d in densities.values()
    ]
    floor = max(0.3 * min(ends), 1e-10 * max(float(curve.max()) for curve in curves.values()))
    return {
        name: [(float(x), max(float(y), floor), 0.0) for x, y in zip(grid, curve, strict=True)]
        for name, curve in curves.items()
    }


# --- surfaces --------------------------------------------------------------------------------------------------------

SURFACE_COLUMNS = ("loss at the weights", "mean rise", "highest", "accuracy", "L2 term")
"""What ``surface_cells`` gives."""


def surface_cells(found: Surface) -> list[str]:
    """A model's numbers, written out."""
    middle, nll = len(found.nll) // 2, _filled(found.nll)
    cells = [format_value(float(x), "nats") for x in (nll[middle], np.nanmean(nll) - nll[middle], np.nanmax(nll))]
    return [
        *cells,
        format_value(float(_filled(found.accuracy)[middle]), "%"),
        format_value(found.l2[middle]) if any(found.l2) else "–",
    ]


def surface_sections(run: SurfaceResults) -> list[Section]:
    """Lines along the first direction, maps of planes, a table."""
    sections: list[Section] = []
    first = next(iter(run.surfaces.values()))
    if first.dims == 1 or len(run.surfaces) > 1:
        sections += _cuts(run)
    if first.dims > 1:
        sections += _maps(run)
    rows = []
    for name, found in run.surfaces.items():
        gaps = sum(value is None for value in found.nll)
        note = f"{len(found.nll):,} points, {found.images:,} images" + (f"; not finite at {gaps:,}" if gaps else "")
        if found.curvature:
            note += f"; eigenvalues {', '.join(map(format_value, found.curvature))}"
        rows.append(Row(name, surface_cells(found), note))
    text = (
        "Cross-entropy at the model's own weights, how much higher it is on the average of all points, and the highest "
        f"of them; accuracy and the L2 term at its own weights. {_DIRECTIONS[run.along]}"
    )
    return [*sections, Table("Surface", list(SURFACE_COLUMNS), rows, text, names="model")]


_DIRECTIONS = {
    "random": "Directions are random, each filter as long as the model's own: 1 adds one as long as the weights.",
    "eigenvectors": "Directions are eigenvectors of the Hessian on a mini-batch: 1 is as far as all weights are large.",
}


def _quantities(found: Surface) -> dict[str, tuple[np.ndarray, str]]:
    """What is drawn, by title: numbers on the grid, and their unit."""
    nll, l2 = _filled(found.nll), np.array(found.l2)
    drawn = {"Cross-entropy": (nll, "nats"), "Accuracy": (_filled(found.accuracy), "%")}
    if l2.any():
        drawn |= {"L2 term": (l2, ""), "Cross-entropy + L2": (nll + l2, "")}
    shape = [len(found.steps)] * found.dims
    return {title: (values.reshape(shape), unit) for title, (values, unit) in drawn.items()}


def _cuts(run: SurfaceResults) -> list[Section]:
    """All models on the line along the first direction through their weights."""
    sections: list[Section] = []
    quantities = {name: _quantities(found) for name, found in run.surfaces.items()}
    for title, (_, unit) in next(iter(quantities.values())).items():
        points = {}
        for name, found in run.surfaces.items():
            values = quantities[name][title][0].reshape(len(found.steps), -1)
            cut = values[:, values.shape[1] // 2]
            points[name] = [(x, float(y), 0.0) for x, y in zip(found.steps, cut, strict=True)]
        heading = f"{title} on a line"
        label = title.lower().replace("l2", "L2")
        plot = plots.lines(points, heading, "along direction 1", label, unit=unit, markers=False)
        sections.append(Figure(heading, _DIRECTIONS[run.along], plot))
    return sections


def _maps(run: SurfaceResults) -> list[Section]:
    """Maps of each quantity, all models in the same colours; of 3 dimensions, the planes across the third one."""
    sections: list[Section] = []
    quantities = {name: _quantities(found) for name, found in run.surfaces.items()}
    for title, (_, unit) in next(iter(quantities.values())).items():
        every = np.concatenate([drawn[title][0].ravel() for drawn in quantities.values()])
        limits = (float(np.nanmin(every)), float(np.nanmax(every)))
        for name, found in run.surfaces.items():
            for where, plane in _planes(quantities[name][title][0], found.steps).items():
                if np.isfinite(plane).any():
                    heading = f"{title}{where}" + (f": {name}" if len(run.surfaces) > 1 else "")
                    plot = plots.contours(
                        plane.tolist(), found.steps, heading, "direction 1", "direction 2", limits, unit
                    )
                    sections.append(Figure(heading, f"+: the model's own weights. {_DIRECTIONS[run.along]}", plot))
    return sections


def _planes(values: np.ndarray, steps: Sequence[float]) -> dict[str, np.ndarray]:
    """A grid of 2 dimensions as it is, of one of 3 the planes at both ends and in the middle of the third."""
    if values.ndim == 2:
        return {"": values}
    at = (0, len(steps) // 2, len(steps) - 1)
    return {f", direction 3 at {steps[i]:g}".replace("-", "−"): values[..., i] for i in at}


def _filled(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values])


# --- the way of training ---------------------------------------------------------------------------------------------

TRAJECTORY_COLUMNS = ("length of the weights", "from the first", "from the one before", "turn")
"""What ``trajectory_cells`` gives."""


def trajectory_cells(found: Trajectory) -> list[list[str]]:
    """A row of numbers for each snapshot, written out."""
    steps = [None, *found.step]
    turns = [None, *found.angle, None]
    rows = zip(found.norm, found.distance, steps, turns, strict=True)
    return [
        ["–" if x is None else f"{format_value(x)}{'°' if i == 3 else ''}" for i, x in enumerate(row)] for row in rows
    ]


def trajectory_sections(run: TrajectoryResults) -> list[Section]:
    """Distances and angles against the epoch, and their table."""
    way = run.trajectory
    distances = {
        "from the first": [(float(e), x, 0.0) for e, x in zip(run.epochs, way.distance, strict=True)],
        "from the one before": [(float(e), x, 0.0) for e, x in zip(run.epochs[1:], way.step, strict=True)],
    }
    text = (
        "Distance of the weights, over all parameters, of each kept epoch from the first one and from the one before."
    )
    title = "Distance"
    sections: list[Section] = [Figure(title, text, plots.lines(distances, title, "epoch", "distance", unit=""))]
    turns = [(float(e), x, 0.0) for e, x in zip(run.epochs[1:-1], way.angle, strict=True) if x is not None]
    if turns:
        title = "Turn"
        text = "Angle in degrees between the step to an epoch and the step from it: 0 straight on, 90 at right angles."
        sections.append(Figure(title, text, plots.lines({run.model: turns}, title, "epoch", "degrees", unit="")))
    rows = [Row(f"epoch {e}", cells) for e, cells in zip(run.epochs, trajectory_cells(way), strict=True)]
    return [*sections, Table("Snapshots", list(TRAJECTORY_COLUMNS), rows, "In weight space, in float64.", names="")]
