"""Attention heads: accuracy with and without each, what it agrees with, where it attends, how similar heads are.

The numbers are those of ``clearhead.analyses.head_scores``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from clearhead.analyses.head_scores import HeadScore, HeadScores, implied_classes, score_heads
from clearhead.analyses.subject import Subject, subject_of
from clearhead.data.dataset import ImageIndex, attribute_columns
from clearhead.data.image_io import DataError
from clearhead.data.images import DataLike, as_image_index
from clearhead.data.splits import splits_of
from clearhead.metrics.statistics import Estimate
from clearhead.models.classifier import Classifier
from clearhead.models.source import ModelLike, as_classifier, display_names
from clearhead.options import BatchSize, Layers, Option, Split, Workers
from clearhead.progress import Progress
from clearhead.report import plots
from clearhead.report.page import Figure, Page, Row, Section, Table

MOST_HEADS = 12
"""Rows of the table of heads, the most important first."""


@dataclass(frozen=True)
class Heads:
    """The scores of the attention heads of one model."""

    subject: Subject
    scores: HeadScores


def measure(
    model: ModelLike,
    data: DataLike,
    *,
    split: Split = None,
    layers: Layers = "all",
    attributes: Annotated[
        Sequence[str] | None,
        Option("Columns of metadata.csv that heads may follow, comma-separated. Default: all that separate classes."),
    ] = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    progress: Progress | None = None,
) -> Heads:
    """Score each attention head: accuracy with it alone and without it, importance, attention and attributes.

    Example:
        $ clearhead heads timm:vit_small_patch16_224 DATA --layers 10,11

    Args:
        model: a classifier, a module or a name.
        data: the images: a folder, another source, or an index; masks and metadata are used where there are any.
        layers: the attention layers whose heads are scored.
        attributes: metadata columns; None takes all with at most 10 values that go with different classes.

    The other arguments are described in ``clearhead.options``.

    Raises:
        NoAttentionError: for a model without attention.
        ClearheadError: for a layer that does not exist.
        DataError: for data that cannot be used, or an attribute that does not exist or goes with one class only.
    """
    classifier = as_classifier(model)
    index = as_image_index(data, classes=classifier.classes, split=split)
    scores = score_with_attributes(
        classifier,
        data,
        index,
        layers=layers,
        attributes=attributes,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
    return Heads(subject_of(display_names([model]), index, data, split, classifier), scores)


def score_with_attributes(
    model: Classifier,
    data: DataLike,
    index: ImageIndex,
    *,
    layers: Layers = "all",
    attributes: Sequence[str] | None = None,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
) -> HeadScores:
    """Score heads on an index, with the class that each attribute value goes with in training.

    That class is the one the value is most frequent in, among the images of the split ``train`` of `data`, or those of
    `index` where `data` has no such split.

    Args:
        model: the classifier.
        data: what `index` was read from.
        index: the images.
        layers: the attention layers whose heads are scored.
        attributes: metadata columns; None takes all with at most 10 values that go with different classes.
        batch_size: images per forward pass.
        workers: data-loading processes.
        progress: shows progress.

    Raises:
        NoAttentionError: for a model without attention.
        ClearheadError: for a layer that does not exist.
        DataError: for an attribute that does not exist or goes with one class only.
    """
    training = index
    if not isinstance(data, ImageIndex) and "train" in splits_of(data):
        training = as_image_index(data, split="train", classes=model.classes, check=False)
    implied = {}
    for column in attribute_columns(training) if attributes is None else attributes:
        try:
            implied[column] = implied_classes(training, column)
        except DataError:
            if attributes is not None:
                raise
    return score_heads(
        model,
        index,
        layers=layers,
        attributes=implied,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )


def page(result: Heads) -> Page:
    """Show the accuracy without each head, the attributes they follow, where they attend, and how similar they are."""
    scores, subject = result.scores, result.subject
    return Page(
        f"{subject.model}: attention heads",
        f"{scores.accuracy.count:,} images of {subject.data}.",
        headline=[("Accuracy, all heads", scores.accuracy)],
        sections=head_sections(scores),
    )


def head_sections(scores: HeadScores, suffix: str = "") -> list[Section]:
    """Return the sections on the heads of one model; `suffix` ends their titles."""
    layers = sorted({head.layer for head in scores.heads})
    names = [str(layer) for layer in layers]
    accuracy = scores.accuracy.value

    def grid(values: Sequence[float]) -> list[list[float]]:
        by_head = {(h.layer, h.head): v for h, v in zip(scores.heads, values, strict=True)}
        return [[v for (layer, _), v in by_head.items() if layer == row] for row in layers]

    lost = grid([head.without.value - accuracy for head in scores.heads])
    text = (
        "Change of accuracy in points when a head is removed and the others of its layer are scaled up; with all heads "
        f"it is {100 * accuracy:.1f}%. A head whose removal raises accuracy may rely on the wrong feature."
    )
    plot = plots.heatmap(lost, "Change of accuracy without each head", names, "head", "pp", "layer")
    sections: list[Section] = [Figure(f"Accuracy without each head{suffix}", text, plot)]
    for attribute, classes in scores.attributes.items():
        sections.append(_attribute_figure(scores, attribute, classes, layers[-1], suffix))
    if any(head.contribution is not None for head in scores.heads):
        inside = grid([math.nan if h.contribution is None else h.contribution for h in scores.heads])
        text = f"Percent of what raises the predicted class that comes from patches in the foreground.{_area(scores)}"
        plot = plots.heatmap(inside, "Foreground share of each head's contribution", names, "head", "%", "layer")
        sections.append(Figure(f"Foreground share of each head's contribution{suffix}", text, plot))
    sections.append(_table(scores, suffix))
    cosines = scores.similarity[str(layers[-1])]
    if len(cosines) > 1:
        text = (
            f"Similarity of the heads of layer {layers[-1]}: mean over images and tokens of the squared cosine between "
            "the gradients of the predicted logit through two heads. Heads that differ are near 0."
        )
        title, names = f"Similarity of heads, layer {layers[-1]}", [str(head) for head in range(len(cosines))]
        sections.append(
            Figure(f"Similarity of heads{suffix}", text, plots.heatmap(cosines, title, names, "head", "", "head"))
        )
    return sections


def _area(scores: HeadScores) -> str:
    """Return the value to compare foreground shares with."""
    return "" if scores.area is None else f" The foreground is {100 * scores.area:.0f}% of the image."


def _attribute_figure(scores: HeadScores, attribute: str, classes: dict[str, str], last: int, suffix: str) -> Figure:
    """Plot the accuracy of each head alone over its agreement with an attribute."""
    points: dict[str, list[tuple[float, float]]] = {}
    for head in scores.heads:
        series = f"layer {last}" if head.layer == last else "other layers"
        points.setdefault(series, []).append((head.agreement[attribute].value, head.alone.value))
    pairs = ", ".join(f"{value} with {name}" for value, name in classes.items())
    text = (
        f"Each point is a head, alone in its layer: how often it predicts the class that goes with the {attribute} of "
        f"the image ({pairs}), and how often the correct class. Above the line a head follows the class more than "
        f"{attribute}. Only images in which the two do not go together can tell them apart."
    )
    plot = plots.scatter(points, f"Heads: class and {attribute}", f"agreement with {attribute}", "accuracy alone")
    return Figure(f"Class or {attribute}{suffix}", text, plot)


def _table(scores: HeadScores, suffix: str) -> Table:
    shown = sorted(scores.heads, key=lambda head: -head.importance)[:MOST_HEADS]
    text = (
        "Alone, without: accuracy with this head alone in its layer, and without it. "
        + "".join(f"Follows {name}: predictions of the class that goes with {name}. " for name in scores.attributes)
        + "Importance: mean absolute derivative of the loss with respect to the scale of the head, in nats. Attention: "
        f"share of the pooled token's attention that lies in the foreground.{_area(scores)} Entropy of the "
        "attention in nats; mean distance between a patch and those it attends to, in pixels."
    )
    if len(shown) < len(scores.heads):
        text += f" The {len(shown)} most important of {len(scores.heads)} heads are shown."
    columns = ["alone", "without", *(f"follows {name}" for name in scores.attributes)]
    columns += ["importance", "attention", "entropy", "distance"]
    rows = [Row(f"{head.layer}.{head.head}", _cells(head)) for head in shown]
    return Table(f"Heads{suffix}", columns, rows, text, names="layer.head")


def _cells(head: HeadScore) -> list[Estimate | str | int]:
    attention = "" if head.attention is None else f"{100 * head.attention:.0f}%"
    distance = "" if head.distance is None else f"{head.distance:.0f}"
    agreement = head.agreement.values()
    return [
        *(head.alone, head.without, *agreement),
        *(f"{head.importance:.3g}", attention, f"{head.entropy:.2f}", distance),
    ]
