"""Penalise the gradient of the output at background pixels: GradMask and RRR. They need masks, and no attention.

GradMask (Simpson et al., arXiv 1904.07478) uses the gradient of the label's logit, Right for the Right Reasons (RRR;
Ross, Hughes and Doshi-Velez, arXiv 1703.03717) that of the summed log-probabilities. With x the normalised image (not
its pixels in 0..1, at which gradients are 1 / std times as large) and S its mask::

    GradMask:  CE + λ mean over images of ‖ ∂y / ∂x ∘ (1 - S) ‖₂
    RRR:       CE + λ mean over images and pixels of ( ∂ Σ_k log p_k / ∂x ∘ (1 - S) )²

RRR's text sums over pixels; the mean, as in the code of arXiv 2206.01161, makes λ independent of the image size. Ross
et al. recommend a λ for which the two terms have similar size at the start; a run records both.

The penalty depends on the parameters through a gradient, so its own gradient is of second order. The public code of
arXiv 2206.01161, which compares with both losses, computes the inner gradient without a graph: there no step can reduce
the penalty, and both losses are plain fine-tuning.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from clearhead.data.loading import batch_mean
from clearhead.models import Classifier
from clearhead.models.classifier import chosen_logit
from clearhead.models.classifier import logits as logits_of
from clearhead.repairs.loss_inputs import masks_in
from clearhead.training.losses import Batch


@dataclass(frozen=True)
class GradMaskLoss:
    """GradMask as a loss ``(model, batch) -> parts``.

    Attributes:
        background: λ, the weight of the penalty.
        classification: weight of the cross-entropy with the labels.
    """

    background: float = 1.0
    classification: float = 1.0

    def __call__(self, model: Classifier | nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the total under ``loss``, its parts ``background`` and ``classification``, and the ``logits``.

        Args:
            model: a classifier, or a plain module that takes the images as they are.
            batch: image, label, mask and has_mask, as in ``clearhead.repairs.loss_inputs``. Images without a mask count
                in the cross-entropy only.
        """
        labels = batch["label"]
        gradient, _, logits = input_gradient(model, batch["image"], lambda logits: chosen_logit(logits, labels))
        squares = _outside(gradient, batch).square().sum(1)
        # the root has no gradient at 0, where the penalty cannot be reduced
        norm = squares.where(squares > 0, 1).sqrt() * (squares > 0)
        return _parts(self.background, norm, self.classification, logits, batch)


@dataclass(frozen=True)
class RRRLoss:
    """Right for the Right Reasons as a loss ``(model, batch) -> parts``; attributes as ``GradMaskLoss``."""

    background: float = 1.0
    classification: float = 1.0

    def __call__(self, model: Classifier | nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the same parts as ``GradMaskLoss``, of the same arguments."""
        gradient, _, logits = input_gradient(model, batch["image"], lambda logits: logits.log_softmax(-1).sum(-1))
        return _parts(self.background, _outside(gradient, batch).square().mean(1), self.classification, logits, batch)


def input_gradient(
    model: Classifier | nn.Module, images: Tensor, score: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of ``score(logits)`` (B) at the model's input, with a graph, that input, and the logits.

    The input of a classifier are its normalised `images` (pixels in 0..1), that of a plain module `images` as they are.
    Gradient and input are B x C x H x W.
    """
    inputs = (model.normalize(images.detach()) if isinstance(model, Classifier) else images.detach()).requires_grad_()
    module = model.module if isinstance(model, Classifier) else model
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        logits = logits_of(module(inputs))
        (gradient,) = torch.autograd.grad(score(logits).sum(), inputs, create_graph=True)
    return gradient, inputs, logits


def _outside(gradient: Tensor, batch: Batch) -> Tensor:
    """Return the gradient at the background, B x CHW; 0 inside the masks."""
    outside: Tensor = gradient * (1 - masks_in(batch)[0][:, None])
    return outside.flatten(1)


def _parts(
    background: float, penalties: Tensor, classification: float, logits: Tensor, batch: Batch
) -> dict[str, Tensor]:
    penalty = batch_mean(penalties, batch, masks_in(batch)[1])
    cross_entropy = batch_mean(F.cross_entropy(logits, batch["label"], reduction="none"), batch)
    total = background * penalty + classification * cross_entropy
    return {"loss": total, "logits": logits, "background": penalty, "classification": cross_entropy}
