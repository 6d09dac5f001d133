"""Groups of images that a model fails on, found without group labels: slices of a class in which mistakes gather.

After Domino (Eyuboglu et al., arXiv 2203.14960), a mixture over embedding, label and prediction: each class is divided
by a mixture of Gaussians over its images' features, relevance maps, or both, and their predicted classes. The slice of
an image is then inferred from features and maps alone, never from the prediction: a slice made of mistakes would have
an error rate of 100% on any data.

Slices that were chosen for their mistakes look bad on the images they were chosen on, real or not. So they are fitted
on one half of the images and their error rates are those of the other half: each against the rest of its class, by
Fisher's exact test, corrected for the number of slices (Holm, 1979).
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.stats import hypergeom
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from clearhead.analyses.examples import View, draw_examples
from clearhead.analyses.subject import Subject, subject_of
from clearhead.attribution import explain_with_logits
from clearhead.data.dataset import attribute_columns
from clearhead.data.images import DataLike, as_image_index
from clearhead.data.loading import ImageDataset, loader
from clearhead.errors import ClearheadError
from clearhead.metrics.statistics import LEVEL, Estimate, format_value, holm, proportion
from clearhead.models.classifier import Classifier
from clearhead.models.features import features as penultimate_features
from clearhead.models.source import ModelLike, as_classifier, display_names
from clearhead.options import BatchSize, Method, Option, Seed, Split, Workers
from clearhead.prediction.predict import predict
from clearhead.progress import Progress, track
from clearhead.report.page import ExampleImages, Gallery, Page, Row, Section, Table
from clearhead.storage import NotSaved, write_table

Array = npt.NDArray[Any]

MAX_SLICES = 6
"""Slices that a class is divided into at most; the Bayesian information criterion chooses their number."""

_MIN_IMAGES = 10
"""Images that each slice of a class must have on average in the half it is fitted on."""

_DIMENSIONS = 8
"""Principal components of the features and of the maps, of each class."""

_VARIANCE_FLOOR = 0.01
"""Added to variances, for features whose first principal component has variance 1 and predictions of 0 and 1."""

_COARSE = 14, 14
"""Maps of a model without a token grid are averaged to this size."""

_ROWS, _GALLERIES, _EXAMPLES = 12, 8, 6
"""Slices in the table, slices shown with example images, and example images of each."""

_SPACES = {
    "features": "penultimate features",
    "relevance": "relevance maps",
    "both": "penultimate features and relevance maps",
}


@dataclass(frozen=True)
class Overlap:
    """The value of a metadata column that distinguishes a slice most from the rest of its class, and both shares."""

    column: str
    value: str
    inside: float
    outside: float


@dataclass(frozen=True)
class Slice:
    """A slice of a class. All numbers are of the held-out half of the images.

    Attributes:
        name: its class and a number.
        label: name of its class.
        error: share of its images that are misclassified.
        rest: the same for the other images of the class.
        p_value: probability of so many mistakes in it if they fell on the class by chance (Fisher's exact test, one
            sided), corrected for all slices (Holm).
        mistaken_for: the class that most of its mistakes are predicted as; empty without mistakes.
        mistaken_share: share of its mistakes that are predicted as it.
        overlaps: with metadata, for each column.
        files: misclassified images, the most typical of the slice first.
    """

    name: str
    label: str
    error: Estimate
    rest: Estimate
    p_value: float
    mistaken_for: str
    mistaken_share: float
    overlaps: list[Overlap]
    files: list[str]

    @property
    def worse(self) -> bool:
        """Whether its error rate is significantly above that of the rest of its class (family-wise error rate 5%)."""
        return self.p_value <= 1 - LEVEL


@dataclass(frozen=True)
class Slices:
    """The slices of all classes.

    Attributes:
        slices: the lowest p-value first.
        assigned: the name of the slice of each image, N; empty for images of a class that was not divided.
        held_out: whether each image is in the half that the numbers are of, N.
    """

    slices: list[Slice]
    assigned: Array
    held_out: Array


@dataclass(frozen=True)
class SliceResult:
    """Slices that a model fails on.

    Attributes:
        subject: the model and the data.
        space: what the classes were divided by.
        method: of the maps.
        accuracy: on all images.
        held_out: how many images the numbers of the slices are of.
        slices: the lowest p-value first.
        examples: for the first slices that are worse than the rest of their class, mistakes and their maps.
        table: columns of slices.parquet.
    """

    subject: Subject
    space: Literal["features", "relevance", "both"]
    method: str
    accuracy: Estimate
    held_out: int
    slices: list[Slice]
    examples: list[list[ExampleImages]]
    table: NotSaved


def measure(
    model: ModelLike,
    data: DataLike,
    *,
    split: Split = None,
    space: Annotated[
        Literal["features", "relevance", "both"],
        Option("What classes are divided by: penultimate features, relevance maps, or both."),
    ] = "both",
    method: Method = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> SliceResult:
    """Find groups of images that the model fails on, without group labels.

    Each class is divided into slices; those with significantly more mistakes than the rest of their class are shown.

    Example:
        $ clearhead slices timm:vit_small_patch16_224 DATA

    Args:
        model: a classifier, a module or a name.
        data: labelled images: a folder, another source, or an index. Masks are not used, metadata only to describe
            slices.
        space: what classes are divided by.
        method: attribution method of the maps.

    The other arguments are described in ``clearhead.options``.

    Raises:
        ClearheadError: for a method that does not work on the model, or a model without penultimate features (`space`
            ``relevance`` needs none).
        DataError: for data that cannot be used.
    """
    classifier = as_classifier(model)
    index = as_image_index(data, classes=classifier.classes, split=split)
    without_masks = replace(index, samples=tuple(replace(sample, mask=None) for sample in index.samples))
    features = maps = None
    if space != "relevance":
        batches = loader(ImageDataset(without_masks, classifier.preprocess), batch_size, workers)
        features = penultimate_features(classifier, track(batches, progress, "features")).float().numpy()
    predictions = predict(
        classifier, without_masks, method=method, batch_size=batch_size, workers=workers, progress=progress
    )
    if space != "features":
        batches = loader(ImageDataset(without_masks, classifier.preprocess), batch_size, workers)
        maps = _patch_maps(classifier, track(batches, progress, "relevance maps"), predictions.method)
    columns = {c: [s.groups.get(c) or "unknown" for s in index.samples] for c in attribute_columns(index)}
    divided = find_slices(
        features,
        maps,
        predictions.label,
        predictions.predicted,
        classifier.classes,
        predictions.file.tolist(),
        columns,
        seed,
        _EXAMPLES,
    )
    assigned = {"slice": np.array([name or None for name in divided.assigned]), "held out": divided.held_out}
    views = [View("", classifier, predictions)]
    worse = [one for one in divided.slices if one.worse][:_GALLERIES]
    return SliceResult(
        subject_of(display_names([model]), index, data, split, classifier),
        space,
        predictions.method,
        accuracy=proportion(predictions.correct),
        held_out=int(divided.held_out.sum()),
        slices=divided.slices,
        examples=[draw_examples(views, index, one.files) for one in worse],
        table=predictions.table(classifier.classes) | assigned,
    )


def export(result: SliceResult, folder: Path) -> None:
    """Write slices.parquet: the prediction, the slice and the half of each image."""
    write_table(folder / "slices.parquet", result.table)


def _patch_maps(model: Classifier, batches: Any, method: str) -> Array:
    """Return the map of the predicted class of each image, averaged over the tokens' patches, N x h x w."""
    size = (model.grid.height, model.grid.width) if model.grid is not None else _COARSE
    device, pooled = model.device, []
    for batch in batches:
        maps, _ = explain_with_logits(model, batch["image"].to(device), method=method)
        pooled.append(F.adaptive_avg_pool2d(maps[:, None].detach(), size)[:, 0].cpu())
    return torch.cat(pooled).numpy()


def find_slices(
    features: Array | None,
    maps: Array | None,
    label: Array,
    predicted: Array,
    classes: Sequence[str],
    files: Sequence[str],
    attributes: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    show: int = 6,
) -> Slices:
    """Divide each class into slices and test which of them a model fails on.

    Args:
        features: penultimate features, N x D; None to leave them out.
        maps: relevance maps of one size, N x H x W, not negative; only where the relevance lies counts, not how much
            there is. None to leave them out.
        label: class index of each image, N.
        predicted: predicted class index of each image, N.
        classes: class names.
        files: a unique name for each image.
        attributes: metadata columns to describe the slices with: a value for each image. They are not searched.
        seed: of the halves and of the mixtures.
        show: how many misclassified images of each slice to name.

    Raises:
        ClearheadError: without features and maps, for numbers that are not finite, or of different lengths.
    """
    blocks = _blocks(features, maps, len(label))
    label, predicted, names = np.asarray(label), np.asarray(predicted), np.asarray(files)
    if not len(label) == len(predicted) == len(names):
        raise ClearheadError(
            f"label, predicted and files need one entry per image: got {len(label)} labels, "
            f"{len(predicted)} predicted, {len(names)} files"
        )
    rng = np.random.default_rng(seed)
    assigned, held_out = np.full(len(label), "", dtype=object), np.zeros(len(label), dtype=bool)
    typical = np.zeros(len(label))
    for index in np.unique(label):
        order = rng.permutation(np.flatnonzero(label == index))
        first, second = order[: len(order) // 2], order[len(order) // 2 :]
        held_out[second] = True
        log_likelihood = _fit_mixture([block[first] for block in blocks], predicted[first], seed)
        if log_likelihood is None:
            continue
        for half in (first, second):
            fit = log_likelihood([block[half] for block in blocks])
            assigned[half] = [f"{classes[index]} {1 + best}" for best in fit.argmax(1)]
            typical[half] = fit.max(1)
    correct = label == predicted
    slices: list[Slice] = []
    raw: list[float] = []
    for name in np.unique(assigned[held_out & (assigned != "")]):
        inside = held_out & (assigned == name)
        index = int(label[inside][0])
        rest = held_out & (label == index) & ~inside
        wrong = np.flatnonzero(inside & ~correct)
        mistaken, counts = np.unique(predicted[wrong], return_counts=True)
        of_class = inside | rest
        # as many mistakes or more, among so many images drawn from the class at random
        raw.append(float(hypergeom.sf(len(wrong) - 1, of_class.sum(), (of_class & ~correct).sum(), inside.sum())))
        slices.append(
            Slice(
                name=str(name),
                label=classes[index],
                error=proportion(~correct[inside]),
                rest=proportion(~correct[rest]),
                p_value=1.0,
                mistaken_for=classes[mistaken[counts.argmax()]] if len(wrong) else "",
                mistaken_share=float(counts.max() / len(wrong)) if len(wrong) else 0.0,
                overlaps=[_overlap(column, np.asarray(v), inside, rest) for column, v in (attributes or {}).items()],
                files=names[wrong[np.argsort(-typical[wrong], kind="stable")]][:show].tolist(),
            )
        )
    corrected = holm(raw)
    ordered = [replace(slices[i], p_value=float(corrected[i])) for i in np.argsort(raw, kind="stable")]
    return Slices(ordered, assigned, held_out)


def _blocks(features: Array | None, maps: Array | None, count: int) -> list[Array]:
    """Return features and maps as rows of numbers, N x D each."""
    blocks: dict[str, Array] = {}
    if features is not None:
        blocks["features"] = np.asarray(features, dtype=np.float64)
    if maps is not None:
        flat = np.asarray(maps, dtype=np.float64).reshape(len(maps), -1)
        total = flat.sum(1, keepdims=True)
        blocks["maps"] = np.divide(flat, total, out=flat.copy(), where=total > 0)
    if not blocks:
        raise ClearheadError("features, maps: both are None; pass one of them or both")
    for name, block in blocks.items():
        if len(block) != count:
            raise ClearheadError(f"{name}: got {len(block)} rows for {count} labels; one row per image is needed")
        if not np.isfinite(block).all():
            broken = int((~np.isfinite(block).all(1)).sum())
            raise ClearheadError(f"{name}: {broken} images have values that are not finite; pass finite values only")
    return list(blocks.values())


def _fit_mixture(blocks: list[Array], predicted: Array, seed: int) -> Callable[[list[Array]], Array] | None:
    """Fit the slices of a class; return a function from blocks of images to log-likelihoods, N x slices.

    None where the class is best left whole, or has too few images.
    """
    most = min(MAX_SLICES, len(predicted) // _MIN_IMAGES)
    if most < 2:
        return None
    with np.errstate(invalid="ignore"):  # numbers that are the same for all images
        fitted = [PCA(min(_DIMENSIONS, *block.shape), random_state=seed).fit(block) for block in blocks]
    spread = [max(float(pca.explained_variance_[0]), np.finfo(float).tiny) ** 0.5 for pca in fitted]

    def reduced(rows: list[Array]) -> Array:
        return np.hstack([pca.transform(r) / s for pca, r, s in zip(fitted, rows, spread, strict=True)])

    x = reduced(blocks)
    with_predictions = np.hstack([x, predicted[:, None] == np.unique(predicted)])
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # of mixtures of too many components
        mixtures = [
            GaussianMixture(k, covariance_type="diag", reg_covar=_VARIANCE_FLOOR, n_init=3, random_state=seed).fit(
                with_predictions
            )
            for k in range(1, most + 1)
        ]
    best = min(mixtures, key=lambda mixture: float(mixture.bic(with_predictions)))
    if best.n_components == 1:
        return None
    # what is left of the mixture without the predictions
    means, variances = best.means_[:, : x.shape[1]], best.covariances_[:, : x.shape[1]]
    constant = np.log(best.weights_) - 0.5 * np.log(variances).sum(1)

    def log_likelihood(rows: list[Array]) -> Array:
        differences: Array = reduced(rows)[:, None] - means
        result: Array = constant - 0.5 * (differences**2 / variances).sum(2)
        return result

    return log_likelihood


def _overlap(column: str, values: Array, inside: Array, rest: Array) -> Overlap:
    """Return the value of a column whose share in a slice is furthest above that in the rest."""
    shares = {
        str(v): (float((values[inside] == v).mean()), float((values[rest] == v).sum() / max(1, rest.sum())))
        for v in np.unique(values[inside])
    }
    value = max(shares, key=lambda v: shares[v][0] - shares[v][1])
    return Overlap(column, value, *shares[value])


def page(result: SliceResult) -> Page:
    """Show the slices, and for each that is worse than its class its most typical mistakes."""
    subject = result.subject
    worse = [one for one in result.slices if one.worse]
    headline = [("Accuracy", result.accuracy), *((f"Errors in slice {one.name}", one.error) for one in worse[:3])]
    sections: list[Section] = [_table(result)]
    for one, examples in zip(worse, result.examples, strict=False):
        if examples:
            columns = "".join(f"Column {overlap.column}: {_shares(overlap)}. " for overlap in one.overlaps)
            text = (
                f"{format_value(one.error.value, '%')} of its {one.error.count:,} images are misclassified, "
                f"{format_value(one.rest.value, '%')} of the rest of {one.label}. {columns}The mistakes most typical "
                f"of the slice are shown. Maps: {result.method}, for the predicted class."
            )
            sections.append(Gallery(f"Slice {one.name}", text, examples))
    return Page(
        f"{subject.model}: slices with more errors",
        f"{subject.images:,} images of {subject.data}.",
        headline=headline,
        sections=sections,
    )


def _table(result: SliceResult) -> Table:
    worse, shown = sum(one.worse for one in result.slices), result.slices[:_ROWS]
    text = (
        f"Each class was divided by {_SPACES[result.space]} on one half of its images; the numbers are of the other "
        f"half, {result.held_out:,} images. Worse: p at most 0.05, Fisher's exact test, corrected for all slices. "
        "Metadata was not used to find them. A slice that is not flagged is not necessarily fine."
    )
    if len(shown) < len(result.slices):
        text += f" The {len(shown)} of lowest p are shown."
    columns = list(dict.fromkeys(overlap.column for one in result.slices for overlap in one.overlaps))
    title = f"Slices: {worse} of {len(result.slices)} have more errors than the rest of their class"
    columns = ["errors", "errors in the rest", "p", "predicted as", *columns]
    return Table(title, columns, [_row(one) for one in shown], text, names="slice")


def _row(one: Slice) -> Row:
    predicted = f"{one.mistaken_for} ({100 * one.mistaken_share:.0f}%)" if one.mistaken_for else ""
    p = f"{one.p_value:.2g}" if one.p_value >= 1e-4 else "below 0.0001"
    return Row(one.name, [one.error, one.rest, p, predicted, *map(_shares, one.overlaps)])


def _shares(overlap: Overlap) -> str:
    """Return the value, its share of the slice, and of the rest of the class."""
    return f"{overlap.value} in {100 * overlap.inside:.0f}% (rest {100 * overlap.outside:.0f}%)"
