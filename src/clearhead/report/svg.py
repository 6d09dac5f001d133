"""The canvas of plots: inline SVG that takes its colours from the page, in light and dark mode.

Matplotlib draws with placeholder colours, which ``to_svg`` replaces by ``currentColor`` and the page's ``--series-*``.
Text remains text. Each plot has a description that repeats its numbers in words, for screen readers.
"""

import hashlib
import io
import math
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox

from clearhead.metrics.statistics import format_value

INK = "#010203"
SERIES = ("#5d6168", "#1f6fa8", "#b4530f", "#7a4fa3", "#17784a", "#ab2f5c")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")  # one more than colours, so that many lines differ
DASHED = (0, (4, 3))
WIDTH = 4.7
"""Width of every plot in inches: on a phone it shrinks by a quarter, so its text remains legible."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "clearhead",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "legend.frameon": False,
}


@contextmanager
def new_figure(height: float, names: Sequence[str] = ()) -> Iterator[Figure]:
    """Open a transparent figure outside pyplot's state, `height` inches high plus the height of a legend of `names`."""
    columns = _legend_columns(names)
    legend = 0.15 + 0.21 * math.ceil(len(names) / columns)
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(WIDTH, height + legend), facecolor="none")


def axes_at(figure: Figure, x: tuple[float, float], y: tuple[float, float]) -> Axes:
    """Add axes that extend over x and y, in inches from the lower left corner."""
    width, height = figure.get_size_inches()
    return figure.add_axes((x[0] / width, y[0] / height, (x[1] - x[0]) / width, (y[1] - y[0]) / height))


def add_legend(figure: Figure, axes: Axes, names: Sequence[str], dashed: Sequence[str] = ()) -> None:
    """Add a legend above the axes, aligned to the left of the figure."""
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=6, linewidth=1.8, label=shorten(name))
        for (colour, marker), name in zip(map(series_style, range(len(names))), names, strict=True)
    ]
    handles += [Line2D([], [], color=INK, alpha=0.6, linewidth=1, linestyle=DASHED, label=name) for name in dashed]
    if handles:
        place_legend(figure, axes, handles, _legend_columns([*names, *dashed]))


def place_legend(figure: Figure, axes: Axes, handles: Sequence[Line2D], columns: int, spacing: float = 1.6) -> None:
    """Add a legend of handles above the axes, left-aligned with the figure; `spacing` in units of the font size."""
    width, height = figure.get_size_inches()
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.05 / width, axes.get_position().y1 + 0.08 / height),
        borderaxespad=0,
        borderpad=0,
        ncols=columns,
        handlelength=spacing,
        columnspacing=spacing,
    )


def _legend_columns(names: Sequence[str]) -> int:
    longest = max((len(shorten(name)) for name in names), default=0)
    return max(1, min(len(names), int(WIDTH / (0.5 + 0.085 * longest))))


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Label both axes; long labels take several lines."""
    axes.set_xlabel(textwrap.fill(x, 48))
    axes.set_ylabel(textwrap.fill(y, 32))


def shorten(name: str, letters: int = 46) -> str:
    """Return a name with an ellipsis in its middle if it is longer than `letters`."""
    return name if len(name) <= letters else f"{name[: letters // 2]}…{name[-(letters // 2 - 1) :]}"


def series_style(i: int) -> tuple[str, str]:
    """Return colour and marker of the i-th line."""
    return SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]


def set_ticks(axis: Axis, unit: str, at_most: int = 5) -> None:
    """Format the ticks of an axis in a unit, with faint grid lines."""
    axis.set_major_locator(MaxNLocator(at_most, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value, unit)))
    axis.grid(True, color=INK, alpha=0.14, linewidth=0.8)
    axis.axes.set_axisbelow(True)


def format_tick(value: float, unit: str) -> str:
    """Return the shortest text of a number at a tick."""
    if unit in ("%", "pp"):
        sign = "+" if unit == "pp" and value > 0 else ""
        return f"{sign}{100 * value:.3g}{'%' if unit == '%' else ''}".replace("-", "−")
    return f"{value:,.6g}".replace("-", "−")


def format_power(value: float) -> str:
    """Return the shortest text of a power of ten: 0.001, 10⁻⁵."""
    return format_tick(value, "") if 1e-3 <= value < 1e6 else format_value(value).removeprefix("1.00×")


def _whole(figure: Figure) -> Bbox | None:
    """Return the area of a figure and of everything that extends beyond it, in inches; None if nothing does."""
    content = figure.get_tightbbox()
    area = Bbox.union([figure.bbox_inches, content])
    return None if np.allclose(area.get_points(), figure.bbox_inches.get_points()) else area.padded(0.05)


def to_svg(figure: Figure, title: str, description: str) -> str:
    """Return a figure as an SVG element with accessible name and description, the page's colours and unique ids.

    Text that extends beyond the figure enlarges the image: nothing is clipped.
    """
    buffer = io.StringIO()
    no_metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the page's own font draws the text
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata, bbox_inches=_whole(figure))
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :].strip()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"<!--.*?-->\s*", "", drawn, flags=re.DOTALL)
    drawn = drawn.replace(INK, "currentColor")
    for i, colour in enumerate(SERIES, 1):
        drawn = drawn.replace(colour, f"var(--series-{i}, {colour})")
    drawn = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", drawn)
    prefix = hashlib.sha256((title + drawn).encode()).hexdigest()[:8]
    references = set(re.findall(r"#([\w-]+)", drawn))
    drawn = re.sub(
        r' id="([^"]+)"', lambda match: f' id="{prefix}-{match[1]}"' if match[1] in references else "", drawn
    )
    drawn = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", drawn)
    name = f'<title id="{prefix}-title">{escape(title)}</title><desc id="{prefix}-desc">{escape(description)}</desc>'
    return re.sub(
        r"<svg ([^>]*)>",
        lambda match: (
            f'<svg role="img" aria-labelledby="{prefix}-title" aria-describedby="{prefix}-desc" {match[1]}>{name}'
        ),
        drawn,
        count=1,
    )
