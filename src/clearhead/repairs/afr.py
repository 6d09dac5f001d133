"""Automatic feature reweighting (AFR): retrain the classifier head on the images the model is unsure of.

Qiu, Potapczynski, Izmailov and Wilson, arXiv 2306.11074. With p_i the original model's probability of the label of
image i, n_c the number of images of class c, and φ the classifier head, φ₀ that of the original model::

    w_i ∝ exp(-γ p_i) / n_c(i),      minimise  Σ w_i CE_i(φ) + (λ / 2) ‖φ - φ₀‖²

An image on which the shortcut fails has a low p_i and so a high weight; no group labels are needed. φ acts on the
standardised features here, so that λ has one meaning for all models (the paper penalises the head on raw features), and
the minimum is found by L-BFGS, so that no step size or number of epochs has to be chosen.

γ and λ are selected without group labels too, on validation images: the highest mean of two accuracies, that on the
images which the original model misclassifies and that on the others, among the heads whose accuracy on all validation
images is at most one point below the original model's. The original head is a candidate.

The paper reweights images that the model was not trained on. On images that it has memorised every p_i is close to 1,
the weights hardly differ, and little changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clearhead.data.dataset import ImageIndex
from clearhead.models import Classifier
from clearhead.progress import Progress
from clearhead.repairs.dfr import require_classes
from clearhead.training.linear_head import Features, fit_head, linear_head

GAMMAS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""The grid of γ: 0 weights all images equally."""

PENALTIES = (1.0, 0.1, 0.01, 0.001)
"""The grid of λ, the strongest first: each fit starts from the previous one's minimum."""

MARGIN = 0.01
"""Validation accuracy that a candidate may lose."""


@dataclass(frozen=True)
class HeadCandidate:
    """A head that AFR tried, measured on the validation images.

    Attributes:
        gamma: γ; None for the original head.
        penalty: λ; None for the original head.
        accuracy: on all images.
        corrected: accuracy on the images that the original model misclassifies, None where it misclassifies none.
        retained: accuracy on the images that the original model classifies correctly, None where there are none.
    """

    gamma: float | None
    penalty: float | None
    accuracy: float
    corrected: float | None
    retained: float | None

    @property
    def score(self) -> float:
        """The mean of ``corrected`` and ``retained``, where both exist."""
        parts = [part for part in (self.corrected, self.retained) if part is not None]
        return sum(parts) / len(parts)


@dataclass(frozen=True)
class ReweightedHead:
    """What AFR tried and selected.

    Attributes:
        chosen: the selected candidate.
        candidates: all of them, the original head first.
        misclassified: number of validation images that the original model misclassifies.
        images: number of validation images.
        effective_images: number of training images that the selected weights amount to, (Σ w)² / Σ w².
    """

    chosen: HeadCandidate
    candidates: list[HeadCandidate]
    misclassified: int
    images: int
    effective_images: float


def reweight_head(
    model: Classifier,
    train: ImageIndex,
    validation: ImageIndex,
    *,
    group_columns: Sequence[str] | None = None,
    features: Features | None = None,
    seed: int = 0,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
) -> tuple[Classifier, ReweightedHead]:
    """Return a copy of the model with its head retrained by AFR, and the candidates tried.

    Args:
        model: the classifier. It is not changed, and runs on the device of its parameters.
        train: the images to reweight, without augmentation, with images of every class of the model; best images that
            the model was not trained on.
        validation: the images that select γ and λ.
        group_columns: not used: no step needs groups.
        features: of these images, from ``clearhead.training.linear_head.read_features``; computed if None.
        seed: not used: nothing is random.
        batch_size: images per batch.
        workers: number of processes that load images.
        progress: shows progress (``clearhead.progress``).

    Raises:
        DataError: for a file that can no longer be read.
        ClearheadError: for a model whose logits are not the output of one linear layer with a bias, a model with a
            single class, or a class without training images.
    """
    require_classes(model, train)
    head = linear_head(
        model, train, validation, features=features, batch_size=batch_size, workers=workers, progress=progress
    )
    device = head.weight_layer.weight.device
    z, labels = head.train.to(device), head.train_labels.to(device)
    z_validation, validation_labels = head.validation.to(device), head.validation_labels.to(device)
    original = tuple(part.to(device) for part in head.weights())
    weight, bias = original
    probability = (z @ weight.T + bias).softmax(-1).gather(1, labels[:, None])[:, 0]
    class_counts = torch.bincount(labels)[labels]
    was_correct = _correct(z_validation, validation_labels, weight, bias)

    heads = [(_candidate(None, None, was_correct, was_correct), original, torch.ones_like(probability))]
    for gamma in GAMMAS:
        image_weights = (-gamma * probability).exp() / class_counts
        image_weights = image_weights / image_weights.sum()
        fitted = original
        for penalty in PENALTIES:
            fitted = fit_head(z, labels, penalty, *fitted, image_weights=image_weights, centre=(weight, bias))
            correct = _correct(z_validation, validation_labels, *fitted)
            heads.append((_candidate(gamma, penalty, correct, was_correct), fitted, image_weights))
    floor = heads[0][0].accuracy - MARGIN - 1e-9  # accuracies are fractions of images, compared after rounding
    # of equal scores the head of the higher accuracy, then the first: the least weighted, closest to the original
    chosen, fitted, image_weights = max(
        (entry for entry in heads if entry[0].accuracy >= floor), key=lambda entry: (entry[0].score, entry[0].accuracy)
    )
    report = ReweightedHead(
        chosen,
        [entry[0] for entry in heads],
        misclassified=int((~was_correct).sum()),
        images=len(was_correct),
        effective_images=float(image_weights.sum().square() / image_weights.square().sum()),
    )
    return head.with_weights(*(part.cpu() for part in fitted)), report


def _correct(z: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (z @ weight.T + bias).argmax(-1) == labels


def _candidate(gamma: float | None, penalty: float | None, correct: Tensor, was_correct: Tensor) -> HeadCandidate:
    def accuracy(images: Tensor) -> float | None:
        return correct[images].float().mean().item() if images.any() else None

    return HeadCandidate(gamma, penalty, correct.float().mean().item(), accuracy(~was_correct), accuracy(was_correct))
