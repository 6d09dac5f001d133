"""Fit the classifier head alone: what the linear probe and deep feature reweighting share.

The penultimate features of all images are computed once and standardised by the training images' mean and standard
deviation. A head W z + b fitted on them is written back as one on the features themselves, so that the result is an
ordinary checkpoint.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from clearhead.data.dataset import ImageIndex
from clearhead.data.loading import ImageDataset, loader
from clearhead.errors import ClearheadError
from clearhead.models import Classifier
from clearhead.models.classifier import copied
from clearhead.models.features import features, last_layer
from clearhead.progress import Progress, track


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

    def with_weights(self, weight: Tensor, bias: Tensor) -> Classifier:
        """Return the model with a head given for standardised features: weight classes x D, bias classes."""
        with torch.no_grad():
            self.weight_layer.weight.copy_(weight / self.scale)
            self.weight_layer.bias.copy_(bias - weight @ (self.mean / self.scale))
        return self.model


def linear_head(
    model: Classifier,
    train: ImageIndex,
    validation: ImageIndex,
    *,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
) -> LinearHead:
    """Copy a classifier and compute the features its head is to be fitted on, without augmentation.

    Raises:
        DataError: for a file that can no longer be read.
        ClearheadError: for a model whose logits are not the output of one linear layer with a bias.
    """
    model = replace(model, module=copied(model.module).eval())
    layer = last_layer(model)
    if layer is None or layer.bias is None:
        reason = "no linear layer's output is its logits" if layer is None else "the classifier head has no bias"
        raise ClearheadError(
            f"model: the classifier head of {model.name} cannot be fitted: {reason}. One torch.nn.Linear with a bias "
            "is needed at the end. Distilled DeiTs average two heads: use an architecture without distillation, or "
            "another method"
        )

    def read(images: ImageIndex, title: str) -> tuple[Tensor, Tensor]:
        batches = loader(ImageDataset(images, model.preprocess), batch_size, workers)
        values = features(model, track(batches, progress, title)).to(dtype)
        return values, torch.tensor([sample.label for sample in images.samples])

    x, labels = read(train, "features")
    x_validation, validation_labels = read(validation, "features, validation")
    mean, scale = x.mean(0), x.std(0, correction=0)
    scale = scale.where(scale > 0, 1.0)
    x, x_validation = (x - mean) / scale, (x_validation - mean) / scale
    return LinearHead(model, layer, x, labels, x_validation, validation_labels, mean, scale)
