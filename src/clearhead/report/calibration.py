"""Calibration on the page: the reliability diagram and the numbers, as the model is and at a temperature."""

from clearhead.metrics.calibration import SURE, TEMPERATURES, Calibration, Rescaled
from clearhead.metrics.statistics import Estimate, number
from clearhead.report import plots
from clearhead.report.page import Figure, Row, Section, Table

_SURE = f"{100 * SURE:g}"

_NOTES = {
    "calibration error": "mean distance of confidence from accuracy, by bins; lower is better",
    "confidence less accuracy": "above zero: too sure",
    "Brier score": "squared distance of the probabilities from the truth; lower is better",
    "loss": "negative log-likelihood; lower is better",
    f"images above {_SURE}% confidence": f"Freq-{_SURE}",
    f"accuracy above {_SURE}% confidence": f"Acc-{_SURE}",
    f"mistakes up to {_SURE}% confidence": f"Unc-{_SURE}: the share of the mistakes that can be caught",
}


def calibration_rows(found: Calibration) -> dict[str, Estimate]:
    """The numbers by name, in the order they are told."""
    numbers = found.error, found.excess, found.brier, found.loss
    return dict(zip(_NOTES, (*numbers, found.sure, found.sure_accuracy, found.unsure_mistakes), strict=True))


def calibration_sections(found: Calibration, rescaled: Rescaled | None, of: str = "") -> list[Section]:
    """All that is told of the calibration of one model."""
    text = "How often the model is right, by how sure it says it is."
    sections: list[Section] = [Figure(f"Calibration{of}", text, _plot(found, f"Reliability{of}"))]
    views = {"as it is": calibration_rows(found)}
    told = ""
    if rescaled is not None:
        scale = f"temperature {number(rescaled.temperature)}"
        views[scale] = calibration_rows(rescaled.calibration)
        told = (
            f"The temperature that the logits are divided by was fitted on the {rescaled.images:,} images of the split "
            f"{rescaled.split}, none of which is counted here. It changes no prediction, only how sure it is."
        )
        if rescaled.temperature in TEMPERATURES:
            told += " No temperature within the bounds was best there: this is the bound."
        text = f"The same at {scale}."
        plot = _plot(rescaled.calibration, f"Reliability at {scale}{of}")
        sections.append(Figure(f"Calibration at {scale}{of}", text, plot))
    rows = [Row(name, [view[name] for view in views.values()], note) for name, note in _NOTES.items()]
    return [*sections, Table(f"Calibration in numbers{of}", list(views), rows, told)]


def _plot(found: Calibration, title: str) -> str:
    return plots.reliability(found.bins.confidence, found.bins.accuracy, found.bins.counts, title)
