"""Compute the largest eigenvalues of the Hessian of a loss, by Lanczos iteration on Hessian-vector products.

The graph of one gradient is kept, and each product H v is one more backward pass through it, with v as the gradient of
the gradient (Pearlmutter 1994). Lanczos with full reorthogonalisation finds both ends of the spectrum at once, in a
fraction of the products that power iteration with deflation needs, which also stalls where two eigenvalues are close.

The model is in eval mode (no dropout, running statistics of batch norm) and attention uses the kernel that can be
differentiated twice.
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
    """A loss without a Hessian spectrum, or weights without a trajectory; the message states the reason."""


@dataclass(frozen=True)
class Hessian:
    """The Hessian of a loss at a model's weights, P x P, as a function from v (P) to H v (P).

    Attributes:
        size: P, the number of parameters that require a gradient.
        loss: the loss.
        like: a tensor with the device and dtype of the products.
        product: from v to H v.
        gradient: from v to the gradient of the loss at the weights plus v, P; None where the matrix is not of a loss.
        layout: the shapes of the parameters that v concatenates, in order.
    """

    size: int
    loss: float
    like: Tensor
    product: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor], Tensor] | None = None
    layout: Sequence[torch.Size] = ()

    def __call__(self, v: Tensor) -> Tensor:
        """Return H v."""
        return self.product(v)


@dataclass(frozen=True)
class Eigenvalues:
    """The eigenvalues of largest magnitude of a symmetric matrix.

    Attributes:
        values: largest magnitude first.
        lowest, highest: the two ends of the spectrum.
        products: number of products with the matrix.
        error: the largest residual, relative to the magnitude of its value (for an end: at least 1% of the largest). An
            eigenvalue lies within the residual of each value.
        vectors: a unit eigenvector for each of `values`, k x P, if requested.
    """

    values: list[float]
    lowest: float
    highest: float
    products: int
    error: float
    vectors: Tensor | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Krylov:
    """Lanczos iteration after m steps: Vᵀ H V = T is tridiagonal, with V an orthonormal basis of the Krylov subspace.

    Attributes:
        basis: V, m x P.
        diagonal: the diagonal of T, m numbers on the device.
        off_diagonal: the m - 1 numbers beside it, and the one that the next step would add.
    """

    basis: Tensor
    diagonal: Sequence[Tensor]
    off_diagonal: Sequence[Tensor]

    def ritz(self) -> tuple[Tensor, Tensor, float]:
        """Return the eigenvalues of T (m, ascending), its eigenvectors (m x m, columns), and β_m; float64 on the CPU.

        Raises LandscapeError where a product was not finite.
        """
        alpha, beta = (torch.stack(list(values)).double().cpu() for values in (self.diagonal, self.off_diagonal))
        if not (alpha.isfinite().all() and beta.isfinite().all()):
            raise LandscapeError("a product with the Hessian is not finite: the loss is not smooth enough there")
        tridiagonal = torch.diag(alpha) + torch.diag(beta[:-1], 1) + torch.diag(beta[:-1], -1)
        values, vectors = torch.linalg.eigh(tridiagonal)
        return values, vectors, float(beta[-1])


@contextmanager
def hessian(module: nn.Module, loss: Callable[[], Tensor], *, weight_decay: float = 0.0) -> Iterator[Hessian]:
    """Give the Hessian of a loss with respect to the parameters of a module that require a gradient.

    Args:
        module: in eval mode for the block.
        loss: computes the scalar loss at each call, such as the mean cross-entropy of a batch.
        weight_decay: λ of a term λ/2 ||w||² added to the loss, which adds λ to every eigenvalue.

    Raises:
        LandscapeError: for a loss that is not finite, does not depend on the parameters, or cannot be differentiated
            twice, and for parameters of lower precision than float32.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise LandscapeError("the model has no parameter that requires a gradient")
    if low_precision := {str(p.dtype) for p in parameters if torch.finfo(p.dtype).bits < 32}:
        raise LandscapeError(
            f"the parameters are {', '.join(low_precision)}: too low a precision for a spectrum; use model.float()"
        )
    with evaluation_mode(module), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _without_tf32():
        value = loss()
        if not torch.isfinite(value):
            raise LandscapeError(f"the loss is {value.item()}, so it has no Hessian")
        try:
            gradient = torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True)
        except RuntimeError as error:
            raise LandscapeError(f"the loss cannot be differentiated: {error}") from error
        flat = torch.cat([part.flatten() for part in gradient])

        def product(v: Tensor) -> Tensor:
            try:
                parts = torch.autograd.grad(flat, parameters, v, retain_graph=True, materialize_grads=True)
            except RuntimeError as error:
                raise LandscapeError(f"the loss cannot be differentiated twice: {error}") from error
            return torch.cat([part.flatten() for part in parts]).add_(v, alpha=weight_decay)

        def gradient_at(v: Tensor) -> Tensor:
            parts = torch.split(v, [p.numel() for p in parameters])
            with shifted_weights(
                module, parameters, [part.view_as(p) for p, part in zip(parameters, parts, strict=True)]
            ):
                gradients = torch.autograd.grad(loss(), parameters, materialize_grads=True)
                weights = torch.cat([p.data.flatten() for p in parameters])
            return torch.cat([part.flatten() for part in gradients]).add_(weights, alpha=weight_decay)

        size = sum(p.numel() for p in parameters)
        layout = [p.shape for p in parameters]
        yield Hessian(size, value.item(), flat.detach()[:0], product, gradient_at, layout)


@contextmanager
def shifted_weights(module: nn.Module, parameters: Sequence[nn.Parameter], steps: Sequence[Tensor]) -> Iterator[None]:
    """Add a step to each parameter of a module in eval mode for this block.

    The parameters' data are replaced, not changed in place, so a graph that is kept stays valid.
    """
    before = [p.data for p in parameters]
    try:
        for p, step in zip(parameters, steps, strict=True):
            p.data = p.data + step
        module.eval()  # some modules cache values derived from their weights until their mode is set
        yield
    finally:
        for p, data in zip(parameters, before, strict=True):
            p.data = data
        module.eval()


def loss_closure(model: Callable[[Tensor], Tensor], image: Tensor, label: Tensor) -> Callable[[], Tensor]:
    """Return a function that computes the mean cross-entropy of a batch (B x 3 x H x W; B, or B x classes)."""
    return lambda: F.cross_entropy(model(image), label)


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Disable TF32, whose rounding error is as large as the tolerances of this module."""
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
    """Yield the Krylov subspace after each Lanczos step from `start` (P), with one product per step.

    Each new vector is orthogonalised against all earlier ones, twice.
    """
    basis = start.new_empty(min(steps, 32), matrix.size)
    basis[0] = start / start.norm()
    diagonal: list[Tensor] = []
    off_diagonal: list[Tensor] = []
    for m in range(1, steps + 1):
        w = matrix(basis[m - 1])
        length = w.norm()
        diagonal.append(w @ basis[m - 1])
        w = _orthogonal(w, basis[:m])
        off_diagonal.append(w.norm())
        ended = bool(off_diagonal[-1] <= 100 * torch.finfo(w.dtype).eps * length)
        if ended:  # the subspace is invariant and w is rounding error: continue in another subspace
            off_diagonal[-1] = torch.zeros_like(length)
        yield Krylov(basis[:m], diagonal, off_diagonal)
        if m < steps:
            if ended:
                fresh = torch.randn(matrix.size, generator=torch.Generator().manual_seed(m)).to(w)
                w = _orthogonal(fresh, basis[:m])
            if m == len(basis):
                basis = torch.cat([basis, basis.new_empty(min(m, steps - m), matrix.size)])
            basis[m] = w / w.norm()


def _orthogonal(w: Tensor, basis: Tensor) -> Tensor:
    """Return the part of w (P) orthogonal to the rows of `basis` (m x P), in two passes against rounding errors."""
    for _ in range(2):
        w = w - basis.T @ (basis @ w)
    return w


def eigenvalues(
    matrix: Hessian,
    k: int = 5,
    *,
    tolerance: float = 1e-3,
    max_products: int = 200,
    seed: int = 0,
    vectors: bool = False,
) -> Eigenvalues:
    """Return the `k` eigenvalues of largest magnitude, and both ends of the spectrum.

    Lanczos iteration from a random vector. It stops when the residual of each of the k Ritz values and of both ends,
    |β_m s_mi|, is at most `tolerance` times the magnitude of that value (for an end: at least 1% of the largest). An
    eigenvalue of the matrix lies within the residual of each value. It need not be one of the k largest: where many are
    close, an eigenvalue whose vector the first vector hardly contains converges late, and a smaller one, perhaps of the
    other sign, is returned instead. This happens at a tolerance of 1e-2, so the default is smaller.

    Args:
        matrix: symmetric, as ``hessian`` gives it.
        k: number of eigenvalues, at most the size of the matrix.
        tolerance: relative, for each eigenvalue.
        max_products: most products; if they do not suffice, `error` exceeds the tolerance.
        seed: random seed of the first vector.
        vectors: return the eigenvectors too. Their error is the residual over the distance to the next eigenvalue.

    Raises:
        ClearheadError: for a k outside 1..size, or a tolerance that is not positive.
        LandscapeError: where a product is not finite.
    """
    if not 1 <= k <= matrix.size:
        raise ClearheadError(f"k: got {k}; the matrix has 1..{matrix.size} eigenvalues")
    if not tolerance > 0:
        raise ClearheadError(f"tolerance: a positive number is needed, got {tolerance}")
    steps = min(max(max_products, k), matrix.size)
    start = torch.randn(matrix.size, generator=torch.Generator().manual_seed(seed)).to(matrix.like)
    for m, krylov in enumerate(lanczos(matrix, start, steps), 1):
        if m == steps or (m >= k and m % _EVERY == 0):
            values, ritz_vectors, beta = krylov.ritz()
            order = values.abs().argsort(descending=True)[:k]
            checked = torch.cat([order, order.new_tensor([0, m - 1])])
            scale, largest = values[checked].abs(), max(float(values.abs().max()), torch.finfo(torch.float32).tiny)
            scale[:k].clamp_(min=1e-6 * largest)
            scale[k:].clamp_(min=1e-2 * largest)
            error = float(((beta * ritz_vectors[-1, checked]).abs() / scale).max())
            if error <= tolerance:
                break
    eigenvectors = ritz_vectors[:, order].T.to(matrix.like) @ krylov.basis if vectors else None
    return Eigenvalues(values[order].tolist(), float(values[0]), float(values[-1]), m, error, eigenvectors)


_EVERY = 5
"""Steps between two computations of the Ritz values, each of which synchronises with the device."""


@dataclass(frozen=True)
class HvpCheck:
    """The errors of products with a Hessian; see ``check_hvp``."""

    symmetry: float
    difference: float


def check_hvp(matrix: Hessian, *, seed: int = 0) -> HvpCheck:
    """Return the errors of products with a Hessian, to check a new model or loss.

    symmetry is |<u, Hv> - <v, Hu>| / (|u| |Hv|). difference is |Hv - (g(hv) - g(-hv)) / 2h| / |Hv|, the largest over
    parameters, so that a product that is wrong for one type of layer is detected (parts of Hv shorter than 1e-4 of the
    longest do not count). u and v are random, g is the gradient at shifted weights, h the cube root of the rounding
    error. In float64, correct products have both below 1e-5. In float32 rounding causes a difference of about 1e-2, so
    use a model in float64 and a few images.

    Raises:
        ClearheadError: for a matrix without a gradient.
    """
    if matrix.gradient is None:
        raise ClearheadError("matrix: one made by hessian() is needed; this one has products but no gradient")
    draw = torch.Generator().manual_seed(seed)
    u, v = (torch.randn(matrix.size, generator=draw).to(matrix.like) for _ in range(2))
    hu, hv = matrix(u), matrix(v)
    symmetry = (u @ hv - v @ hu).abs() / (u.norm() * hv.norm()).clamp(min=torch.finfo(v.dtype).tiny)
    h = torch.finfo(v.dtype).eps ** (1 / 3)
    difference = (matrix.gradient(h * v) - matrix.gradient(-h * v)) / (2 * h)
    sizes = [shape.numel() for shape in matrix.layout]
    errors = torch.stack([part.norm() for part in torch.split(hv - difference, sizes)])
    lengths = torch.stack([part.norm() for part in torch.split(hv, sizes)])
    counted = lengths >= 1e-4 * lengths.max()
    relative = errors[counted] / lengths[counted].clamp(min=torch.finfo(v.dtype).tiny)
    return HvpCheck(float(symmetry), float(relative.max()))
