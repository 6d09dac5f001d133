"""Sufficient input subsets: how few of an image's pixels are enough for a confident answer?

Carter et al. (arXiv 1810.03805; by gradients, many pixels a step: arXiv 2003.08907). From the whole image, the pixels
that speak least for a label are taken away step by step until none is left; the subset is the smallest set of pixels
on that path from which the model gives the label with high confidence.

The paper asks for the predicted label of images that are classified with confidence. It works for any label: as what
speaks against a label goes first, the path often leads to pixels that suffice for it though the whole image does not
(as in arXiv 2206.01161, fig. 1). What suffices alone need not be what the model goes by
in the whole image.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from clearhead.errors import ClearheadError
from clearhead.models import Classifier
from clearhead.models.classifier import chosen_logit, evaluation_mode


@dataclass(frozen=True)
class Sufficient:
    """For each of B images the smallest subset of pixels on its path that suffices for a label.

    Attributes:
        subset: the pixels, B x H x W, bool. The best on the path, and of equals the smallest, where none suffices.
        share: of the pixels that are in it, B.
        confidence: probability of the label from these pixels alone, B.
        reached: whether that is the confidence asked for, B.
        target: the label of each image, B.
        kept: share of the pixels left after each step, steps + 1, from 1 to 0.
        curve: the label's probability after each step, B x (steps + 1).
        logits: of the whole images, B x classes.
    """

    subset: Tensor
    share: Tensor
    confidence: Tensor
    reached: Tensor
    target: Tensor
    kept: Tensor
    curve: Tensor
    logits: Tensor


def sis(
    model: Classifier,
    images: Tensor,
    target: Tensor | int | None = None,
    *,
    confidence: float = 0.9,
    steps: int = 50,
    memory: float = 0.9,
    fill: Literal["mean", "black"] = "mean",
) -> Sufficient:
    """Sufficient input subsets of a batch, by a forward and a backward pass a step.

    At each step the pixels of lowest gradient of the label's log odds are taken away: the order of the gradient of its
    probability p, which is p (1 - p) times as large and is lost in rounding where p is near 0 or 1.

    Two things are not the paper's, which takes 100 of 224 x 224 pixels a step, in 502 steps, by the gradient of that
    step alone. Here steps are fewer, and become smaller as less is left; and gradients of earlier steps count too
    (`memory`), without which so few steps follow the noise of a single gradient to subsets several times as large.

    Args:
        model: a classifier as ``load_model`` gives it.
        images: B x 3 x H x W, pixels in 0..1.
        target: the label: one for all, one an image (B), or None for the predicted one.
        confidence: the probability that suffices.
        steps: from the whole image to nothing.
        memory: how much the gradients of the last step count at the next, those of the one before by its square, and
            so on; 0 for none.
        fill: what is put in the place of a pixel: the mean colour that the model subtracts, or black.

    Raises:
        ClearheadError: for a target out of range, a confidence or memory outside 0..1, no steps, an unknown fill,
        images or
            logits that are not finite, or a model with a single output, which is always certain.
    """
    if not 0 < confidence <= 1:
        raise ClearheadError(f"confidence: {confidence}; a probability in 0..1 is needed, such as 0.9")
    if steps < 1:
        raise ClearheadError(f"steps: {steps}; at least 1 is needed")
    if not 0 <= memory < 1:
        raise ClearheadError(f"memory: {memory}; a share in 0..1 is needed, 0 for none")
    if not images.isfinite().all():
        raise ClearheadError("images: some pixels are NaN or infinite")
    with evaluation_mode(model.module), torch.inference_mode(False), torch.enable_grad():
        images = images.detach().clone()
        ground = _fill_colour(model, fill, images)
        batch, _, height, width = images.shape
        with torch.no_grad():
            logits, empty = model(images).float(), model(ground.expand(1, -1, height, width)).float()
        label = _labels(logits, target)
        counts = _counts(height * width, steps)
        left = torch.ones(batch, height * width, dtype=torch.bool, device=images.device)
        lasted, worth = torch.zeros_like(left, dtype=torch.long), torch.zeros_like(left, dtype=images.dtype)
        curve: list[Tensor] = []
        for count in counts[1:]:
            lasted += left
            shown = torch.where(left.view(batch, 1, height, width), images, ground).requires_grad_()
            odds = _log_odds(model(shown).float(), label)
            (gradient,) = torch.autograd.grad(odds.sum(), shown)
            curve.append(odds.detach().sigmoid())
            worth = memory * worth + (gradient * (images - ground)).sum(1).flatten(1).nan_to_num()
            best = worth.masked_fill(~left, -torch.inf).topk(count).indices
            left = torch.zeros_like(left).scatter_(1, best, True)
        curve.append(_log_odds(empty.expand(batch, -1), label).sigmoid())
    found = torch.stack(curve, 1)
    if not found.isfinite().all():
        raise ClearheadError("model: its logits on pictures with pixels taken away are not finite")
    # the last of the largest, or of those that suffice, is the smallest subset
    reached = found >= confidence
    good = torch.where(reached.any(1, keepdim=True), reached, found == found.amax(1, keepdim=True))
    step = steps - good.flip(1).long().argmax(1)
    kept = torch.tensor(counts, device=images.device) / counts[0]
    return Sufficient(
        subset=(lasted > step[:, None]).view(batch, height, width),
        share=kept[step],
        confidence=found.gather(1, step[:, None])[:, 0],
        reached=reached.any(1),
        target=label,
        kept=kept,
        curve=found,
        logits=logits,
    )


def _fill_colour(model: Classifier, fill: str, like: Tensor) -> Tensor:
    """Return the colour of a removed pixel, C x 1 x 1 in 0..1. Raises ClearheadError for an unknown fill."""
    colours = {"mean": model.preprocess.mean, "black": (0.0, 0.0, 0.0)}
    if fill not in colours:
        raise ClearheadError(f"fill: {fill!r} is unknown; choose from {', '.join(colours)}")
    return like.new_tensor(colours[fill])[:, None, None]


def _labels(logits: Tensor, target: Tensor | int | None) -> Tensor:
    """The label of each image, B; ClearheadError where there can be none."""
    if logits.shape[1] < 2:
        raise ClearheadError("model: it has a single output, whose probability is always 1; two or more are needed")
    chosen_logit(logits, target)  # raises for a target out of range
    return logits.argmax(1) if target is None else torch.as_tensor(target, device=logits.device).expand(len(logits))


def _log_odds(logits: Tensor, label: Tensor) -> Tensor:
    """log p / (1 - p) of each image's label, B: its logit less the log of the sum of the others' exponentials."""
    others = logits.scatter(1, label[:, None], -torch.inf)
    return logits.gather(1, label[:, None])[:, 0] - others.logsumexp(1)


def _counts(pixels: int, steps: int) -> list[int]:
    """How many pixels are left after each step, from all to none, in steps that become smaller."""
    return [round(pixels * (1 - i / steps) ** 1.5) for i in range(steps + 1)]
