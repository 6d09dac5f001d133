"""Linear probe: a classifier head fitted on frozen features, the usual test of self-supervised backbones.

The objective is convex, so L-BFGS finds its minimum without a learning rate or a number of epochs to choose. With z the
standardised penultimate features (N x D)::

    mean cross-entropy(W z + b) + (λ / 2) ‖W‖²

λ is the value of a grid with the lowest cross-entropy on the validation images.
"""

from dataclasses import dataclass

import torch.nn.functional as F

from clearhead.data.dataset import ImageIndex
from clearhead.models import Classifier
from clearhead.progress import Progress
from clearhead.training.linear_head import fit_head, linear_head

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""The grid of λ, the strongest first: each fit starts from the previous one's minimum."""


@dataclass(frozen=True)
class LinearProbe:
    """The penalties that a linear probe tried.

    Attributes:
        chosen: the λ with the lowest validation loss.
        loss: cross-entropy on the validation images in nats, for each λ.
        accuracy: on the validation images, for each λ.
    """

    chosen: float
    loss: dict[float, float]
    accuracy: dict[float, float]


def fit_linear_probe(
    model: Classifier,
    train: ImageIndex,
    validation: ImageIndex,
    *,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
) -> tuple[Classifier, LinearProbe]:
    """Return a copy of the model with a new classifier head fitted on its features, and the penalties tried.

    Args:
        model: a classifier with the data's classes. It is not changed, and runs on the device of its parameters.
        train: the images to fit, without augmentation.
        validation: the images that choose λ.
        batch_size: images per batch.
        workers: number of processes that load images.
        progress: shows progress (``clearhead.progress``).

    Raises:
        DataError: for a file that can no longer be read.
        ClearheadError: for a model whose logits are not the output of one linear layer with a bias.
    """
    head = linear_head(model, train, validation, batch_size=batch_size, workers=workers, progress=progress)
    device = head.weight_layer.weight.device
    z, labels = head.train.to(device), head.train_labels.to(device)
    z_validation, validation_labels = head.validation.to(device), head.validation_labels.to(device)
    weight = z.new_zeros(head.weight_layer.weight.shape)
    bias = z.new_zeros(len(weight))
    fits, loss, accuracy = {}, {}, {}
    for penalty in PENALTIES:
        weight, bias = fits[penalty] = fit_head(z, labels, penalty, weight, bias)
        logits = z_validation @ weight.T + bias
        loss[penalty] = F.cross_entropy(logits, validation_labels).item()
        accuracy[penalty] = (logits.argmax(-1) == validation_labels).float().mean().item()
    chosen = min(PENALTIES, key=loss.__getitem__)
    weight, bias = fits[chosen]
    return head.with_weights(weight.cpu(), bias.cpu()), LinearProbe(chosen, loss, accuracy)
