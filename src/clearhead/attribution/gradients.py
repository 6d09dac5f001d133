"""Maps from the gradient at the input. They need no attention, so they also work on CNNs and windowed transformers.

As in the papers and their code, the gradient is that with respect to the normalised input. With respect to pixels in
0..1 it is 1 / std times as large in each channel.
"""

import torch
from torch import Tensor

from clearhead.models import Classifier
from clearhead.models.classifier import chosen_logit


def input_gradient(model: Classifier, images: Tensor, target: Tensor | int | None = None) -> tuple[Tensor, Tensor]:
    """Return the size of the logit's gradient at each pixel (B x H x W), largest over channels, and the logits.

    Simonyan et al., arXiv 1312.6034. Raises ClearheadError for a target out of range.
    """
    gradient, inputs, logits = _input_gradient(model, images, target)
    return input_gradient_map(gradient, inputs), logits


def input_x_gradient(model: Classifier, images: Tensor, target: Tensor | int | None = None) -> tuple[Tensor, Tensor]:
    """Return the positive part of gradient times normalised input, summed over channels (B x H x W), and the logits.

    Shrikumar et al., arXiv 1605.01713; evidence against the class counts as none. Raises as ``input_gradient``.
    """
    gradient, inputs, logits = _input_gradient(model, images, target)
    return input_x_gradient_map(gradient, inputs), logits


def input_gradient_map(gradient: Tensor, _inputs: Tensor) -> Tensor:
    """Return the map of ``input_gradient`` (B x H x W) from the gradient at the input (B x C x H x W)."""
    return gradient.abs().amax(1)


def input_x_gradient_map(gradient: Tensor, inputs: Tensor) -> Tensor:
    """Return the map of ``input_x_gradient`` (B x H x W) from the gradient and the normalised input."""
    return (gradient * inputs).sum(1).clamp(min=0)


def _input_gradient(model: Classifier, images: Tensor, target: Tensor | int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient at the normalised input, that input (both B x C x H x W) and the logits."""
    with torch.inference_mode(False), torch.enable_grad():
        inputs = model.normalize(images.detach().clone()).requires_grad_()
        logits = model.from_normalized(inputs)
        (gradient,) = torch.autograd.grad(chosen_logit(logits, target).sum(), inputs)
    return gradient, inputs.detach(), logits.detach()
