"""The largest eigenvalues of the Hessian of a loss, by Lanczos on Hessian-vector products.

One graph of the gradient is kept and every product H v goes back through it once more: v is put in for the gradient of
the gradient (Pearlmutter 1994). Lanczos with full reorthogonalisation finds both ends of the spectrum at once, in a
fraction of the products that power iteration with deflation takes, which also stalls where two eigenvalues are close.

The model is in eval mode (no dropout, the running statistics of batch norm) and attention runs on the kernel that can
be differentiated twice.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from clearhead.errors import ClearheadError
from clearhead.models.classifier import evaluation_mode


class LandscapeError(ClearheadError):
    """A loss that has no spectrum; the message says why."""


@dataclass(frozen=True)
class Hessian:
    """The Hessian of a loss at a model's weights, P x P, as a function: called with v (P) it gives H v (P).

    Attributes:
        size: P, the number of parameters that require a gradient.
        loss: the loss.
        like: a tensor of the device and the type it works in.
        product: v to H v.
        gradient: v to the gradient of the loss at the weights moved by v, P; None where the matrix is of no loss.
        layout: the shapes of the parameters that v is made of, in order.
    """

    size: int
    loss: float
    like: Tensor
    product: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor], Tensor] | None = None
    layout: Sequence[torch.Size] = ()

    def __call__(self, v: Tensor) -> Tensor:
        """H v."""
        return self.product(v)


@dataclass(frozen=True)
class Eigenvalues:
    """The eigenvalues of largest magnitude of a symmetric matrix.

    Attributes:
        values: the largest first, by magnitude.
        lowest, highest: the two ends of the spectrum.
        products: how many products with the matrix it took.
        error: the largest residual, relative to its value's magnitude (an end's: or to 1% of the largest): so near to
            each lies an eigenvalue.
        vectors: an eigenvector of length 1 for each of `values`, k x P, where they were asked for.
    """

    values: list[float]
    lowest: float
    highest: float
    products: int
    error: float
    vectors: Tensor | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Krylov:
    """Lanczos after m steps: H is nearly the tridiagonal matrix T in a basis V, Vᵀ H V = T.

    Attributes:
        basis: V, orthonormal, m x P.
        diagonal: m numbers of T, left on the device.
        beside: the m - 1 numbers beside the diagonal, and the one that the next step would add.
    """

    basis: Tensor
    diagonal: Sequence[Tensor]
    beside: Sequence[Tensor]

    def ritz(self) -> tuple[Tensor, Tensor, float]:
        """Eigenvalues of T (m, ascending), eigenvectors (m x m, a column each), and β_m; float64 on the CPU.

        Raises LandscapeError where a product was not finite.
        """
        alpha, beta = (torch.stack(list(values)).double().cpu() for values in (self.diagonal, self.beside))
        if not (alpha.isfinite().all() and beta.isfinite().all()):
            raise LandscapeError("a product with the Hessian is not finite: the loss is not smooth enough there")
        small = torch.diag(alpha) + torch.diag(beta[:-1], 1) + torch.diag(beta[:-1], -1)
        values, vectors = torch.linalg.eigh(small)
        return values, vectors, float(beta[-1])


@contextmanager
def hessian(module: nn.Module, loss: Callable[[], Tensor], *, weight_decay: float = 0.0) -> Iterator[Hessian]:
    """The Hessian of a loss with respect to the parameters of a module that require a gradient.

    Args:
        module: put into eval mode for the block.
        loss: computes the scalar loss anew, such as the mean cross-entropy of a batch.
        weight_decay: λ of a term λ/2 ||w||² added to the loss: λ more on every eigenvalue.

    Raises:
        LandscapeError: for a loss that is not finite, does not depend on the parameters, or cannot be differentiated
            twice, and for parameters narrower than float32.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise LandscapeError("the model has no parameter that requires a gradient")
    if narrow := {str(p.dtype) for p in parameters if torch.finfo(p.dtype).bits < 32}:
        raise LandscapeError(f"the parameters are {', '.join(narrow)}: too coarse for a spectrum, take model.float()")
    with evaluation_mode(module), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _whole_precision():
        value = loss()
        if not torch.isfinite(value):
            raise LandscapeError(f"the loss is {value.item()}: it has no spectrum there")
        try:
            gradient = torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True)
        except RuntimeError as error:
            raise LandscapeError(f"the loss cannot be differentiated: {error}") from error
        flat = torch.cat([part.flatten() for part in gradient])

        def product(v: Tensor) -> Tensor:
            try:
                found = torch.autograd.grad(flat, parameters, v, retain_graph=True, materialize_grads=True)
            except RuntimeError as error:
                raise LandscapeError(f"the loss cannot be differentiated twice: {error}") from error
            return torch.cat([part.flatten() for part in found]).add_(v, alpha=weight_decay)

        def gradient_at(v: Tensor) -> Tensor:
            parts = v.split([p.numel() for p in parameters])
            with shifted_weights(
                module, parameters, [part.view_as(p) for p, part in zip(parameters, parts, strict=True)]
            ):
                found = torch.autograd.grad(loss(), parameters, materialize_grads=True)
                here = torch.cat([p.data.flatten() for p in parameters])
            return torch.cat([part.flatten() for part in found]).add_(here, alpha=weight_decay)

        size = sum(p.numel() for p in parameters)
        layout = [p.shape for p in parameters]
        yield Hessian(size, value.item(), flat.detach()[:0], product, gradient_at, layout)


@contextmanager
def shifted_weights(module: nn.Module, parameters: Sequence[nn.Parameter], by: Sequence[Tensor]) -> Iterator[None]:
    """A block in which parameters of a module in eval mode are moved.

    Other tensors stand in for them, so a graph that is kept still holds.
    """
    before = [p.data for p in parameters]
    try:
        for p, step in zip(parameters, by, strict=True):
            p.data = p.data + step
        module.eval()  # some modules keep in it what they make of their weights
        yield
    finally:
        for p, data in zip(parameters, before, strict=True):
            p.data = data
        module.eval()


def loss_closure(model: Callable[[Tensor], Tensor], image: Tensor, label: Tensor) -> Callable[[], Tensor]:
    """The mean cross-entropy of a batch (B x 3 x H x W; B, or B x classes), to be computed anew at each call."""
    return lambda: F.cross_entropy(model(image), label)


@contextmanager
def _whole_precision() -> Iterator[None]:
    """A block without TF32, whose rounding is as large as the errors that are asked for."""
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def lanczos(matrix: Hessian, start: Tensor, steps: int) -> Iterator[Krylov]:
    """Lanczos from `start` (P), one product a step; each new vector is made orthogonal to all before it, twice."""
    basis = start.new_empty(min(steps, 32), matrix.size)
    basis[0] = start / start.norm()
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for m in range(1, steps + 1):
        w = matrix(basis[m - 1])
        length = w.norm()
        diagonal.append(w @ basis[m - 1])
        w = _orthogonal(w, basis[:m])
        beside.append(w.norm())
        ended = bool(beside[-1] <= 100 * torch.finfo(w.dtype).eps * length)
        if ended:  # the subspace is invariant, w is rounding: go on in another one
            beside[-1] = torch.zeros_like(length)
        yield Krylov(basis[:m], diagonal, beside)
        if m < steps:
            if ended:
                fresh = torch.randn(matrix.size, generator=torch.Generator().manual_seed(m)).to(w)
                w = _orthogonal(fresh, basis[:m])
            if m == len(basis):
                basis = torch.cat([basis, basis.new_empty(min(m, steps - m), matrix.size)])
            basis[m] = w / w.norm()


def _orthogonal(w: Tensor, basis: Tensor) -> Tensor:
    """The part of w (P) that is orthogonal to the rows of `basis` (m x P); twice, for the rounding of the first."""
    for _ in range(2):
        w = w - basis.T @ (basis @ w)
    return w


def eigenvalues(
    matrix: Hessian,
    k: int = 5,
    *,
    tolerance: float = 1e-3,
    most: int = 200,
    seed: int = 0,
    vectors: bool = False,
) -> Eigenvalues:
    """The `k` eigenvalues of largest magnitude, and both ends of the spectrum.

    Lanczos from a random vector. It stops when the residual of each of the k Ritz values and of both ends, |β_m s_mi|,
    is at most `tolerance` times that value's magnitude (an end's: or 1% of the largest); an eigenvalue of the matrix
    lies within the residual of each. That it is one of the k largest is not certain: where many are close, one that the
    first vector hardly contains comes late and a smaller one, perhaps of the other sign, stands in its place. At a
    tolerance of 1e-2 this is seen, so it is smaller.

    Args:
        matrix: symmetric, as ``hessian`` gives it.
        k: how many, at most the size of the matrix.
        tolerance: relative, of each eigenvalue.
        most: products at most; `error` tells how far they led.
        seed: of the first vector.
        vectors: give the eigenvectors too. Their error is the residual over the distance to the next eigenvalue.

    Raises:
        ClearheadError: for a k outside 1..size, or a tolerance that is not positive.
        LandscapeError: where a product is not finite.
    """
    if not 1 <= k <= matrix.size:
        raise ClearheadError(f"k: 1..{matrix.size} eigenvalues can be found, got {k}")
    if not tolerance > 0:
        raise ClearheadError(f"tolerance: a positive number is needed, got {tolerance}")
    steps = min(max(most, k), matrix.size)
    start = torch.randn(matrix.size, generator=torch.Generator().manual_seed(seed)).to(matrix.like)
    for m, found in enumerate(lanczos(matrix, start, steps), 1):
        if m == steps or (m >= k and m % _EVERY == 0):
            values, small, beta = found.ritz()
            order = values.abs().argsort(descending=True)[:k]
            judged = torch.cat([order, order.new_tensor([0, m - 1])])
            size, largest = values[judged].abs(), max(float(values.abs().max()), torch.finfo(torch.float32).tiny)
            size[:k].clamp_(min=1e-6 * largest)
            size[k:].clamp_(min=1e-2 * largest)
            error = float(((beta * small[-1, judged]).abs() / size).max())
            if error <= tolerance:
                break
    ritz = small[:, order].T.to(matrix.like) @ found.basis if vectors else None
    return Eigenvalues(values[order].tolist(), float(values[0]), float(values[-1]), m, error, ritz)


_EVERY = 5
"""Steps between two looks at the Ritz values: each look waits for the device."""


@dataclass(frozen=True)
class HvpCheck:
    """How far products with a Hessian are from what they must be; see ``check_hvp``."""

    symmetry: float
    difference: float


def check_hvp(matrix: Hessian, *, seed: int = 0) -> HvpCheck:
    """Whether the products with a Hessian can be trusted, for a model or a loss not met before.

    symmetry is |<u, Hv> - <v, Hu>| over |u| |Hv|. difference is |Hv - (g(hv) - g(-hv)) / 2h| over |Hv|, taken for each
    parameter's part of the vectors by itself, and the largest of these: a product that is wrong for one kind of layer
    alone shows. (Parts shorter than 1e-4 of the longest do not count.) u and v are random, g is the gradient at moved
    weights, h the cube root of the rounding error. In float64 both are below 1e-5 where all is well. In float32
    rounding alone makes a difference of some 1e-2, so give a model in float64 and a few images.

    Raises:
        ClearheadError: for a matrix without a gradient.
    """
    if matrix.gradient is None:
        raise ClearheadError(
            "matrix: one made by hessian() is needed, whose gradient is known; this has products alone"
        )
    draw = torch.Generator().manual_seed(seed)
    u, v = (torch.randn(matrix.size, generator=draw).to(matrix.like) for _ in range(2))
    hu, hv = matrix(u), matrix(v)
    symmetry = (u @ hv - v @ hu).abs() / (u.norm() * hv.norm()).clamp(min=torch.finfo(v.dtype).tiny)
    h = torch.finfo(v.dtype).eps ** (1 / 3)
    difference = (matrix.gradient(h * v) - matrix.gradient(-h * v)) / (2 * h)
    sizes = [shape.numel() for shape in matrix.layout]
    errors = torch.stack([part.norm() for part in (hv - difference).split(sizes)])
    lengths = torch.stack([part.norm() for part in hv.split(sizes)])
    counted = lengths >= 1e-4 * lengths.max()
    relative = errors[counted] / lengths[counted].clamp(min=torch.finfo(v.dtype).tiny)
    return HvpCheck(float(symmetry), float(relative.max()))
