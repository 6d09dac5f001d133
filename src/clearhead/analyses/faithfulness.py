"""Faithfulness of relevance maps: how the prediction changes as the pixels a map ranks are removed.

The pixels of an image are filled a tenth at a time, the most relevant first (MIF, positive perturbation) and the least
relevant first (LIF, negative perturbation). A faithful map loses the class early in the first order and late in the
second. The same 2 x 9 images, the whole image and the completely filled one yield all numbers: the top-1 curves of
arXiv 2206.01161 (table 12), and deletion and insertion (RISE, arXiv 1806.07421), since keeping the top tenth means
removing the other nine.

Pixels are ranked once per map. Equal values are ordered at random, for each image by its own draw from the seed: a
constant map removes pixels at random in either direction.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clearhead.analyses.each_model import measure_each
from clearhead.analyses.subject import Subject, subject_of
from clearhead.attribution import explain, explain_with_logits, list_methods
from clearhead.data.images import DataLike, as_image_index
from clearhead.data.loading import ImageDataset, loader
from clearhead.data.splits import sample_n
from clearhead.errors import ClearheadError
from clearhead.metrics.statistics import Estimate, mean, mean_difference, proportion
from clearhead.models import Classifier
from clearhead.models.classifier import copied, evaluation_mode, require_not_nan
from clearhead.models.source import ModelLike, as_classifier, display_names, require_same_classes
from clearhead.options import BatchSize, Limit, Methods, Option, Seed, Split, Workers
from clearhead.prediction.predict import default_method
from clearhead.progress import Progress, track
from clearhead.report import plots
from clearhead.report.page import Cell, Figure, Page, Row, Section, Table

Array = npt.NDArray[Any]
Fill = Literal["black", "mean", "blur"]
Target = Literal["predicted", "truth"]

TENTHS = 10
BLUR = 10 / 224
"""Standard deviation of the blur, as a fraction of the shorter side (10 pixels at 224: arXiv 1704.03296)."""
_ROUNDING = 1e-6


@dataclass(frozen=True)
class MapFaithfulness:
    """Faithfulness of the maps of one method.

    Top-1 is the fraction of images classified as their label, whichever class is explained. Areas under its curves are
    trapezoids over the fraction of pixels removed, not divided by its range, as in published tables: a model that is
    always correct has 80% over 10..90% removed, and 90% over 0..90%. Intervals are over images.

    Attributes:
        mif_curve: top-1 with the most relevant 0, 10, .. 90% of the pixels removed (most important first).
        lif_curve: top-1 with the least relevant removed (least important first).
        mif_auc: area under `mif_curve` over 10..90%; lower is more faithful.
        lif_auc: area under `lif_curve` over 10..90%; higher is more faithful.
        mif_auc_from_0: over 0..90%.
        lif_auc_from_0: over 0..90%.
        gaps: the gap of each image, in the order of the data; those of two models can be paired.
        gap: their mean, the faithfulness gap `lif_auc - mif_auc`, the main number; uninformative maps have 0.
        gap_to_best: `gap` minus that of the best method, on the same images; None for the best itself.
        deletion: area under the target's probability over 0..100%, the most relevant removed first; lower is more
            faithful.
        insertion: the same with pixels restored into the completely filled image, the most relevant first; higher is
            more faithful.
        violations: fraction of images whose target is more probable without the most relevant tenth than with it (by
            more than 1e-6, which rounding can cause): this refutes the map's claim that this part supports the class.
            The faithfulness violation test of arXiv 2201.12114 for maps without negative values.
        randomised: parameter-randomisation check (arXiv 1810.03292): rank correlation (Spearman, over pixels; mean
            over images) with the maps of the same class by the same method after the model's parameters are shuffled.
            Near 1, the maps do not depend on what the model has learned. Images with a constant map do not count.
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
    """Attribution methods compared on one model.

    Attributes:
        fill: value of removed pixels.
        target: the class that is explained and whose probability is measured.
        removed: fractions of pixels removed along the curves.
        methods: by name, in the order requested.
        best: the method with the largest gap. It is selected on these images, so among similar methods any may be the
            best: see the intervals of `gap_to_best`.
    """

    fill: Fill
    target: Target
    removed: list[float]
    methods: dict[str, MapFaithfulness]
    best: str


@dataclass(frozen=True)
class FaithfulnessResult:
    """Faithfulness of several models on the same images.

    Attributes:
        subject: models and data.
        models: by name; the first is the baseline.
        gap_change: by model except the first, then method: its faithfulness gap minus that of the first model, paired.
    """

    subject: Subject
    models: dict[str, Faithfulness]
    gap_change: dict[str, dict[str, Estimate]]


def measure(
    models: Sequence[ModelLike],
    data: DataLike,
    *,
    split: Split = None,
    limit: Limit = None,
    methods: Methods = None,
    fill: Annotated[
        Literal["black", "mean", "blur"],
        Option("Value of removed pixels: black, the mean colour of the image, or the blurred image."),
    ] = "black",
    target: Annotated[Literal["predicted", "truth"], Option("Class to explain.")] = "predicted",
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    seed: Seed = 0,
    progress: Progress | None = None,
    state: Path | None = None,
) -> FaithfulnessResult:
    """Measure how faithful attribution methods are, by removing the pixels they rank highest and lowest.

    With several models, the others are compared with the first, image by image.

    Example:
        $ clearhead faithfulness timm:vit_small_patch16_224 DATA --methods all

    Args:
        models: classifiers or names, all of the same classes.
        data: the images: a folder, another source, or an index.
        methods: keys of ``clearhead.attribution.METHODS``; None is each model's default, ``["all"]`` all it supports.
        fill: value of removed pixels.
        target: explain the ``predicted`` class, or the one that is the ``truth``.
        batch_size: images per batch, and the most images in a forward pass.

    The other arguments are described in ``clearhead.options``.

    Raises:
        ModelError: for models of different classes.
        ClearheadError: for an unknown method, fill or target, or a method that a model does not support.
        DataError: for data that cannot be used.
    """
    classes = require_same_classes(models)
    index = sample_n(as_image_index(data, classes=classes, split=split), limit, seed)
    names = display_names(models)
    options: dict[str, Any] = {"methods": methods, "fill": fill, "target": target, "seed": seed}
    options |= {"batch_size": batch_size, "workers": workers, "progress": progress, "state": state}
    by_name = dict(zip(names, models, strict=True))
    results, _ = measure_each(faithfulness, Faithfulness, by_name, index, **options)
    baseline = results[names[0]].methods
    change = {
        name: {
            method: mean_difference(np.array(baseline[method].gaps), np.array(numbers.gaps), "pp", seed)
            for method, numbers in results[name].methods.items()
            if method in baseline
        }
        for name in names[1:]
    }
    return FaithfulnessResult(subject_of(names, index, data, split), results, change)


def faithfulness(
    model: ModelLike,
    data: DataLike,
    methods: Sequence[str] | None = None,
    *,
    fill: Fill = "black",
    target: Target = "predicted",
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Faithfulness:
    """Compare attribution methods on one model by its predictions without the pixels they rank highest or lowest.

    For each method this takes two maps per image (one of them of the randomised model) and 18 forward passes; and one
    forward pass per image for all methods together unless `fill` is black.

    Args:
        model: the classifier; it runs on the device of its parameters, and under the caller's autocast.
        data: the images: a folder, another source, or an index.
        methods: keys of ``clearhead.attribution.METHODS``; None is the model's default, ``["all"]`` all it supports.
        fill: value of a removed pixel: ``black``, the ``mean`` colour of its image, or its value in the blurred image
            (Gaussian, standard deviation ``BLUR`` of the shorter side).
        target: explain the ``predicted`` class, or the one that is the ``truth``.
        batch_size: images per batch, and the most images in a forward pass.
        workers: data-loading processes.
        seed: of the order of equally relevant pixels, of the randomised parameters and of the bootstrap.
        progress: shows progress.

    Raises:
        ClearheadError: for no method, an unknown method, fill or target, or a method that the model does not support.
        NoAttentionError: when a method needs attention and the model has none.
        DataError: for a file that cannot be read, or an index read for other classes.
    """
    model = as_classifier(model)
    methods = _require_known(methods_of(model, methods), fill, target)
    index = as_image_index(data, classes=model.classes)
    batches = loader(ImageDataset(index, model.preprocess), batch_size, workers)
    device = model.device
    curves: dict[str, list[Tensor]] = defaultdict(list)
    correlations: dict[str, list[Tensor]] = defaultdict(list)
    with evaluation_mode(model.module):
        random = randomised(model, seed)
        for batch in track(batches, progress, "faithfulness"):
            images, labels = batch["image"].to(device), batch["label"].to(device)
            # all maps before any perturbation: a method that the model does not support fails early
            maps, logits = _maps(model, images, methods, labels if target == "truth" else None)
            explained = labels if target == "truth" else logits.argmax(-1)
            for method, values in maps.items():
                correlations[method].append(_rank_correlation(values, explain(random, images, explained, method)).cpu())
            filled = _FILLS[fill](images)
            with torch.inference_mode():
                empty = model(filled[:1] if fill == "black" else filled).expand(len(images), -1)
            first, last = (
                _scores(values, explained, labels)[:, None, None].expand(-1, 2, -1, -1) for values in (logits, empty)
            )
            shuffled = _shuffled(batch["index"].tolist(), images[0, 0].numel(), seed).to(device)
            for method, values in maps.items():
                between = _perturbed(model, images, filled, _ranks(values, shuffled), explained, labels, batch_size)
                curves[method].append(torch.cat([first, between, last], 2).cpu())
    numbers = {method: torch.cat(parts).double().numpy() for method, parts in curves.items()}
    gaps = {method: _gap(values) for method, values in numbers.items()}
    best = max(gaps, key=lambda method: gaps[method].mean())
    summaries = {
        method: _summary(values, torch.cat(correlations[method]).numpy(), None if method == best else gaps[best], seed)
        for method, values in numbers.items()
    }
    return Faithfulness(fill, target, [tenth / TENTHS for tenth in range(TENTHS)], summaries, best)


def methods_of(model: Classifier, methods: Sequence[str] | None) -> Sequence[str]:
    """Return the methods requested: the model's default for None, all that it supports for ``["all"]``."""
    if methods is None:
        return [default_method(model)]
    return list_methods(model) if list(methods) == ["all"] else methods


def randomised(model: Classifier, seed: int = 0) -> Classifier:
    """Return a copy of a model with the entries of each of its parameters in random order; buffers are unchanged."""
    generator = torch.Generator().manual_seed(seed)
    module = copied(model.module)
    with torch.no_grad():
        for parameter in module.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return replace(model, module=module)


def _require_known(methods: Sequence[str], fill: str, target: str) -> list[str]:
    """Return the methods without repetitions. Raises ClearheadError for no method, an unknown fill or target."""
    if isinstance(methods, str) or not methods:
        raise ClearheadError(f"methods: got {methods!r}; give a list of one or more names")
    for name, value, choices in (("fill", fill, get_args(Fill)), ("target", target, get_args(Target))):
        if value not in choices:
            raise ClearheadError(f"{name}: {value!r} is unknown; choose from {', '.join(choices)}")
    return list(dict.fromkeys(methods))


def _maps(
    model: Classifier, images: Tensor, methods: list[str], target: Tensor | None
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the maps of each method, B x H x W, for the target or else the predicted class, and the logits."""
    first, logits = explain_with_logits(model, images, target, methods[0])
    require_not_nan(logits)
    target = logits.argmax(-1) if target is None else target
    return {methods[0]: first} | {name: explain(model, images, target, name) for name in methods[1:]}, logits


def _mean(images: Tensor) -> Tensor:
    return images.mean((2, 3), keepdim=True).expand_as(images)


def _blur(images: Tensor) -> Tensor:
    """Return images blurred by a Gaussian; weights are renormalised at the border, so nothing outside leaks in."""
    height, width = images.shape[-2:]
    sigma = BLUR * min(height, width)

    def weights(side: int) -> Tensor:
        position = torch.arange(side, device=images.device, dtype=torch.float32)
        return (-(((position[:, None] - position) / sigma) ** 2) / 2).softmax(-1).to(images)

    return weights(height) @ images @ weights(width).T


_FILLS: dict[Fill, Callable[[Tensor], Tensor]] = {"black": torch.zeros_like, "mean": _mean, "blur": _blur}
"""From images to the values of their removed pixels, B x C x H x W both."""


def _shuffled(indices: list[int], pixels: int, seed: int) -> Tensor:
    """Return a random order of the pixels of each image, B x pixels, by its index: independent of the batches."""
    return torch.from_numpy(np.stack([np.random.default_rng([seed, index]).permutation(pixels) for index in indices]))


def _ranks(maps: Tensor, shuffled: Tensor) -> Tensor:
    """Return how many pixels are less relevant than each (B x H x W to B x HW); ties go by the shuffled order."""
    order = shuffled.gather(1, maps.flatten(1).gather(1, shuffled).argsort(stable=True, dim=1))
    ranks = torch.arange(order.shape[1], device=order.device)
    return torch.empty_like(order).scatter_(1, order, ranks.expand_as(order))


@torch.inference_mode()
def _perturbed(
    model: Classifier,
    images: Tensor,
    filled: Tensor,
    ranks: Tensor,
    explained: Tensor,
    labels: Tensor,
    batch_size: int,
) -> Tensor:
    """Return the scores with 10, 20 .. 90% of the pixels filled, B x 2 (most, least relevant first) x 9 x 2.

    Pixels of rank low <= r < high are removed. All perturbed images of the batch form one queue, so that those of its
    last images too go through the model in full batches.
    """
    pixels = ranks.shape[1]
    counts = torch.arange(1, TENTHS, device=images.device) * pixels // TENTHS
    low, high = torch.cat([pixels - counts, 0 * counts]), torch.cat([0 * counts + pixels, counts])
    scores, count = [], len(images) * len(low)
    for start in range(0, count, batch_size):
        jobs = torch.arange(start, min(start + batch_size, count), device=images.device)
        image, step = jobs // len(low), jobs % len(low)
        rank = ranks[image]
        removed = (rank >= low[step, None]) & (rank < high[step, None])
        perturbed = torch.where(removed.view(-1, 1, *images.shape[-2:]), filled[image], images[image])
        scores.append(_scores(model(perturbed), explained[image], labels[image]))
    return torch.cat(scores).view(len(images), 2, TENTHS - 1, 2)


def _scores(logits: Tensor, explained: Tensor, labels: Tensor) -> Tensor:
    """Return the probability of the explained class and whether the label is predicted (1 or 0), B x 2."""
    probability = logits.float().softmax(-1).gather(1, explained[:, None])[:, 0]
    return torch.stack([probability, (logits.argmax(-1) == labels).float()], 1)


def _rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Spearman's correlation over the pixels of each pair of maps (B x H x W), B; NaN for a constant map."""

    def centred(maps: Tensor) -> Tensor:
        """Return ranks minus their mean, ties at their average rank, as a fraction of the number of pixels."""
        values, order = maps.flatten(1).sort(1)
        below, up_to = (torch.searchsorted(values, values, side=side) for side in ("left", "right"))
        pixels = values.shape[1]
        return torch.zeros_like(values, dtype=torch.float32).scatter_(1, order, (below + up_to - pixels) / (2 * pixels))

    a, b = centred(first), centred(second)
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()


def _area(curve: Array) -> Array:
    area: Array = np.trapezoid(curve, dx=1 / TENTHS, axis=-1)
    return area


def _gap(curves: Array) -> Array:
    """Return the faithfulness gap LIF - MIF of each image over 10..90% removed, from curves N x 2 x 11 x 2."""
    mif_and_lif = _area(curves[:, :, 1:-1, 1])
    return np.diff(mif_and_lif)[:, 0]


def _summary(curves: Array, correlation: Array, best: Array | None, seed: int) -> MapFaithfulness:
    """Return the numbers of one method from its scores, N x 2 (most, least relevant first) x 11 fractions x 2."""
    probability, correct = curves[..., 0], curves[:, :, :-1, 1]
    gap = _gap(curves)
    mif_auc, lif_auc = (mean(values, "%", seed) for values in _area(correct[:, :, 1:]).T)
    mif_auc_from_0, lif_auc_from_0 = (mean(values, "%", seed) for values in _area(correct).T)
    deletion, insertion = (mean(values, "%", seed) for values in _area(probability).T)
    return MapFaithfulness(
        mif_curve=correct[:, 0].mean(0).tolist(),
        lif_curve=correct[:, 1].mean(0).tolist(),
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
        randomised=mean(correlation[~np.isnan(correlation)], seed=seed),
    )


def page(result: FaithfulnessResult) -> Page:
    """Show the areas of every model and method, the change from the first model, the curves and the other tests."""
    first = next(iter(result.models.values()))
    sections: list[Section] = [_area_table(result)]
    for model, changes in result.gap_change.items():
        rows = [Row(method, [change]) for method, change in changes.items()]
        text = f"Faithfulness gap of {model} - that of {result.subject.model}, paired image by image."
        sections.append(Table(f"Change of the faithfulness gap: {model}", ["difference"], rows, text, names="method"))
    for model, numbers in result.models.items():
        sections += _curves(numbers, f": {model}" if len(result.models) > 1 else "")
    sections.append(_other_tests(result))
    explained = "predicted" if first.target == "predicted" else "true"
    return Page(
        f"{result.subject.listed()}: faithfulness of relevance maps",
        f"{result.subject.images:,} images of {result.subject.data}; maps of the {explained} class; removed pixels "
        f"become {_FILL_TEXT[first.fill]}.",
        sections=sections,
    )


_FILL_TEXT: dict[Fill, str] = {
    "black": "black",
    "mean": "the mean colour of the image",
    "blur": "those of the blurred image",
}


def _rows(result: FaithfulnessResult, cells: Callable[[MapFaithfulness], Sequence[Cell]]) -> list[Row]:
    several = len(result.models) > 1
    return [
        Row(f"{model}, {method}" if several else method, cells(numbers))
        for model, one in result.models.items()
        for method, numbers in one.methods.items()
    ]


def _area_table(result: FaithfulnessResult) -> Table:
    rows = _rows(result, lambda m: [m.mif_auc, m.lif_auc, m.gap, m.gap_to_best or "the best"])
    text = (
        "MIF AUC and LIF AUC: area under top-1 accuracy over 10 to 90% of the pixels removed, most relevant pixels "
        "first (lower is better) and least relevant first (higher is better). The faithfulness gap (LIF - MIF) is the "
        "main number; uninformative maps have 0. Difference from the best: the gap minus that of the method with the "
        "largest one on these images, paired; an interval that contains 0 shows no difference."
    )
    columns = ["MIF AUC", "LIF AUC", "faithfulness gap", "difference from the best"]
    return Table("Faithfulness", columns, rows, text, names="method")


def _curves(numbers: Faithfulness, suffix: str) -> list[Section]:
    sections: list[Section] = []
    for title, text, curve in (
        ("Most relevant pixels removed first", "The sooner accuracy falls, the more faithful the map.", "mif_curve"),
        ("Least relevant pixels removed first", "The longer accuracy holds, the more faithful the map.", "lif_curve"),
    ):
        points = {
            method: [(100 * x, y, 0.0) for x, y in zip(numbers.removed, getattr(m, curve), strict=False)]
            for method, m in numbers.methods.items()
        }
        plot = plots.lines(points, f"{title}{suffix}", "percent of the pixels removed", "top-1 accuracy")
        sections.append(Figure(f"{title}{suffix}", text, plot))
    return sections


def _other_tests(result: FaithfulnessResult) -> Table:
    rows = _rows(result, lambda m: [m.deletion, m.insertion, m.violations, m.randomised])
    text = (
        "Deletion and insertion: area under the class's probability as pixels are removed (lower is better) or "
        "restored (higher is better), the most relevant first. Violations: images whose class is more probable without "
        "the most relevant tenth. Parameter randomisation: rank correlation with the maps of the model after its "
        "parameters are shuffled; near 1, a map shows the architecture, not what was learned."
    )
    columns = ["deletion", "insertion", "violations", "parameter randomisation"]
    return Table("Other tests", columns, rows, text, names="method")
