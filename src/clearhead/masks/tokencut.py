"""Find the object in an image from a vision transformer's own features: TokenCut.

Wang et al., CVPR 2022 (arXiv 2202.11539). The patches of an image are the nodes of a graph, with W_ij = 1 if the cosine
similarity of the keys of i and j exceeds tau, else 1e-5, and D the diagonal matrix of row sums. The second smallest
eigenvector y of

    (D - W) y = λ D y

is split at its mean; one side is the object, of which the connected component of the patch with the largest |y| is
returned.

The paper uses the last layer's keys of DINO, a self-supervised model, tau = 0.2, and the side with the largest |y|.
That does not work well for supervised models: their last layers separate other regions than objects, and |y| is often
largest in the background. By default the cosines are therefore averaged over all layers, which also avoids choosing a
layer per model, and the object is the side with less of it at the image's border. ``benchmarks/masks.py`` compares both
with true masks.

With z = D^1/2 y, this is the second largest eigenvector of D^-1/2 W D^-1/2, whose largest, D^1/2 1, is known. After
deflation (its eigenvalue is set to -1) the wanted one is the largest, and a few products with a few vectors find it
(block Krylov, Rayleigh-Ritz) for a whole batch of images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from clearhead.attention_tap import tap
from clearhead.errors import ClearheadError
from clearhead.models import Classifier, TokenGrid
from clearhead.models.classifier import evaluation_mode

Side = Literal["inside", "strongest"]

TAU = 0.3
WEAK = 1e-5
"""The weight between dissimilar patches, which keeps the graph connected."""

_TAU_STEP = 0.1  # cuts at tau -+ this are compared with the cut at tau
_VECTORS, _POWERS, _ROUNDS = 4, 5, 12  # of the iterative solver, before the dense one takes over
_TOLERANCE = 1e-6  # of the eigenvector, by its residual over the gap to the next eigenvalue
_ELEMENTS = 2**25  # of W in memory at a time: 256 MiB in float64


@dataclass(frozen=True, eq=False)
class Cut:
    """The object found in one image.

    Attributes:
        mask: h x w; all false if all patches are similar, or none, so that there is nothing to cut.
        values: y - mean(y), h x w, positive on the object's side; zeros if there is nothing to cut.
        border: fraction of the object's patches at the image's border; 0 if there is nothing to cut.
        agreement: smallest IoU of the mask with those at tau - 0.1 and tau + 0.1.
    """

    mask: npt.NDArray[np.bool_]
    values: npt.NDArray[Any]
    border: float
    agreement: float


def tokencut(
    model: Classifier,
    images: Tensor,
    *,
    layers: Sequence[int] | None = None,
    tau: float = TAU,
    side: Side = "inside",
) -> list[Cut]:
    """Find the object in each image.

    Args:
        model: a vision transformer whose tokens form one grid.
        images: B x 3 x H x W, pixels in 0..1.
        layers: positions of the layers whose keys are used, in call order; None for all, (-1,) for the paper's.
        tau: cosine similarity above which two patches are connected; 0.2 in the paper.
        side: the side that is the object: ``inside``, the one with the smaller fraction of its patches at the image's
            border; ``strongest``, the paper's, the one with the largest |y|.

    Raises:
        ClearheadError: for a model without a token grid, a layer it does not have, or an unknown side.
        NoAttentionError: if the model calls no attention.
    """
    if model.grid is None:
        raise ClearheadError(
            f"model: masks need tokens that form one grid and attend to each other in every layer; {model.name} "
            "(windowed, hierarchical or without attention) has none; a plain ViT works, such as "
            "timm:vit_base_patch16_224.dino or timm:deit_tiny_patch16_224"
        )
    return cut(similarity(model, images, layers), model.grid, tau, side)


@torch.no_grad()
def similarity(model: Classifier, images: Tensor, layers: Sequence[int] | None = None) -> Tensor:
    """Return the cosine similarity of the patches' keys (heads concatenated), averaged over layers: B x N x N.

    Prefix tokens are left out. Raises ClearheadError for a layer the model does not have.
    """
    assert model.grid is not None
    with evaluation_mode(model.module), tap(model.module) as record:
        model(images)
    count = len(record)
    selected = range(count) if layers is None else layers
    if not selected or not all(-count <= layer < count for layer in selected):
        raise ClearheadError(f"layers: got {layers}; {model.name} has layers 0 to {count - 1}, or -1 for the last")
    total = torch.zeros(())
    for layer in selected:
        keys = record[layer].k.transpose(1, 2).flatten(2)[:, model.grid.prefix :]
        directions = F.normalize(keys.float(), dim=-1)
        total = directions @ directions.mT + total.to(directions)
    return total / len(selected)


def cut(cosines: Tensor, grid: TokenGrid, tau: float = TAU, side: Side = "inside") -> list[Cut]:
    """Find the object in images from the cosine similarities of their patches, B x N x N."""
    if not -1 <= tau < 1:
        raise ClearheadError(f"tau: got {tau}; a cosine from -1 to below 1 is needed, 0.2 in the paper")
    if side not in get_args(Side):
        raise ClearheadError(f"side: {side!r} is unknown; choose from {', '.join(get_args(Side))}")
    cuts = []
    for part in torch.split(cosines, max(1, _ELEMENTS // cosines.shape[1] ** 2)):
        objects = [_objects(affinity(part, near), grid, side) for near in (tau, tau - _TAU_STEP, tau + _TAU_STEP)]
        for (mask, values), (below, _), (above, _) in zip(*objects, strict=True):
            border = _border_fraction(mask) if mask.any() else 0.0
            cuts.append(Cut(mask, values, border, min(iou(mask, below), iou(mask, above))))
    return cuts


def iou(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    """Return the intersection over union of two masks, H x W; 0 if both are empty."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def affinity(cosines: Tensor, tau: float = TAU) -> Tensor:
    """Return W, B x N x N of float64: 1 if the cosine (B x N x N) exceeds tau or on the diagonal, else 1e-5."""
    above = cosines > tau
    weights = torch.where(above | above.mT, 1.0, WEAK).double()  # symmetric despite rounding
    weights.diagonal(dim1=-2, dim2=-1).fill_(1)
    return weights


def second_eigenvector(weights: Tensor) -> Tensor:
    """Return the eigenvector of the second smallest λ of (D - W) y = λ D y: B x N, float64.

    W is B x N x N, symmetric, N > 1. yᵀ D y = 1; the sign is arbitrary. If the iterative solver does not reach a
    relative error of 1e-6, torch.linalg.eigh is used.
    """
    root = weights.sum(-1).sqrt()
    first = F.normalize(root, dim=-1)[..., None]
    matrix = weights / (root[..., :, None] * root[..., None, :]) - 2 * first @ first.mT
    largest, converged = _largest_eigenvector(matrix)
    if not converged.all():
        largest[~converged] = torch.linalg.eigh(matrix[~converged]).eigenvectors[..., -1]
    return largest / root


def _largest_eigenvector(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvector (B x N) of the largest eigenvalue of symmetric B x N x N matrices, and if it converged."""
    size = matrix.shape[-1]
    start = torch.randn(size, min(_VECTORS, size), dtype=matrix.dtype, generator=torch.Generator().manual_seed(0))
    vectors = start.to(matrix.device).expand(len(matrix), -1, -1)
    converged = torch.zeros(len(matrix), dtype=torch.bool, device=matrix.device)
    for _ in range(_ROUNDS):
        powers = [vectors]
        for _ in range(_POWERS):
            powers.append(matrix @ powers[-1])
        space = torch.linalg.qr(torch.cat(powers, -1)).Q
        image = matrix @ space
        values, ritz = torch.linalg.eigh(space.mT @ image)
        vectors = space @ ritz[..., -start.shape[-1] :]
        residual = (image @ ritz[..., -1:])[..., 0] - values[..., -1:] * vectors[..., -1]
        converged = residual.norm(dim=-1) <= _TOLERANCE * (values[..., -1] - values[..., -2])
        if converged.all():
            break
    return vectors[..., -1].clone(), converged


def _objects(weights: Tensor, grid: TokenGrid, side: Side) -> list[tuple[npt.NDArray[np.bool_], npt.NDArray[Any]]]:
    """Return mask and values of the object in each graph (B x N x N); false and zero if there is nothing to cut."""
    patches = weights.shape[1]
    pairs = (weights == 1).flatten(1).sum(1) - patches  # connected pairs of different patches
    divisible = (pairs > 0) & (pairs < patches * (patches - 1))
    values = weights.new_zeros(len(weights), patches)
    values[divisible] = second_eigenvector(weights[divisible])
    maps = values.view(-1, grid.height, grid.width).cpu().numpy()
    return [_object(y, side) if cut else (y != 0, y) for y, cut in zip(maps, divisible, strict=True)]


def _object(values: npt.NDArray[Any], side: Side) -> tuple[npt.NDArray[np.bool_], npt.NDArray[Any]]:
    """Return the connected component of the strongest patch on the object's side of y (h x w), and y - mean(y)."""
    centred = values - values.mean()
    if side == "strongest":
        negate = centred.flat[np.abs(values).argmax()] < 0
    else:
        negate = _border_fraction(centred > 0) > _border_fraction(centred <= 0)
    if negate:
        centred = -centred
    on_side = centred > 0
    components = ndimage.label(on_side)[0]
    return components == components.flat[np.where(on_side, np.abs(values), -1).argmax()], centred


def _border_fraction(side: npt.NDArray[np.bool_]) -> float:
    """Return the fraction of the true patches (h x w) at the border of the grid."""
    return float(1 - side[1:-1, 1:-1].sum() / side.sum())
