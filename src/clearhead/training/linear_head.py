"""Fit the classifier head alone: what the linear probe and the repairs of the classifier head share.

The penultimate features of all images are computed once (``read_features``; the repairs take them as `features`, so
that several can share them) and standardised by the training images' mean and standard deviation. A head W z + b fitted
on them is written back as one on the features themselves, so that the result is an ordinary checkpoint.
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.data.dataset import ImageIndex
from clearhead.data.loading import ImageDataset, loader
from clearhead.errors import ClearheadError
from clearhead.models import Classifier
from clearhead.models.classifier import copied
from clearhead.models.features import features as penultimate_features
from clearhead.models.features import last_layer
from clearhead.progress import Progress, track

_MAX_ITERATIONS, _GRADIENT_TOLERANCE = 200, 1e-5


@dataclass(frozen=True)
class Features:
    """Penultimate features of training and validation images, computed without augmentation, on the CPU.

    Attributes:
        train: N x D, in the order of the training images.
        validation: M x D; M is 0 without validation images.
    """

    train: Tensor
    validation: Tensor


def read_features(
    model: Classifier,
    train: ImageIndex,
    validation: ImageIndex | None,
    *,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
) -> Features:
    """Compute the features of all images by one forward pass, for repairs of the classifier head.

    Raises:
        DataError: for a file that can no longer be read.
        ClearheadError: for a model whose logits are not the output of one linear layer with a bias.
    """
    _head_of(model)

    def read(images: ImageIndex, title: str) -> Tensor:
        batches = loader(ImageDataset(images, model.preprocess), batch_size, workers)
        return penultimate_features(model, track(batches, progress, title))

    x = read(train, "features")
    return Features(x, x[:0] if validation is None else read(validation, "features, validation"))


@dataclass(frozen=True)
class LinearHead:
    """A copy of a classifier, its head, and the data to fit that head on.

    Attributes:
        model: the copy, in eval mode.
        weight_layer: the linear layer whose output is the logits.
        train: standardised features of the training images, N x D, on the CPU.
        train_labels: their classes, N.
        validation: features of the validation images, standardised in the same way, M x D.
        validation_labels: their classes, M.
        mean: of the training features, D.
        scale: their standard deviation, D; 1 for a constant feature.
    """

    model: Classifier
    weight_layer: nn.Linear
    train: Tensor
    train_labels: Tensor
    validation: Tensor
    validation_labels: Tensor
    mean: Tensor
    scale: Tensor

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return the present head as one for standardised features, on the CPU: weight classes x D, bias classes."""
        weight, bias = (p.detach().cpu().to(self.train) for p in (self.weight_layer.weight, self.weight_layer.bias))
        return weight * self.scale, bias + weight @ self.mean

    def with_weights(self, weight: Tensor, bias: Tensor) -> Classifier:
        """Return the model with a head given for standardised features: weight classes x D, bias classes."""
        with torch.no_grad():
            self.weight_layer.weight.copy_(weight / self.scale)
            self.weight_layer.bias.copy_(bias - weight @ (self.mean / self.scale))
        return self.model


def linear_head(
    model: Classifier,
    train: ImageIndex,
    validation: ImageIndex | None,
    *,
    features: Features | None = None,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
) -> LinearHead:
    """Copy a classifier and standardise the features its head is to be fitted on, computing them where not passed.

    Raises:
        DataError: for a file that can no longer be read.
        ClearheadError: for a model whose logits are not the output of one linear layer with a bias, or features of
            other images.
    """
    model = replace(model, module=copied(model.module).eval())
    layer = _head_of(model)
    if features is None:
        features = read_features(model, train, validation, batch_size=batch_size, workers=workers, progress=progress)
    samples = train.samples, validation.samples if validation is not None else ()
    for name, values, own in zip(("train", "validation"), (features.train, features.validation), samples, strict=True):
        if values.shape != (len(own), layer.in_features):
            raise ClearheadError(
                f"features: {name} is {tuple(values.shape)}, but {len(own)} x {layer.in_features} is needed; "
                "compute them with read_features for this model and these images"
            )
    x, x_validation = features.train.to(dtype), features.validation.to(dtype)
    mean, scale = x.mean(0), x.std(0, correction=0)
    scale = scale.where(scale > 0, 1.0)
    labels, validation_labels = (torch.tensor([sample.label for sample in own], dtype=torch.long) for own in samples)
    x, x_validation = (x - mean) / scale, (x_validation - mean) / scale
    return LinearHead(model, layer, x, labels, x_validation, validation_labels, mean, scale)


def fit_head(
    z: Tensor,
    labels: Tensor,
    penalty: float,
    weight: Tensor,
    bias: Tensor,
    *,
    image_weights: Tensor | None = None,
    centre: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the head that minimises a penalised cross-entropy on features, by L-BFGS from the values passed.

    The objective, convex in the weight W and the bias b, is

        Σ image_weights * cross-entropy(W z + b) + (penalty / 2) ‖W - centre‖²

    with equal weights of sum 1 by default. Without a `centre` W is pulled to 0 and b is free; with one, b is pulled to
    it as W is.

    Args:
        z: features, N x D.
        labels: classes, N.
        penalty: of the squared distance.
        weight: where to start, classes x D.
        bias: where to start, classes.
        image_weights: N, of sum 1.
        centre: weight and bias of the head to stay close to.
    """
    weight, bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_MAX_ITERATIONS, tolerance_grad=_GRADIENT_TOLERANCE, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = F.cross_entropy(z @ weight.T + bias, labels, reduction="none")
        value = losses.mean() if image_weights is None else losses @ image_weights
        if centre is None:
            value = value + penalty / 2 * weight.square().sum()
        else:
            distance = (weight - centre[0]).square().sum() + (bias - centre[1]).square().sum()
            value = value + penalty / 2 * distance
        torch.autograd.backward(value)
        return value

    with torch.enable_grad():
        cast(Any, optimizer).step(closure)
    return weight.detach(), bias.detach()


def _head_of(model: Classifier) -> nn.Linear:
    """Return the classifier head. Raises ClearheadError where it is not one linear layer with a bias."""
    layer = last_layer(model)
    if layer is not None and layer.bias is not None:
        return layer
    reason = "no linear layer's output is its logits" if layer is None else "the classifier head has no bias"
    raise ClearheadError(
        f"model: the classifier head of {model.name} cannot be fitted: {reason}. One torch.nn.Linear with a bias "
        "is needed at the end. Distilled DeiTs average two heads: use an architecture without distillation, or "
        "another method"
    )
