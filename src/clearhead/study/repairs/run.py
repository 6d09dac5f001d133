"""Running a plan: each repair a folder that is done once, then the table over all of them."""

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

from clearhead.data.dataset import ImageIndex, Sample
from clearhead.data.image_io import ImageRef
from clearhead.data.images import absolute_source, read_images
from clearhead.data.interventions import INTERVENTIONS
from clearhead.data.splits import splits_of
from clearhead.distributed import run_all
from clearhead.metrics.statistics import Estimate, mean
from clearhead.models import Classifier, load_model, save_model
from clearhead.models.classifier import on_device
from clearhead.prediction.predict import predict
from clearhead.progress import Progress
from clearhead.runs import begin, read_results, write_results, write_table, written
from clearhead.study.files import StudyError
from clearhead.study.repairs.plan import Plan, Variant
from clearhead.training.loop import best_epoch, fit

BEFORE = "before"
"""The folder of the model as it was given."""


@dataclass(frozen=True)
class Trained:
    """What one run did: the classes it was trained on, the images used, and the epoch whose weights were kept."""

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
        samples: images a class it was trained on, at most.
        classes: number of classes it was trained on.
        test: the test set.
        measure: what is measured.
        before: of the model as it was given, mean over the seeds (which images count may depend on the seed).
        after: mean over the seeds.
        spread: standard deviation over the seeds; None for a single one.
        change: after less before, the seeds' mean for each image, and the mean over images; its interval is over
            images, not over seeds. Where the seed decides which images count (the classes trained on, the others), it
            need not be `after` less `before`, which are means over seeds.
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
    """Do what is not done yet below `out`, and gather the table.

    Args:
        plan: what to run.
        out: a folder for each run and one for the model as it was given; each keeps its checkpoint and predictions.
        jobs: processes.
        device: where to train and measure; a GPU where there is one by default.
        track: shows progress: ``track(runs, count, title)``.

    Raises:
        StudyError: for more classes than there are, or none left for validation.
        DataError: for data that cannot be read.
    """
    model = load_model(plan.model)
    _require_same_tests(plan, out)
    data = _data(plan, model)
    drawn = {
        (samples, classes, seed): draw(plan, data, Variant("", samples, classes, seed))
        for samples, classes, seed in product(plan.samples, plan.classes, plan.seeds)
    }
    _require_other_images(plan, model, [folder for folders in drawn.values() for folder in folders])
    runs = [(plan, v, drawn[v.samples, v.classes, v.seed], out, device) for v in plan.variants()]
    run_all(_one, [(plan, None, None, out, device), *runs], jobs, progress)
    return gather(plan, out)


def _require_same_tests(plan: Plan, out: Path) -> None:
    """Remember which folder each test set is; StudyError where one has become another."""
    file = out / "tests.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    tests = {name: absolute_source(path) for name, path in plan.tests.items()}
    for name in known.keys() & tests.keys():
        if known[name] != tests[name]:
            raise StudyError(f"tests: {name} was {known[name]}, now {tests[name]}: give the new set another name")
    with written(file) as path:
        path.write_text(json.dumps(known | tests, indent=2), encoding="utf-8")


def _require_other_images(plan: Plan, model: Classifier, chosen: Sequence[ImageIndex]) -> None:
    """Raise StudyError where a test set has an image that is trained on or chosen by."""
    seen = {_place(sample) for folder in chosen for sample in folder.samples}
    for name in plan.tests:
        for sample in _test(plan, name, model).samples:
            if _place(sample) in seen:
                raise StudyError(
                    f"tests: {name} has {sample.path}, which is trained on or chooses the epoch; give other images, or "
                    "name a split test in metadata.csv"
                )


def _place(sample: Sample) -> Path | ImageRef:
    """Where an image is, the same for two folders that share it."""
    return sample.path.resolve() if isinstance(sample.path, Path) else sample.path


def draw(plan: Plan, data: ImageIndex, variant: Variant) -> tuple[ImageIndex, ImageIndex]:
    """The images a variant is trained on and those that choose its epoch, the same for all its methods.

    Classes are drawn by the seed among those that have images with masks; of each, `samples` images with masks (those
    it has, where they are fewer). Validation: images with masks of the classes that are left, one of each class before
    the second of any, at most ``plan.validation``. Where metadata.csv names a split ``val``, that is taken instead.
    """
    rng = np.random.default_rng([variant.seed, 0])
    masked = [sample for sample in data.samples if sample.mask]
    by_class = defaultdict(list)
    for index in rng.permutation(len(masked)):
        by_class[masked[index].label].append(masked[index])
    order = rng.permutation(sorted(by_class)).tolist()
    if variant.classes > len(order):
        raise StudyError(f"classes: {variant.classes} asked for, {data.root} has {len(order)} with masks")
    chosen = [s for label in order[: variant.classes] for s in by_class[label][: variant.samples]]
    train = replace(data, samples=tuple(sorted(chosen, key=lambda s: s.file)), issues=())
    if "val" in splits_of(plan.data):
        return train, read_images(plan.data, split="val", classes=data.classes, check=False)
    others = [by_class[label] for label in order[variant.classes :]]
    held = [samples[i] for i in range(max(map(len, others), default=0)) for samples in others if i < len(samples)]
    if not held:
        raise StudyError(
            f"classes: {variant.classes} of the {len(order)} classes with masks leave none to choose the epoch by; "
            "train on fewer, or name a split val in metadata.csv"
        )
    return train, replace(data, samples=tuple(held[: plan.validation]), issues=())


def _data(plan: Plan, model: Classifier) -> ImageIndex:
    splits = splits_of(plan.data)
    if splits and "train" not in splits:
        raise StudyError(f"data: {plan.data} has the splits {', '.join(sorted(splits))}; train is needed")
    return read_images(plan.data, split="train" if splits else None, classes=model.classes)


def _test(plan: Plan, name: str, model: Classifier, check: bool = False) -> ImageIndex:
    path = plan.tests[name]
    return read_images(path, split="test" if "test" in splits_of(path) else None, classes=model.classes, check=check)


def _one(
    plan: Plan,
    variant: Variant | None,
    drawn: tuple[ImageIndex, ImageIndex] | None,
    out: Path,
    device: str | None,
) -> None:
    """One run, or the model as it was given, into its folder; then what it says of the tests it has not seen yet."""
    folder = out / (variant.folder if variant else BEFORE)
    arguments: dict[str, Any] = {"model": plan.model}
    if variant:
        arguments |= {"data": plan.data.resolve(), "variant": vars(variant), "validation": plan.validation}
        loss, settings = plan.loss(variant.name), plan.settings(variant)
        method = plan.methods[variant.name].method
        arguments |= {"method": method, "loss": vars(loss) if is_dataclass(loss) else {}, "settings": vars(settings)}
    if not begin(folder, "study", arguments):
        done = Trained([], 0, 0, 0, 0)
        if variant and drawn:
            model, (train, validation) = load_model(plan.model), drawn
            repaired, history = fit(model, loss, train, validation, settings, folder / "state", device=device)
            save_model(repaired, folder / "checkpoint")
            labels = sorted({sample.label for sample in train.samples})
            counts = len(train.samples), len(validation.samples), best_epoch(history).number, len(history) - 1
            done = Trained([model.classes[label] for label in labels], *counts)
        write_results(folder, done)
        shutil.rmtree(folder / "state", ignore_errors=True)
    new = [name for name in plan.tests if not (folder / f"{name}.parquet").exists()]
    if new:
        model = on_device(load_model(str(folder / "checkpoint") if variant else plan.model), device)
        for name in new:
            said = predict(model, _test(plan, name, model, check=True))
            write_table(folder / f"{name}.parquet", said.table(model.classes))


def gather(plan: Plan, out: Path) -> list[StudyRow]:
    """The table of the finished runs below `out`."""
    rows = []
    before = {test: _columns(out / BEFORE / f"{test}.parquet") for test in plan.tests}
    cells = dict.fromkeys((v.name, v.samples, v.classes) for v in plan.variants())
    for name, samples, classes in cells:
        found: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
        for seed in plan.seeds:
            folder = out / Variant(name, samples, classes, seed).folder
            trained = read_results(folder, Trained).classes
            for test in plan.tests:
                columns = _columns(folder / f"{test}.parquet")
                if not np.array_equal(columns["file"], before[test]["file"]):
                    raise StudyError(
                        f"tests: {test} has changed since {folder} was measured on it; give it another name"
                    )
                after = measures(columns, trained)
                for measure, values in measures(before[test], trained).items():
                    if measure in after:
                        found[test, measure].append((values, after[measure]))
        rows += [_row(name, samples, classes, *key, pairs) for key, pairs in found.items()]
    return rows


def measures(columns: Mapping[str, np.ndarray], trained: list[str]) -> dict[str, np.ndarray]:
    """What is measured on each image (N), NaN where it does not count: shares in 0..1.

    Accuracy, that of the classes trained on and of the others, that under each intervention, and the share of the
    relevance that lies in the foreground.
    """
    label, right = columns["label"], (columns["predicted"] == columns["label"]).astype(float)
    inside = np.isin(label, trained)
    found = {"accuracy": right}
    if inside.any() and not inside.all():
        found["accuracy, trained classes"] = np.where(inside, right, np.nan)
        found["accuracy, other classes"] = np.where(inside, np.nan, right)
    for name in INTERVENTIONS:
        said = columns[f"predicted, {name}"]
        found[f"accuracy, {name}"] = np.where(said == None, np.nan, said == label)  # noqa: E711 (element by element)
    found["foreground relevance"] = columns["relevance_mass"].astype(float)
    return {name: values for name, values in found.items() if not np.isnan(values).all()}


def _columns(file: Path) -> dict[str, np.ndarray]:
    table = pyarrow.parquet.read_table(file)
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


def _row(
    name: str, samples: int, classes: int, test: str, measure: str, pairs: list[tuple[np.ndarray, np.ndarray]]
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
