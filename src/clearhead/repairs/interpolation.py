"""Average the weights of a repaired model with those of the original one.

Wortsman et al., "Robust fine-tuning of zero-shot models" (WiSE-FT, arXiv 2109.01903): between two models of which one
was fine-tuned from the other, the average of the weights often has most of the gain of fine-tuning and little of its
harm. It costs no training: only the validation images are gone through for each weight.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from clearhead.data.dataset import ImageIndex
from clearhead.data.loading import ImageDataset, loader
from clearhead.errors import ClearheadError
from clearhead.models import Classifier
from clearhead.models.classifier import copied, evaluation_mode
from clearhead.progress import Progress, track
from clearhead.training.losses import Loss

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Weights of the repaired model that are tried; 0 is the original model, 1 the repaired one."""


def interpolated(original: Classifier, repaired: Classifier, weight: float) -> Classifier:
    """Return the model with the weights (1 - weight) original + weight repaired, in eval mode.

    Floating-point parameters and buffers are averaged, others are the repaired model's.

    Raises ClearheadError for a weight outside 0..1, or models of different architectures.
    """
    if not 0 <= weight <= 1:
        raise ClearheadError(f"weight: got {weight}; a number in 0..1 is needed")
    first, second = original.module.state_dict(), repaired.module.state_dict()
    if {name: value.shape for name, value in first.items()} != {name: value.shape for name, value in second.items()}:
        raise ClearheadError(f"repaired: the parameters of {repaired.name} are not those of {original.name}")
    module = copied(repaired.module)
    module.load_state_dict({name: _average(first[name], value, weight) for name, value in second.items()})
    return replace(repaired, module=module.eval())


def _average(first: Tensor, second: Tensor, weight: float) -> Tensor:
    return torch.lerp(first.to(second), second, weight) if second.is_floating_point() else second


def best_interpolation(
    original: Classifier,
    repaired: Classifier,
    loss: Loss,
    validation: ImageIndex,
    *,
    weights: Sequence[float] = WEIGHTS,
    group_columns: Sequence[str] | None = None,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
) -> tuple[Classifier, dict[float, float]]:
    """Return the average of lowest mean loss on the validation images, and the loss of each weight that was tried.

    Args:
        original: the model before fine-tuning.
        repaired: the model after fine-tuning.
        loss: what is lowest for the best model; it should give the same for the same batch in eval mode.
        validation: images that select the weight.
        weights: of the repaired model; of equally good ones the lowest is taken.
        group_columns: columns of the groups in the batches.
        batch_size: images per batch.
        workers: processes that load images.
        progress: shows progress.

    Raises ClearheadError as ``interpolated``.
    """
    batches = loader(ImageDataset(validation, original.preprocess, group_columns=group_columns), batch_size, workers)
    losses: dict[float, float] = {}
    for weight in sorted(weights):
        model, total = interpolated(original, repaired, weight), 0.0
        with torch.no_grad(), evaluation_mode(model.module):
            for batch in track(batches, progress, f"average of the weights, {weight:g} of the repaired model"):
                total += loss(model, send_to_device(batch, model.device))["loss"].item() * len(batch["label"])
        losses[weight] = total / len(validation.samples)
    best = min(losses, key=lambda weight: losses[weight])
    return interpolated(original, repaired, best), losses
