"""What do spectra and surfaces of the loss cost?

    python -m pip install --no-deps pyhessian==0.1
    python benchmarks/landscape.py [--image-size 32] [--dim 192] [--depth 6]
    python benchmarks/landscape.py --surface [--images 256] [--points 5] [--rounds 5]

Spectra: the five largest eigenvalues of a mini-batch's Hessian, against PyHessian's power iteration. A ViT of random
weights (patch 4 px) on a batch of 16 random images, in float32. The truth is Lanczos in float64 to 1e-8. The floor of a
product is a backward pass through the graph of a forward and backward pass: about two backwards. PyHessian is given the
tolerance at which its five values are as near to the truth as asked, the largest of those tried.

Surfaces: points on a line, images in batches of 64, against the floor, as many plain forward passes of the same
images; the same at the weights of the points, where a forward pass may be slower (other activations); and two other
ways, weights lent to the model for each call, and all points at once by vmap. A ViT, a smaller one, and a ResNet-18.
"""

import argparse
import copy
import sys
import time
from importlib.util import find_spec

import clearhead  # noqa: F401  (before timm)

# isort: split
import numpy as np
import timm
import torch
import torch.nn.functional as F
from timing import seconds
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from clearhead.landscape import eigenvalues, hessian
from clearhead.landscape.surface import loss_at_points, random_directions

TOP, ERROR = 5, 1e-2


def power_iteration(
    model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, tolerance: float
) -> tuple[list[float], int, float]:
    """PyHessian's values, the products it took, and the seconds."""
    from pyhessian import hessian as pyhessian

    module = sys.modules["pyhessian.hessian"]  # the name pyhessian.hessian is the class
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


def spectra(size: int, dim: int, depth: int) -> None:
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
        result = np.array(sorted(values, key=abs, reverse=True))
        return float(np.abs(result - true).max() / np.abs(true).min())

    with hessian(model, lambda: F.cross_entropy(model(images), labels)) as matrix:
        v = torch.randn(matrix.size)
        times = seconds({"forward + backward": passes, "product": lambda: matrix(v)}, 5)
    print(f"{sum(p.numel() for p in parameters):,} parameters, {torch.get_num_threads()} threads\n")
    print("| | products | s | worst relative error |\n|---|---|---|---|")
    start = time.perf_counter()
    with hessian(model, lambda: F.cross_entropy(model(images), labels)) as matrix:
        ours = eigenvalues(matrix, TOP)
    spent = time.perf_counter() - start
    print(f"| clearhead, Lanczos | {ours.products} | {spent:.1f} | {worst(ours.values):.1e} |", flush=True)
    if not find_spec("pyhessian"):
        print("\nPyHessian is not installed: its rows are omitted")
    for tolerance in (1e-2, 1e-3, 1e-4, 1e-5) if find_spec("pyhessian") else ():
        values, count, spent = power_iteration(model, images, labels, tolerance)
        print(f"| PyHessian, tol {tolerance:g} | {count} | {spent:.1f} | {worst(values):.1e} |", flush=True)
        if worst(values) <= ERROR:
            break
    print(f"\nforward + backward {times['forward + backward']:.3f} s, a product {times['product']:.3f} s: ", end="")
    print(f"{times['product'] / times['forward + backward']:.2f} of it")


def surfaces(count: int, points: int, rounds: int) -> None:
    torch.manual_seed(0)
    vit = timm.models.VisionTransformer(img_size=32, patch_size=4, embed_dim=192, depth=6, num_heads=3, num_classes=100)
    tiny = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=100)
    models = {"ViT, 2.7 M, 32 px": (vit, 32), "ViT, 32 K, 32 px": (tiny, 32)}
    models["ResNet-18, 64 px"] = (timm.create_model("resnet18", num_classes=100), 64)
    print(
        f"{count} images, {points} points, {torch.get_num_threads()} threads: images/s x points, and its share of the "
    )
    print("floor\n\n| | plain forward | plain, there | surface | lent | vmap |\n|---|---|---|---|---|---|")
    for name, (model, size) in models.items():
        times = _ways(model.eval(), torch.randn(count, 3, size, size), points, rounds)
        floor = times["plain"]
        cells = [f"{count * points / spent:.0f} ({floor / spent:.2f})" for spent in times.values()]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _ways(model: torch.nn.Module, images: torch.Tensor, points: int, rounds: int) -> dict[str, float]:
    """Seconds of each way to the logits of all points."""
    batches = [(part, torch.zeros(len(part), dtype=torch.long)) for part in images.split(64)]
    grid = torch.linspace(-1, 1, points)
    (direction,) = random_directions(model, 1)
    weights = {name: model.get_parameter(name).detach() for name in direction}

    models = [copy.deepcopy(model) for _ in grid]
    for there, x in zip(models, grid.tolist(), strict=True):
        for name in weights:
            there.get_parameter(name).data.add_(direction[name], alpha=x)

    def at(x: torch.Tensor) -> list[torch.Tensor]:
        moved = {name: p + x * direction[name] for name, p in weights.items()}
        return [functional_call(model, moved, (part,)) for part, _ in batches]

    ways = {
        "plain": lambda: [model(part) for _ in range(points) for part, _ in batches],
        "plain, there": lambda: [there(part) for there in models for part, _ in batches],
        "surface": lambda: loss_at_points(model, [direction], [(x,) for x in grid.tolist()], batches),
        "lent": lambda: [at(x) for x in grid],
        "vmap": lambda: vmap(at)(grid),
    }
    with torch.inference_mode():
        return seconds(ways, rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--surface", action="store_true")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--points", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.surface:
        surfaces(options.images, options.points, options.rounds)
    else:
        spectra(options.image_size, options.dim, options.depth)
