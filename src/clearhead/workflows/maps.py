"""explain and sis: what single images are judged by."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from clearhead.attribution import explain_with_logits
from clearhead.attribution.sis import sis
from clearhead.data.dataset import ImageIndex, Sample
from clearhead.data.loading import ImageDataset, loader
from clearhead.errors import ClearheadError
from clearhead.models import Classifier, load_model
from clearhead.models.class_names import class_index
from clearhead.models.classifier import on_device
from clearhead.models.preprocessing import to_uint8
from clearhead.prediction.predict import default_method
from clearhead.report.overlay import overlay
from clearhead.results import ExampleImages, Results, SufficientLabel, SufficientResults
from clearhead.runs import begin, read_results, written
from clearhead.workflows.pieces import (
    Progress,
    device_of,
    finish,
    given,
    model_name,
    provenance_of,
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
    progress: Progress | None = None,
) -> list[tuple[Path, str, float]]:
    """Write an overlay (PNG) and the raw map (npz: ``map`` in 0..1, H x W; ``target``; ``method``) of each image.

    Args:
        model: where its parameters are, it runs.
        images: image files; those of equal name get the names of their folders put before.
        out: folder of ``NAME.png`` and ``NAME.npz``.
        method: a key of ``clearhead.attribution.METHODS``; None takes ``default_method``.
        target: the class to explain, None for the predicted one of each image.
        batch_size: images a batch.
        workers: processes that load images.
        track: shows progress.

    Returns:
        For each image its file, the predicted class and its probability.

    Raises:
        DataError: for an image that cannot be read; those before it are written.
        ClearheadError: for a method or a class that does not exist, or overlays that would replace the images.
    """
    method = method or default_method(model)
    folder, names = _loose(images, model)
    made = {(out / f"{name}.png").resolve() for name in names}
    if lost := next((image for image in images if image.resolve() in made), None):
        raise ClearheadError(
            f"out: the overlays in {out} would take the place of images such as {lost}; give another folder"
        )
    batches = loader(ImageDataset(folder, model.preprocess), batch_size, workers)
    found = []
    for batch in progress(batches, len(batches), method) if progress else batches:
        maps, logits = explain_with_logits(model, batch["image"].to(device_of(model)), target, method)
        probability, predicted = logits.softmax(-1).max(-1)
        for i, index in enumerate(batch["index"].tolist()):
            heat = maps[i].cpu().numpy()
            picture = overlay(to_uint8(batch["image"][i]), heat)
            explained = predicted[i].item() if target is None else target
            with written(out / f"{names[index]}.png") as path:
                Image.fromarray(picture).save(path)
            with written(out / f"{names[index]}.npz") as path:
                np.savez_compressed(path, map=heat, target=explained, method=method)
            found.append((images[index], model.classes[int(predicted[i])], probability[i].item()))
    return found


def run_sis(
    model: str,
    images: Sequence[Path],
    out: Path,
    *,
    targets: Sequence[str] = (),
    confidence: float = 0.9,
    steps: int = 50,
    fill: Literal["mean", "black"] = "mean",
    batch_size: int = 8,
    workers: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> SufficientResults:
    """How few pixels are enough, for the predicted class and for any other. ``clearhead sis``.

    Args:
        model: its name.
        images: image files.
        out: folder of the run; beside the page a NAME-LABEL.npz for each image and label: ``subset``, H x W, and
            ``kept`` and ``curve``, the label's probability by the share of pixels kept.
        targets: labels by name or number, besides the predicted one of each image.
        confidence: the probability that is enough.
        steps: of the search, a forward and a backward pass each.
        fill: what takes the place of a pixel.
        batch_size: images a batch.
        workers: processes that load images.
        device: where to run.
        track: shows progress.

    Raises:
        DataError: for an image that cannot be read.
        ClearheadError: for a class that does not exist, or a number out of its range.
    """
    arguments = given(locals())
    if not begin(out, "sis", arguments):
        started = time.perf_counter()
        classifier = on_device(load_model(model), device)
        labels: list[int | None] = [None, *(class_index(classifier.classes, name) for name in targets)]
        folder, names = _loose(images, classifier)
        batches = loader(ImageDataset(folder, classifier.preprocess), batch_size, workers)
        found: dict[int, list[SufficientLabel]] = {}
        pictures: dict[int, list[tuple[str, str]]] = {}
        for batch in progress(batches, len(batches), "sufficient subsets") if progress else batches:
            shown = batch["image"].to(device_of(classifier))
            for label in labels:
                few = sis(classifier, shown, label, confidence=confidence, steps=steps, fill=fill)
                whole = few.logits.softmax(-1).gather(1, few.target[:, None])[:, 0]
                for i, index in enumerate(batch["index"].tolist()):
                    name = classifier.classes[int(few.target[i])]
                    if any(name == other.label for other in found.get(index, [])):
                        continue  # the predicted label was named too
                    kept = few.kept.tolist(), few.curve[i].tolist()
                    numbers = float(whole[i]), float(few.share[i]), float(few.confidence[i]), bool(few.reached[i])
                    found.setdefault(index, []).append(SufficientLabel(name, label is None, *numbers, *kept))
                    subset = few.subset[i].cpu().numpy()
                    stem = f"{names[index]}-{int(few.target[i])}"
                    with written(out / f"{stem}.npz") as path:
                        np.savez_compressed(path, subset=subset, kept=kept[0], curve=kept[1])
                    picture = to_uint8(batch["image"][i])
                    if label is None:
                        pictures[index] = [("image", _picture(out, f"{stem}-image.png", picture))]
                    alone = np.where(subset[..., None], picture, 128).astype(np.uint8)
                    caption = f"{name}: {100 * numbers[1]:.1f}%"
                    pictures[index].append((caption, _picture(out, f"{stem}.png", alone)))
        examples = [ExampleImages(names[i], str(images[i]), pictures[i]) for i in range(len(images))]
        provenance = provenance_of(arguments, started, folder.samples, classifier)
        labelled = [found[i] for i in range(len(images))]
        finish(out, SufficientResults("sufficient", model_name(model), confidence, labelled, examples, provenance))
    return read_results(out, Results)


def _picture(out: Path, file: str, pixels: np.ndarray) -> str:
    with written(out / "pictures" / file) as path:
        Image.fromarray(pixels).save(path)
    return file


def _loose(images: Sequence[Path], model: Classifier) -> tuple[ImageIndex, list[str]]:
    """Image files from anywhere as a folder without labels, and a name for each."""
    names = _names(images)
    samples = tuple(Sample(name, path, 0, None, {}) for name, path in zip(names, images, strict=True))
    return ImageIndex(Path(), model.classes, samples, ()), names


def _names(images: Sequence[Path]) -> list[str]:
    """A name for each image file: its stem, with the folder's name before it where stems are equal."""
    names = [image.stem for image in images]
    names = [f"{i.parent.name}-{n}" if names.count(n) > 1 else n for i, n in zip(images, names, strict=True)]
    return [f"{n}-{k}" if names.count(n) > 1 else n for k, n in enumerate(names)]
