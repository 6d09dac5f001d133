"""Can the label be predicted without the object, before any training? Cues beside the chance level, and duplicates."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import StratifiedGroupKFold

from clearhead.analyses.audit import balanced_accuracy
from clearhead.analyses.subject import Subject, subject_of
from clearhead.data.cues import CUES, OF_THE_OBJECT_TOO, Description, describe_images, feature_matrix
from clearhead.data.dataset import ImageIndex, Sample, attribute_columns
from clearhead.data.duplicates import NEAR, DuplicatePairs, duplicate_groups, find_duplicates
from clearhead.data.image_io import DataError, load_image
from clearhead.data.images import DataLike, as_image_index, read_images
from clearhead.data.splits import sample_n, splits_of
from clearhead.metrics.statistics import Estimate, format_interval, format_value, holm, permutation_p_value
from clearhead.metrics.verdict import Verdict
from clearhead.options import Limit, Option, Seed
from clearhead.progress import Progress
from clearhead.report.page import ExampleImages, Gallery, Page, Row, Section, Table
from clearhead.storage import NotSaved, write_table

Array = npt.NDArray[Any]

ALPHA = 0.05
FOLDS = 5
"""Folds of the cross-validation; a class of fewer images is left out."""

MOST_IMAGES = 5000
"""The label is predicted for at most so many images, drawn at random."""

TREES = 100
_SHOWN_PAIRS, _SHOWN_EXAMPLES, _EXAMPLE_SIDE = 50, 8, 256

CAPTIONS = {
    "background": "colours and texture of the outer 14%, without the bounding box of the mask",
    "border": "the outer 10%, at 20 x 20 pixels; parts of the object may reach it",
    "image size": "width, height and aspect ratio",
    "file format": "format, colour mode, JPEG quality",
    "camera metadata": "EXIF data, resolution, colour profile, comment",
    "file size": "bytes, also per pixel; depends on the object too",
    "mean colour": "of the whole image; depends on the object too",
}


@dataclass(frozen=True)
class CueAccuracy:
    """How well the label is predicted from one cue.

    Attributes:
        name: a name of ``CUES``, or ``column NAME`` of metadata.csv.
        accuracy: balanced accuracy of cross-validated predictions.
        chance: chance level: one over the number of classes.
        p_value: of a permutation test, one-sided.
        adjusted: the same with Holm's correction for all cues.
    """

    name: str
    accuracy: Estimate
    chance: float
    p_value: float
    adjusted: float

    @property
    def excess(self) -> Estimate:
        """Balanced accuracy above the chance level."""
        e = self.accuracy
        return Estimate(e.value - self.chance, e.low - self.chance, e.high - self.chance, e.count, "pp")

    @property
    def is_shown(self) -> bool:
        """Whether the label is shown to be predictable: the test after correction, and the interval above chance."""
        return self.adjusted < ALPHA and self.accuracy.low > self.chance


@dataclass(frozen=True)
class Duplicate:
    """Two images that are the same.

    Attributes:
        files: their names.
        labels: their class names.
        splits: their splits; empty without splits.
        exact: whether all pixels are equal.
        correlation: of their thumbnails.
    """

    files: tuple[str, str]
    labels: tuple[str, str]
    splits: tuple[str, str]
    exact: bool
    correlation: float


@dataclass(frozen=True)
class DataAuditResult:
    """What a data set reveals of its labels without the object.

    Attributes:
        subject: the images whose label is predicted; no model.
        cues: by accuracy above chance, the highest first.
        skipped: cues that are not measured, with the reason.
        small_classes: classes of fewer images than ``FOLDS``, which are left out of the prediction.
        searched: number of images of all splits, among which duplicates were searched.
        duplicates: those between splits and classes first.
        images_across_splits: number of images with a duplicate in another split.
        images_across_classes: number of images with a duplicate under another label.
        examples: duplicates beside each other.
        near_duplicates: False where too many images are nearly equal, so that only equal pixels count.
        pairs: columns of all pairs; in the run folder duplicates.parquet.
    """

    subject: Subject
    cues: list[CueAccuracy]
    skipped: dict[str, str]
    small_classes: list[str]
    searched: int
    duplicates: list[Duplicate]
    images_across_splits: int
    images_across_classes: int
    examples: list[ExampleImages]
    near_duplicates: bool = True
    pairs: NotSaved = None


def measure(
    data: DataLike,
    *,
    split: Annotated[
        str | None, Option("Split whose labels are predicted. Default: train, or all images without such a split.")
    ] = None,
    limit: Limit = None,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> DataAuditResult:
    """Find out before training whether background, border, size or metadata predict the label; find duplicates.

    Each cue is a short vector of numbers per image; 100 extremely randomised trees predict the label from it in 5-fold
    cross-validation. Duplicates are in the same fold. Duplicates are searched in all splits.

    Example:
        $ clearhead data audit DATA

    Args:
        data: the images: a folder, another source, or an index. The background needs masks.
        split: the split whose labels are predicted.

    The other arguments are described in ``clearhead.options``.

    Raises:
        DataError: for data that cannot be used, a split that does not exist, or images of one class only.
    """
    everything = sample_n(as_image_index(data), limit, seed)
    splits = _splits(data)
    if split is None and "train" in splits.values():
        split = "train"
    wanted = None if split is None else {s.file for s in as_image_index(data, split=split, check=False).samples}
    members = [i for i, sample in enumerate(everything.samples) if wanted is None or sample.file in wanted]
    index = replace(everything, samples=tuple(everything.samples[i] for i in members))
    labels = np.array([sample.label for sample in index.samples])
    if len(set(labels.tolist())) < 2:
        named = f"of one class, {index.classes[labels[0]]}" if len(labels) else "in no split"
        raise DataError(f"{index.root}: all {len(labels):,} images are {named}; two or more classes are needed")
    descriptions = describe_images(everything.samples, progress)
    pairs = find_duplicates(np.stack([d.thumbnail for d in descriptions]), [d.digest for d in descriptions])
    groups = duplicate_groups(pairs, len(descriptions))
    cues, skipped, small = _predict_labels(index, [descriptions[i] for i in members], groups[members], seed)
    columns = _columns(pairs, everything, splits)
    across_classes = columns["label_a"] != columns["label_b"]
    across_splits = columns["split_a"] != columns["split_b"]
    order = np.lexsort((-columns["correlation"], ~across_splits, ~across_classes))
    duplicates = [_duplicate(columns, i) for i in order[:_SHOWN_PAIRS]]
    return DataAuditResult(
        subject_of([], index, data, split),
        cues,
        skipped,
        small,
        len(everything.samples),
        duplicates,
        _images_in(columns, across_splits),
        _images_in(columns, across_classes),
        _examples(everything.samples, duplicates[:_SHOWN_EXAMPLES]),
        pairs.complete,
        {name: values[order] for name, values in columns.items()},
    )


def _columns(pairs: DuplicatePairs, index: ImageIndex, splits: Mapping[str, str]) -> dict[str, Array]:
    """Return the pairs of duplicates as columns of a table."""
    file = np.array([sample.file for sample in index.samples], dtype=object)
    label = np.array([index.classes[sample.label] for sample in index.samples], dtype=object)
    split = np.array([splits.get(name, "") for name in file], dtype=object)
    ends = ("a", pairs.first), ("b", pairs.second)
    named = {"file": file, "label": label, "split": split}
    columns = {f"{name}_{end}": values[rows] for name, values in named.items() for end, rows in ends}
    return columns | {"exact": pairs.exact, "correlation": pairs.correlation}


def _duplicate(columns: Mapping[str, Array], row: int) -> Duplicate:
    files, labels, splits = (
        (str(columns[f"{name}_a"][row]), str(columns[f"{name}_b"][row])) for name in ("file", "label", "split")
    )
    return Duplicate(files, labels, splits, bool(columns["exact"][row]), float(columns["correlation"][row]))


def _images_in(columns: Mapping[str, Array], where: Array) -> int:
    """Return the number of images in some pairs."""
    return len({*columns["file_a"][where], *columns["file_b"][where]})


def _splits(data: DataLike) -> dict[str, str]:
    """Return the split of each image that has one, by file."""
    if isinstance(data, ImageIndex):
        return {}
    names = splits_of(data)
    return {s.file: name for name in sorted(names) for s in read_images(data, split=name, check=False).samples}


def _predict_labels(
    index: ImageIndex, descriptions: Sequence[Description], groups: Array, seed: int
) -> tuple[list[CueAccuracy], dict[str, str], list[str]]:
    """Return the accuracy of each cue, the cues that are not measured, and the classes that are too small."""
    labels = np.array([sample.label for sample in index.samples])
    usable, small = _large_classes(labels, groups)
    skipped: dict[str, str] = {}
    measured = []
    for name in [*CUES, *(f"column {column}" for column in attribute_columns(index))]:
        rows = np.array([i for i, d in enumerate(descriptions) if usable[i] and name in d.cues], dtype=int)
        rows = rows[_large_classes(labels[rows], groups[rows])[0]]
        if len(rows) > MOST_IMAGES:
            rows = np.sort(np.random.default_rng(seed).permutation(rows)[:MOST_IMAGES])
            rows = rows[_large_classes(labels[rows], groups[rows])[0]]
        classes = np.unique(labels[rows])
        if len(classes) < 2:
            missing = "no image has it" if not any(name in d.cues for d in descriptions) else ""
            skipped[name] = missing or f"fewer than two classes have {FOLDS} different images with it"
            continue
        features = feature_matrix([descriptions[i].cues[name] for i in rows])
        if features is None:
            skipped[name] = "it is the same in all images"
            continue
        predicted = _cross_validated(features, labels[rows], groups[rows], seed)
        accuracy = balanced_accuracy(predicted == labels[rows], labels[rows])
        measured.append((name, accuracy, 1 / len(classes), permutation_p_value(predicted, labels[rows], seed)))
    adjusted = holm([p for *_, p in measured])
    cues = [CueAccuracy(*values, p) for values, p in zip(measured, adjusted, strict=True)]
    if "background" in skipped and not any(sample.mask for sample in index.samples):
        skipped["background"] = "no image has a mask; clearhead data masks makes them"
    return sorted(cues, key=lambda cue: -cue.excess.value), skipped, [index.classes[label] for label in small]


def _large_classes(labels: Array, groups: Array) -> tuple[Array, list[int]]:
    """Return which images are of a class of at least ``FOLDS`` different images, and the other classes."""
    different = Counter(label for label, _ in set(zip(labels.tolist(), groups.tolist(), strict=True)))
    large = [label for label, count in different.items() if count >= FOLDS]
    return np.isin(labels, large), sorted(set(different) - set(large))


def _cross_validated(features: Array, labels: Array, groups: Array, seed: int) -> Array:
    """Return the predicted label of each image by a forest that was not fitted on it or a duplicate of it."""
    predicted = np.empty_like(labels)
    jobs = -1 if len(labels) > 1000 else 1
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for fitted, held_out in folds.split(features, labels, groups):
        forest = ExtraTreesClassifier(
            TREES, min_samples_leaf=2, class_weight="balanced", n_jobs=jobs, random_state=seed
        ).fit(features[fitted], labels[fitted])
        predicted[held_out] = forest.predict(features[held_out])
    return predicted


def _examples(samples: Sequence[Sample], duplicates: Sequence[Duplicate]) -> list[ExampleImages]:
    by_file = {sample.file: sample for sample in samples}
    examples = []
    for duplicate in duplicates:
        images = []
        for file, label, split in zip(duplicate.files, duplicate.labels, duplicate.splits, strict=True):
            image = load_image(by_file[file].path)
            image.thumbnail((_EXAMPLE_SIDE, _EXAMPLE_SIDE))
            images.append((f"{label}, {split}" if split else label, np.asarray(image)))
        examples.append(ExampleImages(images, _similarity(duplicate), " and ".join(duplicate.files)))
    return examples


def export(result: DataAuditResult, folder: Path) -> None:
    """Write all pairs of duplicates: duplicates.parquet."""
    write_table(folder / "duplicates.parquet", result.pairs)


def page(result: DataAuditResult) -> Page:
    """Show how well each cue predicts the label, and the duplicates."""
    subject = result.subject
    sections: list[Section] = [_cue_table(result)]
    if result.duplicates:
        sections.append(_duplicate_table(result))
    if result.examples:
        text = "Pairs with different labels first, then those in different splits."
        sections.append(Gallery("Duplicates side by side", text, result.examples))
    searched = result.searched
    counts = {"another split": result.images_across_splits, "another class": result.images_across_classes}
    return Page(
        f"{subject.data}: data audit",
        f"The labels of {subject.images:,} images, predicted from simple cues; no model is involved. Duplicates are "
        f"searched among {searched:,} images of all splits"
        + ("." if result.near_duplicates else ", by equal pixels: too many images are nearly equal."),
        verdicts=_verdicts(result),
        headline=[
            (f"images with a duplicate in {where}", Estimate(count / searched, np.nan, np.nan, searched, "%"))
            for where, count in counts.items()
        ],
        sections=sections,
    )


def _verdicts(result: DataAuditResult) -> list[Verdict]:
    """Return what is shown: cues that predict the label, duplicates between splits or classes."""
    verdicts = []
    shown = [cue for cue in result.cues if cue.is_shown and cue.name not in OF_THE_OBJECT_TOO]
    if shown:
        listed = ", ".join(
            f"{cue.name} ({format_value(cue.accuracy.value, '%')} {format_interval(cue.accuracy)}, chance "
            f"{format_value(cue.chance, '%')})"
            for cue in shown
        )
        basis = (
            f"Balanced accuracy, {FOLDS}-fold cross-validation; permutation test at {ALPHA:.0%} with Holm's correction."
        )
        verdicts.append(Verdict("leak", f"The class can be predicted from {listed}.", basis, result.subject.data))
    across = [
        f"{count:,} images have a duplicate {where}"
        for count, where in (
            (result.images_across_splits, "in another split"),
            (result.images_across_classes, "under another label"),
        )
        if count
    ]
    if across:
        basis = f"Equal pixels, or a correlation of thumbnails of at least {NEAR:g}."
        verdicts.append(Verdict("leak", f"{'; '.join(across)}.", basis, result.subject.data))
    return verdicts


def _cue_table(result: DataAuditResult) -> Table:
    rows = [
        Row(
            cue.name,
            [
                cue.accuracy,
                format_value(cue.chance, "%"),
                cue.excess,
                format_value(cue.adjusted),
                "predicts the label" if cue.is_shown else "not shown",
            ],
            CAPTIONS.get(cue.name, "metadata.csv"),
        )
        for cue in result.cues
    ]
    rows += [Row(name, ["", "", "", "", "not measured"], reason) for name, reason in result.skipped.items()]
    text = (
        "Balanced accuracy of predictions from one cue alone, by trees in cross-validation. A model can learn any cue "
        "that predicts the label; whether it does, clearhead audit shows. p: permutation test, corrected for all cues."
    )
    if small := result.small_classes:
        named = ", ".join(small[:5]) + (f" and {len(small) - 5} more" if len(small) > 5 else "")
        text += f" Left out, fewer than {FOLDS} images: {named}."
    columns = ["balanced accuracy", "chance level", "above chance", "p", ""]
    return Table("What predicts the label", columns, rows, text, names="cue")


def _duplicate_table(result: DataAuditResult) -> Table:
    with_splits = any("".join(d.splits) for d in result.duplicates)
    rows = []
    for d in result.duplicates:
        cells = [_both(d.labels), *([_both(d.splits)] if with_splits else [])]
        rows.append(Row(" = ".join(d.files), [*cells, _similarity(d)]))
    text = f"The first {len(rows)} pairs; all are in duplicates.parquet." if len(rows) == _SHOWN_PAIRS else ""
    return Table("Duplicates", ["class", *(["split"] if with_splits else []), ""], rows, text, names="images")


def _similarity(duplicate: Duplicate) -> str:
    return "equal pixels" if duplicate.exact else f"correlation {duplicate.correlation:.3f}"


def _both(names: tuple[str, str]) -> str:
    return names[0] if names[0] == names[1] else f"{names[0]} and {names[1]}"
