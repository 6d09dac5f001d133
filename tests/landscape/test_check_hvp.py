"""The check of Hessian-vector products: small errors on every type of layer, a large one for a wrong product."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from clearhead.landscape import Hessian, check_hvp, hessian
from clearhead.models.classifier import logits
from tests import cases


def with_batch_norm():
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=2),
        torch.nn.BatchNorm2d(4),
        torch.nn.GELU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 5),
    )
    module(torch.randn(8, 3, 32, 32))  # running statistics
    return module


MODULES = {"batch-norm": with_batch_norm, **{n: cases.MODELS[n] for n in ("timm-vit", "timm-swin", "hf-vit")}}


@pytest.mark.parametrize("name", MODULES)
def test_products_pass_for_every_type_of_layer(name):
    module, images = MODULES[name]().double(), cases.images(dtype=torch.float64)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with hessian(module, lambda: F.cross_entropy(logits(module(images)), torch.tensor([0, 1]))) as matrix:
        first = matrix(torch.ones(matrix.size, dtype=torch.float64))
        result = check_hvp(matrix)
        assert torch.equal(first, matrix(torch.ones(matrix.size, dtype=torch.float64)))  # the graph is whole
    assert result.symmetry < 1e-9
    assert result.difference < 1e-5
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_product_wrong_for_norms_only_is_detected():
    module, images = cases.MODELS["timm-vit"]().double(), cases.images(dtype=torch.float64)
    wrong = torch.cat(
        [torch.full((p.numel(),), 1.03 if "norm" in name else 1.0) for name, p in module.named_parameters()]
    )
    with hessian(module, lambda: F.cross_entropy(module(images), torch.tensor([0, 1])), weight_decay=0.1) as matrix:
        assert check_hvp(matrix).difference < 1e-5
        result = check_hvp(replace(matrix, product=lambda v: wrong * matrix(v)))
    assert result.difference == pytest.approx(0.03, rel=0.05)
    assert result.symmetry > 1e-6


def test_matrix_without_gradient_raises():
    with pytest.raises(ValueError, match=r"one made by hessian\(\) is needed"):
        check_hvp(Hessian(2, 0.0, torch.empty(0), lambda v: v))


@pytest.mark.slow
def test_products_equal_curvlinops():
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops-for-pytorch is not installed")
    module, images, labels = with_batch_norm().double().eval(), cases.images(4, dtype=torch.float64), torch.arange(4)
    parameters = list(module.parameters())
    peer = curvlinops.HessianLinearOperator(module, torch.nn.CrossEntropyLoss(), parameters, [(images, labels)])
    with hessian(module, lambda: F.cross_entropy(module(images), labels)) as matrix:
        v = torch.randn(matrix.size, dtype=torch.float64)
        torch.testing.assert_close(matrix(v), peer @ v)


@pytest.mark.slow
def test_eigenvalues_and_trace_equal_pyhessian():
    pyhessian = pytest.importorskip("pyhessian", reason="pyhessian is not installed")
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from clearhead.landscape import eigenvalues, trace
    from tests.landscape.test_hessian import batch, vit

    module, (images, labels) = vit(torch.float32).eval(), batch(torch.float32)
    with sdpa_kernel(SDPBackend.MATH):
        peer = pyhessian.hessian(module, F.cross_entropy, data=(images, labels), cuda=False)
        values, _ = peer.eigenvalues(maxIter=1000, tol=1e-6, top_n=2)
        estimates = peer.trace(maxIter=400, tol=0)
    module.zero_grad(set_to_none=True)
    with hessian(module, lambda: F.cross_entropy(module(images), labels)) as matrix:
        assert eigenvalues(matrix, 2, tolerance=1e-4).values == pytest.approx(values, rel=1e-2)
        result = trace(matrix, products=90)
    spread = torch.tensor(estimates).std().item() / len(estimates) ** 0.5
    assert result.value == pytest.approx(sum(estimates) / len(estimates), abs=4 * spread)
