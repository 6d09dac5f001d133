"""Compute how much the loss rises one step along its gradient, which sharpness-aware minimisation penalises."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from clearhead.landscape.hessian import LandscapeError, shifted_weights
from clearhead.models.classifier import evaluation_mode


def sharpness(module: nn.Module, loss: Callable[[], Tensor], *, radius: float = 0.05) -> float:
    """Return L(w + ρ g / ||g||) - L(w), the first-order form of max L(w + e) - L(w) over ||e|| <= ρ.

    Foret et al., "Sharpness-Aware Minimization" (arXiv 2010.01412), equations 1 and 2. The weights are restored, also
    after an error. Two forward passes and one backward pass.

    Args:
        module: in eval mode meanwhile.
        loss: computes the scalar loss at each call.
        radius: ρ, in weight space.

    Raises:
        LandscapeError: for a loss that is not finite.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    with evaluation_mode(module):
        with torch.enable_grad():
            value = loss()
            gradient = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
        if not torch.isfinite(value):
            raise LandscapeError(f"the loss is {value.item()}, so it has no sharpness")
        norm = torch.stack([part.norm() for part in gradient]).norm().clamp(min=torch.finfo(value.dtype).tiny)
        with torch.no_grad(), shifted_weights(module, parameters, [part * (radius / norm) for part in gradient]):
            return (loss() - value).item()
