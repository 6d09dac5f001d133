"""The command ``clearhead plan``: how many images a comparison needs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clearhead.errors import ClearheadError

if TYPE_CHECKING:
    from clearhead.report.page import Cell, Row


def plan(
    effect: Annotated[float, typer.Option(help="Change of accuracy to show, in percentage points.")],
    margin: Annotated[float, typer.Option(help="Non-inferiority margin, in percentage points.")] = 2,
    accuracy: Annotated[
        float | None, typer.Option(help="Accuracy before, in percent. Estimates the discordant pairs.", min=0, max=100)
    ] = None,
    discordant: Annotated[
        float | None,
        typer.Option(help="Percentage of images that exactly one model classifies correctly.", min=0, max=100),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run folder of an audit or a comparison: its accuracies, flips and groups.")
    ] = None,
    groups: Annotated[int, typer.Option(help="Number of groups whose worst is judged.", min=1)] = 1,
    power: Annotated[float, typer.Option(help="Probability of showing it, in percent.")] = 80,
) -> None:
    """Plan how many images show a change of accuracy, and how many show non-inferiority."""
    for name, value in (("effect", effect), ("margin", margin)):
        if 0 < abs(value) < 0.1:
            raise ClearheadError(
                f"--{name}: got {value:g} percentage points; five points are 5, not 0.05. From 0.1 points on, a plan "
                "is possible"
            )
    if effect == 0 or abs(effect) > 100:
        raise ClearheadError(f"--effect: got {effect:g}; give the change to show in percentage points, such as 5")
    if not 0 <= margin <= 100:
        raise ClearheadError(f"--margin: got {margin:g}; give percentage points in 0..100, such as 2")
    if (run is not None) + (accuracy is not None) + (discordant is not None) != 1:
        raise ClearheadError("--accuracy, --discordant, --run: give exactly one of them, such as --accuracy 85")
    from clearhead.report.page import Page, Table
    from clearhead.report.terminal import print_page

    sizes = effect / 100, margin / 100, power / 100
    if run is not None:
        rows, text = _rows_of_run(run, *sizes)
    else:
        rows, text = _rows(accuracy, discordant, groups, *sizes)
    columns = ["discordant pairs", f"to show {effect:+g} pp", f"to exclude a loss of {margin:g} pp"]
    columns += ["images now"] if run is not None else []
    table = Table(f"Images needed (power {power:g}%, paired 95% intervals)", columns, rows)
    print_page(Page("Plan", "", sections=[table]))
    if text:
        print(text)


def _row(
    name: str, discordant: float, effect: float, margin: float, power: float, groups: int, now: "Sequence[Cell]" = ()
) -> "Row":
    from clearhead.metrics.power import MOST_IMAGES, plan
    from clearhead.metrics.statistics import format_value
    from clearhead.report.page import Row

    planned = plan(effect, discordant, margin=margin, groups=groups, power=power)
    images = [f"{n:,}" if n is not None else f"over {MOST_IMAGES:,}" for n in (planned.change, planned.noninferiority)]
    return Row(name, [format_value(discordant, "%"), *images, *now])


def _rows(
    accuracy: float | None, discordant: float | None, groups: int, effect: float, margin: float, power: float
) -> tuple[list["Row"], str]:
    """Return a row per rate of discordant pairs, for all images and for one of several groups."""
    from clearhead.metrics.power import independent_discordance

    if discordant is not None:
        rates = {"all images": discordant / 100}
        text = ""
    else:
        most = independent_discordance((accuracy or 0) / 100, effect)
        rates = {"independent mistakes": most, "half as many flips": max(most / 2, abs(effect))}
        text = (
            "Discordant pairs are unknown: two models trained separately come close to independent mistakes, a model "
            "and its repair have fewer flips. --run takes them from a comparison."
        )
    rows = [_row(name, rate, effect, margin, power, 1) for name, rate in rates.items()]
    if groups > 1:
        rows += [_row(f"per group, {name}", rate, effect, margin, power, groups) for name, rate in rates.items()]
    return rows, text


def _rows_of_run(folder: Path, effect: float, margin: float, power: float) -> tuple[list["Row"], str]:
    """Return a row for all images of an audit or a comparison and for each of its groups."""
    import numpy as np
    import pyarrow.parquet

    from clearhead.metrics.power import independent_discordance
    from clearhead.report.page import Row
    from clearhead.runs import read_run

    command = read_run(folder).command
    if command not in ("audit", "compare"):
        raise ClearheadError(f"--run: {folder} is a run of {command}; give a run of audit or compare")
    correct = []
    for name in ("predictions",) if command == "audit" else ("predictions-before", "predictions-after"):
        table = pyarrow.parquet.read_table(folder / f"{name}.parquet", columns=["group", "label", "predicted"])
        group, label, predicted = (np.array(column.to_pylist(), dtype=object) for column in table.columns)
        correct.append(label == predicted)
    grouped = len(set(group)) > len(set(label))
    names = sorted(set(group)) if grouped else []
    rows = []
    for name in ["all images", *names]:
        members = np.full(len(group), True) if name == "all images" else group == name
        now, before = [f"{members.sum():,}"], float(correct[0][members].mean())
        if not 0 <= before + effect <= 1:
            rows.append(Row(name, ["", f"impossible from {before:.1%}", "", *now]))
            continue
        if command == "audit":
            rate = independent_discordance(before, effect)
        else:
            rate = max(float((correct[0] != correct[1])[members].mean()), abs(effect))
        rows.append(_row(name, rate, effect, margin, power, 1 if name == "all images" else len(names), now))
    text = "Discordant pairs: those of the comparison, at least as many as the effect takes."
    if command == "audit":
        text = "Discordant pairs: those of independent mistakes, an upper estimate; a comparison measures them."
    return rows, text + (" The numbers of a group are images of that group." if grouped else "")
