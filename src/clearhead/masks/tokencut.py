"""Which patches are the object, from a vision transformer's own features and nothing else: TokenCut.

Wang et al., CVPR 2022 (arXiv 2202.11539). The patches of an image are the nodes of a graph, W_ij = 1 where the keys of
i and j are alike (cosine above tau), else 1e-5, D its diagonal of row sums. The second smallest y of

    (D - W) y = λ D y

parts them at its mean; one side is the object, and of it the connected component of the patch of largest |y| is kept.

The paper takes the last layer's keys of DINO, a self-supervised model, tau = 0.2, and the side that holds the largest
|y| of all. That serves supervised models badly: their last layers part other things than objects, and |y| is often
largest in the background. So here, unless asked otherwise, patches are alike by their cosines' mean over all layers,
which leaves no layer to choose for a model, and the object is the side that lies less at the image's border.
``benchmarks/masks.py`` holds both against true masks.

With z = D^1/2 y this is the second largest eigenvector of D^-1/2 W D^-1/2, whose largest, D^1/2 1, is known: with that
one turned away (its eigenvalue made -1) the wanted one is the largest, and some products with a few vectors find it
(block Krylov, Rayleigh-Ritz) for a whole batch of images at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
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
WEAK = 1e-5  # the weight of two patches that are not alike: the graph stays connected

_NEAR = 0.1  # tau's distance to those whose cuts are compared with its own
_VECTORS, _POWERS, _ROUNDS = 4, 5, 12  # of the solver; what it has not found by then a dense one does
_TOLERANCE = 1e-6  # of the eigenvector, by its residual over the gap to the next eigenvalue
_ELEMENTS = 2**25  # of W alive at once: 256 MiB in float64


@dataclass(frozen=True, eq=False)
class Cut:
    """The object found in one image.

    Attributes:
        mask: h x w, true where it is; all false where the patches are all alike, or all unlike: nothing to cut.
        values: y less its mean, h x w, positive on the object's side; zeros where nothing is cut.
        border: the share of the object's patches that lies at the image's border; 0 where nothing is cut.
        agreement: the least IoU of the mask with those cut at tau - 0.1 and tau + 0.1.
    """

    mask: np.ndarray
    values: np.ndarray
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
    """Cut the object out of each image (B x 3 x H x W, pixels in 0..1).

    Args:
        model: a vision transformer whose tokens form one grid.
        images: the images.
        layers: whose keys, by position in call order; None for all of them, (-1,) for the paper's.
        tau: the cosine above which two patches are alike; 0.2 in the paper.
        side: which side is the object: ``inside``, that with the smaller share of its patches at the image's border;
            ``strongest``, the paper's, that of the largest |y|.

    Raises:
        ClearheadError: for a model without a grid, a layer it does not have, or an unknown side.
        NoAttentionError: if no attention call is seen.
    """
    if model.grid is None:
        raise ClearheadError(
            f"masks need a model whose tokens form one grid and attend to each other in every layer; {model.name} "
            "(windowed, hierarchical or without attention) has none: a plain ViT works, such as "
            "timm:vit_base_patch16_224.dino or timm:deit_tiny_patch16_224"
        )
    return cut(similarity(model, images, layers), model.grid, tau, side)


@torch.no_grad()
def similarity(model: Classifier, images: Tensor, layers: Sequence[int] | None = None) -> Tensor:
    """How alike the patches are, B x N x N: the cosine of their keys, all heads' in a row, as a mean over the layers.

    The prefix tokens have no part in it. Raises ClearheadError for a layer the model does not have.
    """
    assert model.grid is not None
    with evaluation_mode(model.module), tap(model.module) as record:
        model(images)
    count = len(record)
    chosen = range(count) if layers is None else layers
    if not chosen or not all(-count <= layer < count for layer in chosen):
        raise ClearheadError(f"layers: {layers}; {model.name} has layers 0 to {count - 1}, or -1 for the last")
    total = torch.zeros(())
    for layer in chosen:
        keys = record[layer].k.transpose(1, 2).flatten(2)[:, model.grid.prefix :]
        directions = F.normalize(keys.float(), dim=-1)
        total = directions @ directions.mT + total.to(directions)
    return total / len(chosen)


def cut(alike: Tensor, grid: TokenGrid, tau: float = TAU, side: Side = "inside") -> list[Cut]:
    """Cut the object out of images by how alike their patches are (B x N x N, cosines)."""
    if not -1 <= tau < 1:
        raise ClearheadError(f"tau: {tau}; a cosine from -1 to below 1 is needed, 0.2 in the paper")
    if side not in get_args(Side):
        raise ClearheadError(f"side: {side!r}; there is {', '.join(get_args(Side))}")
    found = []
    for part in alike.split(max(1, _ELEMENTS // alike.shape[1] ** 2)):
        objects = [_objects(affinity(part, near), grid, side) for near in (tau, tau - _NEAR, tau + _NEAR)]
        for (mask, values), (below, _), (above, _) in zip(*objects, strict=True):
            border = _at_border(mask) if mask.any() else 0.0
            found.append(Cut(mask, values, border, min(iou(mask, below), iou(mask, above))))
    return found


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks (H x W, bool); 0 where both are empty."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def affinity(alike: Tensor, tau: float = TAU) -> Tensor:
    """W, B x N x N of float64: 1 where patches are alike (B x N x N) by more than tau or the same, else 1e-5."""
    above = alike > tau
    weights = torch.where(above | above.mT, 1.0, WEAK).double()  # symmetric whatever the rounding
    weights.diagonal(dim1=-2, dim2=-1).fill_(1)
    return weights


def second_eigenvector(weights: Tensor) -> Tensor:
    """The y of the second smallest λ of (D - W) y = λ D y for each W (B x N x N, symmetric, N > 1): B x N, float64.

    yᵀ D y = 1, the sign is not determined. Where the solver finds none that is exact to 1e-6, torch.linalg.eigh does.
    """
    root = weights.sum(-1).sqrt()
    first = F.normalize(root, dim=-1)[..., None]
    matrix = weights / (root[..., :, None] * root[..., None, :]) - 2 * first @ first.mT
    largest, found = _largest(matrix)
    if not found.all():
        largest[~found] = torch.linalg.eigh(matrix[~found]).eigenvectors[..., -1]
    return largest / root


def _largest(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvector (B x N) of the largest eigenvalue of symmetric matrices (B x N x N), and where it is exact, B."""
    size = matrix.shape[-1]
    start = torch.randn(size, min(_VECTORS, size), dtype=matrix.dtype, generator=torch.Generator().manual_seed(0))
    vectors = start.to(matrix.device).expand(len(matrix), -1, -1)
    found = torch.zeros(len(matrix), dtype=torch.bool, device=matrix.device)
    for _ in range(_ROUNDS):
        powers = [vectors]
        for _ in range(_POWERS):
            powers.append(matrix @ powers[-1])
        space = torch.linalg.qr(torch.cat(powers, -1)).Q
        image = matrix @ space
        values, turn = torch.linalg.eigh(space.mT @ image)
        vectors = space @ turn[..., -start.shape[-1] :]
        residual = (image @ turn[..., -1:])[..., 0] - values[..., -1:] * vectors[..., -1]
        found = residual.norm(dim=-1) <= _TOLERANCE * (values[..., -1] - values[..., -2])
        if found.all():
            break
    return vectors[..., -1].clone(), found


def _objects(weights: Tensor, grid: TokenGrid, side: Side) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mask and values of the object in each graph (B x N x N); false and zero where all its patches are as alike."""
    patches = weights.shape[1]
    pairs = (weights == 1).flatten(1).sum(1) - patches  # alike, and not a patch with itself
    parted = (pairs > 0) & (pairs < patches * (patches - 1))
    values = weights.new_zeros(len(weights), patches)
    values[parted] = second_eigenvector(weights[parted])
    maps = values.unflatten(1, (grid.height, grid.width)).cpu().numpy()
    return [_object(y, side) if cut else (y != 0, y) for y, cut in zip(maps, parted, strict=True)]


def _object(values: np.ndarray, side: Side) -> tuple[np.ndarray, np.ndarray]:
    """The object's part of y (h x w): the component of the strongest patch on its side, and y less its mean."""
    centred = values - values.mean()
    if side == "strongest":
        turned = centred.flat[np.abs(values).argmax()] < 0
    else:
        turned = _at_border(centred > 0) > _at_border(centred <= 0)
    if turned:
        centred = -centred
    on_side = centred > 0
    components = ndimage.label(on_side)[0]
    return components == components.flat[np.where(on_side, np.abs(values), -1).argmax()], centred


def _at_border(side: np.ndarray) -> float:
    """The share of some patches (h x w, bool) that lies at the border of the grid."""
    return float(1 - side[1:-1, 1:-1].sum() / side.sum())
