"""Maps from the gradient at the pixels: they need no attention, so a CNN or a windowed transformer will do."""

import torch
from torch import Tensor

from clearhead.models import Classifier
from clearhead.models.classifier import chosen_logit


def input_gradient(model: Classifier, images: Tensor, target: Tensor | int | None = None) -> tuple[Tensor, Tensor]:
    """Size of the logit's gradient at each pixel (B x H x W), largest over channels, and the logits.

    Simonyan et al., arXiv 1312.6034. Raises ClearheadError for a target out of range.
    """
    gradient, images, logits = _pixel_gradient(model, images, target)
    return input_gradient_map(gradient, images), logits


def input_x_gradient(model: Classifier, images: Tensor, target: Tensor | int | None = None) -> tuple[Tensor, Tensor]:
    """Gradient times normalised input, summed over channels, its positive part (B x H x W), and the logits.

    Shrikumar et al., arXiv 1605.01713; what speaks against the class counts as none. Raises as ``input_gradient``.
    """
    gradient, images, logits = _pixel_gradient(model, images, target)
    return input_x_gradient_map(gradient, images), logits


def input_gradient_map(gradient: Tensor, _images: Tensor) -> Tensor:
    """The map of ``input_gradient`` (B x H x W) from the gradient at the images, B x C x H x W; differentiable."""
    return gradient.abs().amax(1)


def input_x_gradient_map(gradient: Tensor, images: Tensor) -> Tensor:
    """The map of ``input_x_gradient`` (B x H x W) from gradient and images, B x C x H x W; differentiable."""
    return (gradient * images).sum(1).clamp(min=0)


def _pixel_gradient(model: Classifier, images: Tensor, target: Tensor | int | None) -> tuple[Tensor, Tensor, Tensor]:
    with torch.inference_mode(False), torch.enable_grad():
        images = images.detach().clone().requires_grad_()
        logits = model(images)
        (gradient,) = torch.autograd.grad(chosen_logit(logits, target).sum(), images)
    return gradient, images.detach(), logits.detach()
