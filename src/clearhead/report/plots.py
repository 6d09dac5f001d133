"""Draw plots as inline SVG (``clearhead.report.svg``)."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from clearhead.metrics.statistics import Estimate, format_interval, format_value, wilson_interval
from clearhead.report.svg import (
    DASHED,
    INK,
    SERIES,
    add_legend,
    axes_at,
    format_power,
    format_tick,
    label_axes,
    new_figure,
    series_style,
    set_ticks,
    shorten,
    to_svg,
)


def intervals(rows: Sequence[tuple[str, Sequence[tuple[str, Estimate]]]], title: str, unit: str = "%") -> str:
    """Draw estimates with their 95% intervals on one axis: a block per metric with a line per model.

    Args:
        rows: (metric, [(model, estimate), ...]); a model keeps its colour and marker in every block.
        title: accessible name of the plot.
        unit: unit of the axis, as in ``Estimate.unit``.
    """
    models = list(dict.fromkeys(model for _, estimates in rows for model, _ in estimates))
    height = 0.25 * (sum(len(estimates) for _, estimates in rows) + 1.5 * len(rows))
    with new_figure(0.35 + height, models) as figure:
        axes = axes_at(figure, x=(0.05, 3.85), y=(0.35, 0.35 + height))
        y = 0.0
        for metric, estimates in rows:
            axes.text(0, y, shorten(metric), transform=axes.get_yaxis_transform(), weight="bold", va="center")
            for model, estimate in estimates:
                y += 1
                _interval(axes, y, estimate, models.index(model))
            y += 1.5
        axes.set_ylim(y - 0.8, -0.6)
        axes.yaxis.set_visible(False)
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.06)
        set_ticks(axes.xaxis, unit)
        add_legend(figure, axes, models)
        description = "; ".join(
            f"{metric}: "
            + ", ".join(
                f"{model} {format_value(e.value, e.unit)} {format_interval(e)}".rstrip() for model, e in estimates
            )
            for metric, estimates in rows
        )
        return to_svg(figure, title, description)


def reliability(
    confidence: Sequence[float], accuracy: Sequence[float], counts: Sequence[int], title: str = "Reliability"
) -> str:
    """Draw a reliability diagram: accuracy against confidence, above the sample count of each bin.

    Args:
        confidence: mean confidence of each bin, in 0..1.
        accuracy: accuracy of each bin, in 0..1; its 95% interval (Wilson) is drawn.
        counts: samples in each bin; empty bins are omitted.
        title: accessible name of the plot.
    """
    bins = [(c, a, n) for c, a, n in zip(confidence, accuracy, counts, strict=True) if n > 0]
    with new_figure(4.3) as figure:
        above = axes_at(figure, x=(0.7, 4.5), y=(1.5, 4.2))
        below = axes_at(figure, x=(0.7, 4.5), y=(0.5, 1.2))
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
            above.plot([c, c], wilson_interval(round(a * n), n), color=SERIES[1], linewidth=1.4)
        above.plot([c for c, _, _ in bins], [a for _, a, _ in bins], "o-", color=SERIES[1], markersize=5, linewidth=1.2)
        below.bar([c for c, _, _ in bins], [n for _, _, n in bins], width=0.035, color=SERIES[1])
        above.tick_params(labelbottom=False)
        below.set(xlim=above.get_xlim(), xlabel="confidence", ylabel="samples")
        for axis in (above.xaxis, above.yaxis, below.xaxis):
            set_ticks(axis, "%")
        set_ticks(below.yaxis, "", at_most=2)
        description = "; ".join(
            f"confidence {format_value(c, '%')}: accuracy {format_value(a, '%')}, {n:,} samples" for c, a, n in bins
        )
        return to_svg(figure, title, description)


def curves(
    lines: Mapping[str, Sequence[float]],
    title: str,
    label: str,
    unit: str = "",
    chosen: int | None = None,
    first: int = 1,
) -> str:
    """Draw training curves: the value after each epoch; the selected epoch is marked.

    Args:
        lines: one value per epoch, by name; NaN leaves a gap.
        title: accessible name of the plot.
        label: label of the values.
        unit: unit of the axis, as in ``Estimate.unit``.
        chosen: the selected epoch, whose weights are the checkpoint.
        first: number of the first epoch.
    """
    marked = [] if chosen is None else [f"epoch {chosen} selected"]
    with new_figure(2.9, [*lines, *marked]) as figure:
        axes = axes_at(figure, x=(0.7, 4.6), y=(0.5, 2.9))
        for i, values in enumerate(lines.values()):
            colour, marker = series_style(i)
            axes.plot(
                range(first, first + len(values)), values, color=colour, marker=marker, markersize=4, linewidth=1.6
            )
        if chosen is not None:
            axes.axvline(chosen, color=INK, alpha=0.6, linewidth=1, linestyle=DASHED)
        label_axes(axes, "epoch", label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        set_ticks(axes.yaxis, unit)
        add_legend(figure, axes, list(lines), marked)
        description = [
            f"{name}: from {format_value(values[0], unit)} to {format_value(values[-1], unit)} in {len(values)} epochs"
            for name, line in lines.items()
            if (values := [value for value in line if not math.isnan(value)])
        ]
        return to_svg(figure, title, "; ".join(description + marked))


def lines(
    points: Mapping[str, Sequence[tuple[float, float, float]]],
    title: str,
    x_label: str,
    y_label: str,
    unit: str = "%",
    markers: bool = True,
    log_x: bool = False,
    log_y: bool = False,
) -> str:
    """Draw one line per name through points (x, y, half the length of the error bar; 0 for none).

    Args:
        points: by name, in order of x.
        title: accessible name of the plot.
        x_label: label of x.
        y_label: label of y.
        unit: of y, as in ``Estimate.unit``.
        markers: mark every point and give it a tick; else mark only the highest of each line, to identify the line.
        log_x: x on a logarithmic scale.
        log_y: y on a logarithmic scale.
    """
    with new_figure(2.9, list(points)) as figure:
        axes = axes_at(figure, x=(0.7, 4.5), y=(0.5, 2.9))
        for i, line in enumerate(points.values()):
            colour, marker = series_style(i)
            x, y, bar = ([point[j] for point in line] for j in range(3))
            marked = [int(np.argmax(np.nan_to_num(y, nan=-np.inf)))] if y and not markers else None
            axes.plot(x, y, color=colour, marker=marker, markevery=marked, markersize=4, linewidth=1.6)
            if any(bar):
                axes.errorbar(x, y, bar, color=colour, linewidth=1.2, capsize=2.5, fmt="none")
        axes.set(xscale="log" if log_x else "linear")
        label_axes(axes, x_label, y_label)
        axes.xaxis.set_minor_locator(NullLocator())
        if markers:
            axes.set_xticks(sorted({point[0] for line in points.values() for point in line}))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value, "")))
        set_ticks(axes.yaxis, unit)
        if log_y:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_power(value)))
            axes.yaxis.set_minor_locator(NullLocator())
        add_legend(figure, axes, list(points))
        description = "; ".join(
            f"{name}: " + ", ".join(f"{format_value(y, unit)} at {format_tick(x, '')}" for x, y, _ in line)
            for name, line in points.items()
        )
        return to_svg(figure, title, description)


def heatmap(
    values: Sequence[Sequence[float]], title: str, rows: Sequence[str], columns: str, unit: str = "", label: str = ""
) -> str:
    """Draw a matrix as a heatmap; the hue is the sign, the opacity the absolute value.

    Args:
        values: one list of numbers per row, which may differ in length; NaN is left empty.
        title: accessible name of the plot.
        rows: names of the rows.
        columns: label of the columns, which are numbered from 0.
        unit: unit of the numbers, as in ``Estimate.unit``.
        label: label of the rows.
    """
    width = max(map(len, values))
    names = [shorten(name, 22) for name in rows]
    left, cell = 0.25 + 0.09 * max(map(len, names)) + (0.25 if label else 0), 0.3
    end = min(4.6, left + 0.62 * width)
    largest = max((abs(v) for row in values for v in row if not math.isnan(v)), default=0) or 1
    with new_figure(0.55 + cell * len(values)) as figure:
        axes = axes_at(figure, x=(left, end), y=(0.5, 0.5 + cell * len(values)))
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if math.isnan(value):
                    continue
                share = abs(value) / largest
                colour = SERIES[1] if value >= 0 else SERIES[2]
                axes.add_patch(Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, facecolor=colour, alpha=0.06 + 0.5 * share))
                if width <= 12:
                    axes.text(x, y, _cell(value, unit), ha="center", va="center", fontsize=8)
        axes.set(xlim=(-0.5, width - 0.5), ylim=(len(values) - 0.5, -0.5))
        label_axes(axes, columns, label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=width))
        axes.set_yticks(range(len(rows)), names)
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        description = "; ".join(
            f"{name}: {', '.join(format_value(v, unit) for v in row)}" for name, row in zip(rows, values, strict=True)
        )
        return to_svg(figure, title, description)


def contours(
    values: Sequence[Sequence[float]],
    steps: Sequence[float],
    title: str,
    x_label: str,
    y_label: str,
    limits: tuple[float, float],
    unit: str = "",
) -> str:
    """Draw values on a square grid as filled contours; the opacity increases with the value.

    Positive limits more than a factor of ten apart give levels at equal ratios, others at equal differences.

    Args:
        values: one row per step along x, with one number per step along y; NaN is left empty.
        steps: the coordinates of both.
        title: accessible name of the plot.
        x_label: label of the rows.
        y_label: label of y.
        limits: lowest and highest value of the colour scale, the same for all maps that are compared.
        unit: unit of the numbers, as in ``Estimate.unit``.
    """
    field = np.ma.masked_invalid(np.array(values).T)
    low, high = limits
    if low > 0 and high > 10 * low:
        levels = np.geomspace(low * (1 - 1e-9), high * (1 + 1e-9), 10).tolist()
    else:
        levels = list(MaxNLocator(9).tick_values(low, high))
    shades = [(SERIES[1], alpha) for alpha in np.linspace(0.06, 0.8, len(levels) - 1)]
    with new_figure(3.9) as figure:
        axes = axes_at(figure, x=(0.7, 4.1), y=(0.5, 3.9))
        axes.contourf(steps, steps, field, levels=levels, colors=shades)
        if crossed := [level for level in levels if field.min() < level < field.max()]:
            drawn = axes.contour(steps, steps, field, levels=crossed, colors=INK, alpha=0.5, linewidths=0.7)
            text = {level: format_value(level, "%") if unit == "%" else format_value(level) for level in crossed}
            axes.clabel(drawn, fmt=text, fontsize=7, colors=INK, inline_spacing=2)
        axes.plot([0], [0], "+", color=INK, markersize=9)
        axes.set(aspect="equal")
        label_axes(axes, x_label, y_label)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
            axis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value, "")))
        middle = float(np.ma.filled(field, math.nan)[len(steps) // 2, len(steps) // 2])
        ends = (format_value(float(end), unit) for end in (field.min(), field.max()))
        description = f"{format_value(middle, unit)} in the middle; from {' to '.join(ends)}"
        return to_svg(figure, title, description)


def scatter(
    points: Mapping[str, Sequence[tuple[float, float]]],
    title: str,
    x_label: str,
    y_label: str,
    unit: str = "%",
) -> str:
    """Draw groups of points on square axes with the diagonal.

    Args:
        points: (x, y) pairs by group.
        title: accessible name of the plot.
        x_label: label of x.
        y_label: label of y.
        unit: unit of both axes, as in ``Estimate.unit``.
    """
    values = [value for pairs in points.values() for pair in pairs for value in pair]
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.05
    with new_figure(4.0, list(points)) as figure:
        axes = axes_at(figure, x=(0.8, 4.4), y=(0.5, 4.0))
        axes.plot([low, high], [low, high], color=INK, alpha=0.4, linewidth=1, linestyle=DASHED)
        for i, pairs in enumerate(points.values()):
            colour, marker = series_style(i)
            axes.plot([x for x, _ in pairs], [y for _, y in pairs], marker, color=colour, markersize=6, alpha=0.8)
        axes.set(xlim=(low - room, high + room), ylim=(low - room, high + room))
        label_axes(axes, x_label, y_label)
        set_ticks(axes.xaxis, unit)
        set_ticks(axes.yaxis, unit)
        add_legend(figure, axes, list(points))
        description = "; ".join(
            f"{name}: " + ", ".join(f"({format_value(x, unit)}, {format_value(y, unit)})" for x, y in pairs)
            for name, pairs in points.items()
        )
        return to_svg(figure, title, description)


def _interval(axes: Axes, y: float, estimate: Estimate, model: int) -> None:
    """Draw one estimate as marker and line, with its value to the right of the axis."""
    colour, marker = series_style(model)
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
    """Return a number short enough for a cell, without its unit."""
    text = f"{100 * value:+z.1f}" if unit == "pp" else f"{100 * value:.0f}" if unit == "%" else f"{value:.2f}"
    return text.replace("-", "−")
