"""Score each attention head: what it predicts alone, what the model loses without it, and where it attends.

Accuracy alone and without, and the agreement with attributes, follow arXiv 2308.16274: all other heads of the layer (or
the one head) are removed, the kept heads are scaled by H / kept, and all other layers are unchanged. Importance is that
of Michel et al. (arXiv 1905.10650): the mean over images of the absolute derivative of the loss with respect to the
head's scale, |Σ o ∘ dL/do|. Entropy and distance are those of the attention rows (Dosovitskiy et al., arXiv 2010.11929,
figure 7).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clearhead.attention_tap import AttentionCall, tap
from clearhead.data.dataset import ImageIndex, require_classes
from clearhead.data.image_io import DataError
from clearhead.data.loading import ImageDataset, loader
from clearhead.heads.diversity import similarity
from clearhead.heads.gradients import Layers, gradient_per_head, per_image, pick_layers
from clearhead.heads.head_masking import HeadMask, HeadMaskRunner, Layer, attention_layers, head_mask_runner
from clearhead.heads.importance import importance
from clearhead.metrics.statistics import Estimate, proportion
from clearhead.models import Classifier
from clearhead.models.classifier import evaluation_mode, require_not_nan
from clearhead.progress import Progress, track

_ENTRIES = 2**24
"""Entries of attention, B x H x N x N, in memory at a time."""


@dataclass(frozen=True)
class HeadScore:
    """The scores of one head.

    Attributes:
        layer: position of its layer in call order.
        name: module of its layer.
        head: position in the layer.
        alone: accuracy with this head alone in its layer.
        without: accuracy without it.
        importance: mean absolute derivative of the loss with respect to the head's scale, in nats.
        agreement: for each attribute, how often the head alone predicts the class implied by the attribute's value.
        attention: share of the pooled tokens' attention to patches that lies in the foreground; None without masks or
            token grid.
        contribution: the same share of what raises the predicted logit, max(A ∘ dA, 0), over all rows and the images
            in which the head raises it.
        entropy: of the attention rows, in nats.
        distance: mean distance in pixels between a patch and those it attends to; None without token grid.
    """

    layer: int
    name: str
    head: int
    alone: Estimate
    without: Estimate
    importance: float
    agreement: dict[str, Estimate]
    attention: float | None
    contribution: float | None
    entropy: float
    distance: float | None


@dataclass(frozen=True)
class HeadScores:
    """The scores of all heads of some layers.

    Attributes:
        accuracy: of the model with all heads.
        area: mean share of the foreground in the image, which is the score of a head with uniform attention.
        heads: one entry per head.
        similarity: for each layer, H x H: mean over images and tokens of the squared cosine of two heads' input
            gradients (see ``clearhead.heads.diversity``).
        attributes: for each attribute the name of the class implied by each value.
    """

    accuracy: Estimate
    area: float | None
    heads: list[HeadScore]
    similarity: dict[str, list[list[float]]]
    attributes: dict[str, dict[str, str]]


def implied_classes(folder: ImageIndex, column: str) -> dict[str, int]:
    """Return the class implied by each value of a metadata column: the class in which the value is most frequent.

    Use the training images, where the attribute is correlated with the class. Raises DataError for a column that does
    not exist, or whose values all imply the same class.
    """
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for sample in folder.samples:
        if value := sample.groups.get(column):
            counts[value][sample.label] += 1
    columns = sorted({name for sample in folder.samples for name in sample.groups})
    if not counts:
        raise DataError(
            f"attributes: no column {column} in {folder.root / 'metadata.csv'}; "
            + (f"choose from {', '.join(columns)}" if columns else "it has none besides file and split")
        )
    sizes = Counter(sample.label for sample in folder.samples)
    implied = {
        value: max(labels, key=lambda label: (labels[label] / sizes[label], -label))
        for value, labels in sorted(counts.items())
    }
    if len(set(implied.values())) < 2:
        only = folder.classes[next(iter(implied.values()))]
        raise DataError(f"attributes: every value of {column} implies the class {only}; choose another column")
    return implied


def score_heads(
    model: Classifier,
    folder: ImageIndex,
    *,
    layers: Layers = "all",
    attributes: Mapping[str, Mapping[str, int]] | None = None,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
) -> HeadScores:
    """Score the heads of a model on images.

    The cost is one forward and two backward passes, and for each layer 2 H passes through what comes after it.

    Args:
        model: the classifier; it runs where its parameters are.
        folder: the images.
        layers: positions in call order (negative from the end), ``last`` or ``all``.
        attributes: for each metadata column the class implied by each value, as ``implied_classes`` returns it.
        batch_size: images per batch.
        workers: processes that load images.
        progress: shows progress.

    Raises:
        NoAttentionError: if the model makes no attention call.
        ClearheadError: for a layer that does not exist.
        DataError: for a file that can no longer be read.
    """
    require_classes(folder, model.classes)
    attributes = attributes or {}
    device = model.device
    runners: list[HeadMaskRunner] = []
    per_layer: list[dict[str, list[Tensor]]] = []
    correct: list[Tensor] = []
    areas: list[Tensor] = []
    batches = loader(ImageDataset(folder, model.preprocess), batch_size, workers)
    with evaluation_mode(model.module):
        for batch in track(batches, progress, "heads"):
            images, labels = batch["image"].to(device), batch["label"].to(device)
            if not runners:
                selected = pick_layers(attention_layers(model, images), layers)
                runners = [head_mask_runner(model, layer, images) for layer in selected]
                per_layer = [defaultdict(list) for _ in runners]
            foreground = _foreground_per_patch(model, batch["mask"].to(device), batch["has_mask"].to(device))
            if foreground is not None:
                areas.append(foreground.mean(1).cpu())
            logits, measured = _measure_heads(model, images, labels, foreground, [r.layer for r in runners])
            correct.append((require_not_nan(logits).argmax(-1) == labels).cpu())
            for runner, values, collected in zip(runners, measured, per_layer, strict=True):
                values["predicted"] = runner.logits(images, _alone_and_without(runner.layer)).argmax(-1).T
                for key, value in values.items():
                    collected[key].append(value.cpu())
    labels_all = np.array([sample.label for sample in folder.samples])
    expected = {
        name: np.array([implied.get(sample.groups.get(name, ""), -1) for sample in folder.samples])
        for name, implied in attributes.items()
    }
    heads, similarities = [], {}
    for runner, collected in zip(runners, per_layer, strict=True):
        layer, numbers = runner.layer, {key: torch.cat(values) for key, values in collected.items()}
        similarities[str(layer.index)] = numbers["similarity"].mean(0).tolist()
        for h in range(layer.num_heads):
            alone, without = (numbers["predicted"][:, i].numpy() for i in (h, layer.num_heads + h))
            means = {key: numbers[key][:, h].nanmean().item() for key in _PER_HEAD}
            heads.append(
                HeadScore(
                    layer=layer.index,
                    name=layer.name,
                    head=h,
                    alone=proportion(alone == labels_all),
                    without=proportion(without == labels_all),
                    importance=means["importance"],
                    agreement={k: proportion(alone[v >= 0] == v[v >= 0]) for k, v in expected.items()},
                    attention=_none_if_nan(means["attention"]),
                    contribution=_none_if_nan(means["contribution"]),
                    entropy=means["entropy"],
                    distance=_none_if_nan(means["distance"]),
                )
            )
    return HeadScores(
        accuracy=proportion(torch.cat(correct).numpy()),
        area=_none_if_nan(torch.cat(areas).nanmean().item()) if areas else None,
        heads=heads,
        similarity=similarities,
        attributes={k: {v: model.classes[c] for v, c in implied.items()} for k, implied in attributes.items()},
    )


_PER_HEAD = ("importance", "attention", "contribution", "entropy", "distance")


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _alone_and_without(layer: Layer) -> HeadMask:
    """Return the masks of each head alone, then of the layer without each head, 2H x H."""
    heads = layer.num_heads
    eye = torch.eye(heads)
    return HeadMask(torch.cat([heads * eye, (1 - eye) * (heads / max(1, heads - 1))]))


def _measure_heads(
    model: Classifier, images: Tensor, labels: Tensor, foreground: Tensor | None, layers: list[Layer]
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Return the logits, and for each layer what one recorded pass and its gradients show of each head and image.

    The numbers are B x H, the similarity B x H x H.
    """
    with torch.inference_mode(False), torch.enable_grad(), tap(model.module, needs_grad=True) as record:
        logits = model(images.clone().requires_grad_())
        calls = [record[layer.index] for layer in layers]
        outputs = [call.output for call in calls]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        loss_grads = torch.autograd.grad(loss, outputs, retain_graph=True)
        logit_grads = torch.autograd.grad(logits.max(-1).values.sum(), outputs, retain_graph=True)
        # One layer at a time: the gradients through its heads take H times the memory of its input.
        similarities = [
            similarity(gradient_per_head(call, grad).detach()).square().mean(1)
            for call, grad in zip(calls, logit_grads, strict=True)
        ]
    measured = []
    with torch.no_grad():
        for call, loss_grad, logit_grad, cosines in zip(calls, loss_grads, logit_grads, similarities, strict=True):
            values = _attention_statistics(model, call, logit_grad, foreground, len(images))
            values["importance"] = importance(call, loss_grad, len(images))
            values["similarity"] = per_image(cosines, len(images)).mean(1)
            measured.append({key: value.float() for key, value in values.items()})
    return logits.detach(), measured


def _foreground_per_patch(model: Classifier, mask: Tensor, has_mask: Tensor) -> Tensor | None:
    """Return the share of foreground in each patch, B x patches, NaN for images without a mask; None without a grid."""
    if model.grid is None:
        return None
    share = F.interpolate(mask, (model.grid.height, model.grid.width), mode="area").flatten(1)
    return share.masked_fill(~has_mask[:, None], torch.nan)


def _attention_statistics(
    model: Classifier, call: AttentionCall, logit_grad: Tensor, foreground: Tensor | None, images: int
) -> dict[str, Tensor]:
    """Return entropy, distance and shares in the foreground of each head and image, B x H each; NaN without a grid."""
    grid, heads = model.grid, call.num_heads
    values: dict[str, list[Tensor]] = defaultdict(list)
    step = max(1, _ENTRIES // (heads * call.q.shape[-2] * call.k.shape[-2]))
    distances = _patch_distances(model)
    for start in range(0, len(call.q), step):
        rows = slice(start, start + step)
        chunk = replace(call, q=call.q[rows], k=call.k[rows], v=call.v[rows], mask=_mask_of(call, rows))
        attn = chunk.attn()
        values["entropy"].append(-(attn * attn.clamp(min=1e-30).log()).sum(-1).mean(-1))
        if grid is None or foreground is None or distances is None:
            continue
        patches = slice(grid.prefix, None)
        between_patches = attn[..., patches, patches]
        pooled = attn[..., 0, patches] if grid.pooling == "cls" else between_patches.mean(-2)
        raising = (attn * chunk.attn_grad(logit_grad[rows])).clamp(min=0)[..., patches].sum(-2)
        for key, weight in (("attention", pooled), ("contribution", raising)):
            values[key].append((weight * foreground[rows, None]).sum(-1) / weight.sum(-1))
        values["distance"].append(((between_patches * distances).sum(-1) / between_patches.sum(-1)).mean(-1))
    statistics = {key: torch.cat(chunks) for key, chunks in values.items()}
    statistics["entropy"] = per_image(statistics["entropy"], images).mean(1)
    missing = torch.full((images, heads), torch.nan)
    return {key: statistics.get(key, missing) for key in ("attention", "contribution", "entropy", "distance")}


def _patch_distances(model: Classifier) -> Tensor | None:
    """Return the distances between patches in pixels of the model's input, patches x patches; None without a grid."""
    if model.grid is None:
        return None
    rows = (torch.arange(model.grid.height) + 0.5) * model.preprocess.size[0] / model.grid.height
    columns = (torch.arange(model.grid.width) + 0.5) * model.preprocess.size[1] / model.grid.width
    centres = torch.cartesian_prod(rows, columns)
    return torch.cdist(centres, centres).to(model.device)


def _mask_of(call: AttentionCall, rows: slice) -> Tensor | None:
    """Return the attention mask of some rows of the batch."""
    has_batch = call.mask is not None and call.mask.ndim == 4 and len(call.mask) == len(call.q) > 1
    return call.mask[rows] if call.mask is not None and has_batch else call.mask
