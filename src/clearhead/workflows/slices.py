"""slices: groups that a model fails on, without group labels."""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from clearhead.analyses.slices import find_slices
from clearhead.attribution import explain_with_logits
from clearhead.data.dataset import ImageIndex, attribute_columns
from clearhead.data.images import read_images
from clearhead.data.loading import ImageDataset, loader
from clearhead.metrics.statistics import proportion
from clearhead.models import Classifier, load_model
from clearhead.models.classifier import on_device
from clearhead.models.features import features
from clearhead.prediction.predict import predict
from clearhead.results import Results, SlicesResults
from clearhead.runs import begin, read_results, write_table
from clearhead.workflows.pieces import (
    Progress,
    data_name,
    device_of,
    examples,
    finish,
    given,
    model_name,
    provenance_of,
    titled,
)

Space = Literal["features", "relevance", "both"]

_SHOWN, _EXAMPLES = 8, 6
"""Slices shown with pictures, and pictures of each."""

_COARSE = 14, 14
"""Maps of a model without a grid of tokens are averaged to this size."""


def run_slices(
    model: str,
    data: str | Path,
    out: Path,
    *,
    split: str | None = None,
    space: Space = "both",
    method: str | None = None,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> SlicesResults:
    """Which groups does it fail on, where nobody has named any? ``clearhead slices``.

    Args:
        model: its name.
        data: the folder; no masks and no metadata are needed.
        out: folder of the run.
        split: use the images of this split.
        space: divide classes by what the last layer is given, by where the relevance lies, or by both.
        method: of the maps; None takes ``default_method``.
        batch_size: images a batch.
        workers: processes that load images.
        seed: of the halves and of the mixtures.
        device: where to run.
        track: shows progress.

    Raises:
        ClearheadError: for a method that cannot work on the model, or a model without features (`space` ``relevance``
        needs
            none).
        DataError: for data that cannot be used.
    """
    arguments = given(locals())
    if not begin(out, "slices", arguments):
        started = time.perf_counter()
        classifier = load_model(model)
        folder = read_images(data, split=split, classes=classifier.classes)
        classifier = on_device(classifier, device)
        plain = replace(folder, samples=tuple(replace(sample, mask=None) for sample in folder.samples))
        sizes = batch_size, workers
        batches = loader(ImageDataset(plain, classifier.preprocess), *sizes)
        x = maps = None
        if space != "relevance":
            told = titled(progress, "features")
            x = features(classifier, told(batches, len(batches)) if told else batches).float().numpy()
        predictions = predict(
            classifier,
            plain,
            method=method,
            batch_size=batch_size,
            workers=workers,
            progress=titled(progress, "predictions"),
        )
        if space != "features":
            maps = _maps(classifier, plain, predictions.method, *sizes, titled(progress, "relevance"))
        columns = {c: [s.groups.get(c) or "unknown" for s in folder.samples] for c in attribute_columns(folder)}
        named = predictions.label, predictions.predicted, classifier.classes, predictions.file.tolist()
        found = find_slices(x, maps, *named, columns, seed, _EXAMPLES)
        assigned = {"slice": np.array([name or None for name in found.part]), "held out": found.held_out}
        write_table(out / "slices.parquet", predictions.table(classifier.classes) | assigned)
        views = [("", classifier, predictions)]
        worse = [part for part in found.slices if part.worse][:_SHOWN]
        shown = [examples(out, f"slice-{i:02d}", views, folder, part.files) for i, part in enumerate(worse)]
        numbers = proportion(predictions.correct), int(found.held_out.sum()), found.slices
        names = model_name(model), data_name(data, split), space, predictions.method
        provenance = provenance_of(arguments, started, folder.samples, classifier)
        finish(out, SlicesResults("slices", *names, *numbers, shown, list(folder.issues), provenance))
    return read_results(out, Results)


def _maps(
    model: Classifier,
    folder: ImageIndex,
    method: str,
    batch_size: int,
    workers: int,
    progress: Callable[[Iterable, int], Iterable] | None,
) -> np.ndarray:
    """The map of the predicted class of each image, averaged over the tokens' patches, N x h x w."""
    size = (model.grid.height, model.grid.width) if model.grid is not None else _COARSE
    batches, found = loader(ImageDataset(folder, model.preprocess), batch_size, workers), []
    for batch in progress(batches, len(batches)) if progress else batches:
        maps, _ = explain_with_logits(model, batch["image"].to(device_of(model)), method=method)
        found.append(F.adaptive_avg_pool2d(maps[:, None].detach(), size)[:, 0].cpu())
    return torch.cat(found).numpy()
