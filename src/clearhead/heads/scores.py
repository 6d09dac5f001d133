"""What each head follows, needs and looks at: one row a head.

Accuracy alone and without, and the agreement with attributes, are those of arXiv 2308.16274: all other heads of the
layer are removed (or the one is), those that stay are scaled by H / kept, all other layers stay as they are.
Importance is Michel et al.'s (arXiv 1905.10650): the mean over images of the absolute derivative of the loss by the
head's scale, |Σ o ∘ dL/do|. Entropy and distance are those of the attention rows (Dosovitskiy et al.,
arXiv 2010.11929, figure 7).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clearhead.data.dataset import ImageIndex, require_classes
from clearhead.data.image_io import DataError
from clearhead.data.loading import ImageDataset, loader
from clearhead.heads.diversity import similarity
from clearhead.heads.gradients import Layers, gradient_per_head, per_image, pick_layers
from clearhead.heads.head_masking import HeadMask, HeadMaskRunner, Layer, attention_layers, head_mask_runner
from clearhead.metrics.statistics import Estimate, proportion
from clearhead.models import Classifier
from clearhead.models.classifier import evaluation_mode, require_not_nan
from clearhead.progress import Progress, track
from clearhead.tap import AttentionCall, tap

_ENTRIES = 2**24
"""Entries of attention, B x H x N x N, looked at together."""


@dataclass(frozen=True)
class HeadScore:
    """One head.

    Attributes:
        layer: position of its layer in call order.
        name: module of its layer.
        head: its position in the layer.
        alone: accuracy with this head alone in its layer.
        without: accuracy without it.
        importance: mean |derivative of the loss by the head's scale|, in nats.
        agreement: for each attribute, how often the head alone gives the class that goes with the attribute's value.
        attention: share of the read-out token's attention to the patches that lies in the foreground; None without
            masks or token grid.
        contribution: the same share of what raises the predicted logit, max(A ∘ dA, 0), of all rows; images in which
            the head does not raise it are left out.
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
    """All heads of the layers looked at.

    Attributes:
        accuracy: of the model as it is.
        area: share of the images that is foreground: what a head that attends everywhere alike would score.
        heads: a row a head.
        similarity: for each layer, H x H: mean over images and tokens of the squared cosine of two heads' input
            gradients (see ``clearhead.heads.diversity``).
        attributes: for each attribute the class that goes with each value, by name.
    """

    accuracy: Estimate
    area: float | None
    heads: list[HeadScore]
    similarity: dict[str, list[list[float]]]
    attributes: dict[str, dict[str, str]]


def implied_classes(folder: ImageIndex, column: str) -> dict[str, int]:
    """The class that goes with each value of a metadata column: the one it is most frequent in.

    Use the training images, where the attribute goes with the class. Raises DataError where the column is not there, or
    goes with one class only.
    """
    seen: dict[str, Counter[int]] = defaultdict(Counter)
    for sample in folder.samples:
        if value := sample.groups.get(column):
            seen[value][sample.label] += 1
    columns = sorted({name for sample in folder.samples for name in sample.groups})
    if not seen:
        raise DataError(
            f"no attribute {column} in {folder.root / 'metadata.csv'}; there is {', '.join(columns) or 'none'}"
        )
    sizes = Counter(sample.label for sample in folder.samples)
    implied = {
        value: max(counts, key=lambda label: (counts[label] / sizes[label], -label))
        for value, counts in sorted(seen.items())
    }
    if len(set(implied.values())) < 2:
        only = folder.classes[next(iter(implied.values()))]
        raise DataError(f"attribute {column}: each of its values goes with the class {only}, so it tells none apart")
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
    """Score the heads of a model on a folder.

    A forward and two backward passes an image, and for each layer what comes after it 2 H times.

    Args:
        model: the classifier; it runs where its parameters are.
        folder: the data, as ``read_folder`` gives it.
        layers: which layers.
        attributes: for each metadata column the class that goes with each value, as `implied_classes` gives it.
        batch_size: images a batch.
        workers: processes that load images.
        progress: shows progress.

    Raises:
        NoAttentionError: if the model shows no attention.
        ClearheadError: for a layer that does not exist.
        DataError: for a file that can no longer be read.
    """
    require_classes(folder, model.classes)
    attributes = attributes or {}
    batches = loader(ImageDataset(folder, model.preprocess), batch_size, workers)
    device = next(model.module.parameters()).device
    runners: list[HeadMaskRunner] = []
    sums: dict[str, list[Tensor]] = defaultdict(list)
    right: list[Tensor] = []
    given: list[list[Tensor]] = []
    with evaluation_mode(model.module):
        for batch in track(batches, progress, "scores of heads"):
            images, labels = batch["image"].to(device), batch["label"].to(device)
            if not runners:
                found = attention_layers(model, images)
                runners = [head_mask_runner(model, layer, images) for layer in pick_layers(found, layers)]
            logits = _look(model, images, labels, batch["mask"].to(device), batch["has_mask"], runners, sums)
            right.append((require_not_nan(logits).argmax(-1) == labels).cpu())
            given.append([b.logits(images, _variants(b.layer)).argmax(-1).cpu() for b in runners])
    answers = [torch.cat(parts, 1).numpy() for parts in zip(*given, strict=True)]  # 2H x N a layer
    labels_all = np.array([sample.label for sample in folder.samples])
    expected = {
        name: np.array([implied.get(sample.groups.get(name, ""), -1) for sample in folder.samples])
        for name, implied in attributes.items()
    }
    area = torch.cat(sums.pop("area")) if sums.get("area") else None
    heads, alike = [], {}
    for b, predicted in zip(runners, answers, strict=True):
        layer = b.layer
        means = {key: torch.cat(sums[f"{key} {layer.index}"]).nanmean(0) for key in _LOOKED}
        alike[str(layer.index)] = torch.cat(sums[f"similarity {layer.index}"]).mean(0).tolist()
        for h in range(layer.num_heads):
            alone, without = predicted[h], predicted[layer.num_heads + h]
            looked = {key: means[key][h].item() for key in _LOOKED}
            heads.append(
                HeadScore(
                    layer=layer.index,
                    name=layer.name,
                    head=h,
                    alone=proportion(alone == labels_all),
                    without=proportion(without == labels_all),
                    importance=looked["importance"],
                    agreement={k: proportion(alone[v >= 0] == v[v >= 0]) for k, v in expected.items()},
                    attention=_number(looked["attention"]),
                    contribution=_number(looked["contribution"]),
                    entropy=looked["entropy"],
                    distance=_number(looked["distance"]),
                )
            )
    return HeadScores(
        accuracy=proportion(torch.cat(right).numpy()),
        area=area.mean().item() if area is not None else None,
        heads=heads,
        similarity=alike,
        attributes={k: {v: model.classes[c] for v, c in implied.items()} for k, implied in attributes.items()},
    )


_LOOKED = ("importance", "attention", "contribution", "entropy", "distance")


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _variants(layer: Layer) -> HeadMask:
    """Each head alone, then the layer without each: 2H x H."""
    heads = layer.num_heads
    eye = torch.eye(heads)
    return HeadMask(torch.cat([heads * eye, (1 - eye) * (heads / max(1, heads - 1))]))


def _look(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    mask: Tensor,
    has_mask: Tensor,
    runners: list[HeadMaskRunner],
    sums: dict[str, list[Tensor]],
) -> Tensor:
    """What one recorded pass and its gradients tell of each head of each image, added to `sums`; the logits."""
    with torch.inference_mode(False), torch.enable_grad(), tap(model.module, needs_grad=True) as record:
        logits = model(images.clone().requires_grad_())
        chosen = [record[b.layer.index] for b in runners]
        outputs = [layer.output for layer in chosen]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        of_loss = torch.autograd.grad(loss, outputs, retain_graph=True)
        of_logit = torch.autograd.grad(logits.max(-1).values.sum(), outputs, retain_graph=True)
        # one layer after another: H gradients of the size of its input are much to hold
        alike = [
            similarity(gradient_per_head(a, g).detach()).square().mean(1) for a, g in zip(chosen, of_logit, strict=True)
        ]
    with torch.no_grad():
        inside = _on_grid(model, mask, has_mask)
        if inside is not None and has_mask.any():
            sums["area"].append(inside[has_mask.to(inside.device)].mean(1).cpu())
        for b, layer, to_loss, to_logit, cosines in zip(runners, chosen, of_loss, of_logit, alike, strict=True):
            found = {"importance": _importance(layer, to_loss, len(images))}
            found["similarity"] = per_image(cosines, len(images)).mean(1)
            found |= _attended(model, layer, to_logit, inside, len(images))
            for key, values in found.items():
                sums[f"{key} {b.layer.index}"].append(values.float().cpu())
    return logits.detach()


def _importance(layer: AttentionCall, to_loss: Tensor, images: int) -> Tensor:
    """|Σ o ∘ dL/do| of each head of each image, B x H."""
    return per_image((layer.output * to_loss).sum((-2, -1)), images).sum(1).abs()


def head_importance(
    model: Classifier,
    folder: ImageIndex,
    layers: Layers = "all",
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """The importance of each head of each layer, H by the layer's name: a forward and a backward pass an image."""
    device = next(model.module.parameters()).device
    sums: dict[str, Tensor] = {}
    batches = loader(ImageDataset(folder, model.preprocess), batch_size, workers)
    for batch in track(batches, progress, "importance of heads"):
        images, labels = batch["image"].to(device), batch["label"].to(device)
        with torch.enable_grad(), evaluation_mode(model.module), tap(model.module, needs_grad=True) as record:
            loss = F.cross_entropy(model(images), labels, reduction="sum")
            chosen = pick_layers(list(record), layers)
            slopes = torch.autograd.grad(loss, [layer.output for layer in chosen])
        for layer, slope in zip(chosen, slopes, strict=True):
            sums[layer.name] = sums.get(layer.name, 0) + _importance(layer, slope, len(images)).detach().sum(0)
    return {name: (total / len(folder.samples)).cpu().numpy() for name, total in sums.items()}


def _on_grid(model: Classifier, mask: Tensor, has_mask: Tensor) -> Tensor | None:
    """The share of foreground in each patch, B x patches; NaN for images without mask. None without a grid."""
    if model.grid is None:
        return None
    small = F.interpolate(mask, (model.grid.height, model.grid.width), mode="area").flatten(1)
    return small.masked_fill(~has_mask.to(mask.device)[:, None], torch.nan)


def _attended(
    model: Classifier, layer: AttentionCall, gradient: Tensor, inside: Tensor | None, images: int
) -> dict[str, Tensor]:
    """Entropy, distance and shares in the foreground of each head of each image, B x H each."""
    grid, heads = model.grid, layer.num_heads
    found: dict[str, list[Tensor]] = defaultdict(list)
    step = max(1, _ENTRIES // (heads * layer.q.shape[-2] * layer.k.shape[-2]))
    spots = _spots(model)
    for start in range(0, len(layer.q), step):
        part = slice(start, start + step)
        some = replace(layer, q=layer.q[part], k=layer.k[part], v=layer.v[part], mask=_part(layer.mask, part, layer))
        attn = some.attn()
        found["entropy"].append(-(attn * attn.clamp(min=1e-30).log()).sum(-1).mean(-1))
        if grid is None or inside is None or spots is None:
            continue
        patches = slice(grid.prefix, None)
        read = attn[..., 0, patches] if grid.pooling == "cls" else attn[..., patches, patches].mean(-2)
        raised = (attn * some.attn_grad(gradient[part])).clamp(min=0)[..., patches].sum(-2)
        for key, weight in (("attention", read), ("contribution", raised)):
            found[key].append((weight * inside[part, None]).sum(-1) / weight.sum(-1))
        among = attn[..., patches, patches]
        found["distance"].append(((among * spots).sum(-1) / among.sum(-1)).mean(-1))
    whole = {key: torch.cat(values) for key, values in found.items()}
    whole["entropy"] = per_image(whole["entropy"], images).mean(1)
    nothing = torch.full((images, heads), torch.nan)
    return {key: whole.get(key, nothing) for key in ("attention", "contribution", "entropy", "distance")}


def _spots(model: Classifier) -> Tensor | None:
    """Distances between patches in pixels of the model's input, patches x patches."""
    if model.grid is None:
        return None
    rows = (torch.arange(model.grid.height) + 0.5) * model.preprocess.size[0] / model.grid.height
    columns = (torch.arange(model.grid.width) + 0.5) * model.preprocess.size[1] / model.grid.width
    points = torch.cartesian_prod(rows, columns)
    return torch.cdist(points, points).to(next(model.module.parameters()).device)


def _part(mask: Tensor | None, part: slice, layer: AttentionCall) -> Tensor | None:
    """The mask of some images."""
    own = mask is not None and mask.ndim == 4 and len(mask) == len(layer.q) > 1
    return mask[part] if mask is not None and own else mask
