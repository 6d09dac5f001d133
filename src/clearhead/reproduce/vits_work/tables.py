"""What was measured, as tables in Markdown."""

from collections.abc import Iterable, Sequence

from clearhead.analyses.robustness import SuiteResult
from clearhead.metrics.statistics import Estimate, format_interval, format_value
from clearhead.reproduce.vits_work.claims import CORRUPTION, Claim, Found

_READ = """Errors and test losses are of the epoch of lowest validation loss. Training losses, of the last epoch, are on
the model's own training images as they are; spectra are of the loss that it was trained on, augmentation and all, but
for the weight decay, which adds {:g} to every eigenvalue.
"""


def main_table(found: Found) -> str:
    """The models that every instrument was run on: errors, losses, spectra early and late, corruptions."""
    epochs = (found.size.early, found.size.settings.epochs)
    heads = ["model", "test error", "test loss", "training loss", CORRUPTION]
    heads += [f"{what}, epoch {n}" for n in epochs for what in ("largest eigenvalue", "negative")]
    rows = []
    for name in found.size.main:
        loss = found.audits[name, "test"].audit.calibration.loss
        kept = found.corruptions.summaries[name].get(CORRUPTION)
        cells = [name, _error(found, name), _told(loss), _fit(found, name), _told(kept)]
        rows.append(cells + [cell for epoch in epochs for cell in _spectrum(found, name, epoch)])
    return f"{_table(heads, rows)}\n{_READ.format(found.size.settings.weight_decay)}"


def series_tables(found: Found) -> str:
    """The trainings that differ in one thing, at their ends."""
    heads = ["model", "test error", "training loss", "largest eigenvalue", "negative"]
    told = []
    for title, names in found.size.series.items():
        rows = [
            [name, _error(found, name), _fit(found, name), *_spectrum(found, name, found.size.last(name))]
            for name in names
        ]
        told.append(f"{title}:\n\n{_table(heads, rows)}")
    return "\n".join(told)


def noise_table(noise: SuiteResult) -> str:
    """Accuracy under noise of each frequency."""
    levels = sorted({row.level for row in noise.rows if row.level is not None})
    rows = []
    for model in noise.subject.models:
        by_level = {row.level: row.top1.value for row in noise.rows if row.model == model}
        rows.append([model, *(format_value(by_level[level], "%") for level in (None, *levels))])
    return _table(["accuracy under noise of", "none", *(f"{level:g} π" for level in levels)], rows)


def claims_table(made: Sequence[Claim]) -> str:
    """Each claim with what it was judged by."""
    rows = [[claim.says, claim.measured, _told(claim.difference), claim.verdict] for claim in made]
    return _table(["the paper says", "measured", "difference", "here it"], rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def _told(value: Estimate | None) -> str:
    return "" if value is None else f"{format_value(value.value, value.unit)} {format_interval(value)}"


def _error(found: Found, name: str) -> str:
    right = found.audits[name, "test"].audit.accuracy
    return _told(Estimate(1 - right.value, 1 - right.high, 1 - right.low, right.count, "%"))


def _fit(found: Found, name: str) -> str:
    return _told(found.audits[name, "train"].audit.calibration.loss)


def _spectrum(found: Found, name: str, epoch: int) -> list[str]:
    spectrum = found.spectra[name][epoch]
    return [_told(spectrum.largest), _told(spectrum.negative)]
