"""What a repair step costs, against a plain training step and against the public recipe's step.

    python benchmarks/repair.py

A batch of 8 images of 224 px, ViT-S/16, all parameters trained, AdamW. The public code of arXiv 2206.01161 makes one
backward call a layer for the map, multiplies full matrices, runs the model a second time for the classification term
and the original model once. Here: one forward pass, one backward pass to the heads' outputs, one for the loss.

GradMask and RRR differentiate a gradient at the pixels. The floor in units of a forward pass, with a backward pass as
2: forward 1, gradient at the pixels 1 (the weights' own gradients are not made), its backward pass 2 x 2; 6 against the
3 of a plain step.
"""

import argparse
import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from explain import attention_of, classifier
from timing import seconds, table

from clearhead.attribution import scale
from clearhead.models import TokenGrid
from clearhead.repairs import GradMaskLoss, RelevanceLoss, RRRLoss


def main(rounds: int) -> None:
    torch.manual_seed(0)
    model = classifier("vit_small_patch16_224", 224, TokenGrid(14, 14, 1, "cls"))
    original = copy.deepcopy(model.module)
    module = model.module.requires_grad_(True)
    optimizer = torch.optim.AdamW(module.parameters(), 1e-6)
    mask = torch.zeros(8, 1, 224, 224)
    mask[:, :, 60:170, 40:180] = 1
    labels = torch.arange(8)
    pixels = torch.rand(8, 3, 224, 224)
    images = model.normalize(pixels)  # as the module takes them: the plain step and the recipe do not normalise
    batch = {"image": pixels, "label": labels, "mask": mask, "has_mask": torch.ones(8) > 0}

    def step(loss: Callable[[], torch.Tensor]) -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    def recipe() -> torch.Tensor:
        attention, logits = attention_of(module, images)
        score = logits.gather(1, labels[:, None]).sum()
        relevance = torch.eye(attention[0].shape[-1]).expand(8, -1, -1)
        for attn in attention:
            (gradient,) = torch.autograd.grad(score, [attn], retain_graph=True)
            relevance = relevance + torch.bmm((gradient.detach() * attn).clamp(min=0).mean(1), relevance)
        maps = scale(relevance[:, 0, 1:].unflatten(1, (14, 14)), (224, 224))
        inside = mask[:, 0]
        background, foreground = F.mse_loss(maps * (1 - inside), 0 * inside), F.mse_loss(maps * inside, inside)
        output = module(images)
        with torch.no_grad():
            original(images)  # the public code compares the two models' predictions at every step
        return 0.8 * (2 * background + 0.3 * foreground) + 0.2 * F.cross_entropy(output, output.argmax(-1))

    candidates: dict[str, Callable[[], object]] = {
        "plain training step": lambda: step(lambda: F.cross_entropy(module(images), labels)),
        "clearhead repair step": lambda: step(lambda: RelevanceLoss()(model, batch)["loss"]),
        "clearhead repair step, second order": lambda: step(
            lambda: RelevanceLoss(second_order=True)(model, batch)["loss"]
        ),
        "GradMask step": lambda: step(lambda: GradMaskLoss()(model, batch)["loss"]),
        "RRR step": lambda: step(lambda: RRRLoss()(model, batch)["loss"]),
        "public recipe step": lambda: step(recipe),
    }
    times = seconds(candidates, rounds)
    table(times, "plain training step", 8)
    print(f"\nclearhead / public recipe: {times['clearhead repair step'] / times['public recipe step']:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    main(options.rounds)
