"""Are relevance maps true to the model? What its answer does as the pixels a map ranks are taken away.

The pixels of an image are filled tenth by tenth, the most relevant first (MIF, positive perturbation) and
the least relevant first (LIF, negative perturbation). A faithful map loses the class early with the first order and
late with the second. The same 2 x 9 images, the whole image and the completely filled one give all of it: the
top-1 curves of arXiv 2206.01161 (table 12), and deletion and insertion (RISE, arXiv 1806.07421), since to keep the top
tenth is to have removed the other nine.

Pixels are ranked once a map. Equal values are ordered at random, each image by its own draw from the seed: a map that
is the same everywhere removes pixels at random, in either direction.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from clearhead.attribution import explain, explain_with_logits
from clearhead.data.dataset import ImageIndex, require_classes
from clearhead.data.loading import ImageDataset, loader
from clearhead.errors import ClearheadError
from clearhead.metrics.statistics import Estimate, mean, mean_difference, proportion
from clearhead.models import Classifier
from clearhead.models.classifier import copied, evaluation_mode, require_not_nan

Fill = Literal["black", "mean", "blur"]
Target = Literal["predicted", "truth"]

TENTHS = 10
BLUR = 10 / 224
"""Standard deviation of the blur, as a share of the shorter side (10 pixels at 224: arXiv 1704.03296)."""
_ROUNDING = 1e-6


@dataclass(frozen=True)
class MapFaithfulness:
    """How true the maps of one method are to the model.

    Top-1 is the share of images classified as their label, whichever class is explained. Areas under its curves are
    trapezoids over the share of pixels removed, not divided by its range, as published tables have them: a model
    that is always right has 80% over 10..90% removed, and 90% over 0..90%. Intervals are over images.

    Attributes:
        mif_curve: top-1 with the most relevant 0, 10, .. 90% of the pixels removed (most important first).
        lif_curve: top-1 with the least relevant removed (least important first).
        mif_auc: area under `mif_curve` over 10..90%; lower is more faithful.
        lif_auc: area under `lif_curve` over 10..90%; higher is more faithful.
        mif_auc_from_0: over 0..90%.
        lif_auc_from_0: over 0..90%.
        gaps: of each image, in the order of the folder; two models' can be paired.
        gap: their mean, the faithfulness gap `lif_auc - mif_auc`, the main number; uninformative maps have 0.
        gap_to_best: `gap` minus that of the best method, on the same images; None for the best itself.
        deletion: area under the target's probability over 0..100%, the most relevant removed first; low is faithful.
        insertion: the same with pixels put back into the wholly filled image, the most relevant first; high is
            faithful.
        violations: the share of images whose target is more probable without the most relevant tenth than with it
            (by more than 1e-6, which rounding can do): there the map's claim that this part speaks for the class is
            refuted. The faithfulness violation test of arXiv 2201.12114 for maps without negative values.
        randomised: rank correlation (Spearman, over pixels; mean over images) of the maps with those of the same
            class by the same method when the model's parameters are at random (arXiv 1810.03292). Near 1, the maps do
            not depend on what the model has learnt. Images with a map that is the same everywhere do not count.
    """

    mif_curve: list[float]
    lif_curve: list[float]
    mif_auc: Estimate
    lif_auc: Estimate
    mif_auc_from_0: Estimate
    lif_auc_from_0: Estimate
    gaps: list[float]
    gap: Estimate
    gap_to_best: Estimate | None
    deletion: Estimate
    insertion: Estimate
    violations: Estimate
    randomised: Estimate


@dataclass(frozen=True)
class Faithfulness:
    """Methods compared on one model and folder.

    Attributes:
        fill: what removed pixels become.
        target: the class that is explained, and whose probability is watched.
        removed: the shares of pixels that the curves go over.
        methods: by name, as they were asked for.
        best: the method of the largest gap. It is chosen on these images, so of methods that are alike any may be it:
            look at the intervals of `gap_to_best`.
    """

    fill: Fill
    target: Target
    removed: list[float]
    methods: dict[str, MapFaithfulness]
    best: str


def faithfulness(
    model: Classifier,
    folder: ImageIndex,
    methods: Sequence[str],
    *,
    fill: Fill = "black",
    target: Target = "predicted",
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    progress: Callable[[Iterable, int], Iterable] | None = None,
) -> Faithfulness:
    """Compare relevance methods by what the model says when the pixels they point at are gone.

    For each method two maps an image (one of them of the randomised model) and 18 forward passes; one more an image
    for all methods together unless `fill` is black.

    Args:
        model: the classifier; it runs where its parameters are, and under the caller's autocast.
        folder: the data, as ``read_folder`` gives it.
        methods: keys of ``clearhead.attribution.METHODS``.
        fill: what a removed pixel becomes: ``black``, the ``mean`` colour of its image, or its value in the image
            blurred (Gaussian, standard deviation ``BLUR`` of the shorter side).
        target: explain the ``predicted`` class, or the one that is the ``truth``.
        batch_size: images a batch, and the most pictures a forward pass gets.
        workers: processes that load images.
        seed: of the order of equally relevant pixels, of the randomised parameters and of the bootstrap.
        track: wraps the batches to show progress: ``track(batches, count)``.

    Raises:
        ClearheadError: for no method, an unknown method, fill or target, or a method this model cannot be explained by.
        NoAttentionError: when a method needs attention and the model shows none.
        DataError: for a file that can no longer be read, or a folder that was read for other classes.
    """
    methods = _checked(methods, fill, target)
    require_classes(folder, model.classes)
    batches = loader(ImageDataset(folder, model.preprocess), batch_size, workers)
    device = next(model.module.parameters()).device
    curves: dict[str, list[Tensor]] = defaultdict(list)
    alike: dict[str, list[Tensor]] = defaultdict(list)
    with evaluation_mode(model.module):
        random = randomised(model, seed)
        for batch in progress(batches, len(batches)) if progress else batches:
            images, labels = batch["image"].to(device), batch["label"].to(device)
            # all maps before any picture: a method that this model cannot do must not cost the work of the others
            maps, logits = _maps(model, images, methods, labels if target == "truth" else None)
            chosen = labels if target == "truth" else logits.argmax(-1)
            for method, shown in maps.items():
                alike[method].append(_rank_correlation(shown, explain(random, images, chosen, method)).cpu())
            filled = _FILLS[fill](images)
            with torch.inference_mode():
                nothing = model(filled[:1] if fill == "black" else filled).expand(len(images), -1)
            whole, gone = (
                _answers(values, chosen, labels)[:, None, None].expand(-1, 2, -1, -1) for values in (logits, nothing)
            )
            shuffled = _shuffled(batch["index"].tolist(), images[0, 0].numel(), seed).to(device)
            for method, shown in maps.items():
                between = _perturbed(model, images, filled, _ranks(shown, shuffled), chosen, labels, batch_size)
                curves[method].append(torch.cat([whole, between, gone], 2).cpu())
    numbers = {method: torch.cat(parts).double().numpy() for method, parts in curves.items()}
    gaps = {method: _gap(values) for method, values in numbers.items()}
    best = max(gaps, key=lambda method: gaps[method].mean())
    found = {
        method: _summary(values, torch.cat(alike[method]).numpy(), None if method == best else gaps[best], seed)
        for method, values in numbers.items()
    }
    return Faithfulness(fill, target, [tenth / TENTHS for tenth in range(TENTHS)], found, best)


def randomised(model: Classifier, seed: int = 0) -> Classifier:
    """A copy of a model with the entries of each of its parameters in random order; buffers stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    module = copied(model.module)
    with torch.no_grad():
        for parameter in module.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return replace(model, module=module)


def _checked(methods: Sequence[str], fill: str, target: str) -> list[str]:
    """The methods, each once. Raises ClearheadError."""
    if isinstance(methods, str) or not methods:
        raise ClearheadError(f"methods: a list of one or more names is needed, got {methods!r}")
    for name, value, known in (("fill", fill, get_args(Fill)), ("target", target, get_args(Target))):
        if value not in known:
            raise ClearheadError(f"{name}: {value!r} is unknown; there is {', '.join(known)}")
    return list(dict.fromkeys(methods))


def _maps(
    model: Classifier, images: Tensor, methods: list[str], target: Tensor | None
) -> tuple[dict[str, Tensor], Tensor]:
    """The maps of each method, B x H x W, for the target or the class first predicted, and the logits."""
    first, logits = explain_with_logits(model, images, target, methods[0])
    require_not_nan(logits)
    target = logits.argmax(-1) if target is None else target
    return {methods[0]: first} | {name: explain(model, images, target, name) for name in methods[1:]}, logits


def _mean(images: Tensor) -> Tensor:
    return images.mean((2, 3), keepdim=True).expand_as(images)


def _blur(images: Tensor) -> Tensor:
    """A Gaussian along each side as a matrix; its rows sum to 1, so that nothing from outside the image comes in."""
    height, width = images.shape[-2:]
    sigma = BLUR * min(height, width)

    def weights(side: int) -> Tensor:
        place = torch.arange(side, device=images.device, dtype=torch.float32)
        return (-(((place[:, None] - place) / sigma) ** 2) / 2).softmax(-1).to(images)

    return weights(height) @ images @ weights(width).T


_FILLS: dict[Fill, Callable[[Tensor], Tensor]] = {"black": torch.zeros_like, "mean": _mean, "blur": _blur}
"""From images to what their pixels become, B x C x H x W both."""


def _shuffled(indices: list[int], pixels: int, seed: int) -> Tensor:
    """A random order of the pixels of each image, B x pixels, by its place in the folder: whatever the batches are."""
    return torch.from_numpy(np.stack([np.random.default_rng([seed, index]).permutation(pixels) for index in indices]))


def _ranks(maps: Tensor, shuffled: Tensor) -> Tensor:
    """How many pixels are less relevant than each (B x H x W to B x HW); equal ones in their shuffled order."""
    order = shuffled.gather(1, maps.flatten(1).gather(1, shuffled).argsort(stable=True, dim=1))
    places = torch.arange(order.shape[1], device=order.device)
    return torch.empty_like(order).scatter_(1, order, places.expand_as(order))


@torch.inference_mode()
def _perturbed(
    model: Classifier,
    images: Tensor,
    filled: Tensor,
    ranks: Tensor,
    chosen: Tensor,
    labels: Tensor,
    batch_size: int,
) -> Tensor:
    """The model's answers with 10, 20 .. 90% of the pixels filled, B x 2 (most, least relevant first) x 9 x 2.

    Removed are the pixels of rank low <= r < high. All pictures of the batch form one queue, so that its last images
    too go through the model in full batches.
    """
    pixels = ranks.shape[1]
    counts = torch.arange(1, TENTHS, device=images.device) * pixels // TENTHS
    low, high = torch.cat([pixels - counts, 0 * counts]), torch.cat([0 * counts + pixels, counts])
    answers = []
    for jobs in torch.arange(len(images) * len(low), device=images.device).split(batch_size):
        image, step = jobs // len(low), jobs % len(low)
        rank = ranks[image]
        gone = (rank >= low[step, None]) & (rank < high[step, None])
        pictures = torch.where(gone.view(-1, 1, *images.shape[-2:]), filled[image], images[image])
        answers.append(_answers(model(pictures), chosen[image], labels[image]))
    return torch.cat(answers).view(len(images), 2, TENTHS - 1, 2)


def _answers(logits: Tensor, chosen: Tensor, labels: Tensor) -> Tensor:
    """The probability of the chosen class and whether the label is predicted (1 or 0), B x 2."""
    probability = logits.float().softmax(-1).gather(1, chosen[:, None])[:, 0]
    return torch.stack([probability, (logits.argmax(-1) == labels).float()], 1)


def _rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's correlation over the pixels of each pair of maps (B x H x W), B; NaN where a map is constant."""

    def centred(maps: Tensor) -> Tensor:
        """Ranks less their mean, equal values sharing the average of theirs, as a share of the number of pixels."""
        values, order = maps.flatten(1).sort(1)
        below, upto = (torch.searchsorted(values, values, right=right) for right in (False, True))
        pixels = values.shape[1]
        return torch.zeros_like(values, dtype=torch.float32).scatter_(1, order, (below + upto - pixels) / (2 * pixels))

    a, b = centred(first), centred(second)
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()


def _area(curve: np.ndarray) -> np.ndarray:
    return np.trapezoid(curve, dx=1 / TENTHS, axis=-1)


def _gap(curves: np.ndarray) -> np.ndarray:
    """Return the faithfulness gap LIF - MIF of each image over 10..90% removed, from curves N x 2 x 11 x 2."""
    mif, lif = _area(curves[:, :, 1:-1, 1]).T
    return lif - mif


def _summary(curves: np.ndarray, alike: np.ndarray, best: np.ndarray | None, seed: int) -> MapFaithfulness:
    """The numbers of one method from its answers, N x 2 (most, least relevant first) x 11 shares removed x 2."""
    probability, right = curves[..., 0], curves[:, :, :-1, 1]
    gap = _gap(curves)
    mif_auc, lif_auc = (mean(values, "%", seed) for values in _area(right[:, :, 1:]).T)
    mif_auc_from_0, lif_auc_from_0 = (mean(values, "%", seed) for values in _area(right).T)
    deletion, insertion = (mean(values, "%", seed) for values in _area(probability).T)
    return MapFaithfulness(
        mif_curve=right[:, 0].mean(0).tolist(),
        lif_curve=right[:, 1].mean(0).tolist(),
        mif_auc=mif_auc,
        lif_auc=lif_auc,
        mif_auc_from_0=mif_auc_from_0,
        lif_auc_from_0=lif_auc_from_0,
        gaps=gap.tolist(),
        gap=mean(gap, "pp", seed),
        gap_to_best=None if best is None else mean_difference(best, gap, "pp", seed),
        deletion=deletion,
        insertion=insertion,
        violations=proportion(probability[:, 0, 1] > probability[:, 0, 0] + _ROUNDING),
        randomised=mean(alike[~np.isnan(alike)], seed=seed),
    )
