"""Relevance fine-tuning: move the relevance map from the background to the object.

Chefer, Schwartz and Wolf, arXiv 2206.01161, section 3. With R the scaled map of the label's class and S the mask::

    L = 0.8 (2 mean((R (1 - S))²) + 0.3 mean((R S - S)²)) + 0.2 CE(logits / T, ŷ)

The means are taken over pixels; ŷ is the model's own prediction, so this term needs no label and preserves the model's
confidence. R is the map of GAE, or of another attribution method. The gradient of attention dA inside GAE is treated as
a constant, as in the public code: the gradient of the loss flows through the attention A only. ``second_order=True``
differentiates through dA too, at about twice the cost.

``background_swap`` goes beyond the paper: this fraction of the images is placed on another image's background. The map
shows where the evidence seems to come from; on a background of another class, following the background costs accuracy.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from clearhead.attention_tap import tap
from clearhead.attribution import scale
from clearhead.attribution.attention import attention_map, rollout_map
from clearhead.attribution.gae import relevance, token_grid
from clearhead.attribution.gradients import input_gradient_map, input_x_gradient_map
from clearhead.attribution.lrp import differentiable_relevance
from clearhead.data.interventions import swap_backgrounds
from clearhead.data.loading import batch_mean
from clearhead.distributed import rank_and_size
from clearhead.errors import ClearheadError
from clearhead.models import Classifier
from clearhead.models.classifier import chosen_logit, logit_gradients
from clearhead.repairs.input_gradient_losses import input_gradient
from clearhead.repairs.loss_inputs import is_training, masks_in, with_token_grid
from clearhead.training.losses import Batch

DifferentiableAttribution = Literal[
    "gae", "libragrad", "attnlrp", "rollout", "attention", "input-gradient", "input-x-gradient"
]
"""Attribution methods that the loss can be computed on."""


@dataclass(frozen=True)
class RelevanceLoss:
    """The loss ``(model, batch) -> parts``; the default weights are those of the paper, for every model.

    Attributes:
        background: weight of relevance outside the mask.
        foreground: weight of relevance missing inside the mask.
        relevance: weight of these two terms together.
        classification: weight of the cross-entropy.
        temperature: T, divides the logits.
        target: target of the cross-entropy: the model's own ``predicted`` class, or the ``truth``.
        attribution: method of the map. Gradient methods are always of second order, and use the gradient at the
            normalised input.
        second_order: with GAE, also differentiate through dA.
        background_swap: fraction of the images with masks that are placed on another image's background; requires
            ``target="truth"``.

    Raises ClearheadError for invalid values.

    Example:
        >>> loss = RelevanceLoss(target="truth")
        >>> loss(module, {"image": images, "label": labels, "mask": masks})["loss"].backward()
    """

    background: float = 2.0
    foreground: float = 0.3
    relevance: float = 0.8
    classification: float = 0.2
    temperature: float = 1.0
    target: Literal["predicted", "truth"] = "predicted"
    attribution: DifferentiableAttribution = "gae"
    second_order: bool = False
    background_swap: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.background_swap <= 1:
            raise ClearheadError(
                f"background_swap: got {self.background_swap}; a fraction of the images in 0..1 is needed"
            )
        if self.background_swap and self.target != "truth":
            raise ClearheadError(
                "background_swap: requires target 'truth', because the model's own prediction may follow the new "
                "background"
            )
        if self.target not in ("predicted", "truth"):
            raise ClearheadError(f"target: {self.target!r} is unknown; choose from predicted, truth")
        if self.attribution not in get_args(DifferentiableAttribution):
            known = ", ".join(get_args(DifferentiableAttribution))
            raise ClearheadError(f"attribution: {self.attribution!r} is unknown; choose from {known}")
        if self.second_order and self.attribution != "gae":
            raise ClearheadError(f"second_order: requires attribution gae, got {self.attribution!r}")

    def __call__(self, model: Classifier | nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the total under ``loss``, its parts and the ``logits``.

        The parts are ``background``, ``foreground`` and ``classification``.

        Args:
            model: a classifier, or a plain module that takes the images as they are.
            batch: image, label, mask and has_mask, as in ``clearhead.repairs.loss_inputs``. Images without a mask count
                in the classification term only.

        Raises:
            ClearheadError: for a model without a token grid where the attribution needs one, a batch without masks, or
                a background swap in several processes.
        """
        images, (mask, has_mask) = batch["image"], masks_in(batch)
        classifier = with_token_grid(model, images)
        if self.background_swap and rank_and_size()[1] > 1:
            raise ClearheadError(
                "background_swap: works in one process only, because images exchange backgrounds within a batch"
            )
        if self.background_swap and is_training(model):
            images = _swap_backgrounds(images, mask, has_mask, self.background_swap, classifier.preprocess.mean)
        maps, logits = relevance_maps(classifier, images, batch["label"], self.attribution, self.second_order)
        background = batch_mean(((maps * (1 - mask)) ** 2).mean((1, 2)), batch, has_mask)
        foreground = batch_mean(((maps * mask - mask) ** 2).mean((1, 2)), batch, has_mask)
        target = batch["label"] if self.target == "truth" else logits.detach().argmax(-1)
        classification = batch_mean(F.cross_entropy(logits / self.temperature, target, reduction="none"), batch)
        total = self.relevance * (self.background * background + self.foreground * foreground)
        total = total + self.classification * classification
        parts = {"background": background, "foreground": foreground, "classification": classification}
        return {"loss": total, "logits": logits} | parts


def _swap_backgrounds(images: Tensor, mask: Tensor, has_mask: Tensor, fraction: float, mean: Sequence[float]) -> Tensor:
    """Place a fraction of the images that have masks, the first of the batch, on the previous image's background."""
    images, masked = images.clone(), has_mask.nonzero()[:, 0]
    swapped = masked[: round(fraction * len(masked))]
    if len(masked) > 1:
        images[swapped] = swap_backgrounds(images[masked], mask[masked, None], mean)[: len(swapped)]
    return images


def relevance_maps(
    model: Classifier,
    images: Tensor,
    target: Tensor,
    attribution: DifferentiableAttribution = "gae",
    second_order: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return scaled maps (B x H x W in 0..1) with a graph to the parameters, and the logits of the same forward pass.

    One forward pass and, where the attribution has gradients, one backward pass, for all layers at once.
    """
    if attribution in _FROM_INPUT:
        gradient, inputs, logits = input_gradient(model, images, lambda logits: chosen_logit(logits, target))
        maps = _FROM_INPUT[attribution](gradient, inputs)
    elif attribution == "libragrad" or attribution == "attnlrp":
        maps, logits = differentiable_relevance(model, images, target, attribution)
    elif attribution in _FROM_LAYERS:
        grid = token_grid(model, attribution, images)
        with torch.enable_grad(), tap(model.module) as record:
            logits = model(images)
            maps = _FROM_LAYERS[attribution](list(record), grid)
    else:
        maps, logits = _gae(model, images, target, second_order)
    return scale(maps, (images.shape[-2], images.shape[-1])), logits


def _gae(model: Classifier, images: Tensor, target: Tensor, second_order: bool) -> tuple[Tensor, Tensor]:
    grid = token_grid(model, "gae", images)
    # the fused kernels have no second derivative
    kernel = sdpa_kernel(SDPBackend.MATH) if second_order else nullcontext()
    with torch.enable_grad(), kernel, tap(model.module, needs_grad=True) as record:
        logits = model(images)
        gradients = logit_gradients(record.outputs, logits, target, retain_graph=True, create_graph=second_order)
        layers = list(record) if second_order else [replace(layer, v=layer.v.detach()) for layer in record]
        return relevance(layers, gradients, grid), logits


_FROM_LAYERS = {"attention": attention_map, "rollout": rollout_map}
_FROM_INPUT = {"input-gradient": input_gradient_map, "input-x-gradient": input_x_gradient_map}
