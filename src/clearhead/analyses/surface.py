"""The loss on a line, a plane or a block of weights through those of a model.

The directions are random and filter-normalised (Li et al. 2018, arXiv 1712.09913): each filter, which is what makes one
output of a convolution or a linear layer, is as long as the model's own. A step of 1 is then as large a change for a
model of large weights as for one of small ones, and models can be set side by side. Vectors (biases, the weights of
norms), embeddings of positions, tokens that are learned and tables of biases stay.

Cross-entropy, the L2 term and accuracy are told apart: with the weight decay of training the L2 term can be most of a
surface, and it is the same bowl for every model. It needs no forward pass: along the directions it is a quadratic.

The weights of a point are written into a copy of the model, never into the model itself.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.data.dataset import ImageIndex
from clearhead.data.loading import ImageDataset, loader
from clearhead.errors import ClearheadError
from clearhead.landscape.hessian import LandscapeError, eigenvalues, hessian, loss_closure
from clearhead.models import Classifier
from clearhead.models.classifier import copied, logits

Direction = dict[str, Tensor]
"""Names of parameters to what is added to them at a step of 1; others stay."""


@dataclass(frozen=True)
class Surface:
    """The loss on a grid of weights, point by point: the last coordinate changes fastest.

    Attributes:
        dims: 1, 2 or 3 directions.
        steps: the coordinates along each of them; the model's own weights are in the middle.
        nll: mean cross-entropy in nats; None where it is not finite.
        l2: λ/2 ||w||²; zeros without weight decay.
        accuracy: share of the images that are right; None likewise.
        images: how many.
        curvature: the eigenvalues whose eigenvectors the directions are; empty for random ones.
    """

    dims: int
    steps: list[float]
    nll: list[float | None]
    l2: list[float]
    accuracy: list[float | None]
    images: int
    curvature: list[float]


def random_directions(module: nn.Module, count: int, *, seed: int = 0) -> list[Direction]:
    """Gaussian directions, each filter (along axis 0 of a weight) as long as the module's own.

    Weights are the parameters of two axes and more that are called so (``weight``, ``in_proj_weight``), but no
    embedding's. Where the number of directions grows, the first ones stay the same.
    """
    embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        direction: Direction = {}
        for name, p in module.named_parameters():
            if p.ndim < 2 or not name.endswith("weight") or id(p) in embeddings:
                continue
            d = torch.randn(p.shape, generator=draw).to(p).flatten(1)
            length = p.detach().flatten(1).norm(dim=1, keepdim=True)
            direction[name] = (d * (length / d.norm(dim=1, keepdim=True))).view_as(p)
        found.append(direction)
    return found


def eigenvector_directions(
    module: nn.Module, loss: Callable[[], Tensor], count: int, *, seed: int = 0
) -> tuple[list[Direction], list[float]]:
    """The eigenvectors of the Hessian of `loss` of the largest eigenvalues by magnitude, and these.

    Each is as long as all parameters together; its sign is arbitrary. Raises LandscapeError as ``hessian`` does.
    """
    parameters = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    with hessian(module, loss) as matrix:
        found = eigenvalues(matrix, count, seed=seed, vectors=True)
    assert found.vectors is not None
    length = torch.cat([p.flatten() for p in parameters.values()]).norm()
    sizes = [p.numel() for p in parameters.values()]
    directions = [
        {n: part.view_as(p) for (n, p), part in zip(parameters.items(), (v * length).split(sizes), strict=True)}
        for v in found.vectors
    ]
    return directions, found.values


def surface(
    model: Classifier,
    folder: ImageIndex,
    *,
    dims: int = 2,
    points: int = 21,
    span: float = 1.0,
    along: Literal["random", "eigenvectors"] = "random",
    weight_decay: float = 0.0,
    images: int = 1000,
    batch_size: int = 64,
    workers: int = 0,
    seed: int = 0,
    progress: Callable[[Iterable, int], Iterable] | None = None,
) -> Surface:
    """The loss of a classifier on a grid of weights around its own, in points^dims passes over the images.

    The model is in eval mode: no dropout, and batch norm keeps the running statistics of the model's own weights at
    every point. The images are decoded once and stay on the device.

    Args:
        model: the classifier; it runs where its parameters are.
        folder: the images.
        dims: how many directions, 1 to 3.
        points: along each of them, an odd number so that the weights themselves are one.
        span: the coordinates go from -span to span.
        along: ``random`` directions, or ``eigenvectors`` of the Hessian of the cross-entropy on the first batch, of the
            largest eigenvalues, each as long as all parameters together: choose a smaller span there.
        weight_decay: λ of λ/2 ||w||².
        images: how many, drawn at random; all where there are fewer.
        batch_size: images a forward pass.
        workers: processes that load images.
        seed: of the images and the directions.
        track: wraps the points to show progress: ``track(points, count)``.

    Raises:
        ClearheadError: for a number of dims, points, images or a span that cannot be.
        LandscapeError: where the loss is not finite at the model's own weights.
    """
    if dims not in (1, 2, 3):
        raise ClearheadError(f"dims: 1, 2 or 3 directions can be drawn, got {dims}")
    if points < 3 or points % 2 == 0:
        raise ClearheadError(
            f"points: an odd number from 3 is needed, so that the weights themselves are one; got {points}"
        )
    if not 0 < span < math.inf:
        raise ClearheadError(f"span: a positive number is needed, got {span}")
    if images < 1:
        raise ClearheadError(f"images: at least 1 is needed, got {images}")
    module, batches = model.module, _batches(model, folder, images, batch_size, workers, seed)
    curvature: list[float] = []
    if along == "random":
        directions = random_directions(module, dims, seed=seed)
    else:
        directions, curvature = eigenvector_directions(
            module, loss_closure(model.from_normalized, *batches[0]), dims, seed=seed
        )
    steps = np.linspace(-span, span, points).tolist()
    grid = list(itertools.product(steps, repeat=dims))
    centre = torch.stack(on_points(module, directions, [(0.0,) * dims], batches))
    if not bool(centre[0, 0].isfinite()):
        raise LandscapeError(f"the loss is {centre[0, 0].item()} at the model's own weights: it has no surface there")
    measured = torch.stack(
        on_points(module, directions, progress(grid, len(grid)) if progress else grid, batches)
    ).tolist()
    kept = [(nll, accuracy) if math.isfinite(nll) else (None, None) for nll, accuracy in measured]
    return Surface(
        dims,
        steps,
        [nll for nll, _ in kept],
        _l2(module, directions, grid, weight_decay),
        [accuracy for _, accuracy in kept],
        sum(len(label) for _, label in batches),
        curvature,
    )


def on_points(
    module: nn.Module,
    directions: Sequence[Direction],
    grid: Iterable[Sequence[float]],
    batches: Sequence[tuple[Tensor, Tensor]],
) -> list[Tensor]:
    """Mean cross-entropy and accuracy at each point of a grid: a tensor of both, left on the device.

    Args:
        module: takes images (B x 3 x H x W) and gives logits, or an output with ``.logits``.
        directions: D of them.
        grid: points of D coordinates.
        batches: normalised images and labels (B) on the module's device.
    """
    count = sum(len(label) for _, label in batches)
    weights = dict(module.named_parameters())
    moved = copied(module)
    moving = {name: p for name, p in moved.named_parameters() if any(name in direction for direction in directions)}
    found = []
    with torch.inference_mode():
        for point in grid:
            for name, p in moving.items():
                p.copy_(weights[name])
                for x, direction in zip(point, directions, strict=True):
                    if name in direction:
                        p.add_(direction[name], alpha=x)
            moved.eval()  # some modules keep in it what they make of their weights
            total = batches[0][0].new_zeros(2, dtype=torch.float32)
            for image, label in batches:
                output = logits(moved(image)).float()
                right = (output.argmax(-1) == label).sum()
                total += torch.stack([F.cross_entropy(output, label, reduction="sum"), right])
            found.append(total / count)
    return found


def _batches(
    model: Classifier, folder: ImageIndex, images: int, batch_size: int, workers: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """The first images of a random order, normalised, on the model's device."""
    device = next(model.module.parameters()).device
    data = ImageDataset(folder, model.preprocess)
    wanted, found = min(images, len(data)), []
    for batch in loader(data, batch_size, workers, shuffle=True, seed=seed):
        found.append((model.normalize(batch["image"][:wanted].to(device)), batch["label"][:wanted].to(device)))
        wanted -= len(found[-1][1])
        if wanted == 0:
            break
    return found


def _l2(
    module: nn.Module, directions: Sequence[Direction], grid: Sequence[Sequence[float]], weight_decay: float
) -> list[float]:
    """λ/2 ||w + Σ x_i d_i||² at each point, from the products of w and the directions with one another; in float64."""
    weights = {name: p.detach() for name, p in module.named_parameters()}
    vectors = [weights, *directions]
    gram = np.zeros((len(vectors), len(vectors)))
    for i, a in enumerate(vectors):
        for j, b in enumerate(vectors[: i + 1]):
            gram[i, j] = gram[j, i] = sum(float(a[n].double().flatten() @ b[n].double().flatten()) for n in a if n in b)
    x = np.concatenate([np.ones((len(grid), 1)), np.asarray(grid)], 1)
    return (weight_decay / 2 * np.einsum("ni,ij,nj->n", x, gram, x)).tolist()
