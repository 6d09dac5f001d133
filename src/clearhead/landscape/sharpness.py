"""How much the loss rises one step up its gradient: what sharpness-aware minimisation holds down."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from clearhead.landscape.hessian import LandscapeError
from clearhead.models.classifier import evaluation_mode


def sharpness(module: nn.Module, loss: Callable[[], Tensor], *, radius: float = 0.05) -> float:
    """L(w + ρ g / ||g||) - L(w), the first-order form of max L(w + e) - L(w) over ||e|| <= ρ.

    After Foret et al., "Sharpness-Aware Minimization" (arXiv 2010.01412), equations 1 and 2. The weights are put back
    as they were, whatever happens. Two forward passes and one backward pass.

    Args:
        module: put into eval mode meanwhile.
        loss: computes the scalar loss anew.
        radius: ρ, in weight space.

    Raises:
        LandscapeError: for a loss that is not finite at the weights.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in parameters]
    with evaluation_mode(module):
        with torch.enable_grad():
            value = loss()
            gradient = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
        if not torch.isfinite(value):
            raise LandscapeError(f"the loss is {value.item()}: it has no sharpness there")
        norm = torch.stack([part.norm() for part in gradient]).norm().clamp(min=torch.finfo(value.dtype).tiny)
        try:
            with torch.no_grad():
                for p, part in zip(parameters, gradient, strict=True):
                    p.add_(part * (radius / norm))
                return (loss() - value).item()
        finally:
            with torch.no_grad():
                for p, before in zip(parameters, kept, strict=True):
                    p.copy_(before)
