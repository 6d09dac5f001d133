"""The verbs, from names to a run folder: load model and data, do the work, keep the numbers, write the page.

Each takes the name of a model and the path of a folder, and leaves a folder as ``clearhead.runs`` describes. All that
is computed is computed by the instruments (``explain``, ``evaluate``, ``repair``, ``train``); here they are joined.
"""

import difflib
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from clearhead.data.batches import Images, loader
from clearhead.data.folder import ImageFolder, Sample, read_folder
from clearhead.data.pixels import DataError
from clearhead.data.splits import train_and_validation
from clearhead.evaluate.audit import audit
from clearhead.evaluate.compare import compare
from clearhead.evaluate.predict import Predictions, default_method, predict
from clearhead.explain import explain_with_logits
from clearhead.models import Classifier, load_model, save_model
from clearhead.repair import Relevance
from clearhead.report.pages import write_page
from clearhead.report.pictures import outline, overlay
from clearhead.results import AuditResults, ComparisonResults, Results, Strip, TrainingResults
from clearhead.runs import begin, read_results, versions, write_results, write_table, written
from clearhead.train import Loss, Settings, best_epoch, cross_entropy, fit

Track = Callable[[Iterable, int, str], Iterable]

SHOWN = 8
"""Images a gallery shows."""


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
        maps, logits = explain_with_logits(model, batch["image"].to(_device(model)), target, method)
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
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    device: str | None = None,
    track: Track | None = None,
) -> AuditResults:
    """What does it rely on, and how does it hold up? ``clearhead audit``."""
    arguments = _given(locals())
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
            track=_titled(track, "audit"),
        )
        numbers = audit(predictions, classifier.classes, seed, SHOWN)
        write_table(out / "predictions.parquet", predictions.table(classifier.classes))
        least = _strips(out, "least", [("", classifier, predictions)], folder, numbers.least)
        facts = _facts(arguments, started, folder.samples, classifier)
        name, data_name = model_name(model), _data_name(data, split)
        _finish(out, AuditResults("audit", name, data_name, numbers, least, list(folder.problems), facts))
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
    track: Track | None = None,
) -> ComparisonResults:
    """Did it help, did it harm, and is the difference real? ``clearhead compare``."""
    arguments = _given(locals())
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
            predict(classifier, folder, **options, track=_titled(track, title))
            for classifier, title in zip(models, ("before", "after"), strict=True)
        )
        result = compare(a, b, models[0].classes, margin, seed, SHOWN)
        for title, predictions in (("before", a), ("after", b)):
            write_table(out / f"predictions-{title}.parquet", predictions.table(models[0].classes))
        views = [("before", models[0], a), ("after", models[1], b)]
        sample = np.random.default_rng(seed).permutation(a.file)[:SHOWN].tolist()
        gained, lost, drawn = (
            _strips(out, title, views, folder, files)
            for title, files in (("gained", result.gained), ("lost", result.lost), ("sample", sample))
        )
        names = model_name(before), model_name(after), _data_name(data, split)
        facts = _facts(arguments, started, folder.samples, models[1])
        results = ComparisonResults("comparison", *names, result, gained, lost, drawn, list(folder.problems), facts)
        _finish(out, results)
    return read_results(out, Results)


def run_train(
    model: str,
    data: str | Path,
    out: Path,
    settings: Settings,
    *,
    train_split: str = "train",
    validation_split: str = "val",
    pretrained: bool = True,
    device: str | None = None,
    track: Track | None = None,
) -> TrainingResults:
    """Plain fine-tuning by cross-entropy, with a fresh head when the data has other classes. ``clearhead train``."""
    arguments = _given(locals())
    if not begin(out, "train", arguments):
        seed = settings.seed
        train, validation = train_and_validation(data, train=train_split, validation=validation_split, seed=seed)
        classifier = load_model(model, pretrained=pretrained)
        if classifier.classes != train.classes:
            torch.manual_seed(seed)  # the fresh head is drawn
            count = len(train.classes)
            classifier = load_model(model, num_classes=count, classes=train.classes, pretrained=pretrained)
        _train(out, classifier, cross_entropy, settings, train, validation, arguments, None, device, track)
    return read_results(out, Results)


def run_repair(
    model: str,
    data: str | Path,
    out: Path,
    settings: Settings,
    loss: Relevance | None = None,
    *,
    train_split: str = "train",
    validation_split: str = "val",
    groups: list[str] | None = None,
    margin: float = 0.02,
    device: str | None = None,
    track: Track | None = None,
) -> TrainingResults:
    """Make it rely on the right thing, then check it against the original for harm. ``clearhead repair``."""
    loss = loss or Relevance()
    arguments = _given(locals())
    if not begin(out, "repair", arguments):
        classifier = load_model(model)
        train, validation = train_and_validation(
            data, train=train_split, validation=validation_split, classes=classifier.classes, seed=settings.seed
        )
        masked = sum(sample.mask is not None for sample in train.samples)
        if not masked:
            raise DataError(
                f"{data}: repair needs foreground masks, and none of its {len(train.samples)} training images has one; "
                "put them in masks/<class>/<stem>.png (nonzero = object)"
            )
        check = {"group_columns": groups, "margin": margin}
        _train(out, classifier, loss, settings, train, validation, arguments, check, device, track)
    return read_results(out, Results)


def run_report(runs: Sequence[Path], out: Path, title: str = "") -> None:
    """Several finished runs on one page. ``clearhead report``."""
    write_page([(read_results(run, Results), run) for run in runs], out, title)


def _train(
    out: Path,
    classifier: Classifier,
    loss: Loss,
    settings: Settings,
    train: ImageFolder,
    validation: ImageFolder,
    arguments: Mapping[str, Any],
    check: Mapping[str, Any] | None,
    device: str | None,
    track: Track | None,
) -> None:
    """Fit, keep the best epoch's weights as a checkpoint, and with `check` compare them with where they came from."""
    started = time.perf_counter()
    trained, history = fit(classifier, loss, train, validation, settings, out / "state", track, device)
    save_model(trained, out / "checkpoint")
    comparison = None
    if check is not None:
        options: dict[str, Any] = {"group_columns": check["group_columns"], "seed": settings.seed}
        options |= {"batch_size": 32, "workers": settings.workers}
        before, after = (
            predict(on_device(m, device), validation, **options, track=_titled(track, title))
            for m, title in ((classifier, "check, before"), (trained, "check, after"))
        )
        comparison = compare(before, after, classifier.classes, check["margin"], settings.seed)
    facts = _facts(arguments, started, train.samples, classifier)
    facts["validation images"] = f"{len(validation.samples):,}"
    facts["epoch kept"] = f"{best_epoch(history).number} of {settings.epochs}"
    problems = list(dict.fromkeys((*train.problems, *validation.problems)))
    model, data = model_name(arguments["model"]), _data_name(arguments["data"], None)
    _finish(out, TrainingResults("training", model, data, history, comparison, problems, facts))
    shutil.rmtree(out / "state", ignore_errors=True)


# --- pieces ----------------------------------------------------------------------------------------------------------


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a run that decide its numbers, as plain values."""
    plain: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in ("out", "track", "device", "workers"):
            plain[name] = asdict(value) if isinstance(value, Settings | Relevance) else value
    plain["data"] = str(Path(plain["data"]))
    plain.get("settings", {}).pop("workers", None)
    return plain


def on_device(model: Classifier, device: str | None) -> Classifier:
    """The model on a device, by default a GPU where there is one."""
    return replace(model, module=model.module.to(device or ("cuda" if torch.cuda.is_available() else "cpu")))


def class_index(model: Classifier, name: str) -> int:
    """The index of a class given by name or number; ValueError with close names for one that does not exist."""
    if name in model.classes:
        return model.classes.index(name)
    if name.isdecimal() and int(name) < len(model.classes):
        return int(name)
    close = difflib.get_close_matches(name, model.classes, 3, 0.4) or list(model.classes[:3])
    raise ValueError(
        f"class {name!r} is not one of the model's {len(model.classes)}: give a name, such as {', '.join(close)}, or a "
        f"number in 0..{len(model.classes) - 1}"
    )


def _device(model: Classifier) -> torch.device:
    return next(model.module.parameters()).device


def _titled(track: Track | None, title: str) -> Callable[[Iterable, int], Iterable] | None:
    return (lambda batches, count: track(batches, count, title)) if track else None


def _finish(out: Path, results: Results) -> None:
    """The page, then the numbers that mark the run as finished."""
    write_page([(results, out)], out / "report.html")
    write_results(out, results)


def model_name(model: str) -> str:
    """How people call a model: without the path of its file, a checkpoint by the run it is of."""
    path = Path(model)
    if path.is_dir():
        return path.parent.name if path.name == "checkpoint" else path.name
    return model.split("@")[0]


def _data_name(data: str | Path, split: str | None) -> str:
    name = Path(data).resolve().name
    return f"{name}, {split} split" if split else name


def _facts(
    arguments: Mapping[str, Any], started: float, samples: Sequence[Sample], model: Classifier
) -> dict[str, str]:
    found = {"command": shlex.join(["clearhead", *sys.argv[1:]])} if Path(sys.argv[0]).name == "clearhead" else {}
    for name in ("model", "before", "after", "data", "split", "method", "margin"):
        if arguments.get(name) is not None:
            found[name] = str(arguments[name])
    for name, value in arguments.get("settings", {}).items():
        found[name.replace("_", " ")] = str(value)
    found |= {"seed": str(arguments["seed"])} if "seed" in arguments else {}
    found["images"] = f"{len(samples):,}, {sum(sample.mask is not None for sample in samples):,} of them with a mask"
    found["input"] = f"{model.preprocess.size[0]} x {model.preprocess.size[1]} pixels"
    found["time"] = f"{time.perf_counter() - started:.0f} s on {_device(model).type}"
    found["versions"] = ", ".join(f"{name} {version}" for name, version in versions().items())
    return found


def _strips(
    out: Path,
    name: str,
    views: Sequence[tuple[str, Classifier, Predictions]],
    folder: ImageFolder,
    files: Sequence[str],
) -> list[Strip]:
    """A strip of pictures for each file, written below pictures/: the image with its mask, then a map of each view."""
    by_file = {sample.file: sample for sample in folder.samples}
    shown = replace(folder, samples=tuple(by_file[file] for file in files))
    if not files:
        return []
    batch = next(iter(loader(Images(shown, views[0][1].preprocess), len(files), 0)))
    maps = [
        explain_with_logits(m, batch["image"].to(_device(m)), method=p.method)[0].cpu().numpy() for _, m, p in views
    ]
    strips = []
    for i, sample in enumerate(shown.samples):
        picture = views[0][1].preprocess.picture(batch["image"][i])
        image = outline(picture, batch["mask"][i, 0].numpy() >= 0.5) if sample.mask else picture
        images, told = [("image", image)], []
        for (title, model, predictions), heat in zip(views, maps, strict=True):
            index = int(np.flatnonzero(predictions.file == sample.file)[0])
            says = f"{model.classes[predictions.predicted[index]]} ({100 * predictions.confidence[index]:.0f}%)"
            told.append(f"{title} {says}".strip())
            images.append((title or "map", overlay(picture, heat[i])))
        written_files = []
        for caption, pixels in images:
            file = f"{name}-{i:02d}-{caption}.png"
            with written(out / "pictures" / file) as path:
                Image.fromarray(pixels).save(path)
            written_files.append((caption, file))
        label = folder.classes[sample.label]
        strips.append(Strip(f"{label}: {', '.join(told)}", sample.file, written_files))
    return strips


def _names(images: Sequence[Path]) -> list[str]:
    """A name for each image file: its stem, with the folder's name before it where stems are equal."""
    names = [image.stem for image in images]
    names = [f"{i.parent.name}-{n}" if names.count(n) > 1 else n for i, n in zip(images, names, strict=True)]
    return [f"{n}-{k}" if names.count(n) > 1 else n for k, n in enumerate(names)]
