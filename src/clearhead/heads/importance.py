"""Measure the importance of attention heads by the derivative of the loss with respect to their scale.

Michel et al. (arXiv 1905.10650): the mean over images of |Σ o ∘ dL/do|, with o the head's output.
"""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from clearhead.attention_tap import AttentionCall, tap
from clearhead.data.dataset import ImageIndex
from clearhead.data.loading import ImageDataset, loader
from clearhead.heads.gradients import Layers, per_image, pick_layers
from clearhead.models import Classifier
from clearhead.models.classifier import evaluation_mode
from clearhead.progress import Progress, track


def importance(call: AttentionCall, loss_grad: Tensor, images: int) -> Tensor:
    """Return |Σ o ∘ dL/do| of each head and image, B x H."""
    return per_image((call.output * loss_grad).sum((-2, -1)), images).sum(1).abs()


def head_importance(
    model: Classifier,
    folder: ImageIndex,
    layers: Layers = "all",
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the importance of each head (H) by layer name, from a forward and a backward pass per image."""
    device = model.device
    sums: dict[str, Tensor] = {}
    batches = loader(ImageDataset(folder, model.preprocess), batch_size, workers)
    for batch in track(batches, progress, "importance of heads"):
        images, labels = batch["image"].to(device), batch["label"].to(device)
        with torch.enable_grad(), evaluation_mode(model.module), tap(model.module, needs_grad=True) as record:
            loss = F.cross_entropy(model(images), labels, reduction="sum")
            calls = pick_layers(list(record), layers)
            loss_grads = torch.autograd.grad(loss, [call.output for call in calls])
        for call, grad in zip(calls, loss_grads, strict=True):
            sums[call.name] = sums.get(call.name, 0) + importance(call, grad, len(images)).detach().sum(0)
    return {name: (total / len(folder.samples)).cpu().numpy() for name, total in sums.items()}
