"""Deep feature reweighting (DFR): retrain the classifier head on group-balanced images.

Kirichenko, Izmailov and Wilson, arXiv 2204.02937: a network that has learned a shortcut often has the right features
too, and only its head weighs them wrongly. The regressions here are fitted on training images (the paper's DFR on
training data). DFR works better on images that the network was not trained on, because it may have memorised those it
was. As in the public code: standardised features, an l1 penalty, and the mean of ten regressions. Of few images with
groups, such as tagged ones, none are held out: cross-validation selects the penalty, and the head is fitted on all.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from clearhead.data.dataset import ImageIndex, group_labels, shared_columns
from clearhead.errors import ClearheadError
from clearhead.models import Classifier
from clearhead.progress import Progress
from clearhead.training.linear_head import Features, linear_head

Array = npt.NDArray[Any]

PENALTIES = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
"""scikit-learn's C, the inverse of the l1 penalty: the paper's grid."""

SUBSETS = 10
"""Group-balanced subsets of the training images, with one regression each."""

FOLDS = 5
"""Parts of the training images in cross-validation, each with a fifth of every group."""

FOLD_SUBSETS = 3
"""Group-balanced subsets of each fit in cross-validation; more did not change the selection, but take longer."""


@dataclass(frozen=True)
class RetrainedHead:
    """The penalties that DFR tried.

    Attributes:
        chosen: the C with the highest worst-group accuracy; of equals, the first in ``PENALTIES``.
        worst_group_accuracy: on the validation images, or cross-validated, for each C.
        groups: number of training images in each group; a subset has as many of each as the smallest has.
        cross_validated: whether C was selected by cross-validation on the training images.
    """

    chosen: float
    worst_group_accuracy: dict[float, float]
    groups: dict[str, int]
    cross_validated: bool = False


def retrain_head(
    model: Classifier,
    train: ImageIndex,
    validation: ImageIndex | None,
    *,
    group_columns: Sequence[str] | None,
    features: Features | None = None,
    seed: int = 0,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
) -> tuple[Classifier, RetrainedHead]:
    """Return a copy of the model whose head is a logistic regression on its features, and the penalties tried.

    With more than two classes there is one regression per class, against the rest; their scores are the logits.

    Args:
        model: the classifier. It is not changed, and runs on the device of its parameters.
        train: the images the regressions are fitted on, without augmentation, with images of every class of the model.
        validation: the images that choose C; None chooses it by cross-validation on `train`, by the accuracy of the
            worst group of two or more images.
        group_columns: metadata columns that define the groups together with the class, None for all columns that both
            sets of images have; without columns the groups are the classes.
        features: of these images, from ``clearhead.training.linear_head.read_features``; computed if None.
        seed: random seed of the subsets.
        batch_size: images per batch.
        workers: number of processes that load images.
        progress: shows progress (``clearhead.progress``).

    Raises:
        DataError: for a file that can no longer be read, or a group column that does not exist.
        ClearheadError: for a model whose logits are not the output of one linear layer with a bias, a model with a
            single class, or a class without training images.
    """
    if group_columns is None and validation is not None:
        group_columns = shared_columns(train, validation)
    groups = np.array(group_labels(train, group_columns))
    judged = groups if validation is None else np.array(group_labels(validation, group_columns))
    require_classes(model, train)
    counts = dict(sorted(Counter(groups.tolist()).items()))
    if single := [name for name, count in counts.items() if count == 1]:
        warnings.warn(f"{'; '.join(single)}: one training image, so each subset has one image per group", stacklevel=2)
    head = linear_head(
        model,
        train,
        validation,
        features=features,
        dtype=torch.float64,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
    x, labels = head.train.numpy(), head.train_labels.numpy()
    fits = _fits(x, labels, groups, seed)
    if validation is None:
        correct = _cross_validated(x, labels, groups, seed)
        names = [name for name, count in counts.items() if count > 1] or list(counts)
    else:
        x_validation, validation_labels = head.validation.numpy(), head.validation_labels.numpy()
        correct = {c: _predict(x_validation, *fits[c]) == validation_labels for c in PENALTIES}
        names = np.unique(judged).tolist()
    worst = {c: min(float(correct[c][judged == name].mean()) for name in names) for c in PENALTIES}
    chosen = max(PENALTIES, key=worst.__getitem__)
    weight, bias = map(torch.from_numpy, fits[chosen])
    return head.with_weights(weight, bias), RetrainedHead(chosen, worst, counts, validation is None)


def _fits(x: Array, labels: Array, groups: Array, seed: int, count: int = SUBSETS) -> dict[float, tuple[Array, Array]]:
    """Return weight and bias for each penalty: the mean of regressions on group-balanced subsets."""
    rng = np.random.default_rng(seed)
    subsets = [_balanced_subset(groups, rng) for _ in range(count)]
    fits = {}
    for c in PENALTIES:
        regressions = [_regression(x[subset], labels[subset], c) for subset in subsets]
        weight, bias = (np.mean(parts, axis=0) for parts in zip(*regressions, strict=True))
        fits[c] = weight, bias
    return fits


def _predict(x: Array, weight: Array, bias: Array) -> Array:
    return np.asarray((x @ weight.T + bias).argmax(1))


def _cross_validated(x: Array, labels: Array, groups: Array, seed: int) -> dict[float, Array]:
    """Return, for each penalty, whether each image is correct by the fit on the other folds.

    A fold without which a class has no images is skipped; its images count as wrong.
    """
    rng = np.random.default_rng([seed, 1])
    order = np.concatenate([rng.permutation(np.flatnonzero(groups == group)) for group in np.unique(groups)])
    fold = np.empty(len(order), dtype=int)
    fold[order] = np.arange(len(order)) % FOLDS  # groups follow each other, so each is spread evenly
    correct = {c: np.zeros(len(labels), dtype=bool) for c in PENALTIES}
    for held_out in np.unique(fold):
        rest, tested = fold != held_out, fold == held_out
        if len(np.unique(labels[rest])) == len(np.unique(labels)):
            for c, parameters in _fits(x[rest], labels[rest], groups[rest], seed, FOLD_SUBSETS).items():
                correct[c][tested] = _predict(x[tested], *parameters) == labels[tested]
    return correct


def require_classes(model: Classifier, train: ImageIndex) -> None:
    """Raise ClearheadError for a model with a single class, or a class without training images."""
    if len(model.classes) < 2:
        raise ClearheadError(f"model: two or more classes are needed, {model.name} has {len(model.classes)}")
    present = {sample.label for sample in train.samples}
    if missing := [name for i, name in enumerate(model.classes) if i not in present]:
        raise ClearheadError(
            f"train: no image of {', '.join(missing[:5])}{' and others' * (len(missing) > 5)} ({len(missing)} of the "
            f"model's {len(model.classes)} classes); the classifier head needs images of each: use a model with the "
            "data's classes, as `clearhead train` makes"
        )


def _balanced_subset(groups: Array, rng: np.random.Generator) -> Array:
    """Return indices of as many images of each group as the smallest has, drawn without replacement."""
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    smallest = min(map(len, members))
    return np.sort(np.concatenate([rng.choice(indices, smallest, replace=False) for indices in members]))


def _regression(x: Array, labels: Array, c: float) -> tuple[Array, Array]:
    """Fit an l1 logistic regression, and return its weight (classes x D) and bias (classes)."""
    from sklearn.linear_model import LogisticRegression  # takes seconds to import
    from sklearn.multiclass import OneVsRestClassifier

    binary = LogisticRegression(l1_ratio=1, C=c, solver="liblinear", random_state=0)
    fits = OneVsRestClassifier(binary).fit(x, labels).estimators_
    weight, bias = np.concatenate([fit.coef_ for fit in fits]), np.concatenate([fit.intercept_ for fit in fits])
    if len(fits) > 1:
        return weight, bias
    # two classes share one regression, for the second class: half its score for that class, half against the first
    return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
