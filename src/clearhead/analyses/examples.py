"""Example images of a result: the image with its mask, and each model's map and prediction."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from clearhead.attribution import explain_with_logits, overlay
from clearhead.data.dataset import ImageIndex
from clearhead.data.loading import ImageDataset, loader
from clearhead.models.classifier import Classifier
from clearhead.models.preprocessing import to_uint8
from clearhead.prediction.predict import Predictions
from clearhead.report.images import outline
from clearhead.report.page import ExampleImages

SHOWN = 8
"""Images that a gallery shows."""


@dataclass(frozen=True)
class View:
    """A model with its predictions, and the caption of its maps, such as ``before``."""

    caption: str
    model: Classifier
    predictions: Predictions


def draw_examples(views: Sequence[View], index: ImageIndex, files: Sequence[str]) -> list[ExampleImages]:
    """Return, for each of some files of an index, the image with its mask's outline and a map of each view.

    Each map explains the class that its model predicts, by the method of its predictions, on the image as that model
    sees it.
    """
    if not files:
        return []
    by_file = {sample.file: sample for sample in index.samples}
    shown = replace(index, samples=tuple(by_file[file] for file in files))
    inputs = [next(iter(loader(ImageDataset(shown, view.model.preprocess), len(files), 0))) for view in views]
    maps = [
        explain_with_logits(v.model, batch["image"].to(v.model.device), method=v.predictions.method)[0].cpu().numpy()
        for v, batch in zip(views, inputs, strict=True)
    ]
    pixels = [[to_uint8(image) for image in batch["image"]] for view, batch in zip(views, inputs, strict=True)]
    examples = []
    for i, sample in enumerate(shown.samples):
        first = pixels[0][i]
        images = [("image", outline(first, inputs[0]["mask"][i, 0].numpy() >= 0.5) if sample.mask else first)]
        answers = []
        for view, own, heat in zip(views, pixels, maps, strict=True):
            row = int(np.flatnonzero(view.predictions.file == sample.file)[0])
            predicted = view.model.classes[view.predictions.predicted[row]]
            answers.append(f"{view.caption} {predicted} ({100 * view.predictions.confidence[row]:.0f}%)".strip())
            images.append((view.caption or "map", overlay(own[i], heat[i])))
        label = index.classes[sample.label]
        examples.append(ExampleImages(images, f"{label}: {', '.join(answers)}", sample.file))
    return examples


def map_note(method: str) -> str:
    """Return what the maps of example images are."""
    return f"Maps: {method}, for the class each model predicts; the line is the mask."
