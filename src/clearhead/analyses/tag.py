"""Propose images to tag, and write the page and the table in which they are tagged by whether they show a shortcut.

Groups that a shortcut fails are rare, so few random images hold any of them. The images of highest loss are mostly of
those groups, but are also the odd and mislabelled ones; so half of the proposed images are drawn at random.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from clearhead.analyses.next_steps import command, typed_data, typed_model
from clearhead.analyses.subject import Subject, subject_of
from clearhead.data.dataset import ImageIndex
from clearhead.data.image_io import load_image
from clearhead.data.images import DataLike, as_image_index
from clearhead.data.splits import splits_of
from clearhead.data.tags import MIN_TAGGED, TaggedFile, merge_tags, write_tags
from clearhead.errors import ClearheadError
from clearhead.metrics.statistics import format_value
from clearhead.models.source import ModelLike, as_classifier, display_names
from clearhead.options import BatchSize, Option, Seed, Workers
from clearhead.prediction.predict import logits_of
from clearhead.progress import Progress, log
from clearhead.report.page import Page, Row, Table
from clearhead.report.tagging import ImageToTag, render_tagging
from clearhead.storage import NotSaved, write_text

TAGS_FILE = "tags.csv"

MOST_CLASSES = 20
"""Classes that the table shows, those of most misclassified images first."""

MOST_VALUES = 9
"""Tags that have a key."""

_FEW = 10
"""Proposed images per class, below which the log advises more."""


@dataclass(frozen=True)
class Proposal:
    """An image to tag.

    Attributes:
        file: its unique name.
        path: where it is.
        label: its class.
        predicted: the class that the model predicts.
        loss: negative log-likelihood of the label in nats.
        reason: why it was proposed.
    """

    file: str
    path: str
    label: str
    predicted: str
    loss: float
    reason: Literal["highest loss", "random"]


@dataclass(frozen=True)
class TagResult:
    """Images to tag.

    Attributes:
        subject: the model, and the images they were drawn from.
        values: the tags to choose from.
        proposals: in the order to tag them: after any part of them, classes and reasons are balanced.
        command: the repair that reads the tags.
        index: the images they were drawn from.
    """

    subject: Subject
    values: list[str]
    proposals: list[Proposal]
    command: str
    index: NotSaved = None


def measure(
    model: ModelLike,
    data: DataLike,
    *,
    split: Annotated[
        str | None, Option("Split to draw images from. Default: train where the data has splits, else all images.")
    ] = None,
    count: Annotated[int, Option("Number of images to tag, spread over the classes.", min=2)] = 100,
    values: Annotated[Sequence[str], Option("Tags to choose from, comma-separated, two to nine.")] = (
        "with shortcut",
        "without",
    ),
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> TagResult:
    """Propose images to tag by hand, which take the place of group labels in a repair.

    Half of the images are those of highest loss in each class, half are random. One forward pass per image.

    Example:
        $ clearhead tag timm:vit_small_patch16_224 DATA --values watermark,none

    Args:
        model: a classifier, module or name.
        data: the images: a folder, another source, or an index.
        split: split to draw images from; never the split for a final test.
        count: number of images.
        values: the tags.

    The other arguments are described in ``clearhead.options``.

    Raises:
        DataError: for data that cannot be used.
        ClearheadError: for fewer than two or more than nine different tags, or logits that are NaN.
    """
    values = list(dict.fromkeys(" ".join(value.split()) for value in values))
    if not 2 <= len({value.casefold() for value in values if value}) == len(values) <= MOST_VALUES:
        raise ClearheadError(f"values: got {', '.join(values)!r}; give two to {MOST_VALUES} different tags")
    (name,), classifier = display_names([model]), as_classifier(model)
    if split is None and not isinstance(data, ImageIndex) and splits_of(data):
        split = "train"
    index = as_image_index(data, split=split, classes=classifier.classes)
    logits = torch.from_numpy(logits_of(classifier, index, batch_size, workers, progress))
    labels = torch.tensor([sample.label for sample in index.samples])
    losses = F.cross_entropy(logits, labels, reduction="none").numpy()
    highest, others = propose(losses, labels.numpy(), count, seed)
    classes = classifier.classes
    proposals = [
        Proposal(
            index.samples[i].file,
            str(index.samples[i].path),
            classes[index.samples[i].label],
            classes[int(logits[i].argmax())],
            float(losses[i]),
            "highest loss" if i in set(highest) else "random",
        )
        for i in _alternate(highest, others)
    ]
    per_class = len(proposals) / len(set(labels.tolist()))
    if per_class < _FEW and len(proposals) < len(index.samples):
        log.info(
            "%s images are %.3g per class; --count %s would be %s", len(proposals), per_class,
            _FEW * len(set(labels.tolist())), _FEW,
        )  # fmt: skip
    repair = command("repair", typed_model(model), typed_data(data), "--method", "dfr", "--tags", TAGS_FILE)
    return TagResult(subject_of([name], index, data, split, classifier), values, proposals, repair, index)


def propose(
    losses: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], count: int, seed: int
) -> tuple[list[int], list[int]]:
    """Return the positions of the images to tag: half of highest loss, half random, each spread over the classes.

    Both are in the order of their rank within their class, so that every start of them is spread over the classes too.

    Args:
        losses: of N images.
        labels: their classes, N.
        count: number of images in total; at most N are returned.
        seed: of the random half.
    """
    highest = _by_rank(-losses, labels, np.arange(len(losses)))[: count // 2]
    rest = np.setdiff1d(np.arange(len(losses)), highest)
    chance = np.random.default_rng(seed).random(len(losses))
    return highest.tolist(), _by_rank(chance, labels, rest)[: count - len(highest)].tolist()


def _by_rank(
    scores: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], positions: npt.NDArray[np.integer]
) -> npt.NDArray[np.integer]:
    """Return positions with the lowest score of each class first, then the second lowest of each, and so on."""
    rank = np.empty(len(positions), dtype=int)
    for label in np.unique(labels[positions]):
        members = np.flatnonzero(labels[positions] == label)
        rank[members[np.argsort(scores[positions][members], kind="stable")]] = np.arange(len(members))
    return positions[np.lexsort((scores[positions], rank))]


def _alternate(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """Return both in turn, the rest of the longer one last."""
    pairs = [i for pair in zip(first, second, strict=False) for i in pair]
    shorter = min(len(first), len(second))
    return [*pairs, *first[shorter:], *second[shorter:]]


def export(result: TagResult, folder: Path) -> None:
    """Write the page for tagging and the table to fill; tags in a table that is there already stay."""
    file = folder / TAGS_FILE
    write_tags(file, merge_tags(file, [TaggedFile(one.file, "", one.label) for one in result.proposals]))
    samples = {sample.file: sample for sample in result.index.samples}
    images = [
        ImageToTag(one.file, one.label, one.predicted, np.asarray(load_image(samples[one.file].path)))
        for one in result.proposals
    ]
    about = "\n".join([*result.subject.models, result.subject.data, *(f"{one.file} {one.label}" for one in images)])
    page = render_tagging(
        images,
        result.values,
        run=hashlib.sha256(about.encode("utf-8", "replace")).hexdigest()[:16],
        title=f"{result.subject.model}: tag images",
        lead=f"{len(images)} images of {result.subject.data}. Does each show what you suspect the model relies on?",
        command=result.command,
        minimum=MIN_TAGGED,
    )
    write_text(folder / "tagging.html", page)


def page(result: TagResult) -> Page:
    """Show how many images of each class are proposed."""
    proposals = result.proposals
    rows = []
    for label in sorted({one.label for one in proposals}):
        own = [one for one in proposals if one.label == label]
        counts = [sum(one.reason == reason for one in own) for reason in ("highest loss", "random")]
        wrong = sum(one.predicted != label for one in own)
        rows.append((wrong, Row(label, [*counts, wrong, format_value(max(one.loss for one in own), "nats")])))
    rows.sort(key=lambda pair: -pair[0])
    text = (
        f"Tag them in tagging.html with a browser, in {TAGS_FILE} with a spreadsheet, or with --terminal. "
        f"Then: {result.command}"
    )
    if len(rows) > MOST_CLASSES:
        text += f" The {MOST_CLASSES} classes of most misclassified images are shown."
    table = Table(
        "Proposed images",
        ["highest loss", "random", "misclassified", "largest loss"],
        [row for _, row in rows[:MOST_CLASSES]],
        text,
    )
    lead = f"{len(proposals)} of {result.subject.images:,} images of {result.subject.data} to tag."
    return Page(f"{result.subject.model}: images to tag", lead, sections=[table])
