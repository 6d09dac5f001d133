"""A linear last layer on frozen features, as self-supervised backbones are judged and made classifiers.

The features of all images are made once. On them the last layer is the minimum of a convex function, so it is found to
the end by L-BFGS, with no learning rate or epochs to choose: with x the standardised features (N x D)::

    mean cross-entropy(W x + b) + (λ / 2) ‖W‖²

λ is the one of a grid with the lowest cross-entropy on the validation images.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.data.dataset import ImageIndex
from clearhead.data.loading import ImageDataset, loader
from clearhead.errors import ClearheadError
from clearhead.models import Classifier
from clearhead.models.classifier import copied
from clearhead.models.features import features, last_layer

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""The grid of λ, the strongest first: each starts where the one before ended."""

_STEPS, _TOLERANCE = 200, 1e-5


@dataclass(frozen=True)
class LinearLayer:
    """How the last layer came about.

    Attributes:
        chosen: the λ used.
        loss: cross-entropy on the validation images in nats, for each λ.
        accuracy: on the validation images, for each λ.
    """

    chosen: float
    loss: dict[float, float]
    accuracy: dict[float, float]


def train_linear(
    model: Classifier,
    train: ImageIndex,
    validation: ImageIndex,
    *,
    batch_size: int = 32,
    workers: int = 0,
    progress: Callable[[Iterable, int, str], Iterable] | None = None,
) -> tuple[Classifier, LinearLayer]:
    """A copy of the model with a new last layer on its features, and how that was chosen.

    Args:
        model: a classifier of the data's classes; it is not changed, and runs where its parameters are.
        train: the images to fit, without augmentation.
        validation: the images that choose λ, and nothing else.
        batch_size: images a batch.
        workers: processes that load images.
        track: shows progress: ``track(batches, count, title)``.

    Raises:
        DataError: for a file that can no longer be read.
        ClearheadError: for a model whose logits are not the output of one linear layer with a bias.
    """
    model = replace(model, module=copied(model.module).eval())
    head = last_layer(model)
    if head is None or head.bias is None:
        raise ClearheadError(f"model: {model.name} has no torch.nn.Linear with a bias at its end to be trained")

    def read(folder: ImageIndex, title: str) -> tuple[Tensor, Tensor]:
        batches = loader(ImageDataset(folder, model.preprocess), batch_size, workers)
        found = features(model, progress(batches, len(batches), title) if progress else batches)
        labels = torch.tensor([sample.label for sample in folder.samples])
        return found.float().to(head.weight.device), labels.to(head.weight.device)

    (x, labels), (held, held_labels) = read(train, "features"), read(validation, "features, validation")
    mean, scale = x.mean(0), x.std(0, correction=0)
    scale = scale.where(scale > 0, 1.0)
    x, held = (x - mean) / scale, (held - mean) / scale
    weight, bias = x.new_zeros(head.weight.shape), x.new_zeros(head.bias.shape)
    layers, loss, accuracy = {}, {}, {}
    for penalty in PENALTIES:
        weight, bias = _minimum(x, labels, penalty, weight, bias)
        logits = held @ weight.T + bias
        layers[penalty] = weight, bias
        loss[penalty] = F.cross_entropy(logits, held_labels).item()
        accuracy[penalty] = (logits.argmax(-1) == held_labels).float().mean().item()
    best = min(PENALTIES, key=lambda penalty: loss[penalty])
    weight, bias = layers[best]
    with torch.no_grad():
        head.weight.copy_(weight / scale)
        head.bias.copy_(bias - weight @ (mean / scale))
    return model, LinearLayer(best, loss, accuracy)


def _minimum(x: Tensor, labels: Tensor, penalty: float, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The last layer of lowest penalised loss on features N x D, from a start."""
    weight, bias = (nn.Parameter(start.clone()) for start in (weight, bias))
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_STEPS, tolerance_grad=_TOLERANCE, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight.T + bias, labels) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach(), bias.detach()
