"""What the verbs share: arguments, facts, pictures, the end of a run."""

import hashlib
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from clearhead.attribution import explain_with_logits, overlay
from clearhead.data.dataset import ImageIndex, Sample
from clearhead.data.image_io import DataError
from clearhead.data.images import plain_source, source_name
from clearhead.data.loading import ImageDataset, loader
from clearhead.models import Classifier, NoHeadError, load_model
from clearhead.models.classifier import fingerprint, on_device
from clearhead.models.preprocessing import to_uint8
from clearhead.prediction.predict import Predictions
from clearhead.progress import Progress
from clearhead.report.images import outline
from clearhead.report.pages import write_page
from clearhead.results import ExampleImages, Results
from clearhead.runs import read_results, versions, write_results, written

SHOWN = 8
"""Images a gallery shows."""


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a run that decide its numbers, as plain values."""
    plain: dict[str, Any] = {}
    for name, value in arguments.items():
        if name not in ("out", "progress", "device", "workers"):
            plain[name] = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    if "data" in plain:
        plain["data"] = plain_source(plain["data"])
    plain.get("settings", {}).pop("workers", None)
    return plain


def load_backbone(name: str) -> Classifier:
    """A model whose features alone are wanted: one without a classification head gets one that is not used."""
    try:
        return load_model(name)
    except NoHeadError:
        return load_model(name, num_classes=1)


def device_of(model: Classifier) -> torch.device:
    """Where the model's parameters are."""
    return next(model.module.parameters()).device


def titled(progress: Progress | None, title: str) -> Any:
    """Progress of one piece of work, under its title."""
    return (lambda batches, count, *_: progress(batches, count, title)) if progress else None


def finish(out: Path, results: Results) -> None:
    """The page, then the numbers that mark the run as finished; what was kept of it in case it stopped goes."""
    write_page([(results, out)], out / "report.html")
    write_results(out, results)
    shutil.rmtree(out / "state", ignore_errors=True)


def of_each(
    places: Sequence[tuple[str, str]],
    read: Callable[[Sequence[str]], ImageIndex],
    instrument: Callable[..., Any],
    kind: type,
    out: Path,
    *,
    device: str | None,
    progress: Progress | None,
) -> tuple[dict[str, Any], ImageIndex, Classifier]:
    """What an instrument finds of each model, by name; what a stopped run had found is in ``out/state``.

    Args:
        places: the models' names and where they are.
        read: gives the data for the classes of a model.
        instrument: called with a classifier, the data and `track`.
        kind: of what it finds.
        out: folder of the run.
        device: where to run.
        track: shows progress.

    Returns:
        What was found, and the last data and model.
    """
    found = {}
    for _, place in places:  # a mistake shows before hours of work
        load_model(place)
    for name, place in places:
        classifier = on_device(load_model(place), device)
        # by name and weights: a run that is trained further, or anew, is another model when this one goes on
        kept = out / "state" / hashlib.sha256(f"{name}\0{fingerprint(classifier.module)}".encode()).hexdigest()[:16]
        folder = read(classifier.classes)
        if not (kept / "results.json").is_file():
            write_results(kept, instrument(classifier, folder, progress=titled(progress, name)))
        found[name] = read_results(kept, kind)
    return found, folder, classifier


def model_name(model: str) -> str:
    """How people call a model: without the path of its file, a checkpoint by the run and the epoch it is of."""
    run, epoch = run_of(model)
    name = run.name if Path(model).is_dir() else model.split("@")[0]
    return f"{name}, {epoch}" if epoch else name


def run_of(model: str) -> tuple[Path, str]:
    """The run that a folder is a checkpoint of, and its epoch in words; else the model's own place, and no epoch."""
    path = Path(model)
    if path.is_dir() and path.parent.name == "epochs":
        return path.parent.parent, f"epoch {path.name}"
    return path.parent if path.is_dir() and path.name == "checkpoint" else path, ""


def data_name(data: str | Path, split: str | None) -> str:
    """How people call the images of a folder or another source."""
    name = source_name(data)
    return f"{name}, {split} split" if split else name


def require_same_classes(name: str, model: Classifier, other: str, second: Classifier) -> None:
    """Raise DataError for models that cannot be held against each other on the same labels."""
    if model.classes != second.classes:
        raise DataError(
            f"the models have different classes: {name} has {len(model.classes)} "
            f"({', '.join(model.classes[:3])}, ...), {other} has {len(second.classes)} "
            f"({', '.join(second.classes[:3])}, ...)"
        )


_FACTS = (
    *("model", "models", "before", "after", "data", "suites", "root", "sets", "baseline", "split"),
    *("method", "methods", "fill", "target", "layers", "margin"),
    *("augment", "mixup", "cutmix", "label_smoothing", "weight_decay"),
)
"""The arguments that are told."""


def provenance_of(
    arguments: Mapping[str, Any], started: float, samples: Sequence[Sample], model: Classifier
) -> dict[str, str]:
    """What made the numbers, for the foot of the page."""
    found = {"command": shlex.join(["clearhead", *sys.argv[1:]])} if Path(sys.argv[0]).name == "clearhead" else {}
    for name in _FACTS:
        if arguments.get(name) is not None:
            value = arguments[name]
            found[name] = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    for name, value in arguments.get("settings", {}).items():
        found[name.replace("_", " ")] = str(value)
    found |= {"seed": str(arguments["seed"])} if "seed" in arguments else {}
    found["images"] = f"{len(samples):,}, {sum(sample.mask is not None for sample in samples):,} of them with a mask"
    found["input"] = f"{model.preprocess.size[0]} x {model.preprocess.size[1]} pixels"
    found["time"] = f"{time.perf_counter() - started:.0f} s on {device_of(model).type}"
    found["versions"] = versions_told()
    return found


def versions_told() -> str:
    """The versions that decide the numbers, in words."""
    return ", ".join(f"{name} {version}" for name, version in versions().items())


def examples(
    out: Path,
    name: str,
    views: Sequence[tuple[str, Classifier, Predictions]],
    folder: ImageIndex,
    files: Sequence[str],
) -> list[ExampleImages]:
    """A strip of pictures for each file, written below pictures/: the image with its mask, then a map of each view."""
    by_file = {sample.file: sample for sample in folder.samples}
    shown = replace(folder, samples=tuple(by_file[file] for file in files))
    if not files:
        return []
    # each model is shown the images as it sees them
    batches = [next(iter(loader(ImageDataset(shown, model.preprocess), len(files), 0))) for _, model, _ in views]
    maps = [
        explain_with_logits(model, batch["image"].to(device_of(model)), method=predictions.method)[0].cpu().numpy()
        for (_, model, predictions), batch in zip(views, batches, strict=True)
    ]
    found = []
    for i, sample in enumerate(shown.samples):
        pictures = [to_uint8(batch["image"][i]) for batch in batches]
        image = outline(pictures[0], batches[0]["mask"][i, 0].numpy() >= 0.5) if sample.mask else pictures[0]
        images, told = [("image", image)], []
        for (title, model, predictions), picture, heat in zip(views, pictures, maps, strict=True):
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
        found.append(ExampleImages(f"{label}: {', '.join(told)}", sample.file, written_files))
    return found
