"""Directions in weight space, and the loss at points along them.

Random directions are filter-normalised (Li et al. 2018, arXiv 1712.09913): each filter, which is what computes one
output of a convolution or a linear layer, has the norm of the model's own. A step of 1 is then as large a change for a
model of large weights as for one of small ones, and models can be compared. Vectors (biases, the weights of norms),
position embeddings, learned tokens and bias tables do not change.

The weights of a point are written into a copy of the model, never into the model itself.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.landscape.hessian import eigenvalues, hessian
from clearhead.models.classifier import copied, logits

Direction = dict[str, Tensor]
"""Names of parameters to what is added to them at a step of 1; other parameters do not change."""


def random_directions(module: nn.Module, count: int, *, seed: int = 0) -> list[Direction]:
    """Return Gaussian directions, each filter (along axis 0 of a weight) with the norm of the module's own.

    Weights are the parameters of two or more axes with that name (``weight``, ``in_proj_weight``), except embeddings.
    The first directions are the same for every `count`.
    """
    embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    draw = torch.Generator().manual_seed(seed)
    directions = []
    for _ in range(count):
        direction: Direction = {}
        for name, p in module.named_parameters():
            if p.ndim < 2 or not name.endswith("weight") or id(p) in embeddings:
                continue
            d = torch.randn(p.shape, generator=draw).to(p).flatten(1)
            length = p.detach().flatten(1).norm(dim=1, keepdim=True)
            direction[name] = (d * (length / d.norm(dim=1, keepdim=True))).view_as(p)
        directions.append(direction)
    return directions


def eigenvector_directions(
    module: nn.Module, loss: Callable[[], Tensor], count: int, *, seed: int = 0
) -> tuple[list[Direction], list[float]]:
    """Return the eigenvectors of the Hessian of `loss` with the largest eigenvalues by magnitude, and these.

    Each has the norm of all parameters together; its sign is arbitrary. Raises LandscapeError as ``hessian`` does.
    """
    parameters = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    with hessian(module, loss) as matrix:
        leading = eigenvalues(matrix, count, seed=seed, vectors=True)
    assert leading.vectors is not None
    length = torch.cat([p.flatten() for p in parameters.values()]).norm()
    sizes = [p.numel() for p in parameters.values()]
    directions = [
        {n: part.view_as(p) for (n, p), part in zip(parameters.items(), (v * length).split(sizes), strict=True)}
        for v in leading.vectors
    ]
    return directions, leading.values


def loss_at_points(
    module: nn.Module,
    directions: Sequence[Direction],
    grid: Iterable[Sequence[float]],
    batches: Sequence[tuple[Tensor, Tensor]],
) -> list[Tensor]:
    """Return mean cross-entropy and accuracy at each point of a grid: a tensor of both, on the module's device.

    Args:
        module: takes normalised images (B x 3 x H x W) and returns logits, or an output with ``.logits``.
        directions: D of them.
        grid: points of D coordinates.
        batches: normalised images, and labels (B), on the module's device.
    """
    count = sum(len(label) for _, label in batches)
    weights = dict(module.named_parameters())
    moved = copied(module)
    moving = {name: p for name, p in moved.named_parameters() if any(name in direction for direction in directions)}
    measured = []
    with torch.inference_mode():
        for point in grid:
            for name, p in moving.items():
                p.copy_(weights[name])
                for x, direction in zip(point, directions, strict=True):
                    if name in direction:
                        p.add_(direction[name], alpha=x)
            moved.eval()  # some modules cache in it what they compute from their weights
            total = batches[0][0].new_zeros(2, dtype=torch.float32)
            for image, label in batches:
                output = logits(moved(image)).float()
                correct = (output.argmax(-1) == label).sum()
                total += torch.stack([F.cross_entropy(output, label, reduction="sum"), correct])
            measured.append(total / count)
    return measured


def l2_at_points(
    module: nn.Module, directions: Sequence[Direction], grid: Sequence[Sequence[float]], weight_decay: float
) -> list[float]:
    """Return λ/2 ||w + Σ x_i d_i||² at each point, from the products of w and the directions; in float64."""
    weights = {name: p.detach() for name, p in module.named_parameters()}
    vectors = [weights, *directions]
    gram = np.zeros((len(vectors), len(vectors)))
    for i, a in enumerate(vectors):
        for j, b in enumerate(vectors[: i + 1]):
            gram[i, j] = gram[j, i] = sum(float(a[n].double().flatten() @ b[n].double().flatten()) for n in a if n in b)
    x = np.concatenate([np.ones((len(grid), 1)), np.asarray(grid)], 1)
    l2: list[float] = (weight_decay / 2 * np.einsum("ni,ij,nj->n", x, gram, x)).tolist()
    return l2
