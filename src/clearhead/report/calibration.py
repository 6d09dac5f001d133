"""The calibration of a model on the page: reliability diagram and numbers, unscaled and after temperature scaling."""

from clearhead.metrics.calibration import BINS, CONFIDENT, TEMPERATURES, Calibration, TemperatureScaling
from clearhead.metrics.statistics import Estimate, format_value
from clearhead.report import plots
from clearhead.report.page import Figure, Row, Section, Table

_PERCENT = f"{100 * CONFIDENT:g}"

_NOTES = {
    f"ECE ({BINS} bins)": "expected calibration error; lower is better",
    "overconfidence": "mean confidence - accuracy; negative: underconfident",
    "Brier score": "squared distance of the probabilities from the label; lower is better",
    "loss": "negative log-likelihood; lower is better",
    f"images above {_PERCENT}% confidence": f"Freq-{_PERCENT}",
    f"accuracy above {_PERCENT}% confidence": f"Acc-{_PERCENT}",
    f"errors up to {_PERCENT}% confidence": f"Unc-{_PERCENT}: the share of the errors that a threshold detects",
}


def calibration_rows(calibration: Calibration) -> dict[str, Estimate]:
    """Return the numbers by name, in the order of the table."""
    c = calibration
    numbers = c.ece, c.overconfidence, c.brier, c.loss, c.confident, c.confident_accuracy, c.unconfident_errors
    return dict(zip(_NOTES, numbers, strict=True))


def calibration_sections(calibration: Calibration, scaled: TemperatureScaling | None, of: str = "") -> list[Section]:
    """Return the reliability diagrams and the table of one model."""
    text = "Accuracy by confidence."
    sections: list[Section] = [Figure(f"Calibration{of}", text, _plot(calibration, f"Reliability{of}"))]
    columns = {"unscaled": calibration_rows(calibration)}
    note = ""
    if scaled is not None:
        name = f"temperature {format_value(scaled.temperature)}"
        columns[name] = calibration_rows(scaled.calibration)
        note = (
            f"The temperature, by which the logits are divided, was fitted on the {scaled.images:,} images of the "
            f"split {scaled.split}; none of them is counted here. It changes the confidence, not the predictions."
        )
        if scaled.temperature in TEMPERATURES:
            note += " The optimum lies outside the search bounds: this is the bound."
        plot = _plot(scaled.calibration, f"Reliability at {name}{of}")
        sections.append(Figure(f"Calibration at {name}{of}", f"Accuracy by confidence at {name}.", plot))
    rows = [Row(name, [column[name] for column in columns.values()], text) for name, text in _NOTES.items()]
    return [*sections, Table(f"Calibration in numbers{of}", list(columns), rows, note)]


def _plot(calibration: Calibration, title: str) -> str:
    bins = calibration.bins
    return plots.reliability(bins.confidence, bins.accuracy, bins.counts, title)
