"""Relevance maps: where in the image the evidence for a class lies. One signature, one registry.

>>> from clearhead import explain, show
>>> maps = explain("timm:deit_tiny_patch16_224", "photo.jpg", target="tabby")  # 1 x H x W in 0..1
>>> show("photo.jpg", maps, model="timm:deit_tiny_patch16_224").savefig("map.png")

A method is a function ``(model, images, target) -> (maps, logits)`` on pixels in 0..1 (B x 3 x H x W). Its maps are raw
and have its own resolution (a token grid, or pixels); its logits are those of the same forward pass. To add one, write
the function and add a line to ``METHODS``, or call ``register_method``.
"""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from clearhead.attribution.attention import attention, rollout
from clearhead.attribution.gae import gae
from clearhead.attribution.gradients import input_gradient, input_x_gradient
from clearhead.attribution.legrad import legrad
from clearhead.attribution.lrp import attnlrp, libragrad
from clearhead.attribution.visualize import overlay, show
from clearhead.errors import ClearheadError
from clearhead.models import Classifier, as_classifier
from clearhead.models.classifier import evaluation_mode
from clearhead.models.inputs import ImageLike, class_to_explain, classifier_and_pixels
from clearhead.models.source import ModelLike

__all__ = [
    "METHODS",
    "explain",
    "explain_with_logits",
    "list_methods",
    "overlay",
    "register_method",
    "require_method",
    "scale",
    "show",
]

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

_BUILT_IN = tuple(METHODS)

FOR_ANY_MODEL = ("input-gradient", "input-x-gradient")
"""The methods that need no tokens in one grid: windowed models and CNNs can be explained by these alone."""


def explain(
    model: ModelLike,
    images: ImageLike | Sequence[ImageLike],
    target: Tensor | int | str | None = None,
    method: str = "gae",
) -> Tensor:
    """Return relevance maps of images: where the evidence for a class lies.

    Args:
        model: a classifier, a plain module, or a name that ``load_model`` takes. It runs in eval mode, and is in its
            own mode afterwards. (A module or a name is prepared at each call: for many calls, make a classifier once.)
        images: a PIL image, a path, an H x W x 3 array of uint8, a list of these, or a tensor of pixels in 0..1,
            B x 3 x H x W or 3 x H x W. Of a module whose preprocessing is unknown: tensors as it takes them.
        target: the class to explain, by name or index; a tensor of one index per image (B); or None for the predicted
            class.
        method: a name from ``list_methods()``.

    Returns:
        B x H x W, each map resized to the model's input (bilinear) and scaled to 0..1; a constant map becomes zeros.

    Raises:
        ClearheadError: for an unknown method or class (with similar names), a target out of range, images of another
            type, shape or range, or a method that does not work on this model (attention maps need a grid of tokens;
            the message names methods that work).
        ModelError: for a model that cannot be loaded, or images whose preparation is unknown.
        NoAttentionError: when the method needs attention and the model shows none.
    """
    require_method(method)
    classifier, pixels = classifier_and_pixels(model, images)
    return explain_with_logits(classifier, pixels, class_to_explain(classifier, target), method)[0]


def explain_with_logits(
    model: Classifier, images: Tensor, target: Tensor | int | None = None, method: str = "gae"
) -> tuple[Tensor, Tensor]:
    """Return the maps of ``explain`` for pixels in 0..1 (B x 3 x H x W) and the logits of the same forward pass."""
    run = METHODS[require_method(method)]
    with evaluation_mode(model.module):
        maps, logits = run(model, images, target)
    return scale(maps, (images.shape[-2], images.shape[-1])), logits


def list_methods(model: ModelLike | None = None) -> list[str]:
    """Return the names of all methods, or of those that can work on a model.

    Of a model without a grid of tokens these are the gradients at the input, and the methods that you registered.
    """
    if model is None or as_classifier(model).grid is not None:
        return list(METHODS)
    return [name for name in METHODS if name in FOR_ANY_MODEL or name not in _BUILT_IN]


def register_method(name: str, function: Method) -> None:
    """Add a method of your own, which then works wherever a method is named. A name can be registered again.

    Args:
        name: its name; those of clearhead's own methods are reserved.
        function: ``(model, images, target) -> (maps, logits)``, as at the head of this module.
    """
    if name in _BUILT_IN:
        raise ClearheadError(f"name: {name!r} is a method of clearhead; choose another name")
    METHODS[name] = function


def require_method(name: str) -> str:
    """Return the name of a method. Raises ClearheadError if it is unknown."""
    if name not in METHODS:
        raise ClearheadError(f"method: {name!r} is unknown; choose from {', '.join(METHODS)}")
    return name


def scale(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps (B x h x w) resized to `size` = (H, W) and each scaled to 0..1 by its extremes; differentiable.

    Bilinear before the scaling, as in the public code of arXiv 2206.01161; unlike there, a constant map becomes zeros,
    not NaN.
    """
    flat = maps.amax((-2, -1), keepdim=True) == maps.amin((-2, -1), keepdim=True)  # before rounding can hide it
    if maps.shape[-2:] != size:
        maps = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    spread = high - low
    return ((maps - low) / spread.where(spread > 0, 1.0)).masked_fill(flat, 0.0)
