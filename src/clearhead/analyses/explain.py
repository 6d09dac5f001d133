"""Attribution maps of images: where the evidence for a class lies, by one or several methods side by side."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from clearhead.analyses.subject import Subject
from clearhead.attribution import explain_with_logits, list_methods, overlay, require_method
from clearhead.data.dataset import Sample
from clearhead.data.image_files import index_files
from clearhead.data.loading import ImageDataset, loader
from clearhead.errors import ClearheadError
from clearhead.inputs import file_stems
from clearhead.metrics.statistics import format_value
from clearhead.models.class_names import class_index
from clearhead.models.classifier import Classifier
from clearhead.models.preprocessing import to_uint8
from clearhead.models.source import ModelLike, as_classifier, display_names
from clearhead.options import BatchSize, Methods, Option, Seed, Workers
from clearhead.prediction.predict import default_method
from clearhead.progress import Progress, track
from clearhead.report.page import ExampleImages, Gallery, Page, Row, Section, Table
from clearhead.report.sheet import colour_bar, draw_sheet
from clearhead.storage import NotSaved, Pixels, read_arrays, replace_path, write_arrays, write_image

Array = npt.NDArray[Any]

SHOWN = 24
"""Images on the page."""

_ROWS = 1000
"""Rows of the table of predictions."""

_FOLDERS = ("maps", "overlays", "sheets")


@dataclass(frozen=True)
class ExplainedImage:
    """One image and what the model predicts for it.

    Attributes:
        file: its path.
        name: of the files made of it: maps/NAME.npz, overlays/NAME-METHOD.png, sheets/NAME.png.
        predicted: the predicted class.
        probability: of the predicted class, 0..1.
        target: the explained class.
        target_probability: of the explained class, 0..1.
    """

    file: str
    name: str
    predicted: str
    probability: float
    target: str
    target_probability: float

    def summary(self) -> str:
        """Return the predicted class with its probability, and those of the explained class where it is another."""
        text = f"predicted {self.predicted} ({format_value(self.probability, '%')})"
        if self.target != self.predicted:
            text += f", explained {self.target} ({format_value(self.target_probability, '%')})"
        return text


@dataclass(frozen=True)
class Explanations:
    """Attribution maps of images.

    Attributes:
        subject: the model and the images.
        methods: the attribution methods.
        target: the class that was explained for all images; None for the predicted class of each.
        images: the images, in order.
        examples: the first images and their maps.
        colours: the colours of relevance 0 (left) to 1 (right).
        maps: by name of an image, what maps/NAME.npz holds: H x W maps in 0..1 by method, ``target`` and ``predicted``
            (class indices), ``probability`` and ``predicted_probability``. Empty where a run writes these files.
    """

    subject: Subject
    methods: list[str]
    target: str | None
    images: list[ExplainedImage]
    examples: list[ExampleImages]
    colours: Pixels
    maps: NotSaved


def measure(
    model: ModelLike,
    images: Sequence[str | Path],
    *,
    target: Annotated[
        str | None,
        Option("Class to explain, by name or index. Default: the predicted class of each image.", name="--class"),
    ] = None,
    method: Methods = None,
    limit: Annotated[int | None, Option("Use at most this many images, drawn at random. Default: all.", min=1)] = None,
    batch_size: BatchSize = 16,
    workers: Workers = 0,
    seed: Seed = 0,
    progress: Progress | None = None,
    state: Path | None = None,
) -> Explanations:
    """Show where in each image the evidence for a class lies.

    A run folder holds the maps (maps/NAME.npz), the maps over the images (overlays/NAME-METHOD.png) and the image
    beside the overlays of all methods (sheets/NAME.png).

    Example:
        $ clearhead explain timm:vit_small_patch16_224 photo.jpg --method gae,libragrad --class "sports car"

    Args:
        model: a classifier, a module or a name.
        images: image files. Those that cannot be decoded are skipped, and are issues of the result.
        target: the class to explain, by name or index; None for the predicted class of each image.
        method: attribution methods; None takes the default of the model, ``all`` all that work on it.

    The other arguments are described in ``clearhead.options``.

    Raises:
        ClearheadError: for a class that does not exist, or a method that does not exist or does not work on the model.
        DataError: where no image can be used.
    """
    classifier = as_classifier(model)
    methods = _methods(classifier, method)
    label = None if target is None else class_index(classifier.classes, target)
    index = index_files(images, classifier.classes, limit, seed)
    dataset = ImageDataset(index, classifier.preprocess)
    names = file_stems([sample.image_file for sample in index.samples])
    missing = [i for i, name in enumerate(names) if state is None or not _map_file(state, name).is_file()]
    maps: dict[str, dict[str, Array]] = {}
    if missing:
        part = replace(index, samples=tuple(index.samples[i] for i in missing))
        batches = loader(ImageDataset(part, classifier.preprocess), batch_size, workers)
        for batch in track(batches, progress, "attribution maps"):
            for row, (pixels, arrays) in zip(
                batch["index"].tolist(), _explain(classifier, batch, methods, label), strict=True
            ):
                name = names[missing[row]]
                if state is None:
                    maps[name] = arrays
                else:
                    record = _record(index.samples[missing[row]], name, arrays, classifier)
                    _write(state, record, pixels, arrays, methods)
    records, examples = [], []
    for i, (sample, name) in enumerate(zip(index.samples, names, strict=True)):
        arrays = maps[name] if state is None else read_arrays(_map_file(state, name))
        records.append(_record(sample, name, arrays, classifier))
        if i < SHOWN:
            shown = _side_by_side(to_uint8(dataset[i]["image"]), arrays, methods)
            examples.append(ExampleImages(shown, sample.file, records[-1].summary()))
    subject = Subject(
        display_names([model]),
        images=len(records),
        input_size=list(classifier.preprocess.size),
        issues=list(index.issues),
    )
    name = None if label is None else classifier.classes[label]
    return Explanations(subject, methods, name, records, examples, np.rot90(colour_bar(320, 24), 3).copy(), maps)


def export(result: Explanations, folder: Path) -> None:
    """Move the maps and images that ``measure`` wrote one by one to their folders."""
    for name in _FOLDERS:
        replace_path(folder / "state" / name, folder / name)


def _methods(model: Classifier, method: Sequence[str] | None) -> list[str]:
    """Return the methods asked for. Raises ClearheadError for an unknown one."""
    if method is None:
        return [default_method(model)]
    methods = [method] if isinstance(method, str) else list(dict.fromkeys(method))
    if not methods:
        raise ClearheadError("method: got no name; pass one or more, such as gae")
    return list_methods(model) if methods == ["all"] else [require_method(name) for name in methods]


def _explain(
    model: Classifier, batch: dict[str, Any], methods: Sequence[str], label: int | None
) -> Iterator[tuple[Pixels, dict[str, Array]]]:
    """Yield the pixels of each image of a batch, and its maps, classes and probabilities."""
    pixels = batch["image"].to(model.device)
    target: Tensor | int | None = label
    heat: dict[str, Array] = {}
    for method in methods:
        maps, logits = explain_with_logits(model, pixels, target, method)
        heat[method] = maps.detach().float().cpu().numpy()
        if not heat.keys() - {method}:
            probabilities = logits.detach().float().softmax(-1)
            predicted = probabilities.argmax(-1)
            target = predicted if label is None else label  # the same class for all methods
    for i, chances in enumerate(probabilities.cpu().numpy()):
        first = int(predicted[i])
        explained = first if label is None else label
        numbers = {"target": explained, "probability": chances[explained]}
        numbers |= {"predicted": first, "predicted_probability": chances[first]}
        arrays = {**{method: heat[method][i] for method in methods}, **numbers}
        yield to_uint8(batch["image"][i]), {name: np.asarray(array) for name, array in arrays.items()}


def _record(sample: Sample, name: str, arrays: dict[str, Array], model: Classifier) -> ExplainedImage:
    return ExplainedImage(
        sample.file,
        name,
        model.classes[int(arrays["predicted"])],
        float(arrays["predicted_probability"]),
        model.classes[int(arrays["target"])],
        float(arrays["probability"]),
    )


def _map_file(folder: Path, name: str) -> Path:
    return folder / "maps" / f"{name}.npz"


def _write(folder: Path, record: ExplainedImage, pixels: Pixels, arrays: dict[str, Array], methods: list[str]) -> None:
    """Write the files of one image; its maps come last, so that they mark it as finished."""
    shown = _side_by_side(pixels, arrays, methods)
    for method, drawn in shown[1:]:
        write_image(folder / "overlays" / f"{record.name}-{method}.png", drawn)
    sheet = draw_sheet(shown, f"{record.file}: {record.summary()}", bar=True)
    write_image(folder / "sheets" / f"{record.name}.png", sheet)
    write_arrays(_map_file(folder, record.name), arrays)


def _side_by_side(pixels: Pixels, arrays: dict[str, Array], methods: Sequence[str]) -> list[tuple[str, Pixels]]:
    """Return the image and the overlay of each method, with captions."""
    return [("image", pixels), *((method, overlay(pixels, arrays[method])) for method in methods)]


def page(result: Explanations) -> Page:
    """Show the predicted class of each image, then the first images beside their maps."""
    subject, methods = result.subject, " and ".join(result.methods)
    target = "the predicted class of each image" if result.target is None else f"the class {result.target}"
    return Page(
        f"{subject.model}: attribution maps",
        f"{subject.images:,} images; maps by {methods}, for {target}.",
        sections=[_table(result), *_galleries(result)],
    )


def _table(result: Explanations) -> Table:
    columns = ["predicted", "probability"] + ([f"probability of {result.target}"] if result.target else [])
    rows = []
    for image in result.images[:_ROWS]:
        cells = [image.predicted, format_value(image.probability, "%")]
        rows.append(Row(image.file, cells + ([format_value(image.target_probability, "%")] if result.target else [])))
    more = f" The first {_ROWS:,} of {len(result.images):,} images." if len(result.images) > _ROWS else ""
    text = "Files: maps/NAME.npz, overlays/NAME-METHOD.png and sheets/NAME.png in the run folder."
    return Table("Predictions", columns, rows, text + more, names="file")


def _galleries(result: Explanations) -> list[Section]:
    text = (
        "Each image as the model sees it, beside the map of each method over it. Each map is scaled to 0..1 by its own "
        "extremes: colours compare places in one image, not images or methods."
    )
    if len(result.examples) < len(result.images):
        text += f" The first {len(result.examples)} of {len(result.images):,} images; sheets/ has all."
    bar = ExampleImages([("relevance 0 (left) to 1 (right)", result.colours)], "Colours")
    return [Gallery("Attribution maps", text, [bar, *result.examples])]
