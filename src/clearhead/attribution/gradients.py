"""Maps from the gradient at the input: they need no attention, so a CNN or a windowed transformer will do.

As in the papers and their code, the gradient is that with respect to the normalised input. With respect to pixels in
0..1 it is 1 / std times as large in each channel.
"""

import torch
from torch import Tensor

from clearhead.models import Classifier
from clearhead.models.classifier import chosen_logit


def input_gradient(model: Classifier, images: Tensor, target: Tensor | int | None = None) -> tuple[Tensor, Tensor]:
    """Size of the logit's gradient at each pixel (B x H x W), largest over (normalised) channels, and the logits.

    Simonyan et al., arXiv 1312.6034. Raises ClearheadError for a target out of range.
    """
    gradient, inputs, logits = _input_gradient(model, images, target)
    return input_gradient_map(gradient, inputs), logits


def input_x_gradient(model: Classifier, images: Tensor, target: Tensor | int | None = None) -> tuple[Tensor, Tensor]:
    """Gradient times normalised input, summed over channels, its positive part (B x H x W), and the logits.

    Shrikumar et al., arXiv 1605.01713; what speaks against the class counts as none. Raises as ``input_gradient``.
    """
    gradient, inputs, logits = _input_gradient(model, images, target)
    return input_x_gradient_map(gradient, inputs), logits


def input_gradient_map(gradient: Tensor, _inputs: Tensor) -> Tensor:
    """The map of ``input_gradient`` (B x H x W) from the gradient at the input, B x C x H x W; differentiable."""
    return gradient.abs().amax(1)


def input_x_gradient_map(gradient: Tensor, inputs: Tensor) -> Tensor:
    """The map of ``input_x_gradient`` (B x H x W) from gradient and normalised input, B x C x H x W; differentiable."""
    return (gradient * inputs).sum(1).clamp(min=0)


def _input_gradient(model: Classifier, images: Tensor, target: Tensor | int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient at the normalised input, that input (both B x C x H x W) and the logits."""
    with torch.inference_mode(False), torch.enable_grad():
        inputs = model.normalize(images.detach().clone()).requires_grad_()
        logits = model.from_normalized(inputs)
        (gradient,) = torch.autograd.grad(chosen_logit(logits, target).sum(), inputs)
    return gradient, inputs.detach(), logits.detach()
