"""What looking at single heads costs, against a plain pass and against one pass for each head.

    python benchmarks/heads.py

Per-head input gradients: a batch of 8 at 224 px, ViT-S/16 (6 heads). The floor is the plain forward and backward pass;
what a layer adds is its attention's backward pass once more and one product with the q, k, v weights, 2 B N 3D D = 1.4
GFLOP beside some 150. A training step with the diversity loss: batch 80, the model of the MNIST-CIFAR experiments;
its floor is a second backward pass through the last block. Exhaustive selection: the 4,095 subsets of a ViT-B/16's last
12 heads; the floor is the last block's 12 D² products for one token, 4,095 times, which is 1.7 forward passes.
"""

import argparse
from collections.abc import Callable

import clearhead  # noqa: F401  (before timm and torchvision)

# isort: split
import torch
import torch.nn.functional as F
from explain import classifier, plain
from timing import seconds, table
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from clearhead.attention_tap import tap
from clearhead.heads import DiversityLoss, head_gradients
from clearhead.heads.diversity import diversity_loss
from clearhead.heads.head_masking import HeadMask, attention_layers, head_mask_runner
from clearhead.models import Classifier, Preprocessing, TokenGrid
from clearhead.zoo import mnist_cifar_vit


def one_by_one(module: nn.Module, images: Tensor, layer: int, differentiable: bool = False) -> Tensor:
    """A forward and a backward pass for each head, the others detached at the layer's output."""
    result = []
    for head in range(module.blocks[layer].attn.num_heads):

        def only(o: Tensor, head: int = head) -> Tensor:
            keep = torch.zeros(o.shape[1], 1, 1)
            keep[head] = 1
            return o * keep + (o * (1 - keep)).detach()

        position = layer % len(module.blocks)
        with tap(module, heads={position: only}) as record:
            logits = module(images)
        call = record[position]
        parts = (call.q, call.k, call.v)
        keep_graph = {"create_graph": differentiable, "retain_graph": True}
        through = torch.autograd.grad(logits.max(-1).values.sum(), parts, **keep_graph)
        result.append(torch.autograd.grad(parts, call.input, through, **keep_graph)[0])
    return torch.stack(result, 1)


def gradients(rounds: int) -> None:
    model = classifier("vit_small_patch16_224", 224, TokenGrid(14, 14, 1, "cls"))
    pixels, target = torch.rand(8, 3, 224, 224), torch.arange(8)
    images = model.normalize(pixels)  # as the module takes them: the floor and the masked passes do not normalise
    with_grad = images.clone().requires_grad_()
    ours, theirs = head_gradients(model, pixels)[0][0], one_by_one(model.module, with_grad, -1)
    candidates: dict[str, Callable[[], object]] = {
        "plain forward + input gradient": lambda: plain(model.module, images, target),
        "all heads, last layer": lambda: head_gradients(model, pixels),
        "all heads, first layer": lambda: head_gradients(model, pixels, [0]),
        "all heads, all 12 layers": lambda: head_gradients(model, pixels, "all"),
        "6 masked passes, last layer": lambda: one_by_one(model.module, with_grad, -1),
        "6 masked passes, first layer": lambda: one_by_one(model.module, with_grad, 0),
    }
    times = seconds(candidates, rounds)
    table(times, "plain forward + input gradient", 8)
    print(
        f"\nThey differ by at most {(ours - theirs).abs().max() / theirs.abs().max():.1e} of the largest value; ",
        end="",
    )
    for layer in ("last", "first"):
        print(
            f"{times[f'6 masked passes, {layer} layer'] / times[f'all heads, {layer} layer']:.1f}x faster ({layer}); ",
            end="",
        )
    print("\n")


def training(rounds: int) -> None:
    module = mnist_cifar_vit()
    half = (0.5, 0.5, 0.5)
    model = Classifier(module, "mnist-cifar", "module", Preprocessing((64, 32), (64, 32), half, half), ("a", "b"))
    optimizer = torch.optim.Adam(module.parameters(), 1e-4)
    batch = {"image": torch.rand(80, 3, 64, 32), "label": torch.arange(80) % 2}
    images = model.normalize(batch["image"])

    def step(loss: Callable[[], Tensor]) -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    def naive() -> Tensor:
        logits = module(images)
        with sdpa_kernel(SDPBackend.MATH):  # the only one that has a second derivative
            penalty = diversity_loss(one_by_one(module, images, -1, differentiable=True))
        return F.cross_entropy(logits, batch["label"]) + 6.25 * penalty

    candidates: dict[str, Callable[[], object]] = {
        "ERM step": lambda: step(lambda: F.cross_entropy(module(images), batch["label"])),
        "diversity step, last layer": lambda: step(lambda: DiversityLoss()(model, batch)["loss"]),
        "diversity step, 4 masked passes": lambda: step(naive),
    }
    table(seconds(candidates, rounds), "ERM step", 80)
    print()


def selection(images: int) -> None:
    model = classifier("vit_base_patch16_224", 224, TokenGrid(14, 14, 1, "cls"))
    pixels = torch.rand(images, 3, 224, 224)
    inputs = model.normalize(pixels)
    layer = attention_layers(model, pixels)[-1]
    ready = head_mask_runner(model, layer, pixels)
    subsets = torch.tensor([[i >> h & 1 for h in range(12)] for i in range(1, 4096)], dtype=torch.float32)

    @torch.no_grad()
    def evaluate() -> None:
        for part in inputs.split(8):
            model.module(part).argmax(-1)

    def search() -> None:
        for part in pixels.split(8):
            ready.logits(part, HeadMask(subsets)).argmax(-1)

    times = seconds({"one evaluation": evaluate, "all 4,095 subsets of the last layer": search}, 2)
    table(times, "one evaluation", images)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--images", type=int, default=32, help="of the selection")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    gradients(options.rounds)
    training(4 * options.rounds)
    selection(options.images)
