"""Sufficient input subsets: how few pixels of an image suffice for a class, the predicted one or any other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from clearhead.analyses.subject import Subject
from clearhead.attribution.sis import sufficient_subset
from clearhead.data.image_files import index_files
from clearhead.data.loading import ImageDataset, loader
from clearhead.inputs import file_stems
from clearhead.metrics.statistics import format_value
from clearhead.models.class_names import class_index
from clearhead.models.classifier import Classifier
from clearhead.models.preprocessing import to_uint8
from clearhead.models.source import ModelLike, as_classifier, display_names
from clearhead.options import BatchSize, Option, Workers
from clearhead.progress import Progress, track
from clearhead.report import plots
from clearhead.report.page import ExampleImages, Figure, Gallery, Page, Row, Section, Table
from clearhead.report.sheet import draw_sheet
from clearhead.storage import NotSaved, Pixels, read_arrays, replace_path, write_arrays, write_image

Array = npt.NDArray[Any]

SHOWN, _CURVES, _ROWS = 24, 6, 1000
"""Images on the page, images with a curve, rows of the table."""

_GREY = 128
"""Removed pixels in images."""

_FOLDERS = ("subsets", "sheets")


@dataclass(frozen=True)
class SubsetOfClass:
    """How few pixels of one image suffice for one class.

    Attributes:
        label: the class.
        predicted: whether it is the predicted class of the whole image.
        whole: its probability on the whole image.
        share: share of the pixels that suffice, or that come nearest to it.
        confidence: its probability from these pixels alone.
        reached: whether that is the confidence asked for.
        remaining: share of the pixels at each step, from 1 to 0.
        curve: probability of the class at each step.
    """

    label: str
    predicted: bool
    whole: float
    share: float
    confidence: float
    reached: bool
    remaining: list[float]
    curve: list[float]


@dataclass(frozen=True)
class ImageSubsets:
    """The subsets of one image: the predicted class first, then the others asked for.

    Attributes:
        file: its path.
        name: of the files made of it: subsets/NAME.npz and sheets/NAME.png.
        classes: the subset of each class.
    """

    file: str
    name: str
    classes: list[SubsetOfClass]


@dataclass(frozen=True)
class SufficientSubsets:
    """Sufficient input subsets of images.

    Attributes:
        subject: the model and the images.
        confidence: the probability that suffices.
        images: the images, in order.
        examples: for each class of the first images, the image and the subset.
        subsets: by name of an image, what subsets/NAME.npz holds: ``target`` (class indices, the predicted one first),
            ``subset`` (classes x H x W, bool), ``remaining`` (steps + 1) and ``curve`` (classes x steps + 1), and
            ``whole``, ``share``, ``confidence`` and ``reached`` of each class. Empty where a run writes these files.
    """

    subject: Subject
    confidence: float
    images: list[ImageSubsets]
    examples: list[ExampleImages]
    subsets: NotSaved


def measure(
    model: ModelLike,
    images: Sequence[str | Path],
    *,
    target: Annotated[
        Sequence[str] | None,
        Option("Classes besides the predicted one, by name or index, comma-separated.", name="--class"),
    ] = None,
    confidence: Annotated[float, Option("Probability that suffices.", min=0.01, max=1)] = 0.9,
    steps: Annotated[int, Option("Steps of the search: a forward and a backward pass each.", min=1)] = 50,
    fill: Annotated[Literal["mean", "black"], Option("Colour of removed pixels.")] = "mean",
    batch_size: BatchSize = 8,
    workers: Workers = 0,
    progress: Progress | None = None,
    state: Path | None = None,
) -> SufficientSubsets:
    """Find how few pixels of each image suffice for a class, the predicted one or any other.

    A run folder holds the subsets (subsets/NAME.npz) and each image beside them (sheets/NAME.png).

    Example:
        $ clearhead sis timm:vit_small_patch16_224 photo.jpg --class daisy,bee

    Args:
        model: a classifier, a module or a name.
        images: image files. Those that cannot be decoded are skipped, and are issues of the result.
        target: classes besides the predicted one of each image, by name or index.
        confidence: the probability that suffices, in 0..1.
        steps: of the search.
        fill: colour of a removed pixel: the mean that the model subtracts, or black.

    The other arguments are described in ``clearhead.options``.

    Raises:
        ClearheadError: for a class that does not exist, or a number out of its range.
        DataError: where no image can be used.
    """
    classifier = as_classifier(model)
    others = [class_index(classifier.classes, name) for name in ([target] if isinstance(target, str) else target or [])]
    index = index_files(images, classifier.classes)
    dataset = ImageDataset(index, classifier.preprocess)
    names = file_stems([sample.image_file for sample in index.samples])
    missing = [i for i, name in enumerate(names) if state is None or not _subset_file(state, name).is_file()]
    subsets: dict[str, dict[str, Array]] = {}
    if missing:
        part = replace(index, samples=tuple(index.samples[i] for i in missing))
        batches = loader(ImageDataset(part, classifier.preprocess), batch_size, workers)
        for batch in track(batches, progress, "sufficient subsets"):
            searched = _search(classifier, batch, others, confidence=confidence, steps=steps, fill=fill)
            for row, pixels, arrays in zip(batch["index"].tolist(), batch["image"], searched, strict=True):
                name = names[missing[row]]
                if state is None:
                    subsets[name] = arrays
                else:
                    _write(state, name, to_uint8(pixels), arrays, classifier)
    results, examples = [], []
    for i, (sample, name) in enumerate(zip(index.samples, names, strict=True)):
        arrays = subsets[name] if state is None else read_arrays(_subset_file(state, name))
        results.append(ImageSubsets(sample.file, name, _classes(arrays, classifier)))
        if i < SHOWN:
            pixels = to_uint8(dataset[i]["image"])
            for one, subset in zip(results[-1].classes, arrays["subset"], strict=True):
                shown = [("image", pixels), (f"{_percent(one.share)} of the pixels", _alone(pixels, subset))]
                examples.append(ExampleImages(shown, f"{sample.file}: {one.label}", _summary(one)))
    subject = Subject(
        display_names([model]),
        images=len(results),
        input_size=list(classifier.preprocess.size),
        issues=list(index.issues),
    )
    return SufficientSubsets(subject, confidence, results, examples, subsets)


def export(result: SufficientSubsets, folder: Path) -> None:
    """Move the subsets and images that ``measure`` wrote one by one to their folders."""
    for name in _FOLDERS:
        replace_path(folder / "state" / name, folder / name)


def _search(model: Classifier, batch: dict[str, Any], others: Sequence[int], **options: Any) -> list[dict[str, Array]]:
    """Search the subsets of a batch: for each image the predicted class, then the other classes that differ from it."""
    pixels = batch["image"].to(model.device)
    searches = [sufficient_subset(model, pixels, label, **options) for label in (None, *dict.fromkeys(others))]
    whole = searches[0].logits.softmax(-1).cpu().numpy()
    columns = {
        key: np.stack([getattr(search, key).cpu().numpy() for search in searches], 1)
        for key in ("target", "subset", "share", "confidence", "reached", "curve")
    }
    results = []
    for i, target in enumerate(columns["target"]):
        rows = [0, *(row for row in range(1, len(target)) if target[row] != target[0])]
        arrays = {key: column[i][rows] for key, column in columns.items()}
        results.append(arrays | {"whole": whole[i][target[rows]], "remaining": searches[0].remaining.cpu().numpy()})
    return results


def _classes(arrays: dict[str, Array], model: Classifier) -> list[SubsetOfClass]:
    return [
        SubsetOfClass(
            label=model.classes[int(target)],
            predicted=row == 0,
            whole=float(arrays["whole"][row]),
            share=float(arrays["share"][row]),
            confidence=float(arrays["confidence"][row]),
            reached=bool(arrays["reached"][row]),
            remaining=arrays["remaining"].tolist(),
            curve=arrays["curve"][row].tolist(),
        )
        for row, target in enumerate(arrays["target"])
    ]


def _subset_file(folder: Path, name: str) -> Path:
    return folder / "subsets" / f"{name}.npz"


def _write(folder: Path, name: str, pixels: Pixels, arrays: dict[str, Array], model: Classifier) -> None:
    """Write the files of one image; its subsets come last, so that they mark it as finished."""
    shown = [("image", pixels)]
    for one, subset in zip(_classes(arrays, model), arrays["subset"], strict=True):
        shown.append((f"{one.label}, {_percent(one.share)} of the pixels", _alone(pixels, subset)))
    write_image(folder / "sheets" / f"{name}.png", draw_sheet(shown, name))
    write_arrays(_subset_file(folder, name), arrays)


def _alone(pixels: Pixels, subset: Array) -> Pixels:
    """Return an image with grey in place of the removed pixels."""
    return np.where(subset[..., None], pixels, _GREY).astype(np.uint8)


def _percent(share: float) -> str:
    return format_value(share, "%")


def _summary(one: SubsetOfClass) -> str:
    status = "predicted class" if one.predicted else "another class"
    return f"{status}: {_percent(one.confidence)} from these pixels alone, {_percent(one.whole)} from the whole image"


def page(result: SufficientSubsets) -> Page:
    """Show how few pixels suffice for each class, the subsets of the first images, and their curves."""
    enough = f"{100 * result.confidence:g}%"
    text = (
        f"From these pixels alone (grey: removed) the model gives the class a probability of {enough}, or as near to "
        "it as the search comes."
    )
    if len(result.images) > SHOWN:
        text += f" The first {SHOWN} of {len(result.images):,} images; sheets/ has all."
    sections: list[Section] = [_table(result, enough), Gallery("Sufficient pixels", text, result.examples)]
    for image in result.images[:_CURVES]:
        points = {
            one.label: [(100 * x, y, 0.0) for x, y in zip(one.remaining, one.curve, strict=True)]
            for one in image.classes
        }
        title = f"Probability as pixels are removed: {image.file}"
        plot = plots.lines(points, title, "percent of the pixels left", "probability of the class", markers=False)
        sections.append(Figure(title, "Pixels are removed from right to left.", plot))
    reached = [one.reached for image in result.images for one in image.classes]
    return Page(
        f"{result.subject.model}: sufficient input subsets",
        f"The fewest pixels that suffice for a class with {enough} confidence, reached for {sum(reached)} of "
        f"{len(reached)} classes.",
        sections=sections,
    )


def _table(result: SufficientSubsets, enough: str) -> Table:
    rows = []
    for image in result.images:
        for one in image.classes:
            numbers = map(_percent, (one.whole, one.share, one.confidence))
            predicted, reached = ("yes" if true else "no" for true in (one.predicted, one.reached))
            rows.append(Row(image.file, [one.label, predicted, *numbers, reached]))
    text = "Probabilities of the class. Files: subsets/NAME.npz and sheets/NAME.png in the run folder."
    if len(rows) > _ROWS:
        text += f" The first {_ROWS:,} of {len(rows):,} rows."
    columns = ["class", "predicted", "whole image", "pixels needed", "from them alone", f"{enough} reached"]
    return Table("Sufficient pixels of each class", columns, rows[:_ROWS], text, names="file")
