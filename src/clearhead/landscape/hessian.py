"""The largest eigenvalues of the Hessian of a loss, by Lanczos on Hessian-vector products.

One graph of the gradient is kept and every product H v goes back through it once more: v is put in for the gradient of
the gradient (Pearlmutter 1994). Lanczos with full reorthogonalisation finds both ends of the spectrum at once, in a
fraction of the products that power iteration with deflation takes, which also stalls where two eigenvalues are close.

The model is in eval mode (no dropout, the running statistics of batch norm) and attention runs on the kernel that can
be differentiated twice.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from clearhead.models.classifier import evaluation_mode


class LandscapeError(ValueError):
    """A loss that has no spectrum; the message says why."""


@dataclass(frozen=True)
class Hessian:
    """The Hessian of a loss at a model's weights, P x P, as a function: called with v (P) it gives H v (P).

    Attributes:
        size: P, the number of parameters that require a gradient.
        loss: the loss.
        like: a tensor of the device and the type it works in.
        product: v to H v.
    """

    size: int
    loss: float
    like: Tensor
    product: Callable[[Tensor], Tensor]

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
        error: the largest residual of `values`, each relative to its magnitude: an upper bound of their errors.
    """

    values: list[float]
    lowest: float
    highest: float
    products: int
    error: float


@contextmanager
def hessian(module: nn.Module, loss: Callable[[], Tensor], *, weight_decay: float = 0.0) -> Iterator[Hessian]:
    """The Hessian of a loss with respect to the parameters of a module that require a gradient.

    Args:
        module: put into eval mode for the block.
        loss: computes the scalar loss anew, such as the mean cross-entropy of a batch.
        weight_decay: λ of a term λ/2 ||w||² added to the loss: λ more on every eigenvalue.

    Raises:
        LandscapeError: for a loss that is not finite, does not depend on the parameters, or cannot be differentiated
            twice.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise LandscapeError("the model has no parameter that requires a gradient")
    with evaluation_mode(module), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
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

        size = sum(p.numel() for p in parameters)
        yield Hessian(size, value.item(), flat.detach()[:0], product)


def eigenvalues(matrix: Hessian, k: int = 5, *, tolerance: float = 1e-2, most: int = 200, seed: int = 0) -> Eigenvalues:
    """The `k` eigenvalues of largest magnitude, and both ends of the spectrum.

    Lanczos from a random vector; each new vector is made orthogonal to all before it, twice. It stops when the residual
    of each of the k Ritz values, |β_m s_mi|, is at most `tolerance` times that value's magnitude; an eigenvalue of the
    matrix lies within the residual of each.

    Args:
        matrix: symmetric, as ``hessian`` gives it.
        k: how many, at most the size of the matrix.
        tolerance: relative, of each eigenvalue.
        most: products at most; `error` tells how far they led.
        seed: of the first vector.

    Raises:
        ValueError: for a k outside 1..size, or a tolerance that is not positive.
        LandscapeError: where a product is not finite.
    """
    if not 1 <= k <= matrix.size:
        raise ValueError(f"k: 1..{matrix.size} eigenvalues can be found, got {k}")
    if not tolerance > 0:
        raise ValueError(f"tolerance: a positive number is needed, got {tolerance}")
    steps = min(max(most, k), matrix.size)
    draw = torch.Generator().manual_seed(seed)
    v = torch.randn(matrix.size, generator=draw).to(matrix.like)
    basis = matrix.like.new_empty(min(steps, 32), matrix.size)
    basis[0] = v / v.norm()
    diagonal, beside = [], []  # of the tridiagonal matrix, left on the device
    for m in range(1, steps + 1):
        w = matrix(basis[m - 1])
        diagonal.append(w @ basis[m - 1])
        for _ in range(2):
            w -= basis[:m].T @ (basis[:m] @ w)
        beside.append(w.norm())
        if m >= k and (m % _EVERY == 0 or m == steps):
            found = _ritz(diagonal, beside, k, m)
            if found.error <= tolerance or m == steps:
                return found
        if m < steps:
            if m == len(basis):
                basis = torch.cat([basis, torch.empty_like(basis)[: steps - m]])
            # in an invariant subspace w is rounding, a random direction as good as any; 0 only for a matrix of zeros
            basis[m] = w / beside[-1].clamp(min=torch.finfo(w.dtype).tiny)
    raise AssertionError("unreachable")


_EVERY = 5
"""Steps between two looks at the Ritz values: each look waits for the device."""


def _ritz(diagonal: Sequence[Tensor], beside: Sequence[Tensor], k: int, m: int) -> Eigenvalues:
    """The eigenvalues of the tridiagonal matrix, in float64, and their residuals."""
    alpha, beta = (torch.stack(list(values)).double().cpu() for values in (diagonal, beside))
    if not (alpha.isfinite().all() and beta.isfinite().all()):
        raise LandscapeError("a product with the Hessian is not finite: the loss is not smooth enough there")
    small = torch.diag(alpha) + torch.diag(beta[:-1], 1) + torch.diag(beta[:-1], -1)
    values, vectors = torch.linalg.eigh(small)
    order = values.abs().argsort(descending=True)[:k]
    residuals = (beta[-1] * vectors[-1, order]).abs()
    size = values[order].abs()
    relative = residuals / size.clamp(min=max(1e-6 * float(size.max()), torch.finfo(torch.float32).tiny))
    return Eigenvalues(values[order].tolist(), float(values[0]), float(values[-1]), m, float(relative.max()))
