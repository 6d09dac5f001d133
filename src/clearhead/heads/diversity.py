"""Heads that follow different features: a penalty on input gradients that are alike.

Nicolicioiu et al. (arXiv 2308.16274). With g_i the input gradient through head i at token n (``gradients``)::

    c[n, i, j] = <g_i[n], g_j[n]>,      L_IG = sum over i != j of the mean over tokens of c²,      L = CE + λ L_IG

The poster has raw products and this sum; the public code scales each g_i[n] to unit length first and takes the mean
over all H x H pairs, the zero diagonal included. One form of scaling is H² times the other: the code's λ = 100 at
H = 4 is 6.25 here. Both are offered; the defaults are unit length, as the code, and the sum, as the poster.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clearhead.data.loading import batch_mean
from clearhead.errors import ClearheadError
from clearhead.heads.gradients import Layers, by_image, head_input_gradients
from clearhead.models import Classifier

_TINY = 1e-20
"""Keeps the length of a zero gradient, and its derivative in float32, finite."""


@dataclass(frozen=True)
class DiversityLoss:
    """Cross-entropy and the penalty, as a loss for ``clearhead.training.loop.fit``.

    Attributes:
        weight: λ.
        layers: the layers it acts on (their mean): ``last``, ``all`` or positions.
        normalize: ``token`` scales each head's gradient at each token to unit length; None leaves it.
        scaling: ``sum`` over pairs of heads (poster) or ``mean`` over all H² (public code).
    """

    weight: float = 6.25
    layers: Layers = "last"
    normalize: Literal["token"] | None = "token"
    scaling: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ClearheadError(f"weight: a number of at least 0 is needed, got {self.weight}")

    def __call__(self, model: Classifier, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The total under ``loss``, its parts, and the ``logits`` of a batch (image, label)."""
        gradients, logits = head_input_gradients(
            model, batch["image"], self.layers, differentiable=torch.is_grad_enabled()
        )
        layers = [_of_images(g, self.normalize, self.scaling) for g in gradients]  # of windows, where there are some
        each = torch.stack([by_image(values, len(logits)).mean(1) for values in layers])  # layers x B
        penalty = batch_mean(each.mean(0), batch)
        classification = batch_mean(F.cross_entropy(logits, batch["label"], reduction="none"), batch)
        total = classification + self.weight * penalty
        return {"loss": total, "logits": logits, "classification": classification, "diversity": penalty}


def similarity(gradients: Tensor, normalize: Literal["token"] | None = "token") -> Tensor:
    """c, B x N x H x H, from input gradients, B x H x N x D: cosines, or with ``normalize=None`` raw products."""
    if gradients.ndim != 4:
        raise ClearheadError(f"gradients: B x H x N x D is needed, got {tuple(gradients.shape)}")
    g = gradients.transpose(1, 2).float() if gradients.element_size() < 4 else gradients.transpose(1, 2)
    if normalize == "token":
        g = g * (g.square().sum(-1, keepdim=True) + _TINY).rsqrt()
    return g @ g.transpose(-2, -1)


def diversity_loss(
    gradients: Tensor, normalize: Literal["token"] | None = "token", scaling: Literal["sum", "mean"] = "sum"
) -> Tensor:
    """L_IG of one layer from its input gradients, B x H x N x D; the mean over images. Scalar, 0 for a single head."""
    return _of_images(gradients, normalize, scaling).mean()


def _of_images(gradients: Tensor, normalize: Literal["token"] | None, scaling: Literal["sum", "mean"]) -> Tensor:
    """L_IG of each image, B."""
    square = similarity(gradients, normalize).square()
    pairs = square.sum((-2, -1)) - square.diagonal(dim1=-2, dim2=-1).sum(-1)
    return pairs.mean(1) / (1 if scaling == "sum" else gradients.shape[1] ** 2)
