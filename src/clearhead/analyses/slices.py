"""Groups that a model fails on, found without group labels: parts of a class in which mistakes gather.

After Domino (Eyuboglu et al., arXiv 2203.14960), a mixture over embedding, label and prediction: each class is divided
by a mixture of Gaussians over its images' features, relevance maps, or both, and the classes they are given. Which part
an image belongs to is then told by features and maps alone, never by the prediction: a part made of mistakes would have
an error rate of 100% of whatever images.

Parts sought where mistakes are look bad on the images they were sought in, real or not. So they are found on one half
of the images and their error rates are those of the other half: each against the rest of its class, by Fisher's exact
test, corrected for the number of parts (Holm, 1979).
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import hypergeom
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from clearhead.errors import ClearheadError
from clearhead.metrics.statistics import LEVEL, Estimate, holm, proportion

MOST_PARTS = 6
"""Parts a class is divided into at most; how many, the Bayesian information criterion says."""

_FEWEST = 10
"""Images that each part of a class must have on average in the half it is found on."""

_DIMENSIONS = 8
"""Principal components of the features and of the maps, of each class."""

_VARIANCE_FLOOR = 0.01
"""Added to variances, for features whose first principal component has variance 1 and predictions of 0 and 1."""


@dataclass(frozen=True)
class Overlap:
    """The value of a metadata column that tells a slice most from the rest of its class, and the shares of both."""

    column: str
    value: str
    inside: float
    outside: float


@dataclass(frozen=True)
class Slice:
    """A part of a class. All numbers are of the half of the images it was not found on.

    Attributes:
        name: of the slice: its class and a number.
        label: name of its class.
        error: share of its images that are classified wrongly.
        rest: the same for the other images of the class.
        p_value: how likely so many mistakes are in it if they fell on the class by chance (Fisher's exact test, one
            sided), corrected for all slices (Holm).
        mistaken_for: the class that most of its mistakes are taken for; empty without mistakes.
        mistaken_share: share of its mistakes that are taken for it.
        overlaps: with metadata, for each column.
        files: wrongly classified images, those nearest to its middle first.
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
        """Whether it is told to be worse than the rest of its class; of slices that are not, 5% of runs tell one."""
        return self.p_value <= 1 - LEVEL


@dataclass(frozen=True)
class Slices:
    """The parts of all classes, the surest to be worse first, and for each of N images the name of its own.

    `part` is empty for images of a class with too few to be divided, or that is one part. `held_out` tells the half
    that the numbers are of.
    """

    slices: list[Slice]
    part: np.ndarray
    held_out: np.ndarray


def find_slices(
    features: np.ndarray | None,
    maps: np.ndarray | None,
    label: np.ndarray,
    predicted: np.ndarray,
    classes: Sequence[str],
    files: Sequence[str],
    attributes: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    show: int = 6,
) -> Slices:
    """Divide each class into parts and tell which of them a model fails on.

    Args:
        features: what the last layer is given, N x D; None to leave them out.
        maps: relevance maps of one size, N x H x W, not negative; each counts by how its relevance is spread, not by
            how much there is. None to leave them out.
        label: class index of each image, N.
        predicted: likewise.
        classes: class names.
        files: a unique name for each image.
        attributes: metadata columns to hold the parts against: a value for each image. They find nothing.
        seed: of the halves and of the mixtures.
        show: how many wrongly classified images to name.

    Raises:
        ClearheadError: without features and maps, for numbers that are not finite, or of different lengths.
    """
    blocks = _blocks(features, maps, len(label))
    label, predicted, names = np.asarray(label), np.asarray(predicted), np.asarray(files)
    if not len(label) == len(predicted) == len(names):
        raise ClearheadError(
            f"one each an image: got {len(label)} labels, {len(predicted)} predicted, {len(names)} files"
        )
    rng = np.random.default_rng(seed)
    part, held_out = np.full(len(label), "", dtype=object), np.zeros(len(label), dtype=bool)
    typical = np.zeros(len(label))
    for index in np.unique(label):
        order = rng.permutation(np.flatnonzero(label == index))
        first, second = order[: len(order) // 2], order[len(order) // 2 :]
        held_out[second] = True
        found = _mixture([block[first] for block in blocks], predicted[first], seed)
        if found is None:
            continue
        for half in (first, second):
            fit = found([block[half] for block in blocks])
            part[half] = [f"{classes[index]} {1 + best}" for best in fit.argmax(1)]
            typical[half] = fit.max(1)
    correct, slices, raw = label == predicted, [], []
    for name in np.unique(part[held_out & (part != "")]):
        inside = held_out & (part == name)
        index = int(label[inside][0])
        rest = held_out & (label == index) & ~inside
        wrong = np.flatnonzero(inside & ~correct)
        mistaken, counts = np.unique(predicted[wrong], return_counts=True)
        of_class = inside | rest
        # as many mistakes or more, among so many images drawn from the class at random
        raw.append(hypergeom.sf(len(wrong) - 1, of_class.sum(), (of_class & ~correct).sum(), inside.sum()))
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
    told = [replace(slices[i], p_value=float(corrected[i])) for i in np.argsort(raw, kind="stable")]
    return Slices(told, part, held_out)


def _blocks(features: np.ndarray | None, maps: np.ndarray | None, count: int) -> list[np.ndarray]:
    """Features and maps as rows of numbers, N x D each."""
    blocks = {}
    if features is not None:
        blocks["features"] = np.asarray(features, dtype=np.float64)
    if maps is not None:
        flat = np.asarray(maps, dtype=np.float64).reshape(len(maps), -1)
        total = flat.sum(1, keepdims=True)
        blocks["maps"] = np.divide(flat, total, out=flat.copy(), where=total > 0)
    if not blocks:
        raise ClearheadError("features and maps: give one of them or both")
    for name, block in blocks.items():
        if len(block) != count:
            raise ClearheadError(f"{name}: one each an image is needed, got {len(block)} for {count} labels")
        if not np.isfinite(block).all():
            raise ClearheadError(f"{name}: all must be finite; {(~np.isfinite(block).all(1)).sum()} images have others")
    return list(blocks.values())


def _mixture(
    blocks: list[np.ndarray], predicted: np.ndarray, seed: int
) -> Callable[[list[np.ndarray]], np.ndarray] | None:
    """The parts of a class: a function from blocks of images to the log-likelihood of each part (N x parts).

    None where the class is one part, or has too few images.
    """
    most = min(MOST_PARTS, len(predicted) // _FEWEST)
    if most < 2:
        return None
    with np.errstate(invalid="ignore"):  # numbers that are the same for all images
        fitted = [PCA(min(_DIMENSIONS, *block.shape), random_state=seed).fit(block) for block in blocks]
    spread = [max(float(pca.explained_variance_[0]), np.finfo(float).tiny) ** 0.5 for pca in fitted]

    def reduced(rows: list[np.ndarray]) -> np.ndarray:
        return np.hstack([pca.transform(r) / s for pca, r, s in zip(fitted, rows, spread, strict=True)])

    x = reduced(blocks)
    seen = np.hstack([x, predicted[:, None] == np.unique(predicted)])
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # of mixtures of too many parts
        mixtures = [
            GaussianMixture(k, covariance_type="diag", reg_covar=_VARIANCE_FLOOR, n_init=3, random_state=seed).fit(seen)
            for k in range(1, most + 1)
        ]
    best = min(mixtures, key=lambda mixture: mixture.bic(seen))
    if best.n_components == 1:
        return None
    # what is left of the mixture without the predictions
    means, variances = best.means_[:, : x.shape[1]], best.covariances_[:, : x.shape[1]]
    constant = np.log(best.weights_) - 0.5 * np.log(variances).sum(1)

    def likelihood(rows: list[np.ndarray]) -> np.ndarray:
        return constant - 0.5 * ((reduced(rows)[:, None] - means) ** 2 / variances).sum(2)

    return likelihood


def _overlap(column: str, values: np.ndarray, inside: np.ndarray, rest: np.ndarray) -> Overlap:
    """The value of a column whose share of a slice is furthest above that of the rest."""
    there = np.unique(values[inside])
    shares = {str(v): ((values[inside] == v).mean(), (values[rest] == v).sum() / max(1, rest.sum())) for v in there}
    value = max(shares, key=lambda v: shares[v][0] - shares[v][1])
    return Overlap(column, value, *map(float, shares[value]))
