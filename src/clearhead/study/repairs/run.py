"""Run a plan of repairs: each training has a folder and runs once; the table is over all of them."""

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet

from clearhead.data.dataset import ImageIndex, Sample
from clearhead.data.fingerprint import fingerprint as data_fingerprint
from clearhead.data.image_io import ImageRef
from clearhead.data.images import absolute_source, read_images
from clearhead.data.interventions import INTERVENTIONS
from clearhead.data.splits import splits_of
from clearhead.distributed import run_all
from clearhead.metrics.statistics import Estimate, mean
from clearhead.models import Classifier, load_model, save_model
from clearhead.models.classifier import fingerprint as weights_fingerprint
from clearhead.models.classifier import on_device
from clearhead.prediction.predict import predict
from clearhead.progress import Progress
from clearhead.storage import read_json, write_json, write_table
from clearhead.study.cells import claim, read_result, write_result
from clearhead.study.plan_files import StudyError
from clearhead.study.repairs.plan import Plan, Variant
from clearhead.training.loop import best_epoch, fit

Array = npt.NDArray[Any]

BEFORE = "before"
"""Folder of the original model."""


@dataclass(frozen=True)
class Trained:
    """What one training used, and which epoch it selected.

    Attributes:
        classes: the classes trained on.
        images: number of training images.
        validation: number of validation images.
        epoch: the epoch selected on them.
        epochs: how many there were.
    """

    classes: list[str]
    images: int
    validation: int
    epoch: int
    epochs: int


@dataclass(frozen=True)
class StudyRow:
    """One measure of one method on one test set, over the seeds.

    Attributes:
        name: of the method.
        samples: images per class it was trained on, at most.
        classes: number of classes it was trained on.
        test: the test set.
        measure: what is measured.
        before: of the original model, mean over the seeds (which images count may depend on the seed).
        after: mean over the seeds.
        spread: standard deviation over the seeds; None for a single one.
        change: after - before: the seeds' mean for each image, and the mean over images; its interval is over images,
            not over seeds. Where the seed decides which images count (the classes trained on, the others), it need not
            equal `after` - `before`, which are means over seeds.
        seeds: how many.
    """

    name: str
    samples: int
    classes: int
    test: str
    measure: str
    before: float
    after: float
    spread: float | None
    change: Estimate
    seeds: int


def run_study(
    plan: Plan,
    out: Path,
    *,
    jobs: int = 1,
    device: str | None = None,
    progress: Progress | None = None,
) -> list[StudyRow]:
    """Run what is not finished below `out`, and return the table.

    Args:
        plan: what to run.
        out: a folder for each training and one for the original model; each has its checkpoint and predictions.
        jobs: number of parallel processes.
        device: where to train and measure; by default a GPU where there is one.
        progress: shows progress.

    Raises:
        StudyError: for more classes than the data has, none left for validation, test images that are trained on, or a
            folder of another plan.
        DataError: for data that cannot be read.
    """
    model = load_model(plan.model)
    weights = weights_fingerprint(model.module)
    data = _training_data(plan, model)
    tests = {name: _test(plan, name, model) for name in plan.tests}
    drawn = {
        (samples, classes, seed): draw(plan, data, Variant("", samples, classes, seed))
        for samples, classes, seed in product(plan.samples, plan.classes, plan.seeds)
    }
    _require_other_images(tests, [index for indices in drawn.values() for index in indices])
    _require_same_tests(plan, tests, out)
    cells: list[tuple[Any, ...]] = [(plan, None, None, weights, out, device)]
    cells += [(plan, v, drawn[v.samples, v.classes, v.seed], weights, out, device) for v in plan.variants()]
    run_all(_run_cell, cells, jobs, progress, "trainings")
    return gather(plan, out)


def _require_same_tests(plan: Plan, tests: Mapping[str, ImageIndex], out: Path) -> None:
    """Record what each test set is; raise StudyError where one has changed."""
    file = out / "tests.json"
    known = read_json(file) if file.is_file() else {}
    now = {
        name: {"source": absolute_source(plan.tests[name]), **data_fingerprint(index)} for name, index in tests.items()
    }
    for name in known.keys() & now.keys():
        if known[name]["source"] != now[name]["source"]:
            was, source = known[name]["source"], now[name]["source"]
            raise StudyError(f"tests: {name} was {was}, now {source}: give the new set another name")
        if known[name] != now[name]:
            raise StudyError(f"tests: {name} has changed since it was measured on; give it another name")
    write_json(file, known | now)


def _require_other_images(tests: Mapping[str, ImageIndex], drawn: Sequence[ImageIndex]) -> None:
    """Raise StudyError where a test set has an image that is trained on or selects an epoch."""
    used = {_location(sample) for index in drawn for sample in index.samples}
    for name, index in tests.items():
        for sample in index.samples:
            if _location(sample) in used:
                raise StudyError(
                    f"tests: {name} has {sample.path}, which is trained on or selects the epoch; give other images, or "
                    "name a split test in metadata.csv"
                )


def _location(sample: Sample) -> Path | ImageRef:
    """Return where an image is, the same for two folders that share it."""
    return sample.path.resolve() if isinstance(sample.path, Path) else sample.path


def draw(plan: Plan, data: ImageIndex, variant: Variant) -> tuple[ImageIndex, ImageIndex]:
    """Return the images a variant is trained on and those that select its epoch, the same for all its methods.

    Classes are drawn by the seed among those that have images with masks; of each, `samples` images with masks, or all
    where there are fewer. Validation: images with masks of the other classes, one of each class before the second of
    any, at most ``plan.validation``. Where metadata.csv names a split ``val``, that is used instead.
    """
    rng = np.random.default_rng([variant.seed, 0])
    masked = [sample for sample in data.samples if sample.mask]
    by_class = defaultdict(list)
    for position in rng.permutation(len(masked)):
        by_class[masked[position].label].append(masked[position])
    order = rng.permutation(sorted(by_class)).tolist()
    if variant.classes > len(order):
        raise StudyError(f"classes: got {variant.classes}; {data.root} has {len(order)} with masks")
    training = [s for label in order[: variant.classes] for s in by_class[label][: variant.samples]]
    train = replace(data, samples=tuple(sorted(training, key=lambda s: s.file)), issues=())
    if "val" in splits_of(plan.data):
        return train, read_images(plan.data, split="val", classes=data.classes, check=False)
    others = [by_class[label] for label in order[variant.classes :]]
    rest = [samples[i] for i in range(max(map(len, others), default=0)) for samples in others if i < len(samples)]
    if not rest:
        raise StudyError(
            f"classes: {variant.classes} of the {len(order)} classes with masks leave none to select the epoch on; "
            "train on fewer, or name a split val in metadata.csv"
        )
    return train, replace(data, samples=tuple(rest[: plan.validation]), issues=())


def _training_data(plan: Plan, model: Classifier) -> ImageIndex:
    splits = splits_of(plan.data)
    if splits and "train" not in splits:
        raise StudyError(f"data: {plan.data} has the splits {', '.join(sorted(splits))}; train is needed")
    return read_images(plan.data, split="train" if splits else None, classes=model.classes)


def _test(plan: Plan, name: str, model: Classifier, check: bool = False) -> ImageIndex:
    path = plan.tests[name]
    return read_images(path, split="test" if "test" in splits_of(path) else None, classes=model.classes, check=check)


def _run_cell(
    plan: Plan,
    variant: Variant | None,
    drawn: tuple[ImageIndex, ImageIndex] | None,
    weights: str,
    out: Path,
    device: str | None,
) -> None:
    """Run one training, or take the original model, in its folder; then predict the test sets that are missing."""
    folder = out / (variant.folder if variant else BEFORE)
    deciding: dict[str, Any] = {"model": plan.model, "weights": weights}
    if variant and drawn:
        loss, config = plan.loss(variant.name), plan.settings(variant)
        deciding |= {"data": plan.data.resolve(), "variant": vars(variant), "validation": plan.validation}
        deciding |= {"method": plan.methods[variant.name].method, "settings": vars(config)}
        deciding |= {"loss": vars(loss) if is_dataclass(loss) else {}}
        for name, index in zip(("images", "validation images"), drawn, strict=True):
            deciding[name] = data_fingerprint(index)
    if not claim(folder, deciding):
        result = Trained([], 0, 0, 0, 0)
        if variant and drawn:
            model, (train, validation) = load_model(plan.model), drawn
            repaired, history = fit(model, loss, train, validation, config, folder / "state", device=device)
            save_model(repaired, folder / "checkpoint")
            labels = sorted({sample.label for sample in train.samples})
            counts = len(train.samples), len(validation.samples), best_epoch(history).number, len(history) - 1
            result = Trained([model.classes[label] for label in labels], *counts)
        write_result(folder, result)
        shutil.rmtree(folder / "state", ignore_errors=True)
    missing = [name for name in plan.tests if not (folder / f"{name}.parquet").exists()]
    if missing:
        model = on_device(load_model(str(folder / "checkpoint") if variant else plan.model), device)
        for name in missing:
            predictions = predict(model, _test(plan, name, model, check=True))
            write_table(folder / f"{name}.parquet", predictions.table(model.classes))


def gather(plan: Plan, out: Path) -> list[StudyRow]:
    """Return the table of the finished trainings below `out`."""
    rows = []
    before = {test: _columns(out / BEFORE / f"{test}.parquet") for test in plan.tests}
    cells = dict.fromkeys((v.name, v.samples, v.classes) for v in plan.variants())
    for name, samples, classes in cells:
        pairs: dict[tuple[str, str], list[tuple[Array, Array]]] = defaultdict(list)
        for seed in plan.seeds:
            folder = out / Variant(name, samples, classes, seed).folder
            trained = read_result(folder, Trained).classes
            for test in plan.tests:
                columns = _columns(folder / f"{test}.parquet")
                if not np.array_equal(columns["file"], before[test]["file"]):
                    raise StudyError(
                        f"tests: {test} has changed since {folder} was measured on it; give it another name"
                    )
                after = measures(columns, trained)
                for measure, values in measures(before[test], trained).items():
                    if measure in after:
                        pairs[test, measure].append((values, after[measure]))
        rows += [_row(name, samples, classes, *key, of_seeds) for key, of_seeds in pairs.items()]
    return rows


def measures(columns: Mapping[str, Array], trained: list[str]) -> dict[str, Array]:
    """Return what is measured on each image (N): shares in 0..1, NaN where the image does not count.

    Accuracy, that of the classes trained on and of the others, that under each intervention, and the share of the
    relevance that lies in the foreground.
    """
    label, correct = columns["label"], (columns["predicted"] == columns["label"]).astype(float)
    inside = np.isin(label, trained)
    values: dict[str, Array] = {"accuracy": correct}
    if inside.any() and not inside.all():
        values["accuracy, trained classes"] = np.where(inside, correct, np.nan)
        values["accuracy, other classes"] = np.where(inside, np.nan, correct)
    for name in INTERVENTIONS:
        predicted = columns[f"predicted, {name}"]
        values[f"accuracy, {name}"] = np.where(
            predicted == None,  # noqa: E711 (element by element)
            np.nan,
            predicted == label,
        )
    values["foreground relevance"] = columns["relevance_mass"].astype(float)
    return {name: one for name, one in values.items() if not np.isnan(one).all()}


def _columns(file: Path) -> dict[str, Array]:
    table = pyarrow.parquet.read_table(file)
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


def _row(
    name: str, samples: int, classes: int, test: str, measure: str, pairs: Sequence[tuple[Array, Array]]
) -> StudyRow:
    before, after = (np.array(values, dtype=float) for values in zip(*pairs, strict=True))
    change = after - before
    before, after = (np.where(np.isnan(change), np.nan, values) for values in (before, after))
    each = np.nanmean(after, axis=1)
    counted = ~np.isnan(change).all(0)
    return StudyRow(
        name,
        samples,
        classes,
        test,
        measure,
        before=float(np.nanmean(before, axis=1).mean()),
        after=float(each.mean()),
        spread=float(each.std(ddof=1)) if len(each) > 1 else None,
        change=mean(np.nanmean(change[:, counted], axis=0), "pp"),
        seeds=len(pairs),
    )
