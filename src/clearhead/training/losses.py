"""The losses of a training: functions of a model and a batch."""

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.data.loading import batch_mean
from clearhead.models import Classifier
from clearhead.models.classifier import logits as logits_of

Batch = Mapping[str, Any]
"""What ``clearhead.data.loading.ImageDataset`` gives, collated; ``clearhead.repairs.loss_inputs`` lists the entries."""

Loss = Callable[[Classifier, Batch], dict[str, Tensor]]
"""Returns the total under ``loss``, the ``logits`` (B x classes), and any parts to record."""


def cross_entropy(model: Classifier | nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Return the mean cross-entropy with the labels, or with a soft ``target`` (B x classes), in nats.

    `model` is a classifier, or a plain module that takes the images as they are.
    """
    logits = logits_of(model(batch["image"]))
    target = batch.get("target", batch["label"])
    return {"loss": batch_mean(F.cross_entropy(logits, target, reduction="none"), batch), "logits": logits}
