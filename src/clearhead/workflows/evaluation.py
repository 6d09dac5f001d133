"""explain, audit, heads, compare, report."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clearhead.data.batches import Images, loader
from clearhead.data.folder import ImageFolder, Sample, attribute_columns, read_folder
from clearhead.data.pixels import DataError
from clearhead.data.splits import splits_of
from clearhead.evaluate.audit import audit
from clearhead.evaluate.compare import compare
from clearhead.evaluate.predict import default_method, predict
from clearhead.explain import explain_with_logits
from clearhead.heads.scores import HeadScores, implied_classes, score_heads
from clearhead.models import Classifier, load_model
from clearhead.report.pages import write_page
from clearhead.report.pictures import overlay
from clearhead.results import AuditResults, ComparisonResults, HeadsResults, Results
from clearhead.runs import begin, read_results, write_table, written
from clearhead.workflows.pieces import (
    SHOWN,
    Track,
    data_name,
    device_of,
    facts_of,
    finish,
    given,
    model_name,
    on_device,
    strips,
    titled,
)


def run_explain(
    model: Classifier,
    images: Sequence[Path],
    out: Path,
    *,
    method: str | None = None,
    target: int | None = None,
    batch_size: int = 16,
    workers: int = 0,
    track: Track | None = None,
) -> list[tuple[Path, str, float]]:
    """Write an overlay (PNG) and the raw map (npz: ``map`` in 0..1, H x W; ``target``; ``method``) of each image.

    Args:
        model: where its parameters are, it runs.
        images: image files; those of equal name get the names of their folders put before.
        out: folder of ``NAME.png`` and ``NAME.npz``.
        method: a key of ``clearhead.explain.METHODS``; None takes ``default_method``.
        target: the class to explain, None for the predicted one of each image.
        batch_size: images a batch.
        workers: processes that load images.
        track: shows progress.

    Returns:
        For each image its file, the predicted class and its probability.

    Raises:
        DataError: for an image that cannot be read; those before it are written.
        ValueError: for a method or a class that does not exist.
    """
    method = method or default_method(model)
    names = _names(images)
    samples = tuple(Sample(name, path, 0, None, {}) for name, path in zip(names, images, strict=True))
    folder = ImageFolder(Path(), model.classes, samples, ())
    batches = loader(Images(folder, model.preprocess), batch_size, workers)
    found = []
    for batch in track(batches, len(batches), method) if track else batches:
        maps, logits = explain_with_logits(model, batch["image"].to(device_of(model)), target, method)
        probability, predicted = logits.softmax(-1).max(-1)
        for i, index in enumerate(batch["index"].tolist()):
            heat = maps[i].cpu().numpy()
            picture = overlay(model.preprocess.picture(batch["image"][i]), heat)
            explained = predicted[i].item() if target is None else target
            with written(out / f"{names[index]}.png") as path:
                Image.fromarray(picture).save(path)
            with written(out / f"{names[index]}.npz") as path:
                np.savez_compressed(path, map=heat, target=explained, method=method)
            found.append((images[index], model.classes[int(predicted[i])], probability[i].item()))
    return found


def run_audit(
    model: str,
    data: str | Path,
    out: Path,
    *,
    split: str | None = None,
    groups: list[str] | None = None,
    method: str | None = None,
    heads: bool = False,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    device: str | None = None,
    track: Track | None = None,
) -> AuditResults:
    """What does it rely on, and how does it hold up? ``clearhead audit``; with `heads`, head by head too."""
    arguments = given(locals())
    if not begin(out, "audit", arguments):
        started = time.perf_counter()
        classifier = load_model(model)
        folder = read_folder(data, split=split, classes=classifier.classes)
        classifier = on_device(classifier, device)
        predictions = predict(
            classifier,
            folder,
            group_columns=groups,
            method=method,
            batch_size=batch_size,
            workers=workers,
            seed=seed,
            track=titled(track, "audit"),
        )
        numbers = audit(predictions, classifier.classes, seed, SHOWN)
        write_table(out / "predictions.parquet", predictions.table(classifier.classes))
        least = strips(out, "least", [("", classifier, predictions)], folder, numbers.least)
        scores = _scores(classifier, data, folder, "all", None, batch_size, workers, track) if heads else None
        facts = facts_of(arguments, started, folder.samples, classifier)
        name, problems = data_name(data, split), list(folder.problems)
        finish(out, AuditResults("audit", model_name(model), name, numbers, least, problems, facts, scores))
    return read_results(out, Results)


def run_heads(
    model: str,
    data: str | Path,
    out: Path,
    *,
    split: str | None = None,
    layers: str | Sequence[int] = "all",
    attributes: list[str] | None = None,
    batch_size: int = 32,
    workers: int = 0,
    device: str | None = None,
    track: Track | None = None,
) -> HeadsResults:
    """What does each attention head follow, need and look at? ``clearhead heads``.

    `attributes` are metadata columns; by default all with at most 10 values that tell classes apart. The class that
    goes with a value is the one it is most frequent in among the images of the split ``train``, or where there is none
    among those scored.
    """
    arguments = given(locals())
    if not begin(out, "heads", arguments):
        started = time.perf_counter()
        classifier = load_model(model)
        folder = read_folder(data, split=split, classes=classifier.classes)
        classifier = on_device(classifier, device)
        scores = _scores(classifier, data, folder, layers, attributes, batch_size, workers, track)
        facts = facts_of(arguments, started, folder.samples, classifier)
        name, problems = data_name(data, split), list(folder.problems)
        finish(out, HeadsResults("heads", model_name(model), name, scores, problems, facts))
    return read_results(out, Results)


def _scores(
    model: Classifier,
    data: str | Path,
    folder: ImageFolder,
    layers: str | Sequence[int],
    columns: list[str] | None,
    batch_size: int,
    workers: int,
    track: Track | None,
) -> HeadScores:
    """The scores of the heads, with the classes that the attributes go with in training."""
    splits = "train" in splits_of(data)
    training = read_folder(data, split="train", classes=model.classes, check=False) if splits else folder
    attributes = {}
    for column in attribute_columns(training) if columns is None else columns:
        try:
            attributes[column] = implied_classes(training, column)
        except DataError:
            if columns is not None:
                raise
    return score_heads(
        model,
        folder,
        layers=layers,
        attributes=attributes,
        batch_size=batch_size,
        workers=workers,
        track=titled(track, "heads"),
    )


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
    track: Track | None = None,
) -> ComparisonResults:
    """Did it help, did it harm, and is the difference real? ``clearhead compare``."""
    arguments = given(locals())
    if not begin(out, "compare", arguments):
        started = time.perf_counter()
        models = [load_model(name) for name in (before, after)]
        if models[0].classes != models[1].classes:
            raise DataError(
                f"compare: the models have different classes: {before} has {len(models[0].classes)} "
                f"({', '.join(models[0].classes[:3])}, ...), {after} has {len(models[1].classes)} "
                f"({', '.join(models[1].classes[:3])}, ...)"
            )
        models = [on_device(classifier, device) for classifier in models]
        folder = read_folder(data, split=split, classes=models[0].classes)
        options: dict[str, Any] = {"group_columns": groups, "method": method, "seed": seed}
        options |= {"batch_size": batch_size, "workers": workers}
        a, b = (
            predict(classifier, folder, **options, track=titled(track, title))
            for classifier, title in zip(models, ("before", "after"), strict=True)
        )
        result = compare(a, b, models[0].classes, margin, seed, SHOWN)
        for title, predictions in (("before", a), ("after", b)):
            write_table(out / f"predictions-{title}.parquet", predictions.table(models[0].classes))
        views = [("before", models[0], a), ("after", models[1], b)]
        sample = np.random.default_rng(seed).permutation(a.file)[:SHOWN].tolist()
        first = [file for files in result.first_lost.values() for file in files]
        shown = {"gained": result.gained, "lost": result.lost, "sample": sample, "first-lost": first}
        pictures = [strips(out, title, views, folder, files) for title, files in shown.items()]
        names = model_name(before), model_name(after), data_name(data, split)
        facts = facts_of(arguments, started, folder.samples, models[1])
        results = ComparisonResults("comparison", *names, result, *pictures, list(folder.problems), facts)
        finish(out, results)
    return read_results(out, Results)


def run_report(runs: Sequence[Path], out: Path, title: str = "") -> None:
    """Several finished runs on one page. ``clearhead report``."""
    write_page([(read_results(run, Results), run) for run in runs], out, title)


def _names(images: Sequence[Path]) -> list[str]:
    """A name for each image file: its stem, with the folder's name before it where stems are equal."""
    names = [image.stem for image in images]
    names = [f"{i.parent.name}-{n}" if names.count(n) > 1 else n for i, n in zip(images, names, strict=True)]
    return [f"{n}-{k}" if names.count(n) > 1 else n for k, n in enumerate(names)]
