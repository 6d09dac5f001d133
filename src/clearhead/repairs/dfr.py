"""Deep feature reweighting: only the last layer is trained again, on as many images of each group.

Kirichenko, Izmailov and Wilson, arXiv 2204.02937: a network that has learnt a shortcut often has the right features
too, and only its last layer weighs them wrongly. Here the regressions see training images (the paper's DFR on training
data; it gets further with images the network has not been trained on, for of those it has, it may know the answers by
heart). The settings are those of the public code: standardised features, an l1 penalty, the mean of ten regressions.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from clearhead.data.dataset import ImageIndex, group_labels, shared_columns
from clearhead.data.loading import ImageDataset, loader
from clearhead.errors import ClearheadError
from clearhead.models import Classifier
from clearhead.models.classifier import copied
from clearhead.models.features import features, last_layer

Progress = Callable[[Iterable, int, str], Iterable]

PENALTIES = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
"""scikit-learn's C, the inverse of the l1 penalty: the paper's grid."""

SUBSETS = 10
"""Group-balanced subsets of the training images, a regression for each."""


@dataclass(frozen=True)
class LastLayer:
    """How the new last layer came about.

    Attributes:
        chosen: the C used: that of the highest worst-group accuracy, the first in ``PENALTIES`` of equals.
        worst_group_accuracy: on the validation images, for each C.
        groups: the number of training images in each group; a subset has the lowest of them from each.
    """

    chosen: float
    worst_group_accuracy: dict[float, float]
    groups: dict[str, int]


def retrain_last_layer(
    model: Classifier,
    train: ImageIndex,
    validation: ImageIndex,
    *,
    group_columns: Sequence[str] | None,
    seed: int = 0,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
) -> tuple[Classifier, LastLayer]:
    """A copy of the model whose last layer is a logistic regression on its features, and how that was chosen.

    With more than two classes there is one regression a class, against the rest; their scores are the logits.

    Args:
        model: the classifier; it is not changed, and runs where its parameters are.
        train: the images the regressions are fitted on, without augmentation; of every class of the model.
        validation: the images that choose C, and nothing else.
        group_columns: metadata columns that make the groups with the class, None for all; with none the groups are the
            classes.
        seed: of the subsets.
        batch_size: images a batch.
        workers: processes that load images.
        track: shows progress: ``track(batches, count, title)``.

    Raises:
        DataError: for a file that can no longer be read, or a group column that does not exist.
        ClearheadError: for a model whose logits are not the output of one linear layer with a bias, one with a single
            class, or a class without training images.
    """
    group_columns = shared_columns(train, validation) if group_columns is None else group_columns
    labels, groups = _labels(train), np.array(group_labels(train, group_columns))
    held_labels, held_groups = _labels(validation), np.array(group_labels(validation, group_columns))
    _require_classes(model, labels)
    counts = dict(sorted(Counter(groups.tolist()).items()))
    if few := [name for name, count in counts.items() if count == 1]:
        warnings.warn(f"{'; '.join(few)}: one training image, so one of each group is learned from", stacklevel=2)
    model = replace(model, module=copied(model.module).eval())
    head = _head(model)

    def read(folder: ImageIndex, title: str) -> np.ndarray:
        batches = loader(ImageDataset(folder, model.preprocess), batch_size, workers)
        return features(model, progress(batches, len(batches), title) if progress else batches).double().numpy()

    x, held = read(train, "features"), read(validation, "features, validation")
    mean, scale = x.mean(0), x.std(0)
    scale[scale == 0] = 1
    x, held = (x - mean) / scale, (held - mean) / scale
    rng = np.random.default_rng(seed)
    subsets = [_balanced(groups, rng) for _ in range(SUBSETS)]
    layers, worst = {}, {}
    for c in PENALTIES:
        found = [_regression(x[chosen], labels[chosen], c) for chosen in subsets]
        weight, bias = (np.mean(parts, axis=0) for parts in zip(*found, strict=True))
        correct = (held @ weight.T + bias).argmax(1) == held_labels
        worst[c] = min(float(correct[held_groups == group].mean()) for group in np.unique(held_groups))
        layers[c] = weight, bias
    best = max(PENALTIES, key=lambda c: worst[c])
    weight, bias = layers[best]
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight / scale))
        head.bias.copy_(torch.from_numpy(bias - weight @ (mean / scale)))
    return model, LastLayer(best, worst, counts)


def _labels(folder: ImageIndex) -> np.ndarray:
    return np.array([sample.label for sample in folder.samples])


def _require_classes(model: Classifier, labels: np.ndarray) -> None:
    if len(model.classes) < 2:
        raise ClearheadError(f"model: two or more classes are needed, {model.name} has {len(model.classes)}")
    if missing := [name for i, name in enumerate(model.classes) if i not in labels]:
        raise ClearheadError(
            f"train: no image of {', '.join(missing[:5])}{' and others' * (len(missing) > 5)} ({len(missing)} of the "
            f"model's {len(model.classes)} classes); the last layer needs images of each: give a model with the data's "
            "classes, such as `clearhead train` makes"
        )


def _head(model: Classifier) -> nn.Linear:
    """The model's last layer; ClearheadError where it has none, or none with a bias."""
    head = last_layer(model)
    if head is None or head.bias is None:
        why = "the last layer has no bias" if head else "no linear layer's output is its logits"
        raise ClearheadError(
            f"model: the last layer of {model.name} cannot be retrained: {why}. Needed is one torch.nn.Linear with a "
            "bias at the end; distilled DeiTs average two heads and do not have it: take an architecture without "
            "distillation, or another method"
        )
    return head


def _balanced(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices of as many images of each group as the smallest has, drawn without replacement."""
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    fewest = min(map(len, members))
    return np.sort(np.concatenate([rng.choice(indices, fewest, replace=False) for indices in members]))


def _regression(x: np.ndarray, labels: np.ndarray, c: float) -> tuple[np.ndarray, np.ndarray]:
    """Weight (classes x D) and bias (classes) of the last layer that is the l1 logistic regression."""
    from sklearn.linear_model import LogisticRegression  # seconds to import, and few commands need it
    from sklearn.multiclass import OneVsRestClassifier

    one = LogisticRegression(l1_ratio=1, C=c, solver="liblinear", random_state=0)
    fits = OneVsRestClassifier(one).fit(x, labels).estimators_
    weight, bias = np.concatenate([fit.coef_ for fit in fits]), np.concatenate([fit.intercept_ for fit in fits])
    # two classes have one regression, of the second: half its score for, half against
    return (
        (weight, bias) if len(fits) > 1 else (np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2)
    )
