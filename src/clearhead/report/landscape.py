"""Hessian spectra on the page: densities of both ends, and the numbers."""

import numpy as np
from scipy.stats import gaussian_kde

from clearhead.evaluate.statistics import number
from clearhead.report import plots
from clearhead.report.page import Figure, Row, Section, Table
from clearhead.results import SpectrumResults


def spectrum_sections(run: SpectrumResults) -> list[Section]:
    """A density for the negative and the positive end, and a table of the models."""
    sections: list[Section] = []
    values = {name: np.concatenate([b.values for b in found.batches]) for name, found in run.spectra.items()}
    for end, sign in (("Negative", -1), ("Positive", 1)):
        points = {name: _density(v[v * sign > 0]) for name, v in values.items() if len(np.unique(v[v * sign > 0])) > 1}
        if points:
            title = f"{end} eigenvalues"
            text = (
                f"Density of the {run.k} eigenvalues of largest magnitude of every mini-batch that are {end.lower()}."
            )
            plot = plots.lines(points, title, "eigenvalue", "density", unit="", markers=False)
            sections.append(Figure(title, text, plot))
    rows = []
    for name, found in run.spectra.items():
        cells = [found.largest, found.lowest, found.negative, found.positive, found.loss]
        products = float(np.mean([b.products for b in found.batches]))
        rows.append(Row(name, cells, f"{len(found.batches)} batches, {number(products)} products each"))
    text = (
        f"Means over mini-batches. Negative: share of the {run.k} eigenvalues of largest magnitude that are; positive: "
        "mean of those that are. Highest and lowest: the two ends of the whole spectrum."
    )
    columns = ["highest", "lowest", "negative", "positive", "loss"]
    return [*sections, Table("Spectra", columns, rows, text, names="model")]


def _density(values: np.ndarray) -> list[tuple[float, float, float]]:
    """A Gaussian kernel density of values of one sign on a grid that covers them, by Scott's rule."""
    margin = 0.1 * float(np.ptp(values))
    low, high = float(values.min() - margin), float(values.max() + margin)
    grid = np.linspace(max(low, 0), high, 100) if values[0] > 0 else np.linspace(low, min(high, 0), 100)
    return [(float(x), float(y), 0.0) for x, y in zip(grid, gaussian_kde(values)(grid), strict=True)]
