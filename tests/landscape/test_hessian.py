"""Products against the dense Hessian and finite differences, eigenvalues against a dense decomposition."""

import copy
import functools

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.landscape import Hessian, LandscapeError, eigenvalues, hessian


def vit(dtype=torch.float64):
    """A ViT of 466 parameters, LayerNorm and all."""
    torch.manual_seed(0)
    module = timm.models.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=4, depth=1, num_heads=2, mlp_ratio=2, num_classes=3
    ).double()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return module.to(dtype)


def batch(dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(6, 3, 8, 8, dtype=torch.float64).to(dtype), torch.tensor([0, 1, 2, 0, 1, 2])


def loss_closure(module, images, labels):
    return lambda: F.cross_entropy(module(images), labels)


@functools.cache
def dense():
    """The Hessian of the ViT on the batch by torch.func, another way of differentiating twice."""
    module, (images, labels) = vit(), batch()
    names = [name for name, _ in module.named_parameters()]
    shapes = [p.shape for p in module.parameters()]
    sizes = [p.numel() for p in module.parameters()]
    start = torch.cat([p.detach().flatten() for p in module.parameters()])

    def loss(flat):
        parts = [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            logits = torch.func.functional_call(module, dict(zip(names, parts, strict=True)), (images,))
        return F.cross_entropy(logits, labels)

    return torch.autograd.functional.hessian(loss, start)


def test_products_equal_the_dense_hessian():
    module, (images, labels) = vit(), batch()
    expected = dense()
    with hessian(module, loss_closure(module, images, labels), weight_decay=0.1) as matrix:
        v = torch.randn(matrix.size, 3, dtype=torch.float64)
        result = torch.stack([matrix(column) for column in v.T], 1)
        assert matrix.loss == pytest.approx(F.cross_entropy(module(images), labels).item())
    torch.testing.assert_close(result, expected @ v + 0.1 * v)


def test_products_equal_differences_of_gradients_and_are_symmetric():
    module, (images, labels) = vit(), batch()

    def gradient(v, step):
        moved = copy.deepcopy(module)
        parameters = list(moved.parameters())
        with torch.no_grad():
            for p, part in zip(parameters, v.split([p.numel() for p in parameters]), strict=True):
                p.add_(step * part.view_as(p))
        loss = F.cross_entropy(moved(images), labels)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    with hessian(module, loss_closure(module, images, labels)) as matrix:
        u, v = (torch.randn(matrix.size, dtype=torch.float64) for _ in range(2))
        difference = (gradient(v, 1e-5) - gradient(v, -1e-5)) / 2e-5
        torch.testing.assert_close(matrix(v), difference, rtol=1e-6, atol=1e-7)
        assert (u @ matrix(v)).item() == pytest.approx((v @ matrix(u)).item(), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_largest_eigenvalues_equal_the_dense_hessian(dtype):
    module, (images, labels) = vit(dtype), batch(dtype)
    true = torch.linalg.eigvalsh(dense())
    largest = true[true.abs().argsort(descending=True)[:5]]
    with hessian(module, loss_closure(module, images, labels)) as matrix:
        result = eigenvalues(matrix, 5, tolerance=1e-3)
        assert result.error <= 1e-3
        assert result.products < matrix.size / 4
    torch.testing.assert_close(torch.tensor(result.values, dtype=torch.float64), largest, rtol=1e-3, atol=1e-5)
    assert result.highest == pytest.approx(true[-1].item(), rel=1e-3)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 40))
def test_eigenvalues_of_symmetric_matrices_of_any_rank(seed, size, rank):
    torch.manual_seed(seed)
    q = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))[0]
    true = torch.zeros(size, dtype=torch.float64)
    true[: min(rank, size)] = torch.randn(min(rank, size), dtype=torch.float64)
    matrix = q @ torch.diag(true) @ q.T
    k = min(3, size)
    result = eigenvalues(Hessian(size, 0.0, matrix[0, :0], lambda v: matrix @ v), k, tolerance=1e-6)
    expected = true[true.abs().argsort(descending=True)[:k]]
    torch.testing.assert_close(
        torch.tensor(result.values, dtype=torch.float64).abs(), expected.abs(), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [0, 1, 4])
def test_invariant_subspace_does_not_end_the_search(dtype, rank):
    torch.manual_seed(0)
    q = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64))[0][:, :rank].to(dtype)
    lift = torch.arange(1, rank + 1, dtype=dtype) * 10
    shifted = Hessian(60, 0.0, torch.empty(0, dtype=dtype), lambda v: q @ (lift * (q.T @ v)) + 0.05 * v)
    result = eigenvalues(shifted, 6)
    expected = sorted([*(lift + 0.05).tolist(), *[0.05] * (6 - rank)], reverse=True)
    assert result.values == pytest.approx(expected, rel=1e-3)
    assert (result.lowest, result.highest) == pytest.approx((0.05, expected[0]), rel=1e-3)


def test_lowest_eigenvalue_is_found_where_the_largest_are_positive():
    true = torch.cat([torch.linspace(50, 60, 5), torch.linspace(-0.6, 1, 195)]).double()
    result = eigenvalues(Hessian(200, 0.0, true[:0], lambda v: true * v), 5)
    assert result.lowest == pytest.approx(-0.6, abs=1e-3 * 0.6)
    assert result.values == pytest.approx(true[:5].sort(descending=True).values.tolist(), rel=1e-3)


def test_model_is_restored():
    module, (images, labels) = vit(), batch()
    module.train()
    with hessian(module, loss_closure(module, images, labels)) as matrix:
        assert not module.training
        matrix(torch.ones(matrix.size, dtype=torch.float64))
    assert module.training
    assert all(p.grad is None for p in module.parameters())


def test_losses_without_a_hessian_raise():
    module, (images, labels) = vit(), batch()
    with (
        pytest.raises(LandscapeError, match="the loss is nan"),
        hessian(module, loss_closure(module, images * torch.nan, labels)),
    ):
        pass
    with pytest.raises(LandscapeError, match="cannot be differentiated"), hessian(module, lambda: torch.tensor(1.0)):
        pass
    for dtype in (torch.bfloat16, torch.float16):
        model = vit().to(dtype)
        raises = pytest.raises(LandscapeError, match=r"float16: too low a precision for a spectrum")
        with raises, hessian(model, loss_closure(model, images.to(dtype), labels)):
            pass
    for p in module.parameters():
        p.requires_grad_(False)
    with pytest.raises(LandscapeError, match="no parameter"), hessian(module, loss_closure(module, images, labels)):
        pass
    with pytest.raises(ValueError, match=r"k: got 5; the matrix has 1\.\.4 eigenvalues"):
        eigenvalues(Hessian(4, 0.0, torch.empty(0), lambda v: v), 5)
    with pytest.raises(LandscapeError, match="not finite"):
        eigenvalues(Hessian(4, 0.0, torch.empty(0), lambda v: v * torch.nan), 2)
