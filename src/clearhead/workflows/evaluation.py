"""audit, heads, compare, evaluate, report."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clearhead.analyses.audit import summarize as audit
from clearhead.analyses.compare import compare_predictions as compare
from clearhead.analyses.heads import score_with_attributes
from clearhead.data.images import read_images
from clearhead.data.splits import require_apart
from clearhead.errors import ClearheadError
from clearhead.metrics.calibration import TemperatureScaling, calibration, fit_temperature
from clearhead.models import load_model
from clearhead.models.classifier import on_device
from clearhead.prediction.predict import logits_of, predict
from clearhead.report.pages import write_page
from clearhead.results import AuditResults, ComparisonResults, Results
from clearhead.runs import begin, read_results, write_table
from clearhead.workflows.pieces import (
    SHOWN,
    Progress,
    data_name,
    examples,
    finish,
    given,
    model_name,
    provenance_of,
    require_same_classes,
    titled,
)


def run_audit(
    model: str,
    data: str | Path,
    out: Path,
    *,
    split: str | None = None,
    groups: list[str] | None = None,
    method: str | None = None,
    heads: bool = False,
    temperature: str | None = None,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> AuditResults:
    """What does it rely on, and how does it hold up? ``clearhead audit``.

    With `heads`, head by head too. `temperature` names the split a temperature is fitted on, to tell the calibration
    before and after; ClearheadError unless `split` names another.
    """
    if temperature is not None and split in (None, temperature):
        raise ClearheadError(
            f"temperature: fitted on the split {temperature!r}, it needs another to be judged on, got split {split!r}: "
            "give --split, such as test"
        )
    arguments = given(locals())
    if not begin(out, "audit", arguments):
        started = time.perf_counter()
        classifier = load_model(model)
        folder = read_images(data, split=split, classes=classifier.classes)
        classifier = on_device(classifier, device)
        fitted, known = None, None
        if temperature is not None:
            known = read_images(data, split=temperature, classes=classifier.classes)
            require_apart(temperature=known, judging=folder)
            logits = logits_of(classifier, known, batch_size, workers, titled(progress, "temperature"))
            fitted = fit_temperature(logits, np.array([sample.label for sample in known.samples]))
        predictions = predict(
            classifier,
            folder,
            group_columns=groups,
            method=method,
            batch_size=batch_size,
            workers=workers,
            seed=seed,
            temperature=fitted,
            progress=titled(progress, "audit"),
        )
        numbers = audit(predictions, classifier.classes, seed, SHOWN)
        rescaled = None
        if fitted is not None and known is not None:
            scaled = calibration(**predictions.scaled, correct=predictions.correct, seed=seed)
            rescaled = TemperatureScaling(fitted, str(temperature), len(known.samples), scaled)
        write_table(out / "predictions.parquet", predictions.table(classifier.classes))
        least = examples(out, "least", [("", classifier, predictions)], folder, numbers.lowest_relevance_mass)
        options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
        scores = score_with_attributes(classifier, data, folder, **options) if heads else None
        provenance = provenance_of(arguments, started, folder.samples, classifier)
        issues = list(dict.fromkeys((*folder.issues, *(known.issues if known else ()))))
        names = model_name(model), data_name(data, split)
        finish(out, AuditResults("audit", *names, numbers, least, issues, provenance, scores, rescaled))
    return read_results(out, Results)


def run_compare(
    before: str,
    after: str,
    data: str | Path,
    out: Path,
    *,
    split: str | None = None,
    groups: list[str] | None = None,
    margin: float = 0.02,
    method: str | None = None,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> ComparisonResults:
    """Did it help, did it harm, and is the difference real? ``clearhead compare``."""
    arguments = given(locals())
    if not begin(out, "compare", arguments):
        started = time.perf_counter()
        models = [load_model(name) for name in (before, after)]
        require_same_classes(before, models[0], after, models[1])
        models = [on_device(classifier, device) for classifier in models]
        folder = read_images(data, split=split, classes=models[0].classes)
        options: dict[str, Any] = {"group_columns": groups, "method": method, "seed": seed}
        options |= {"batch_size": batch_size, "workers": workers}
        a, b = (
            predict(classifier, folder, **options, progress=titled(progress, title))
            for classifier, title in zip(models, ("before", "after"), strict=True)
        )
        result = compare(a, b, models[0].classes, margin, seed, SHOWN)
        for title, predictions in (("before", a), ("after", b)):
            write_table(out / f"predictions-{title}.parquet", predictions.table(models[0].classes))
        views = [("before", models[0], a), ("after", models[1], b)]
        sample = np.random.default_rng(seed).permutation(a.file)[:SHOWN].tolist()
        first = [file for files in result.first_negative_flips.values() for file in files]
        shown = {
            "positive_flips": result.positive_flips,
            "negative_flips": result.negative_flips,
            "sample": sample,
            "first-lost": first,
        }
        gained, lost, drawn, lost_first = (examples(out, title, views, folder, files) for title, files in shown.items())
        names = model_name(before), model_name(after), data_name(data, split)
        provenance = provenance_of(arguments, started, folder.samples, models[1])
        results = ComparisonResults(
            "comparison", *names, result, gained, lost, drawn, lost_first, list(folder.issues), provenance
        )
        finish(out, results)
    return read_results(out, Results)


def run_report(runs: Sequence[Path], out: Path, title: str = "") -> None:
    """Several finished runs on one page. ``clearhead report``."""
    write_page([(read_results(run, Results), run) for run in runs], out, title)
