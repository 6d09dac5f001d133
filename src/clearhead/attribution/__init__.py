"""Relevance maps: where in the image the evidence for a class lies. One signature, one registry.

>>> from clearhead.attribution import explain
>>> maps = explain(model, images)  # B x H x W in 0..1, for the predicted class

A method is a function ``(model, images, target) -> (maps, logits)`` on pixels in 0..1 (B x 3 x H x W); its maps are
raw and of its own resolution (a token grid, or pixels), the logits those of the same forward pass. To add one, write
the function and add a line to ``METHODS``.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from clearhead.attribution.attention import attention, rollout
from clearhead.attribution.gae import gae
from clearhead.attribution.gradients import input_gradient, input_x_gradient
from clearhead.attribution.legrad import legrad
from clearhead.attribution.lrp import attnlrp, libragrad
from clearhead.errors import ClearheadError
from clearhead.models import Classifier
from clearhead.models.classifier import evaluation_mode

__all__ = ["METHODS", "explain", "explain_with_logits", "known_method", "methods_for", "scale"]

Method = Callable[[Classifier, Tensor, Tensor | int | None], tuple[Tensor, Tensor]]

METHODS: dict[str, Method] = {
    "gae": gae,
    "rollout": rollout,
    "attention": attention,
    "legrad": legrad,
    "attnlrp": attnlrp,
    "libragrad": libragrad,
    "input-gradient": input_gradient,
    "input-x-gradient": input_x_gradient,
}

FOR_ANY_MODEL = ("input-gradient", "input-x-gradient")
"""The methods that need no tokens in one grid: windowed models and CNNs can be explained by these alone."""


def explain(model: Classifier, images: Tensor, target: Tensor | int | None = None, method: str = "gae") -> Tensor:
    """Relevance maps of a batch.

    Args:
        model: a classifier as ``load_model`` gives it; it runs in eval mode, and is left in its own.
        images: B x 3 x H x W, pixels in 0..1.
        target: the class to explain: one for all, one an image (B), or None for the predicted class.
        method: a key of ``METHODS``.

    Returns:
        B x H x W, each map brought to the image's size (bilinear) and scaled to 0..1; a constant map becomes zeros.

    Raises:
        ClearheadError: for an unknown method, a target out of range, or a method that cannot work on this model
            (attention maps need a grid of tokens; the message names methods that work).
        NoAttentionError: when the method needs attention and the model shows none.
    """
    return explain_with_logits(model, images, target, method)[0]


def explain_with_logits(
    model: Classifier, images: Tensor, target: Tensor | int | None = None, method: str = "gae"
) -> tuple[Tensor, Tensor]:
    """``explain``, and the logits (B x classes) of the same forward pass."""
    run = METHODS[known_method(method)]
    with evaluation_mode(model.module):
        maps, logits = run(model, images, target)
    return scale(maps, (images.shape[-2], images.shape[-1])), logits


def known_method(name: str) -> str:
    """The name, if it is a key of ``METHODS``; else ValueError."""
    if name not in METHODS:
        raise ClearheadError(f"method: {name!r} is unknown; there is {', '.join(METHODS)}")
    return name


def methods_for(model: Classifier) -> list[str]:
    """The methods that can work on a model: all, or where it has no grid of tokens those that need none."""
    return list(METHODS if model.grid is not None else FOR_ANY_MODEL)


def scale(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B x h x w) brought to ``size`` = (H, W) and each scaled to 0..1 by its extremes; B x H x W, differentiable.

    Bilinear before the scaling, as in the public code of arXiv 2206.01161; unlike there, a constant map gives zeros
    and no NaN.
    """
    flat = maps.amax((-2, -1), keepdim=True) == maps.amin((-2, -1), keepdim=True)  # before rounding can hide it
    if maps.shape[-2:] != size:
        maps = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    spread = high - low
    return ((maps - low) / spread.where(spread > 0, 1.0)).masked_fill(flat, 0.0)
