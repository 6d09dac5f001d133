"""How long a relevance map takes, against a plain forward and backward pass and against other ways to make one.

    python benchmarks/explain.py

A batch of 8 images of 224 px through a ViT-S/16 (random weights: time does not depend on them). The floor of GAE is the
plain forward pass and the backward pass down to the first layer's attention, plus what the maps themselves cost: for
each of 12 layers the scores q kᵀ and the gradient dO vᵀ again, 2 x 2 B H N² d = 0.48 GFLOP for this batch, 5.7 GFLOP
in all beside some 150 GFLOP of the two passes, and about five sweeps over B H N² floats (7.5 MB a sweep and layer).
"""

import argparse
import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import clearhead  # noqa: F401  (before timm and torchvision)

# isort: split
import timm
import torch
from timing import seconds, table
from torch import Tensor, nn

from clearhead.attribution import METHODS
from clearhead.models import Classifier, Preprocessing, TokenGrid

CLASSES = tuple(str(i) for i in range(1000))


def classifier(name: str, side: int, grid: TokenGrid) -> Classifier:
    module = timm.create_model(name, pretrained=False, img_size=side).eval().requires_grad_(False)
    if module.num_classes == 0:
        module.reset_classifier(1000)
    half = (0.5, 0.5, 0.5)
    return Classifier(module, name, "timm", Preprocessing((side, side), (side, side), half, half), CLASSES, grid)


def plain(module: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """A forward pass and the gradient of the target logits at the input."""
    images = images.clone().requires_grad_()
    return torch.autograd.grad(module(images).gather(1, target[:, None]).sum(), images)[0]


def unfused(module: nn.Module) -> Callable[[bool], None]:
    def switch(on: bool) -> None:
        for block in module.blocks:
            block.attn.fused_attn = not on

    return switch


def attention_of(module: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Every layer's attention, as public code gets it: fused kernels off, a hook on each softmax."""
    switch, seen = unfused(module), []
    hooks = [
        b.attn.attn_drop.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0])) for b in module.blocks
    ]
    switch(True)
    logits = module(images)
    switch(False)
    for hook in hooks:
        hook.remove()
    return seen, logits


def layer_by_layer(module: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """GAE as in the public code of arXiv 2206.01161: a backward call for each layer, the product of full matrices."""
    attention, logits = attention_of(module, images.clone().requires_grad_())
    score = logits.gather(1, target[:, None]).sum()
    relevance = torch.eye(attention[0].shape[-1]).expand(len(images), -1, -1)
    for attn in attention:
        (gradient,) = torch.autograd.grad(score, [attn], retain_graph=True)
        relevance = relevance + torch.bmm((gradient * attn).clamp(min=0).mean(1).detach(), relevance)
    return relevance[:, 0, 1:]


@torch.no_grad()
def matrix_rollout(module: nn.Module, images: Tensor) -> Tensor:
    """Rollout as the widely copied scripts do it: all attention in memory, a product of full matrices."""
    attention, _ = attention_of(module, images)
    product = torch.eye(attention[0].shape[-1])
    for attn in attention:
        step = attn.mean(1) + torch.eye(attn.shape[-1])
        product = step / step.sum(-1, keepdim=True) @ product
    return product[:, 0, 1:]


def peers(module: nn.Module, images: Tensor, target: Tensor) -> dict[str, Callable[[], object]]:
    """Other packages' methods of the same family, as their documentation has them for a ViT.

    fast-vit-rollout drops no attention (its ``discard_ratio=0``), as all others here. txv has models of its own, here a
    DeiT-S of the same layers; its generic attention mixes the images of a batch, so it gets one at a time.
    """
    from captum.attr import InputXGradient, LayerGradCam, Saliency
    from fast_vit_rollout import ViTAttentionRollout
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from txv.exp import AttentionRollout, GenericAttention
    from txv.vit import deit_small_patch16_224

    def to_grid(tensor: Tensor) -> Tensor:
        return tensor[:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2)

    layer = module.blocks[-1].norm1
    cam = GradCAM(module, [layer], reshape_transform=to_grid)
    classes = [ClassifierOutputTarget(int(t)) for t in target]

    def grad_cam() -> object:
        for parameter in layer.parameters():
            parameter.requires_grad_()
        maps = cam(images.clone().requires_grad_(), classes)
        module.requires_grad_(False)
        return maps

    eager = copy.deepcopy(module)
    unfused(eager)(True)
    fast_rollout = ViTAttentionRollout(eager, discard_ratio=0)
    their_model = deit_small_patch16_224(pretrained=False).eval()
    their_rollout, generic = AttentionRollout(their_model), GenericAttention(their_model)
    saliency, product, layer_cam = Saliency(module), InputXGradient(module), LayerGradCam(module, layer)
    return {
        "captum Saliency": lambda: saliency.attribute(images.clone().requires_grad_(), target),
        "captum InputXGradient": lambda: product.attribute(images.clone().requires_grad_(), target),
        "captum LayerGradCam (one layer)": lambda: layer_cam.attribute(images.clone().requires_grad_(), target),
        "pytorch-grad-cam GradCAM (one layer)": grad_cam,
        "fast-vit-rollout": lambda: fast_rollout(images),
        "txv AttentionRollout": lambda: their_rollout.explain(images),
        "txv GenericAttention (GAE), image by image": lambda: [
            generic.explain(image[None], index=int(t)) for image, t in zip(images, target, strict=True)
        ],
    }


def speed(rounds: int) -> None:
    torch.manual_seed(0)
    model = classifier("vit_small_patch16_224", 224, TokenGrid(14, 14, 1, "cls"))
    pixels, target = torch.rand(8, 3, 224, 224), torch.arange(8)
    images = model.normalize(pixels)  # as the module takes them: the floor and the peers do not normalise
    ours = METHODS["gae"](model, pixels, target)[0].flatten(1)
    theirs = layer_by_layer(model.module, images, target)
    difference = (ours - theirs).abs().max() / theirs.abs().max()
    candidates: dict[str, Callable[[], object]] = {
        "plain forward + input gradient": lambda: plain(model.module, images, target)
    }
    for name, method in METHODS.items():
        candidates[f"clearhead {name}"] = lambda method=method: method(model, pixels, target)
    candidates["GAE layer by layer"] = lambda: layer_by_layer(model.module, images, target)
    candidates["rollout by full matrices"] = lambda: matrix_rollout(model.module, images)
    try:
        candidates |= peers(model.module, images, target)
    except ImportError as error:
        print(f"\n{error.name} is not installed: the rows of other packages are omitted")
    times = seconds(candidates, rounds)
    print()
    table(times, "plain forward + input gradient", 8)
    print(f"\nGAE and its layer-by-layer form differ by at most {difference:.1e} of the largest value; ", end="")
    print(f"it is {times['GAE layer by layer'] / times['clearhead gae']:.1f}x faster.")


def high_water() -> float:
    """Most memory this process has held so far, in MiB (Linux; ru_maxrss would inherit the parent's)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def peak(what: str) -> None:
    """Peak memory of one candidate at 1,370 tokens, in a process of its own: MiB over what the loaded model takes."""
    model = classifier("vit_small_patch14_dinov2", 518, TokenGrid(37, 37, 1, "cls"))
    pixels, target = torch.rand(1, 3, 518, 518), torch.tensor([3])
    images = model.normalize(pixels)
    before = high_water()
    if what == "plain":
        plain(model.module, images, target)
    elif what == "layer by layer":
        layer_by_layer(model.module, images, target)
    else:
        METHODS["gae"](model, pixels, target)
    after = high_water()
    print(before, after)


def memory() -> None:
    print("| one map at 1,370 tokens (ViT-S/14, 518 px) | peak, MiB | above the loaded model, MiB |\n|---|---|---|")
    for what in ("plain", "gae", "layer by layer"):
        command = [sys.executable, __file__, "--peak", what]
        before, after = map(float, subprocess.run(command, capture_output=True, check=True, text=True).stdout.split())
        print(f"| {what} | {after:.0f} | {after - before:.0f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peak", help="measure one candidate's memory (used by the script itself)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        peak(options.peak)
    else:
        memory()
        speed(options.rounds)
