"""Sufficient input subsets: how few of an image's pixels suffice for a confident prediction?

Carter et al. (arXiv 1810.03805; by gradients, many pixels per step: arXiv 2003.08907). From the whole image, the pixels
with the least evidence for a class are removed step by step until none is left; the subset is the smallest set of
pixels on that path from which the model predicts the class with high confidence.

The paper uses the predicted class of images that are classified with confidence. The method works for any class: as
evidence against the class is removed first, the path often leads to pixels that suffice for it although the whole image
does not (as in arXiv 2206.01161, figure 1). Pixels that suffice alone need not be what the model relies on in the whole
image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from clearhead.errors import ClearheadError
from clearhead.models.classifier import Classifier, chosen_logit, evaluation_mode
from clearhead.models.inputs import ImageLike, class_to_explain, classifier_and_pixels
from clearhead.models.source import ModelLike


@dataclass(frozen=True)
class SufficientSubset:
    """For each of B images the smallest subset of pixels on its path that suffices for a class.

    Attributes:
        subset: the pixels, B x H x W, bool. Where none suffices, the one of highest confidence, and of equal ones the
            smallest.
        share: share of the pixels that are in it, B.
        confidence: probability of the class from these pixels alone, B.
        reached: whether that is the confidence asked for, B.
        target: the class of each image, B.
        remaining: share of the pixels that remain after each step, steps + 1, from 1 to 0.
        curve: probability of the class after each step, B x (steps + 1).
        logits: of the whole images, B x classes.
    """

    subset: Tensor
    share: Tensor
    confidence: Tensor
    reached: Tensor
    target: Tensor
    remaining: Tensor
    curve: Tensor
    logits: Tensor


def sufficient_subset(
    model: ModelLike,
    images: ImageLike | Sequence[ImageLike],
    target: Tensor | int | str | None = None,
    *,
    confidence: float = 0.9,
    steps: int = 50,
    memory: float = 0.9,
    fill: Literal["mean", "black"] = "mean",
) -> SufficientSubset:
    """Return sufficient input subsets of images; one forward and one backward pass per step.

    Each step removes the pixels with the lowest gradient of the log odds of the class: the order of the gradient of its
    probability p, which is p (1 - p) times as large and is lost in rounding where p is near 0 or 1.

    Two things differ from the paper, which removes 100 of 224 x 224 pixels per step, in 502 steps, by the gradient of
    that step alone. Here steps are fewer, and become smaller as less is left; and gradients of earlier steps count too
    (`memory`), without which so few steps follow the noise of a single gradient to subsets several times as large.

    Args:
        model: a classifier, a plain module, or a name that ``load_model`` takes. It runs in eval mode, and is in its
            own mode afterwards.
        images: as for ``explain``.
        target: the class, by name or index; a tensor of one index per image (B); or None for the predicted class.
        confidence: the probability that suffices, in 0..1.
        steps: from the whole image to no pixels.
        memory: weight of the gradients of the last step at the next, of the one before its square, and so on; 0 to use
            the current gradient alone.
        fill: the colour of a removed pixel: the mean that the model subtracts, or black.

    Raises:
        ClearheadError: for a target out of range, a confidence or memory outside 0..1, no steps, an unknown fill,
            images or logits that are not finite, or a model with a single output, whose probability is always 1.
    """
    if not 0 < confidence <= 1:
        raise ClearheadError(f"confidence: {confidence}; a probability in 0..1 is needed, such as 0.9")
    if steps < 1:
        raise ClearheadError(f"steps: {steps}; at least 1 is needed")
    if not 0 <= memory < 1:
        raise ClearheadError(f"memory: {memory}; a weight from 0 to below 1 is needed, 0 for none")
    model, images = classifier_and_pixels(model, images)
    if not images.isfinite().all():
        raise ClearheadError("images: some pixels are NaN or infinite")
    with evaluation_mode(model.module), torch.inference_mode(False), torch.enable_grad():
        images = images.detach().clone()
        background = _fill_colour(model, fill, images)
        batch, _, height, width = images.shape
        with torch.no_grad():
            logits, empty = model(images).float(), model(background.expand(1, -1, height, width)).float()
        label = _labels(logits, class_to_explain(model, target))
        counts = _counts(height * width, steps)
        left = torch.ones(batch, height * width, dtype=torch.bool, device=images.device)
        lasted, evidence = torch.zeros_like(left, dtype=torch.long), torch.zeros_like(left, dtype=images.dtype)
        probabilities: list[Tensor] = []
        for count in counts[1:]:
            lasted += left
            shown = torch.where(left.view(batch, 1, height, width), images, background).requires_grad_()
            odds = _log_odds(model(shown).float(), label)
            (gradient,) = torch.autograd.grad(odds.sum(), shown)
            probabilities.append(odds.detach().sigmoid())
            evidence = memory * evidence + (gradient * (images - background)).sum(1).flatten(1).nan_to_num()
            best = evidence.masked_fill(~left, -torch.inf).topk(count).indices
            left = torch.zeros_like(left).scatter_(1, best, True)
        probabilities.append(_log_odds(empty.expand(batch, -1), label).sigmoid())
    curve = torch.stack(probabilities, 1)
    if not curve.isfinite().all():
        raise ClearheadError("model: its logits on images with removed pixels are not finite")
    # the last of the largest, or of those that suffice, is the smallest subset
    reached = curve >= confidence
    good = torch.where(reached.any(1, keepdim=True), reached, curve == curve.amax(1, keepdim=True))
    step = steps - good.flip(1).long().argmax(1)
    remaining = torch.tensor(counts, device=images.device) / counts[0]
    return SufficientSubset(
        subset=(lasted > step[:, None]).view(batch, height, width),
        share=remaining[step],
        confidence=curve.gather(1, step[:, None])[:, 0],
        reached=reached.any(1),
        target=label,
        remaining=remaining,
        curve=curve,
        logits=logits,
    )


def _fill_colour(model: Classifier, fill: str, like: Tensor) -> Tensor:
    """Return the colour of a removed pixel, C x 1 x 1 in 0..1. Raises ClearheadError for an unknown fill."""
    colours = {"mean": model.preprocess.mean, "black": (0.0, 0.0, 0.0)}
    if fill not in colours:
        raise ClearheadError(f"fill: {fill!r} is unknown; choose from {', '.join(colours)}")
    return like.new_tensor(colours[fill])[:, None, None]


def _labels(logits: Tensor, target: Tensor | int | None) -> Tensor:
    """Return the class of each image, B. Raises ClearheadError for one out of range, or a single output."""
    if logits.shape[1] < 2:
        raise ClearheadError("model: it has a single output, whose probability is always 1; two or more are needed")
    chosen_logit(logits, target)  # raises for a target out of range
    return logits.argmax(1) if target is None else torch.as_tensor(target, device=logits.device).expand(len(logits))


def _log_odds(logits: Tensor, label: Tensor) -> Tensor:
    """Return log p / (1 - p) of each image's class, B: its logit minus the log-sum-exp of the others."""
    others = logits.scatter(1, label[:, None], -torch.inf)
    return logits.gather(1, label[:, None])[:, 0] - others.logsumexp(1)


def _counts(pixels: int, steps: int) -> list[int]:
    """Return how many pixels are left after each step, from all to none, in steps that become smaller."""
    return [round(pixels * (1 - i / steps) ** 1.5) for i in range(steps + 1)]
