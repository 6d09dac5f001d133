"""Draw plots of measurements per residual branch through the depth of a model, as inline SVG."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from clearhead.metrics.statistics import Estimate, format_value
from clearhead.report.svg import (
    INK,
    MARKERS,
    SERIES,
    axes_at,
    format_tick,
    label_axes,
    new_figure,
    place_legend,
    set_ticks,
    to_svg,
)

_TYPES = {"embed": 0, "attention": 1, "mlp": 2, "conv": 4, "block": 3}
"""Colour and marker of each type of branch, the same in all plots."""
_TYPE_NAMES = {"embed": "embedding", "attention": "attention", "mlp": "MLP", "conv": "convolution", "block": "block"}


def amplitudes(lines: Sequence[tuple[float, Sequence[float], Sequence[float]]], title: str) -> str:
    """Draw relative log amplitude against frequency, one line per branch; the opacity is the depth.

    Args:
        lines: (depth in 0..1, frequencies in units of π, amplitudes) of each branch.
        title: accessible name of the plot.
    """
    shown = [0.0, 0.25, 0.5, 0.75, 1.0]
    with new_figure(2.9, ["depth"]) as figure:
        axes = axes_at(figure, x=(0.7, 4.5), y=(0.5, 2.9))
        for depth, x, y in lines:
            axes.plot(x, y, color=SERIES[1], alpha=_opacity(depth), linewidth=1.4)
        label_axes(axes, "frequency", "Δ log amplitude")
        axes.set_xlim(0, 1)
        set_ticks(axes.yaxis, "")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: "0" if value == 0 else f"{format_tick(value, '')}π")
        )
        key = [Line2D([], [], color=SERIES[1], alpha=_opacity(d), linewidth=2.4, label=f"{d:g}") for d in shown]
        place_legend(figure, axes, [Line2D([], [], linestyle="", label="depth"), *key], 1 + len(key), spacing=1.2)
        description = "; ".join(
            f"depth {format_tick(round(d, 3), '')}: {format_value(y[-1])} at {x[-1]:.3g}π" for d, x, y in lines
        )
        return to_svg(figure, title, description)


def through_depth(
    branches: Sequence[tuple[str, float, Estimate]], title: str, y_label: str, unit: str = "", steps: bool = False
) -> str:
    """Draw an estimate with its interval per branch against depth, coloured by type.

    Args:
        branches: (type, depth in 0..1, estimate) of each branch, in order.
        title: accessible name of the plot.
        y_label: label of y.
        unit: of the numbers, as in ``Estimate.unit``.
        steps: draw the line from each branch to the next in the colour of the next, which caused the change.
    """
    branches = [b for b in branches if b[2].value == b[2].value]
    types = [type_ for type_ in _TYPES if any(type_ == b[0] for b in branches)]
    with new_figure(2.9, types) as figure:
        axes = axes_at(figure, x=(0.8, 4.5), y=(0.5, 2.9))
        if not steps:
            axes.axhline(0, color=INK, alpha=0.5, linewidth=1)
        for (_, x, before), (type_, to, after) in pairwise(branches):
            look: dict[str, Any] = (
                {"color": SERIES[_TYPES[type_]], "linewidth": 2.2} if steps else {"color": INK, "alpha": 0.25}
            )
            axes.plot([x, to], [before.value, after.value], **look)
        for type_, x, estimate in branches:
            colour = SERIES[_TYPES[type_]]
            if estimate.low == estimate.low:
                axes.plot([x, x], [estimate.low, estimate.high], color=colour, linewidth=1.2)
            axes.plot([x], [estimate.value], MARKERS[_TYPES[type_]], color=colour, markersize=4.5)
        label_axes(axes, "depth", y_label)
        axes.set_xlim(-0.02, 1.02)
        set_ticks(axes.yaxis, unit)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value, "")))
        handles = [
            Line2D([], [], color=SERIES[i], marker=MARKERS[i], markersize=6, linewidth=1.8, label=_TYPE_NAMES[type_])
            for type_, i in _TYPES.items()
            if type_ in types
        ]
        place_legend(figure, axes, handles, len(types))
        description = "; ".join(
            f"{type_} at depth {x:.3g}: {format_value(e.value, e.unit)}" for type_, x, e in branches
        )
        return to_svg(figure, title, description)


def matrix(values: Sequence[Sequence[float]], title: str, rows: str, columns: str) -> str:
    """Draw a matrix of values in 0..1 as cells; the opacity is the value, the first row is at the bottom.

    Args:
        values: rows x columns.
        title: accessible name of the plot.
        rows: label of the rows, which are numbered from 0.
        columns: label of the columns, which are numbered from 0.
    """
    high, wide = len(values), len(values[0])
    cell = min(3.8 / wide, 0.4)
    size = cell * wide, min(cell * high, 7.0)
    with new_figure(0.55 + size[1]) as figure:
        axes = axes_at(figure, x=(0.7, 0.7 + size[0]), y=(0.5, 0.5 + size[1]))
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                share = min(max(value, 0.0), 1.0) if value == value else 0.0
                axes.add_patch(
                    Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=SERIES[1], alpha=share**1.5, edgecolor="none")
                )
        axes.set(xlim=(-0.5, wide - 0.5), ylim=(-0.5, high - 0.5))
        label_axes(axes, columns, rows)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        return to_svg(
            figure, title, "; ".join(f"{y}: {', '.join(format_value(v) for v in row)}" for y, row in enumerate(values))
        )


def type_name(type_: str) -> str:
    """Return the name of a type of branch for people."""
    return _TYPE_NAMES[type_]


def _opacity(depth: float) -> float:
    return 0.12 + 0.88 * depth
