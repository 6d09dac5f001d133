"""What do feature maps' frequencies and variance, and lesions of every branch, cost against plain forward passes?

    python benchmarks/layers.py [--model vit_small_patch16_224] [--image-size 224] [--batch 8] [--rounds 5]

A timm model of random weights on random images, in float32. The floor of the first is a plain forward pass. Hooks that
keep the output of every block, and then ``fft2`` and ``var``, are the usual way; they measure the blocks alone, half of
a transformer's branches. The floor of lesions is, for each branch, a forward pass from that branch on: half of one.
"""

import argparse

import clearhead  # noqa: F401  (before timm)

# isort: split
import timm
import torch
from timing import seconds, table
from torch import Tensor

from clearhead.analyses.fourier import log_amplitudes, variances
from clearhead.analyses.lesion import whole, without
from clearhead.layers import find_branches, flatten_positions, group_blocks, hooked_forward, repeatable_forward
from clearhead.models import Classifier, Preprocessing, from_module


def main(name: str, size: int, batch: int, rounds: int) -> None:
    torch.manual_seed(0)
    module = timm.create_model(name, img_size=size) if "vit" in name or "swin" in name else timm.create_model(name)
    half = (0.5, 0.5, 0.5)
    preprocess = Preprocessing((size, size), (size, size), half, half)
    model = from_module(module.eval(), preprocess=preprocess, classes=[str(i) for i in range(module.num_classes)])
    with repeatable_forward(model):  # otherwise each call sets the mode of the model again
        compare(name, model, torch.rand(batch, 3, size, size), rounds)


def compare(name: str, model: Classifier, pixels: Tensor, rounds: int) -> None:
    module, batch, branches = model.module, len(pixels), find_branches(model)
    images = model.normalize(pixels)  # as the module takes them: a plain pass and hooks do not normalise
    blocks = [module.get_submodule(branches[block[-1]].module) for block in group_blocks(branches)]

    @torch.inference_mode()
    def plain() -> None:
        module(images)

    def measured() -> None:
        def at(i, value, _shortcut):
            made = value()
            if layout := branches[i].layout:
                x = flatten_positions(made, layout)
                log_amplitudes(x, layout.height, layout.width), variances(x)
            return made

        hooked_forward(model, pixels, branches, at)

    def watched() -> None:
        hooked_forward(model, pixels, branches, lambda _i, value, _shortcut: value())

    @torch.inference_mode()
    def hooked() -> None:
        outputs = []
        handles = [block.register_forward_hook(lambda _m, _i, output: outputs.append(output)) for block in blocks]
        module(images)
        for block, made in zip(group_blocks(branches), outputs, strict=True):
            layout = branches[block[-1]].layout
            x = flatten_positions(made, layout).unflatten(1, (layout.height, layout.width))
            torch.fft.fftshift(torch.fft.fft2(x, dim=(1, 2)), (1, 2)).abs().add(1e-6).log().mean((0, 3))
            x.flatten(1, 2).var(1).mean()
        for handle in handles:
            handle.remove()

    candidates = {"plain forward": plain, "stopping at every branch": watched}
    candidates |= {"frequencies and variance": measured, "by hooks, fft2 and var": hooked}
    print(f"{name}, {len(branches)} branches, {torch.get_num_threads()} threads\n")
    table(seconds(candidates, rounds), "plain forward", batch)

    residual = [branch for branch in branches if branch.type != "embed"]

    def from_the_start() -> None:
        for i in range(len(residual)):
            without(model, pixels, residual, [i])

    def resumed() -> None:
        starts = whole(model, pixels, residual)[1]
        for i in range(len(residual)):
            without(model, pixels, residual, [i], starts)

    def passes() -> None:
        for _ in residual:
            plain()

    print(f"\nlesions of {len(residual)} branches\n")
    candidates = {
        "as many plain forwards": passes,
        "from the start": from_the_start,
        "resumed from the branch": resumed,
    }
    table(seconds(candidates, max(1, rounds // 3)), "as many plain forwards", batch)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    main(options.model, options.image_size, options.batch, options.rounds)
