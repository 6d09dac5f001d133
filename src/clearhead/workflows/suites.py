"""evaluate --suite: models on shifted sets, one table; compare: two of them, from the answers that are kept."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from clearhead.analyses.robustness import (
    SetChange,
    SetRow,
    baseline_line,
    changes,
    effective_robustness,
    over_seeds,
    set_row,
)
from clearhead.data.dataset import DataIssue
from clearhead.data.image_io import DataError
from clearhead.distributed import barrier, rank_and_size
from clearhead.metrics.aggregates import aggregate_metrics
from clearhead.models import Classifier, load_model
from clearhead.models.classifier import on_device
from clearhead.prediction.suite_predictions import SuitePredictions, predict_suite, read_suite_predictions
from clearhead.report.tables import read_baselines, write_tables
from clearhead.results import Results, SuiteResults, once
from clearhead.runs import RunError, begin, read_results
from clearhead.shifts.sets import ShiftedDataset, file_name, require_files
from clearhead.shifts.suites import PUBLISHED, is_small, suite_sets
from clearhead.workflows.pieces import (
    Progress,
    data_name,
    finish,
    given,
    model_name,
    provenance_of,
    require_same_classes,
    titled,
    versions_told,
)

PredictionsBySet = Mapping[tuple[str, str], SuitePredictions]
"""The predictions of a model by set and scoring."""


def run_suite(
    models: Sequence[str],
    suites: Sequence[str],
    root: str | Path,
    out: Path,
    *,
    sets: Sequence[str] | None = None,
    split: str | None = None,
    baseline: Path | None = None,
    most_unreadable: float = 0.01,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> SuiteResults:
    """How well do models hold up on shifted data? ``clearhead evaluate --suite``.

    Args:
        models: names as for ``load_model``; the first is what the others are held against. ``LABEL=NAME`` gives a
            model another name in the table; models of one label are seeds of one training.
        suites: of ``clearhead.shifts.suites.SUITES``.
        root: the folder the published sets are in, or the images that shifts are made of.
        out: folder of the run.
        sets: the sets of the suites to take; all that are there by default.
        split: of the images that shifts are made of.
        baseline: a ``table.csv`` of other models: their line is what effective robustness is measured from.
        most_unreadable: the share of a set's images that may be broken; more of them stop the run.
        batch_size: images a batch.
        workers: processes that load images.
        seed: of the shifts.
        device: where to run.
        track: shows progress.

    Raises:
        DataError: for sets that cannot be used, or models of different classes.
        ClearheadError: for an unknown suite or set.
    """
    arguments = given(locals())
    for name in ("baseline", "most_unreadable"):  # neither changes an answer
        arguments.pop(name)
    known = read_baselines(baseline) if baseline else None
    if not begin(out, "evaluate", arguments, shared=True):
        started = time.perf_counter()
        parted = [_labelled(model) for model in models]
        names = once([label for label, _ in parted])
        require_files(names, "models")
        classifiers = [load_model(model) for _, model in parted]
        _require_alike(names, classifiers, suites)
        first = classifiers[0]
        found, absent = suite_sets(suites, root, first.classes, size=first.preprocess.size, sets=sets, split=split)
        for name, classifier in zip(names, classifiers, strict=True):
            predict_suite(
                on_device(classifier, device),
                found,
                _predictions(out, name),
                batch_size=batch_size,
                workers=workers,
                seed=seed,
                most_unreadable=most_unreadable,
                progress=titled(progress, name),
            )
        if rank_and_size()[0] == 0:
            predictions = {name: _read_predictions(out, name, found) for name in names}
            main, small = _main(predictions[names[0]]), is_small(first.preprocess.size)
            rows = [
                set_row(name, one.name, scoring, len(one.folder.classes), answers, one.family, one.level)
                for name in names
                for one in found
                for scoring in one.class_mappings
                if (answers := predictions[name][one.name, scoring])
            ]
            reference = found[0].name
            results = SuiteResults(
                "suite",
                names,
                data_name(root, split),
                reference,
                rows if known is None else _with_effective(rows, reference, known),
                summaries={
                    name: aggregate_metrics(
                        found, {one: predictions[name][key] for one, key in main.items()}, seed, not small
                    )
                    for name in names
                },
                seeds=over_seeds(rows, {name: label for name, (label, _) in zip(names, parted, strict=True)}),
                changes=_changes(names, predictions),
                constants="cifar" if small else "imagenet",
                absent=absent,
                issues=_problems(found, predictions[names[0]]),
            )
            folders = {id(one.folder): one.folder for one in found}.values()
            samples = [sample for folder in folders for sample in folder.samples]
            provenance = provenance_of(arguments | {"baseline": baseline}, started, samples, first)
            _finish(replace(results, provenance=provenance), out)
        barrier()
    elif known is not None and rank_and_size()[0] == 0:  # the same answers, held against other models
        results = read_results(out, Results)
        rows = _with_effective(results.rows, results.reference, known)
        _finish(replace(results, rows=rows, provenance=results.provenance | {"baseline": str(baseline)}), out)
    return read_results(out, Results)


def _require_alike(names: Sequence[str], models: Sequence[Classifier], suites: Sequence[str]) -> None:
    """Raise DataError where models cannot be asked about the same sets.

    Names of classes matter where they name the folders of DATA; published sets go by the number of the output.
    """
    first, published = models[0], {*suites} <= {*PUBLISHED}
    for name, model in zip(names[1:], models[1:], strict=True):
        if not published or len(model.classes) != len(first.classes):
            require_same_classes(names[0], first, name, model)
        if is_small(model.preprocess.size) != is_small(first.preprocess.size) and "corruptions" in " ".join(suites):
            raise DataError(
                f"corruptions of the input of {name} have other constants than for {names[0]} (up to 64 pixels a side "
                "or more): evaluate them in two runs"
            )


def compare_suites(before: Path, after: Path, out: Path) -> SuiteResults:
    """The first models of two finished suite runs on the sets both have, from the answers kept in their folders.

    Neither model is run. Raises RunError for folders of other runs, or without a set in common.
    """
    arguments = {"before": str(before), "after": str(after)}
    if not begin(out, "compare", arguments):
        runs = [_suite_of(folder) for folder in (before, after)]
        _require_same_images(before, after, runs)
        names = once([run.models[0] for run in runs])
        keys = [[(row.set, row.scoring) for row in run.rows if row.model == run.models[0]] for run in runs]
        shared = [key for key in keys[0] if key in keys[1]]
        if not shared:
            raise RunError(f"{before} and {after} have no set in common")
        one_line = (
            len({run.provenance.get("baseline") for run in runs}) == 1
        )  # what effective robustness is measured from
        predictions: dict[str, PredictionsBySet] = {}
        rows: list[SetRow] = []
        for name, folder, run in zip(names, (before, after), runs, strict=True):
            files = {key: _predictions(folder, run.models[0]) / file_name(key[0]) for key in shared}
            predictions[name] = {key: read_suite_predictions(file)[key[1]] for key, file in files.items()}
            mine = [row for row in run.rows if row.model == run.models[0] and (row.set, row.scoring) in shared]
            rows += [replace(row, model=name, effective=row.effective if one_line else None) for row in mine]
        results = SuiteResults(
            "suite",
            names,
            runs[0].data,
            runs[0].reference,
            rows,
            summaries={name: run.summaries[run.models[0]] for name, run in zip(names, runs, strict=True)},
            changes=_changes(names, predictions),
            constants=runs[0].constants,
            issues=runs[0].issues,
            provenance={"before": str(before), "after": str(after), "versions": versions_told()},
        )
        _finish(results, out)
    return read_results(out, Results)


def _suite_of(folder: Path) -> SuiteResults:
    run = read_results(folder, Results)
    if not isinstance(run, SuiteResults):
        raise RunError(f"{folder} is not a run of clearhead evaluate --suite; name DATA to compare two models on it")
    return run


def _require_same_images(before: Path, after: Path, runs: Sequence[SuiteResults]) -> None:
    """Raise RunError where two runs asked about other images, or other shifts of them."""
    given = [yaml.safe_load((folder / "config.yaml").read_text("utf-8"))["arguments"] for folder in (before, after)]
    for name in ("root", "split", "seed", "constants"):
        a, b = (arguments.get(name, run.constants) for arguments, run in zip(given, runs, strict=True))
        if a != b:
            raise RunError(f"{before} and {after} are of other images: {name} was {a!r} and {b!r}")


def _labelled(model: str) -> tuple[str, str]:
    """The label and the name of a model given as ``LABEL=NAME`` or as a name alone."""
    found = re.fullmatch(r"([^:/\\@=]+)=(.+)", model)
    return (found[1], found[2]) if found else (model_name(model), model)


def _predictions(out: Path, name: str) -> Path:
    return out / "predictions" / Path(file_name(name)).stem


def _read_predictions(out: Path, name: str, sets: Sequence[ShiftedDataset]) -> PredictionsBySet:
    folder = _predictions(out, name)
    return {
        (one.name, scoring): answers
        for one in sets
        for scoring, answers in read_suite_predictions(folder / file_name(one.name)).items()
    }


def _main(predictions: PredictionsBySet) -> dict[str, tuple[str, str]]:
    """The key of each set's first scoring, by the set's name."""
    found: dict[str, tuple[str, str]] = {}
    for key in predictions:
        found.setdefault(key[0], key)
    return found


def _changes(names: Sequence[str], predictions: Mapping[str, PredictionsBySet]) -> list[SetChange]:
    """Each model but the first against it, on each set under its main scoring."""
    first = predictions[names[0]]
    return changes(
        {(name, *key): (first[key], predictions[name][key]) for name in names[1:] for key in _main(first).values()}
    )


def _with_effective(
    rows: Sequence[SetRow], reference: str, known: Mapping[tuple[str, str], dict[str, float]]
) -> list[SetRow]:
    """The rows with effective robustness where the baselines have the set and the reference."""
    main = {row.model: row for row in reversed(rows) if row.set == reference}
    of_reference = known.get((reference, next(iter(main.values())).scoring))
    if of_reference is None:
        raise DataError(f"baseline: the table has no row of the reference set {reference}")
    found = []
    for row in rows:
        of_set = known.get((row.set, row.scoring))
        if row.set != reference and of_set:
            both = [model for model in of_set if model in of_reference]
            line = baseline_line([of_reference[m] for m in both], [of_set[m] for m in both])
            if line:
                row = replace(row, effective=effective_robustness(row.top1, main[row.model].top1.value, line))
        found.append(row)
    return found


def _problems(sets: Sequence[ShiftedDataset], predictions: PredictionsBySet) -> list[DataIssue]:
    """What was wrong with the folders, and the images that could not be read."""
    found = [issue for one in sets for issue in one.folder.issues]
    for answers in predictions.values():
        found += [DataIssue(file, "unreadable", why, "skipped") for file, why in answers.unreadable.items()]
    return list(dict.fromkeys(found))


def _finish(results: SuiteResults, out: Path) -> None:
    write_tables(results.rows, out, results.seeds)
    finish(out, results)
