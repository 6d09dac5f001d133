"""Compare two finished runs of ``evaluate``, image by image, from the predictions saved in their folders."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from clearhead.analyses.evaluate import PredictionsBySet, predictions_folder, read_suite, suite_changes
from clearhead.analyses.robustness import SetRow, SuiteResult
from clearhead.analyses.suite_page import suite_page
from clearhead.analyses.suite_tables import write_tables
from clearhead.errors import ClearheadError
from clearhead.inputs import number_duplicates
from clearhead.prediction.suite_predictions import read_suite_predictions
from clearhead.report.page import Page
from clearhead.shifts.sets import file_name


def measure(before_run: Path, after_run: Path) -> SuiteResult:
    """Compare the first models of two finished runs of clearhead evaluate on the sets both have; no model runs.

    Example:
        $ clearhead compare-suites runs/evaluate-before runs/evaluate-after

    Args:
        before_run: folder of the baseline's run.
        after_run: folder of the other run, on the same images.

    Raises:
        ClearheadError: for folders of other runs, of other images, or without a set in common.
    """
    folders = before_run, after_run
    runs = [read_suite(argument, f) for argument, f in zip(("before_run", "after_run"), folders, strict=True)]
    _require_same_images(folders, runs)
    names = number_duplicates([run.subject.model for run in runs])
    keys = [[(row.set, row.scoring) for row in run.rows if row.model == run.subject.model] for run in runs]
    shared = [key for key in keys[0] if key in keys[1]]
    if not shared:
        raise ClearheadError(f"after_run: {after_run} has no set in common with {before_run}")
    predictions: dict[str, PredictionsBySet] = {}
    rows: list[SetRow] = []
    for name, folder, run in zip(names, folders, runs, strict=True):
        files = {key: predictions_folder(folder, run.subject.model) / file_name(key[0]) for key in shared}
        predictions[name] = {key: read_suite_predictions(file)[key[1]] for key, file in files.items()}
        own = [row for row in run.rows if row.model == run.subject.model and (row.set, row.scoring) in shared]
        rows += [replace(row, model=name) for row in own]
    return replace(
        runs[0],
        subject=replace(runs[0].subject, models=names),
        rows=rows,
        summaries={name: run.summaries[run.subject.model] for name, run in zip(names, runs, strict=True)},
        seeds=[],
        changes=suite_changes(names, predictions),
        absent=[],
    )


def export(result: SuiteResult, folder: Path) -> None:
    """Write the table of all rows: table.csv, table.parquet, table.md and table.tex."""
    write_tables(result.rows, folder)


def page(result: SuiteResult) -> Page:
    """Show the verdict over all sets, and the changes set by set."""
    return suite_page(result)


def _require_same_images(folders: Sequence[Path], runs: Sequence[SuiteResult]) -> None:
    """Raise ClearheadError where two runs are of different images, or of different shifts of them.

    Data at another path must be equal; at the same path, the images of each shared set are compared by their files.
    """
    configs = [yaml.safe_load((folder / "config.yaml").read_text("utf-8")) for folder in folders]
    paths = [config["arguments"]["data"] for config in configs]
    if paths[0] != paths[1] and configs[0]["inputs"]["data"] != configs[1]["inputs"]["data"]:
        raise ClearheadError(f"after_run: the runs are of different images: {paths[0]} and {paths[1]}")
    splits = [config["arguments"].get("split") for config in configs]
    decisive = {"split": splits, "seed": [r.seed for r in runs], "constants": [r.constants for r in runs]}
    for name, (before, after) in decisive.items():
        if before != after:
            raise ClearheadError(f"after_run: the runs are of different images: {name} was {before!r} and {after!r}")
