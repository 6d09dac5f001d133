"""Feature maps through depth on the page: frequencies, variance, lesions, similarity."""

from collections.abc import Sequence

from clearhead.analyses.fourier import FeatureMaps
from clearhead.analyses.lesion import Lesion, Lesions
from clearhead.metrics.statistics import Estimate
from clearhead.report import layer_plots
from clearhead.report.page import Figure, Row, Section, Table
from clearhead.results import CkaResults, FourierResults, LesionResults


def fourier_sections(run: FourierResults) -> list[Section]:
    """Of each model: amplitude against frequency, the last frequency and the variance against depth, the numbers."""
    sections: list[Section] = [_changes(run)]
    for name, found in run.maps.items():
        of = f": {name}" if len(run.maps) > 1 else ""
        sections += _maps(found, of)
    return sections


def _changes(run: FourierResults) -> Table:
    rows = [
        Row(
            f"{name}, {layer_plots.kind_name(kind)}",
            [found.high_change.get(kind, ""), found.variance_change[kind]],
            _made_of(found, kind),
        )
        for name, found in run.maps.items()
        for kind in found.variance_change
    ]
    text = (
        "What a unit of each kind does to the feature map on average, after it less before it, where the grid stays. "
        "High frequency: log amplitude of the last frequency, relative to that of frequency 0; below 0 it is a "
        "low-pass filter."
    )
    return Table("Change through a unit", ["high frequency", "variance"], rows, text)


def _made_of(found: FeatureMaps, kind: str) -> str:
    changes = [unit.high_change.value for unit in found.units if unit.kind == kind and unit.high_change]
    return f"{len(changes)} units, {sum(change < 0 for change in changes)} lower it" if changes else ""


def _maps(found: FeatureMaps, of: str) -> list[Section]:
    grid = " and ".join(dict.fromkeys(f"{u.height} x {u.width}" for u in found.units))
    last = " and ".join(dict.fromkeys(f"{u.frequency[-1]:.3g}π" for u in found.units if len(u.frequency) > 1))
    lines = [(u.depth, u.frequency, u.amplitude) for u in found.units if len(u.frequency) > 1]
    left_out = f" Left out, for their positions form no grid: {', '.join(found.left_out)}." if found.left_out else ""
    sections: list[Section] = []
    if lines:
        title = f"Fourier spectrum{of}"
        text = (
            "Log amplitude on the diagonal of the Fourier transform of the feature map after each unit, less that of "
            f"frequency 0; mean over channels and {found.images:,} images. Grid of {grid}.{left_out}"
        )
        sections.append(Figure(title, text, layer_plots.amplitudes(lines, title)))
        title = f"High frequency{of}"
        text = f"The last of these frequencies ({last}) after each unit, and which kind of unit led there."
        high = [(u.kind, u.depth, u.high) for u in found.units]
        sections.append(Figure(title, text, layer_plots.through_depth(high, title, "Δ log amplitude", steps=True)))
    title = f"Variance of feature maps{of}"
    text = "Over positions, mean over channels and images, after each unit."
    variance = [(u.kind, u.depth, u.variance) for u in found.units]
    sections.append(Figure(title, text, layer_plots.through_depth(variance, title, "variance", steps=True)))
    rows = [
        Row(u.unit, [u.high, u.high_change or "", u.variance, u.variance_change or ""], f"{u.height} x {u.width}")
        for u in found.units
    ]
    columns = ["high frequency", "change", "variance", "change of variance"]
    return [*sections, Table(f"Units{of}", columns, rows, "After each unit, with its grid.", names="unit")]


def lesion_sections(run: LesionResults) -> list[Section]:
    """Of each model: what is lost without each unit against depth, and the numbers."""
    sections: list[Section] = []
    for name, found in run.lesions.items():
        sections += _lesions(found, f": {name}" if len(run.lesions) > 1 else "")
    return sections


def _lesions(found: Lesions, of: str) -> list[Section]:
    title = f"Without each unit{of}"
    text = (
        "Accuracy of the model without one unit less that of the whole model, on the same images. "
        f"The whole model: {100 * found.accuracy.value:.1f}% of {found.accuracy.count:,} images."
    )
    plot = layer_plots.through_depth(_points(found.units, "accuracy"), title, "accuracy, pp", "pp")
    sections: list[Section] = [Figure(title, text, plot)]
    title = f"Likelihood without each unit{of}"
    text = "Negative log-likelihood without it less with it: what the accuracy is too coarse to show."
    sections.append(Figure(title, text, layer_plots.through_depth(_points(found.units, "nll"), title, "NLL, nats")))
    for title, lesions in ((f"Units{of}", found.units), (f"Blocks{of}", found.blocks)):
        if lesions:
            rows = [Row(one.name, [one.accuracy, one.nll]) for one in lesions]
            sections.append(
                Table(title, ["accuracy", "NLL"], rows, "Change without it, paired by image.", names="without")
            )
    return sections


def _points(lesions: Sequence[Lesion], measure: str) -> list[tuple[str, float, Estimate]]:
    return [(one.kind, one.depth, getattr(one, measure)) for one in lesions]


def cka_sections(run: CkaResults) -> list[Section]:
    """The matrix, and which unit of the second model each unit of the first is most like."""
    found = run.similarity
    first, second = run.models[0], run.models[-1]
    title = (
        f"CKA between the units of {first} and {second}" if len(run.models) > 1 else f"CKA between the units of {first}"
    )
    text = (
        f"Linear, from mini-batches of {found.batch_size}, {found.images:,} images in all; from 0 (clear) to 1 (full "
        "colour). Units by number, as in the table."
    )
    plot = layer_plots.matrix(found.cka, title, f"unit of {_short(first)}", f"unit of {_short(second)}")
    rows = []
    for i, (name, row) in enumerate(zip(found.rows, found.cka, strict=True)):
        others = [(value, j) for j, value in enumerate(row) if value == value and (len(run.models) > 1 or j != i)]
        cells = ["–", "–"]
        if others:
            value, j = max(others)
            cells = [f"{j}  {found.columns[j]}", f"{value:.3f}"]
        rows.append(Row(f"{i}  {name}", cells))
    table = Table("Most alike", [f"unit of {second}", "CKA"], rows, "For each unit the one most like it.", names=first)
    return [Figure("Similarity of representations", text, plot), table]


def _short(name: str, letters: int = 30) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"
