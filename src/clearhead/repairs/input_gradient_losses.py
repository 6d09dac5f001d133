"""The older repairs by masks: a penalty on the gradient at the background's input. They need no attention.

GradMask (Simpson et al., arXiv 1904.07478) takes the gradient of the label's logit, Right for the Right Reasons (RRR;
Ross, Hughes and Doshi-Velez, arXiv 1703.03717) that of the summed log-probabilities. With x the normalised image (not
its pixels in 0..1, at which gradients are 1 / std times as large) and S its mask::

    GradMask:  CE + λ mean over images of ‖ ∂y / ∂x ∘ (1 - S) ‖₂
    RRR:       CE + λ mean over images and pixels of ( ∂ Σ_k log p_k / ∂x ∘ (1 - S) )²

(RRR's text sums over pixels; the mean, which the code of arXiv 2206.01161 takes, leaves λ the same at all sizes.) Ross
et al. advise a λ that makes the two terms of like size at the start: both sizes are in the history of a run.

The penalty is a function of the parameters through a gradient, so its own gradient is of second order. In the public
code of arXiv 2206.01161, which compares with both, the inner gradient is made without a graph: there the penalty is a
number that no step can lower, and both are plain fine-tuning.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from clearhead.data.loading import batch_mean
from clearhead.models import Classifier
from clearhead.models.classifier import chosen_logit


@dataclass(frozen=True)
class GradMaskLoss:
    """The loss as a function ``(model, batch) -> parts``.

    Attributes:
        background: λ, the weight of the penalty.
        classification: weight of the cross-entropy with the labels.
    """

    background: float = 1.0
    classification: float = 1.0

    def __call__(self, model: Classifier, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Parts of the loss of a batch (image, label, mask, has_mask), its total under ``loss``, and ``logits``.

        Images without a mask count in the cross-entropy alone.
        """
        labels = batch["label"]
        gradient, _, logits = input_gradient(model, batch["image"], lambda logits: chosen_logit(logits, labels))
        outside = _outside(gradient, batch).square().sum(1)
        # the root has no slope at 0, where there is nothing outside to lower
        size = outside.where(outside > 0, 1).sqrt() * (outside > 0)
        return _parts(self.background, size, self.classification, logits, batch)


@dataclass(frozen=True)
class RRRLoss:
    """The loss as a function ``(model, batch) -> parts``; attributes as `GradMask`."""

    background: float = 1.0
    classification: float = 1.0

    def __call__(self, model: Classifier, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Returns as `GradMask`."""
        gradient, _, logits = input_gradient(model, batch["image"], lambda logits: logits.log_softmax(-1).sum(-1))
        size = _outside(gradient, batch).square().mean(1)
        return _parts(self.background, size, self.classification, logits, batch)


def input_gradient(
    model: Classifier, images: Tensor, score: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of ``score(logits)`` (B) at the normalised input, with a graph, that input, and the logits.

    `images` are pixels in 0..1; gradient and input are B x C x H x W.
    """
    inputs = model.normalize(images.detach()).requires_grad_()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        logits = model.from_normalized(inputs)
        (gradient,) = torch.autograd.grad(score(logits).sum(), inputs, create_graph=True)
    return gradient, inputs, logits


def _outside(gradient: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """The gradient outside the masks, B x CHW."""
    return (gradient * (1 - batch["mask"])).flatten(1)


def _parts(
    background: float, size: Tensor, classification: float, logits: Tensor, batch: Mapping[str, Any]
) -> dict[str, Tensor]:
    penalty = batch_mean(size, batch, batch["has_mask"])
    fit = batch_mean(F.cross_entropy(logits, batch["label"], reduction="none"), batch)
    total = background * penalty + classification * fit
    return {"loss": total, "logits": logits, "background": penalty, "classification": fit}
