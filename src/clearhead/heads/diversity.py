"""Penalise heads whose input gradients are similar, so that they follow different features.

Nicolicioiu et al. (arXiv 2308.16274). With g_i the input gradient through head i at token n (``gradients``)::

    c[n, i, j] = <g_i[n], g_j[n]>,      L_IG = sum over i != j of the mean over tokens of c²,      L = CE + λ L_IG

The poster uses raw products and this sum; the public code scales each g_i[n] to unit length first and takes the mean
over all H x H pairs, the zero diagonal included. The sum is H² times the mean: the code's λ = 100 at H = 4 is 6.25
here. Both are available; the defaults are unit length, as in the code, and the sum, as on the poster.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.data.loading import batch_mean
from clearhead.errors import ClearheadError
from clearhead.heads.gradients import Layers, head_gradients, per_image
from clearhead.models import Classifier

_EPS = 1e-20
"""Keeps the length of a zero gradient, and its derivative in float32, finite."""


@dataclass(frozen=True)
class DiversityLoss:
    """Cross-entropy plus the penalty: a loss for ``clearhead.fit`` and for any other training loop.

    Attributes:
        weight: λ.
        layers: the layers whose mean penalty is taken: ``last``, ``all`` or positions.
        normalize: ``token`` scales each head's gradient at each token to unit length; None uses it as it is.
        scaling: ``sum`` over pairs of heads (poster) or ``mean`` over all H² (public code).

    Example:
        >>> loss = DiversityLoss(weight=0.69)
        >>> loss(module, {"image": images, "label": labels})["loss"].backward()
    """

    weight: float = 6.25
    layers: Layers = "last"
    normalize: Literal["token"] | None = "token"
    scaling: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ClearheadError(f"weight: a number of at least 0 is needed, got {self.weight}")

    def __call__(self, model: Classifier | nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the total under ``loss``, its parts ``classification`` and ``diversity``, and the ``logits``.

        Args:
            model: a classifier or a plain module.
            batch: ``image``, B x 3 x H x W, as the model takes it, and ``label``, B; further keys are ignored.
        """
        gradients, logits = head_gradients(model, batch["image"], self.layers, differentiable=torch.is_grad_enabled())
        per_layer = [_penalty_per_map(g, self.normalize, self.scaling) for g in gradients]  # one per image or window
        per_image_and_layer = torch.stack([per_image(values, len(logits)).mean(1) for values in per_layer])
        penalty = batch_mean(per_image_and_layer.mean(0), batch)
        classification = batch_mean(F.cross_entropy(logits, batch["label"], reduction="none"), batch)
        total = classification + self.weight * penalty
        return {"loss": total, "logits": logits, "classification": classification, "diversity": penalty}


def similarity(gradients: Tensor, normalize: Literal["token"] | None = "token") -> Tensor:
    """Return c, B x N x H x H, of input gradients, B x H x N x D: cosines, or raw products without `normalize`."""
    if gradients.ndim != 4:
        raise ClearheadError(f"gradients: B x H x N x D is needed, got {tuple(gradients.shape)}")
    g = gradients.transpose(1, 2).float() if gradients.element_size() < 4 else gradients.transpose(1, 2)
    if normalize == "token":
        g = g * (g.square().sum(-1, keepdim=True) + _EPS).rsqrt()
    return g @ g.transpose(-2, -1)


def diversity_loss(
    gradients: Tensor, normalize: Literal["token"] | None = "token", scaling: Literal["sum", "mean"] = "sum"
) -> Tensor:
    """Return L_IG of one layer's input gradients, B x H x N x D: a scalar, the mean over images; 0 for one head."""
    return _penalty_per_map(gradients, normalize, scaling).mean()


def _penalty_per_map(gradients: Tensor, normalize: Literal["token"] | None, scaling: Literal["sum", "mean"]) -> Tensor:
    """Return L_IG of each image or window, B."""
    square = similarity(gradients, normalize).square()
    pairs = square.sum((-2, -1)) - square.diagonal(dim1=-2, dim2=-1).sum(-1)
    return pairs.mean(1) / (1 if scaling == "sum" else gradients.shape[1] ** 2)
