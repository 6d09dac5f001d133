"""The plots: numbers in, inline SVG out (``clearhead.report.svg``)."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from clearhead.metrics.statistics import Estimate, format_interval, format_value
from clearhead.report.svg import DASHED, INK, SERIES, axes_at, drawing, legend, look, power, short, svg, tick, ticks


def intervals(rows: Sequence[tuple[str, Sequence[tuple[str, Estimate]]]], title: str, unit: str = "%") -> str:
    """Estimates with their 95% intervals: a block for each metric, in it a line for each model, all on one axis.

    Args:
        rows: (metric, [(model, estimate), ...]); a model keeps its colour and marker in every block.
        title: what is shown, for those who cannot see it.
        unit: unit of the axis, as in `Estimate.unit`.
    """
    models = list(dict.fromkeys(model for _, estimates in rows for model, _ in estimates))
    height = 0.25 * (sum(len(estimates) for _, estimates in rows) + 1.5 * len(rows))
    with drawing(0.35 + height, models) as figure:
        axes = axes_at(figure, left=0.05, right=3.85, low=0.35, high=0.35 + height)
        y = 0.0
        for metric, estimates in rows:
            axes.text(0, y, short(metric), transform=axes.get_yaxis_transform(), weight="bold", va="center")
            for model, estimate in estimates:
                y += 1
                _interval(axes, y, estimate, models.index(model))
            y += 1.5
        axes.set_ylim(y - 0.8, -0.6)
        axes.yaxis.set_visible(False)
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.06)
        ticks(axes.xaxis, unit)
        legend(figure, axes, models)
        told = "; ".join(
            f"{metric}: "
            + ", ".join(
                f"{model} {format_value(e.value, e.unit)} {format_interval(e)}".rstrip() for model, e in estimates
            )
            for metric, estimates in rows
        )
        return svg(figure, title, told)


def reliability(
    confidence: Sequence[float], accuracy: Sequence[float], counts: Sequence[int], title: str = "Reliability"
) -> str:
    """Accuracy against confidence, bin by bin, above the number of samples in each bin.

    Args:
        confidence: mean confidence of each bin, in 0..1.
        accuracy: accuracy of each bin, in 0..1; its 95% interval (Wilson) is drawn.
        counts: samples in each bin; empty bins are left out.
        title: what is shown, for those who cannot see it.
    """
    bins = [(c, a, n) for c, a, n in zip(confidence, accuracy, counts, strict=True) if n > 0]
    with drawing(4.3) as figure:
        above = axes_at(figure, left=0.7, right=4.5, low=1.5, high=4.2)
        below = axes_at(figure, left=0.7, right=4.5, low=0.5, high=1.2)
        above.set(xlim=(0, 1.02), ylim=(0, 1.02), ylabel="accuracy")
        above.plot([0, 1], [0, 1], color=INK, alpha=0.4, linewidth=1, linestyle=DASHED)
        above.text(
            0.06,
            0.085,
            "perfectly calibrated",
            fontsize=9,
            alpha=0.75,
            rotation=45,
            rotation_mode="anchor",
            transform_rotates_text=True,
        )
        for c, a, n in bins:
            above.plot([c, c], _wilson(a, n), color=SERIES[1], linewidth=1.4)
        above.plot([c for c, _, _ in bins], [a for _, a, _ in bins], "o-", color=SERIES[1], markersize=5, linewidth=1.2)
        below.bar([c for c, _, _ in bins], [n for _, _, n in bins], width=0.035, color=SERIES[1])
        above.tick_params(labelbottom=False)
        below.set(xlim=above.get_xlim(), xlabel="confidence", ylabel="samples")
        for axis in (above.xaxis, above.yaxis, below.xaxis):
            ticks(axis, "%")
        ticks(below.yaxis, "", at_most=2)
        told = "; ".join(
            f"confidence {format_value(c, '%')}: accuracy {format_value(a, '%')}, {n:,} samples" for c, a, n in bins
        )
        return svg(figure, title, told)


def curves(
    lines: Mapping[str, Sequence[float]],
    title: str,
    label: str,
    unit: str = "",
    chosen: int | None = None,
    first: int = 1,
) -> str:
    """Training curves: value after each epoch; the chosen epoch is marked.

    Args:
        lines: name to one value for each epoch; NaN leaves a gap.
        title: what is shown, for those who cannot see it.
        label: what the values are.
        unit: unit of the axis, as in `Estimate.unit`.
        chosen: the epoch whose weights were kept.
        first: number of the first epoch.
    """
    kept = [] if chosen is None else [f"epoch {chosen} kept"]
    with drawing(2.9, [*lines, *kept]) as figure:
        axes = axes_at(figure, left=0.7, right=4.6, low=0.5, high=2.9)
        for i, values in enumerate(lines.values()):
            colour, marker = look(i)
            axes.plot(
                range(first, first + len(values)), values, color=colour, marker=marker, markersize=4, linewidth=1.6
            )
        if chosen is not None:
            axes.axvline(chosen, color=INK, alpha=0.6, linewidth=1, linestyle=DASHED)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        ticks(axes.yaxis, unit)
        legend(figure, axes, list(lines), kept)
        told = [
            f"{name}: from {format_value(values[0], unit)} to {format_value(values[-1], unit)} in {len(values)} epochs"
            for name, line in lines.items()
            if (values := [value for value in line if not math.isnan(value)])
        ]
        return svg(figure, title, "; ".join(told + kept))


def lines(
    points: Mapping[str, Sequence[tuple[float, float, float]]],
    title: str,
    across: str,
    up: str,
    unit: str = "%",
    markers: bool = True,
    log: bool = False,
    log_up: bool = False,
) -> str:
    """A line for each name through its points (x, y, half the length of a bar at it; 0 for none).

    Args:
        points: name to points in order of x.
        title: what is shown, for those who cannot see it.
        across: what x is.
        up: what y is.
        unit: of y, as in `Estimate.unit`.
        markers: mark all points, each at a tick of its own; else only the highest of a line, to tell it by.
        log: x on a logarithmic scale.
        log_up: y on a logarithmic scale.
    """
    with drawing(2.9, list(points)) as figure:
        axes = axes_at(figure, left=0.7, right=4.5, low=0.5, high=2.9)
        for i, line in enumerate(points.values()):
            colour, marker = look(i)
            x, y, bar = ([point[j] for point in line] for j in range(3))
            marked = [int(np.argmax(np.nan_to_num(y, nan=-np.inf)))] if y and not markers else None
            axes.plot(x, y, color=colour, marker=marker, markevery=marked, markersize=4, linewidth=1.6)
            if any(bar):
                axes.errorbar(x, y, bar, color=colour, linewidth=1.2, capsize=2.5, fmt="none")
        axes.set(xlabel=across, ylabel=up, xscale="log" if log else "linear")
        axes.xaxis.set_minor_locator(NullLocator())
        if markers:
            axes.set_xticks(sorted({point[0] for line in points.values() for point in line}))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value, "")))
        ticks(axes.yaxis, unit)
        if log_up:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))
            axes.yaxis.set_minor_locator(NullLocator())
        legend(figure, axes, list(points))
        told = "; ".join(
            f"{name}: " + ", ".join(f"{format_value(y, unit)} at {tick(x, '')}" for x, y, _ in line)
            for name, line in points.items()
        )
        return svg(figure, title, told)


def heat(
    values: Sequence[Sequence[float]], title: str, rows: Sequence[str], columns: str, unit: str = "", label: str = ""
) -> str:
    """A number for each row and column, as a grid of cells: the deeper the colour, the larger; two colours by sign.

    Args:
        values: a list of numbers for each row, which may differ in length; NaN is left empty.
        title: what is shown, for those who cannot see it.
        rows: names of the rows.
        columns: what the columns are, counted from 0.
        unit: unit of the numbers, as in `Estimate.unit`.
        label: what the rows are.
    """
    width = max(map(len, values))
    left, cell = 0.25 + 0.09 * max(map(len, rows)) + (0.25 if label else 0), 0.3
    right = min(4.6, left + 0.62 * width)
    largest = max((abs(v) for row in values for v in row if not math.isnan(v)), default=0) or 1
    with drawing(0.55 + cell * len(values)) as figure:
        axes = axes_at(figure, left=left, right=right, low=0.5, high=0.5 + cell * len(values))
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if math.isnan(value):
                    continue
                share = abs(value) / largest
                colour = SERIES[1] if value >= 0 else SERIES[2]
                axes.add_patch(Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, facecolor=colour, alpha=0.06 + 0.5 * share))
                if width <= 12:
                    axes.text(x, y, _cell(value, unit), ha="center", va="center", fontsize=8)
        axes.set(xlim=(-0.5, width - 0.5), ylim=(len(values) - 0.5, -0.5), xlabel=columns, ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=width))
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        told = "; ".join(
            f"{name}: {', '.join(format_value(v, unit) for v in row)}" for name, row in zip(rows, values, strict=True)
        )
        return svg(figure, title, told)


def contours(
    values: Sequence[Sequence[float]],
    steps: Sequence[float],
    title: str,
    across: str,
    up: str,
    limits: tuple[float, float],
    unit: str = "",
) -> str:
    """A number on a square grid as a map with contours: the deeper the colour, the larger.

    Limits above 0 that are more than a power of ten apart are divided by ratio, others by difference.

    Args:
        values: a row for each step across, in it a number for each step up; NaN is left empty.
        steps: the coordinates of both.
        title: what is shown, for those who cannot see it.
        across: what the rows are.
        up: what the numbers of a row are.
        limits: of the colours: the lowest and the highest number of all maps that are to be compared.
        unit: unit of the numbers, as in `Estimate.unit`.
    """
    field = np.ma.masked_invalid(np.array(values).T)
    low, high = limits
    if low > 0 and high > 10 * low:
        levels = np.geomspace(low * (1 - 1e-9), high * (1 + 1e-9), 10).tolist()
    else:
        levels = list(MaxNLocator(9).tick_values(low, high))
    shades = [(SERIES[1], alpha) for alpha in np.linspace(0.06, 0.8, len(levels) - 1)]
    with drawing(3.9) as figure:
        axes = axes_at(figure, left=0.7, right=4.1, low=0.5, high=3.9)
        axes.contourf(steps, steps, field, levels=levels, colors=shades)
        if crossed := [level for level in levels if field.min() < level < field.max()]:
            drawn = axes.contour(steps, steps, field, levels=crossed, colors=INK, alpha=0.5, linewidths=0.7)
            text = {level: format_value(level, "%") if unit == "%" else format_value(level) for level in crossed}
            axes.clabel(drawn, fmt=text, fontsize=7, colors=INK, inline_spacing=2)
        axes.plot([0], [0], "+", color=INK, markersize=9)
        axes.set(xlabel=across, ylabel=up, aspect="equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
            axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value, "")))
        middle = float(np.ma.filled(field, math.nan)[len(steps) // 2, len(steps) // 2])
        ends = (format_value(float(end), unit) for end in (field.min(), field.max()))
        told = f"{format_value(middle, unit)} in the middle; from {' to '.join(ends)}"
        return svg(figure, title, told)


def scatter(
    points: Mapping[str, Sequence[tuple[float, float]]],
    title: str,
    across: str,
    up: str,
    unit: str = "%",
    markers: bool = True,
) -> str:
    """Points of several kinds on square axes with their diagonal.

    Args:
        points: (x, y) pairs by kind.
        title: what is shown, for those who cannot see it.
        across: what x is.
        up: what y is.
        unit: unit of both axes, as in `Estimate.unit`.
    """
    every = [value for pairs in points.values() for pair in pairs for value in pair]
    low, high = min(every), max(every)
    room = 0.06 * (high - low) or 0.05
    with drawing(4.0, list(points)) as figure:
        axes = axes_at(figure, left=0.8, right=4.4, low=0.5, high=4.0)
        axes.plot([low, high], [low, high], color=INK, alpha=0.4, linewidth=1, linestyle=DASHED)
        for i, pairs in enumerate(points.values()):
            colour, marker = look(i)
            axes.plot([x for x, _ in pairs], [y for _, y in pairs], marker, color=colour, markersize=6, alpha=0.8)
        axes.set(xlim=(low - room, high + room), ylim=(low - room, high + room), xlabel=across, ylabel=up)
        ticks(axes.xaxis, unit)
        ticks(axes.yaxis, unit)
        legend(figure, axes, list(points))
        told = "; ".join(
            f"{kind}: " + ", ".join(f"({format_value(x, unit)}, {format_value(y, unit)})" for x, y in pairs)
            for kind, pairs in points.items()
        )
        return svg(figure, title, told)


def _interval(axes: Axes, y: float, estimate: Estimate, model: int) -> None:
    """One estimate as marker and line, its value written flush right beyond the axis."""
    colour, marker = look(model)
    if math.isfinite(estimate.value):
        if math.isfinite(estimate.low) and math.isfinite(estimate.high):
            axes.plot([estimate.low, estimate.high], [y, y], color=colour, linewidth=1.8, solid_capstyle="round")
        axes.plot([estimate.value], [y], marker, color=colour, markersize=6)
    axes.text(
        1.2,
        y,
        format_value(estimate.value, estimate.unit),
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="center",
    )


def _cell(value: float, unit: str) -> str:
    """A number short enough for a cell, without its unit."""
    text = f"{100 * value:+z.1f}" if unit == "pp" else f"{100 * value:.0f}" if unit == "%" else f"{value:.2f}"
    return text.replace("-", "−")


def _wilson(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95% interval of a share of `count` samples."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return middle - half, middle + half
