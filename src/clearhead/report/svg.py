"""What plots are drawn on: inline SVG that takes its colours from the page it stands in, in light and in dark.

Matplotlib draws with marker colours; `svg` then puts `currentColor` for the ink and the page's `--series-*` for the
lines. Text stays text. Numbers are repeated in words in each plot's description, for those who cannot see it.
"""

import hashlib
import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from clearhead.metrics.statistics import format_value

INK = "#010203"
SERIES = ("#5d6168", "#1f6fa8", "#b4530f", "#7a4fa3", "#17784a", "#ab2f5c")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")  # one more than colours: no two of many lines look alike
DASHED = (0, (4, 3))
WIDTH = 4.7
"""Width of every plot in inches: on a phone it shrinks by a quarter, so that its text can still be read."""
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
def drawing(height: float, names: Sequence[str] = ()) -> Iterator[Figure]:
    """A transparent figure outside pyplot's state, `height` inches and above that room for a legend."""
    columns = _legend_columns(names)
    legend = 0.15 + 0.21 * math.ceil(len(names) / columns)
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(WIDTH, height + legend), facecolor="none")


def axes_at(figure: Figure, left: float, right: float, low: float, high: float) -> Axes:
    """Axes at a place given in inches from the lower left."""
    width, height = figure.get_size_inches()
    return figure.add_axes((left / width, low / height, (right - left) / width, (high - low) / height))


def legend(figure: Figure, axes: Axes, names: Sequence[str], dashed: Sequence[str] = ()) -> None:
    """The legend above the axes, flush left with the figure."""
    handles = [
        Line2D([], [], color=look(i)[0], marker=look(i)[1], markersize=6, linewidth=1.8, label=short(name))
        for i, name in enumerate(names)
    ]
    handles += [Line2D([], [], color=INK, alpha=0.6, linewidth=1, linestyle=DASHED, label=name) for name in dashed]
    if handles:
        legend_at(figure, axes, handles, _legend_columns([*names, *dashed]))


def legend_at(figure: Figure, axes: Axes, handles: Sequence[Line2D], columns: int, spacing: float = 1.6) -> None:
    """The lines' labels above the axes, flush left with the figure; `spacing` in letters."""
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
    longest = max((len(short(name)) for name in names), default=0)
    return max(1, min(len(names), int(WIDTH / (0.5 + 0.085 * longest))))


def short(name: str, letters: int = 46) -> str:
    """The name, with its middle left out where it is too long for the plot."""
    return name if len(name) <= letters else f"{name[: letters // 2]}…{name[-(letters // 2 - 1) :]}"


def look(i: int) -> tuple[str, str]:
    """Colour and marker of the i-th line."""
    return SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]


def ticks(axis: Axis, unit: str, at_most: int = 5) -> None:
    """Ticks written in the unit, with faint lines behind the plot."""
    axis.set_major_locator(MaxNLocator(at_most, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value, unit)))
    axis.grid(True, color=INK, alpha=0.14, linewidth=0.8)
    axis.axes.set_axisbelow(True)


def tick(value: float, unit: str) -> str:
    """A number at a tick, at its shortest."""
    if unit in ("%", "pp"):
        sign = "+" if unit == "pp" and value > 0 else ""
        return f"{sign}{100 * value:.3g}{'%' if unit == '%' else ''}".replace("-", "−")
    return f"{value:,.6g}".replace("-", "−")


def power(value: float) -> str:
    """A power of ten at its shortest: 0.001, 10⁻⁵."""
    return tick(value, "") if 1e-3 <= value < 1e6 else format_value(value).removeprefix("1.00×")


def svg(figure: Figure, title: str, told: str) -> str:
    """The figure as an SVG element with a name, a description, colours of the page and ids of its own."""
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the page's own font draws the text
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :].strip()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"<!--.*?-->\s*", "", drawn, flags=re.DOTALL)
    drawn = drawn.replace(INK, "currentColor")
    for i, colour in enumerate(SERIES, 1):
        drawn = drawn.replace(colour, f"var(--series-{i}, {colour})")
    drawn = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", drawn)
    prefix = hashlib.sha256((title + drawn).encode()).hexdigest()[:8]
    used = set(re.findall(r"#([\w-]+)", drawn))
    drawn = re.sub(r' id="([^"]+)"', lambda found: f' id="{prefix}-{found[1]}"' if found[1] in used else "", drawn)
    drawn = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", drawn)
    name = f'<title id="{prefix}-title">{escape(title)}</title><desc id="{prefix}-desc">{escape(told)}</desc>'
    return re.sub(
        r"<svg ([^>]*)>",
        lambda found: (
            f'<svg role="img" aria-labelledby="{prefix}-title" aria-describedby="{prefix}-desc" {found[1]}>{name}'
        ),
        drawn,
        count=1,
    )
