"""Robustness to distribution shift: models on suites of shifted data, from published benchmarks to corruptions.

Predictions are saved image by image below ``predictions/`` of the run folder, in parts as they are made, and stay there
(``clearhead.prediction.suite_predictions``): an interrupted run goes on from them, and ``compare-suites`` pairs them.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

from clearhead.analyses.robustness import SetChange, SuiteResult, changes, over_seeds, set_row
from clearhead.analyses.subject import Subject
from clearhead.analyses.suite_page import suite_page
from clearhead.analyses.suite_tables import write_tables
from clearhead.data.dataset import DataIssue
from clearhead.data.images import source_name
from clearhead.errors import ClearheadError
from clearhead.inputs import number_duplicates
from clearhead.metrics.aggregates import aggregate_metrics
from clearhead.models.errors import ModelError
from clearhead.models.source import ModelLike, ModelSource, as_classifier, different_classes, display_names
from clearhead.options import BatchSize, Option, Seed, Split, Workers
from clearhead.prediction.suite_predictions import SuitePredictions, predict_suite, read_suite_predictions
from clearhead.progress import Progress, log, prefixed
from clearhead.report.page import Page
from clearhead.shifts.sets import ShiftedDataset, file_name, require_files
from clearhead.shifts.suites import PUBLISHED, SUITES, is_small, suite_sets
from clearhead.storage import from_plain, read_json

DISTRIBUTED = True

PredictionsBySet = Mapping[tuple[str, str], SuitePredictions]
"""The predictions of a model by set and class mapping."""


def measure(
    models: Sequence[ModelLike],
    data: str | Path,
    *,
    suite: Annotated[
        Sequence[str],
        Option(
            "Suites of shifted data, comma-separated: imagenet, imagenet-c, cifar-c (published sets, in the folder "
            "DATA); corruptions, or a sweep such as rotation (made from the images of DATA)."
        ),
    ] = (),
    sets: Annotated[
        Sequence[str] | None,
        Option("Use only these sets of the suites (imagenet-a, 'fog 3') or families (fog), comma-separated."),
    ] = None,
    labels: Annotated[
        Sequence[str] | None,
        Option("Labels of the models in tables, comma-separated. Models of one label are seeds of one training."),
    ] = None,
    split: Split = None,
    most_unreadable: Annotated[
        float, Option("Largest acceptable fraction of unreadable images in a set; more stop the run.", 0, 1)
    ] = 0.01,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    seed: Seed = 0,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> SuiteResult:
    """Evaluate robustness to distribution shift: accuracy of models on suites of shifted data.

    With several models, the others are compared with the first, image by image. Several processes
    (``torchrun -m clearhead evaluate ...``) share the work.

    Example:
        $ clearhead evaluate timm:vit_small_patch16_224 DATA --suite corruptions
        $ clearhead evaluate BEFORE AFTER FOLDER --suite imagenet --sets imagenet-a,imagenet-r

    Args:
        models: classifiers or names, of the same classes; for published suites of as many classes.
        data: the folder that contains the published sets, or the images that shifts are made from.
        suite: keys of ``clearhead.shifts.suites.SUITES``.
        sets: use only these sets or families of the suites; None uses all that are available.
        labels: one per model; models of one label are seeds of one training, and their mean is reported too.
        split: of the images that shifts are made from.
        most_unreadable: largest acceptable fraction of unreadable images in a set.
        folder: where predictions are saved, below ``predictions/``; None does not save them.

    The other arguments are described in ``clearhead.options``.

    Raises:
        DataError: for sets that cannot be used, or with too many unreadable images.
        ModelError: for models that cannot be evaluated on the same sets.
        ClearheadError: for an unknown suite or set, or labels that are not one per model.
    """
    if not suite:
        raise ClearheadError(f"suite: give one or more of {', '.join(SUITES)}")
    if labels is not None and len(labels) != len(models):
        raise ClearheadError(f"labels: got {len(labels)} for {len(models)} models; give one per model")
    names = number_duplicates(labels) if labels else display_names(models)
    require_files(names, "models")
    classes, size = _require_comparable(names, models, suite)
    datasets, absent = suite_sets(suite, data, classes, size=size, sets=sets, split=split)
    if absent:
        log.info("unavailable: %s", ", ".join(absent))
    predictions: dict[str, PredictionsBySet] = {}
    with tempfile.TemporaryDirectory() if folder is None else nullcontext(str(folder)) as out:
        for name, model in zip(names, models, strict=True):
            predict_suite(
                as_classifier(model),
                datasets,
                predictions_folder(Path(out), name),
                batch_size=batch_size,
                workers=workers,
                seed=seed,
                most_unreadable=most_unreadable,
                progress=prefixed(progress, name),
            )
        for name in names:
            predictions[name] = _read_predictions(predictions_folder(Path(out), name), datasets)
    rows = [
        set_row(name, one.name, mapping, len(one.folder.classes), of_model[one.name, mapping], one.family, one.level)
        for name, of_model in predictions.items()
        for one in datasets
        for mapping in one.class_mappings
    ]
    small = is_small(size)
    main = main_mappings(predictions[names[0]])
    return SuiteResult(
        _subject(names, data, split, size, datasets, predictions[names[0]]),
        datasets[0].name,
        rows,
        {
            name: aggregate_metrics(datasets, {s: of_model[key] for s, key in main.items()}, seed, not small)
            for name, of_model in predictions.items()
        },
        over_seeds(rows, dict(zip(names, labels or names, strict=True))),
        suite_changes(names, predictions),
        "cifar" if small else "imagenet",
        seed,
        absent,
    )


def export(result: SuiteResult, folder: Path) -> None:
    """Write the table of all rows: table.csv, table.parquet, table.md and table.tex."""
    write_tables(result.rows, folder, result.seeds)


def page(result: SuiteResult) -> Page:
    """Show the accuracy on every set, the verdict over all sets, curves and the numbers of each model."""
    return suite_page(result)


def read_suite(argument: str, folder: Path) -> SuiteResult:
    """Return the result of a finished run of ``evaluate``. Raises ClearheadError that names `argument` for another."""
    file = folder / "results.json"
    saved = read_json(file) if file.is_file() else {}
    if saved.get("command") != "evaluate":
        state = f"is a run of {saved['command']}" if "command" in saved else "has no results.json"
        raise ClearheadError(f"{argument}: {folder} {state}; give the folder of a finished run of clearhead evaluate")
    return from_plain(saved["result"], SuiteResult, folder)


def predictions_folder(folder: Path, name: str) -> Path:
    """Return where a run folder has the predictions of a model."""
    return folder / "predictions" / Path(file_name(name)).stem


def main_mappings(predictions: PredictionsBySet) -> dict[str, tuple[str, str]]:
    """Return the key of each set's main class mapping, the first, by the set's name."""
    keys: dict[str, tuple[str, str]] = {}
    for key in predictions:
        keys.setdefault(key[0], key)
    return keys


def suite_changes(names: Sequence[str], predictions: Mapping[str, PredictionsBySet]) -> list[SetChange]:
    """Compare each model except the first with it, on each set under its main class mapping."""
    first = predictions[names[0]]
    keys = main_mappings(first).values()
    return changes({(name, *key): (first[key], predictions[name][key]) for name in names[1:] for key in keys})


def _require_comparable(
    names: Sequence[str], models: Sequence[ModelLike], suites: Sequence[str]
) -> tuple[tuple[str, ...], tuple[int, int]]:
    """Return the classes and input size of the first model. Raises ModelError for models of other sets.

    Class names matter where they name the folders of the data; published sets depend on the number of outputs only.
    """
    by_name = not {*suites} <= {*PUBLISHED}
    inputs = []
    for model in models:
        hold = len(models) <= 2
        one = model.load(hold=hold) if isinstance(model, ModelSource) else as_classifier(model)
        inputs.append((one.classes, one.preprocess.size))
    classes, size = inputs[0]
    for name, (other_classes, other_size) in zip(names[1:], inputs[1:], strict=True):
        if other_classes != classes if by_name else len(other_classes) != len(classes):
            raise ModelError(different_classes(names[0], classes, name, other_classes))
        if is_small(other_size) != is_small(size) and any("corruptions" in suite for suite in suites):
            raise ModelError(
                f"models: corruptions have other constants for the input of {name} ({other_size[0]} pixels) than for "
                f"that of {names[0]} ({size[0]} pixels): up to 64 pixels those of CIFAR-10-C; evaluate them in two runs"
            )
    return classes, size


def _read_predictions(folder: Path, datasets: Sequence[ShiftedDataset]) -> PredictionsBySet:
    return {
        (one.name, mapping): predictions
        for one in datasets
        for mapping, predictions in read_suite_predictions(folder / file_name(one.name)).items()
    }


def _subject(
    names: Sequence[str],
    data: str | Path,
    split: str | None,
    size: tuple[int, int],
    datasets: Sequence[ShiftedDataset],
    predictions: PredictionsBySet,
) -> Subject:
    """Return the models and the data, with its issues and the images that could not be read."""
    indices = list({id(one.folder): one.folder for one in datasets}.values())
    samples = [sample for index in indices for sample in index.samples]
    issues = [issue for index in indices for issue in index.issues]
    issues += [
        DataIssue(file, "unreadable", reason, "skipped")
        for one in predictions.values()
        for file, reason in one.unreadable.items()
    ]
    return Subject(
        list(names),
        f"{source_name(data)}, {split} split" if split else source_name(data),
        len(samples),
        sum(sample.mask is not None for sample in samples),
        list(size),
        list(dict.fromkeys(issues)),
    )
