"""Relevance fine-tuning: pull the relevance map off the background and on to the object.

Chefer, Schwartz and Wolf, arXiv 2206.01161, section 3. With R the scaled map of the label's class and S the mask::

    L = 0.8 (2 mean((R (1 - S))²) + 0.3 mean((R S - S)²)) + 0.2 CE(logits / T, ŷ)

The means are taken over pixels; ŷ is the model's own prediction, so this term needs no label and preserves the model's
confidence. R is the map of GAE, or of another attribution method. The gradient of attention dA inside GAE is treated as
a constant, as in the public code: the gradient of the loss flows through the attention A only. ``second_order=True``
differentiates through dA too, at about twice the cost.

``background_swap`` goes beyond the paper: this fraction of the images is placed on another image's background. The map
shows where the evidence seems to come from; on a background of another class, following the background costs accuracy.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from clearhead.attribution import scale
from clearhead.attribution.attention import attention_map, rollout_map
from clearhead.attribution.gae import relevance, token_grid
from clearhead.attribution.gradients import input_gradient_map, input_x_gradient_map
from clearhead.data.interventions import intervene
from clearhead.data.loading import batch_mean
from clearhead.distributed import rank_and_size
from clearhead.errors import ClearheadError
from clearhead.models import Classifier
from clearhead.models.classifier import chosen_logit, logit_gradients
from clearhead.repairs.input_gradient_losses import input_gradient
from clearhead.tap import tap

DifferentiableAttribution = Literal["gae", "rollout", "attention", "input-gradient", "input-x-gradient"]
"""The maps that a loss can be put on."""


@dataclass(frozen=True)
class RelevanceLoss:
    """The loss as a function ``(model, batch) -> parts``; the numbers are those of the paper, for every model.

    Attributes:
        background: weight of relevance outside the mask.
        foreground: weight of relevance missing inside the mask.
        relevance: weight of the two together.
        classification: weight of the cross-entropy.
        temperature: T, divides the logits.
        target: what the cross-entropy aims at: the model's own ``predicted`` class, or the ``truth``.
        attribution: where the map comes from; gradient attributions are always of second order, and their gradient is
            that at the normalised input.
        second_order: with GAE, also differentiate through dA.
        background_swap: fraction of the images with masks that are placed on another image's background; requires
            ``target="truth"``.
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
                "background_swap: needs target 'truth', for the model's own answer follows the wrong background"
            )
        if self.target not in ("predicted", "truth"):
            raise ClearheadError(f"target: got {self.target!r}; there is predicted and truth")
        if self.attribution not in get_args(DifferentiableAttribution):
            known = ", ".join(get_args(DifferentiableAttribution))
            raise ClearheadError(f"attribution: {self.attribution!r} is unknown; choose from {known}")
        if self.second_order and self.attribution != "gae":
            raise ClearheadError(f"second_order: requires attribution gae, got {self.attribution!r}")

    def __call__(self, model: Classifier, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Parts of the loss of a batch (image, label, mask, has_mask), its total under ``loss``, and ``logits``.

        Images without a mask count in the classification term alone. Raises ClearheadError for a model without a grid,
        where the attribution needs one.
        """
        if self.background_swap and rank_and_size()[1] > 1:
            raise ClearheadError(
                "background_swap: images change backgrounds within a batch, which one process must hold whole"
            )
        images = (
            _swapped_backgrounds(batch, self.background_swap, model.preprocess.mean)
            if self.background_swap and model.module.training
            else batch["image"]
        )
        maps, logits = relevance_maps(model, images, batch["label"], self.attribution, self.second_order)
        mask, masked = batch["mask"][:, 0], batch["has_mask"]
        background = batch_mean(((maps * (1 - mask)) ** 2).mean((1, 2)), batch, masked)
        foreground = batch_mean(((maps * mask - mask) ** 2).mean((1, 2)), batch, masked)
        aim = batch["label"] if self.target == "truth" else logits.detach().argmax(-1)
        classification = batch_mean(F.cross_entropy(logits / self.temperature, aim, reduction="none"), batch)
        total = self.relevance * (self.background * background + self.foreground * foreground)
        total = total + self.classification * classification
        parts = {"background": background, "foreground": foreground, "classification": classification}
        return {"loss": total, "logits": logits} | parts


def _swapped_backgrounds(batch: Mapping[str, Any], share: float, mean: Sequence[float]) -> Tensor:
    """The images, a share of those with masks (the first of the shuffled batch) on the background of the one before."""
    images, which = batch["image"].clone(), batch["has_mask"].nonzero()[:, 0]
    shown = which[: round(share * len(which))]
    if len(which) > 1:
        images[shown] = intervene(batch["image"][which], batch["mask"][which], mean)[1][: len(shown)]
    return images


def relevance_maps(
    model: Classifier,
    images: Tensor,
    target: Tensor,
    attribution: DifferentiableAttribution = "gae",
    second_order: bool = False,
) -> tuple[Tensor, Tensor]:
    """Scaled maps (B x H x W in 0..1) that carry a graph to the parameters, and the logits of the same pass.

    One forward pass and, where the attribution has gradients, one backward pass, for all layers at once.
    """
    if attribution in _FROM_INPUT:
        gradient, inputs, logits = input_gradient(model, images, lambda logits: chosen_logit(logits, target))
        maps = _FROM_INPUT[attribution](gradient, inputs)
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
