"""What do the five largest eigenvalues of a mini-batch's Hessian cost, against PyHessian's power iteration?

    python -m pip install --no-deps pyhessian==0.1
    python benchmarks/landscape.py [--image-size 32] [--dim 192] [--depth 6]

A ViT of random weights (patch 4 px) on a batch of 16 random images, in float32. The truth is Lanczos in float64 to
1e-8. The floor of a product is a backward pass through the graph of a forward and backward pass: about two backwards.
PyHessian is given the tolerance at which its five values are as near to the truth as asked, the largest of those tried.
"""

import argparse
import sys
import time

import clearhead  # noqa: F401  (before timm)

# isort: split
import numpy as np
import timm
import torch
import torch.nn.functional as F
from pyhessian import hessian as pyhessian
from timing import seconds
from torch.nn.attention import SDPBackend, sdpa_kernel

from clearhead.landscape import eigenvalues, hessian

TOP, ERROR = 5, 1e-2
module = sys.modules["pyhessian.hessian"]  # the name pyhessian.hessian is the class


def power_iteration(
    model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, tolerance: float
) -> tuple[list[float], int, float]:
    """PyHessian's values, the products it took, and the seconds."""
    product, count = module.hessian_vector_product, 0

    def counted(*arguments: object) -> object:
        nonlocal count
        count += 1
        return product(*arguments)

    module.hessian_vector_product = counted
    start = time.perf_counter()
    with sdpa_kernel(SDPBackend.MATH):
        peer = pyhessian(model, F.cross_entropy, data=(images, labels), cuda=False)
        values, _ = peer.eigenvalues(maxIter=500, tol=tolerance, top_n=TOP)
    spent = time.perf_counter() - start
    module.hessian_vector_product = product
    model.zero_grad(set_to_none=True)
    return values, count, spent


def main(size: int, dim: int, depth: int) -> None:
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(
        img_size=size, patch_size=4, embed_dim=dim, depth=depth, num_heads=3, num_classes=100
    ).eval()
    images, labels = torch.randn(16, 3, size, size), torch.randint(100, (16,))
    parameters = list(model.parameters())

    def passes() -> None:
        torch.autograd.grad(F.cross_entropy(model(images), labels), parameters)

    double = timm.models.VisionTransformer(
        img_size=size, patch_size=4, embed_dim=dim, depth=depth, num_heads=3, num_classes=100
    ).double()
    double.load_state_dict(model.state_dict())
    with hessian(double, lambda: F.cross_entropy(double(images.double()), labels)) as matrix:
        true = np.array(eigenvalues(matrix, TOP, tolerance=1e-8).values)

    def worst(values: list[float]) -> float:
        found = np.array(sorted(values, key=abs, reverse=True))
        return float(np.abs(found - true).max() / np.abs(true).min())

    with hessian(model, lambda: F.cross_entropy(model(images), labels)) as matrix:
        v = torch.randn(matrix.size)
        times = seconds({"forward + backward": passes, "product": lambda: matrix(v)}, 5)
    print(f"{sum(p.numel() for p in parameters):,} parameters, {torch.get_num_threads()} threads\n")
    print("| | products | s | worst relative error |\n|---|---|---|---|")
    start = time.perf_counter()
    with hessian(model, lambda: F.cross_entropy(model(images), labels)) as matrix:
        ours = eigenvalues(matrix, TOP, tolerance=ERROR)
    spent = time.perf_counter() - start
    print(f"| clearhead, Lanczos | {ours.products} | {spent:.1f} | {worst(ours.values):.1e} |", flush=True)
    for tolerance in (1e-2, 1e-3, 1e-4, 1e-5):
        values, count, spent = power_iteration(model, images, labels, tolerance)
        print(f"| PyHessian, tol {tolerance:g} | {count} | {spent:.1f} | {worst(values):.1e} |", flush=True)
        if worst(values) <= ERROR:
            break
    print(f"\nforward + backward {times['forward + backward']:.3f} s, a product {times['product']:.3f} s: ", end="")
    print(f"{times['product'] / times['forward + backward']:.2f} of it")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--depth", type=int, default=6)
    options = parser.parse_args()
    main(options.image_size, options.dim, options.depth)
