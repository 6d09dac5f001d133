"""Tables of the measurements in Markdown."""

from collections.abc import Iterable, Sequence

from clearhead.analyses.robustness import SuiteResult
from clearhead.metrics.statistics import Estimate, format_interval, format_value
from clearhead.reproduce.vits_work.claims import CORRUPTION, Claim, Measurements

_NOTE = """Errors and test losses are of the epoch of lowest validation loss. Training losses are of the last epoch, on
the model's own training images without augmentation; spectra are of the training loss with its augmentation, without
the weight decay, which adds {:g} to every eigenvalue.
"""


def main_table(measured: Measurements) -> str:
    """Return the table of the main models: errors, losses, spectra early and late, corruptions."""
    epochs = (measured.size.early, measured.size.settings.epochs)
    heads = ["model", "test error", "test loss", "training loss", CORRUPTION]
    heads += [f"{number}, epoch {n}" for n in epochs for number in ("largest eigenvalue", "negative")]
    rows = []
    for name in measured.size.main:
        loss = measured.audits[name, "test"].audit.calibration.loss
        corrupted = measured.corruptions.summaries[name].get(CORRUPTION)
        cells = [name, _error(measured, name), _text(loss), _fit(measured, name), _text(corrupted)]
        rows.append(cells + [cell for epoch in epochs for cell in _spectrum(measured, name, epoch)])
    return f"{_table(heads, rows)}\n{_NOTE.format(measured.size.settings.weight_decay)}"


def series_tables(measured: Measurements) -> str:
    """Return a table for each series of trainings that differ in one setting, after their last epoch."""
    heads = ["model", "test error", "training loss", "largest eigenvalue", "negative"]
    tables = []
    for title, names in measured.size.series.items():
        rows = [
            [name, _error(measured, name), _fit(measured, name), *_spectrum(measured, name, measured.size.last(name))]
            for name in names
        ]
        tables.append(f"{title}:\n\n{_table(heads, rows)}")
    return "\n".join(tables)


def noise_table(noise: SuiteResult) -> str:
    """Return the table of accuracy under noise of each frequency."""
    levels = sorted({row.level for row in noise.rows if row.level is not None})
    rows = []
    for model in noise.subject.models:
        by_level = {row.level: row.top1.value for row in noise.rows if row.model == model}
        rows.append([model, *(format_value(by_level[level], "%") for level in (None, *levels))])
    return _table(["accuracy under noise of", "none", *(f"{level:g} π" for level in levels)], rows)


def claims_table(tested: Sequence[Claim]) -> str:
    """Return the table of claims with the difference that tests each."""
    rows = [[claim.statement, claim.measured, _text(claim.difference), claim.verdict] for claim in tested]
    return _table(["claim of the paper", "measured", "difference", "verdict"], rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def _text(value: Estimate | None) -> str:
    return "" if value is None else f"{format_value(value.value, value.unit)} {format_interval(value)}"


def _error(measured: Measurements, name: str) -> str:
    accuracy = measured.audits[name, "test"].audit.accuracy
    return _text(Estimate(1 - accuracy.value, 1 - accuracy.high, 1 - accuracy.low, accuracy.count, "%"))


def _fit(measured: Measurements, name: str) -> str:
    return _text(measured.audits[name, "train"].audit.calibration.loss)


def _spectrum(measured: Measurements, name: str, epoch: int) -> list[str]:
    spectrum = measured.spectra[name][epoch]
    return [_text(spectrum.largest), _text(spectrum.negative)]
