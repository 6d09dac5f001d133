"""Removed heads taken out of the weights: a smaller, faster model, where its architecture can say so.

An ordinary checkpoint has to name its shape. Hugging Face's ViT, DeiT and Dinov2 configs have a number of heads and
channels a head, one for all layers, so the same number has to be kept in every layer. timm and torchvision give each
head dim / num_heads channels, and cannot say that some are gone: for them `fold_heads` is what there is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from clearhead.errors import ClearheadError
from clearhead.models import Classifier
from clearhead.models.classifier import copied

_PARTS = ("q_proj", "k_proj", "v_proj", "o_proj")


@torch.no_grad()
def prune_heads(model: Classifier, kept: Mapping[str, Sequence[bool]]) -> Classifier:
    """A copy of the model without the heads that are not kept; their columns of the output projection must be zero.

    `kept` is by the names of attention layers; a layer that is not there keeps all its heads. Raises ClearheadError
    where the architecture cannot say it: not a Hugging Face model with heads of their own size, or other numbers of
    heads in other layers.
    """
    module: Any = copied(model.module)
    attentions = {
        n: m for n, m in module.named_modules() if all(isinstance(getattr(m, p, None), nn.Linear) for p in _PARTS)
    }
    if model.library != "hf" or not attentions or not all(hasattr(m, "head_dim") for m in attentions.values()):
        raise ClearheadError(
            f"shrink: the architecture of {model.name} cannot say that heads are gone; Hugging Face's ViT, DeiT and "
            "Dinov2 can. Without shrink the choice is folded into the weights, at the old size"
        )
    if unknown := kept.keys() - attentions.keys():
        known = ", ".join(attentions)
        raise ClearheadError(f"shrink: {', '.join(sorted(unknown))}: no attention of the model; there is {known}")
    kept = {name: kept.get(name, [True] * m.num_attention_heads) for name, m in attentions.items()}
    numbers = {sum(heads) for heads in kept.values()}
    if len(numbers) > 1:
        raise ClearheadError(f"shrink: every layer must keep as many heads, got {', '.join(map(str, sorted(numbers)))}")
    (number,) = numbers
    for name, attention in attentions.items():
        rows = torch.tensor(kept[name]).repeat_interleave(attention.head_dim)
        for part in _PARTS[:3]:
            setattr(attention, part, _cut(getattr(attention, part), rows, 0))
        attention.o_proj = _cut(attention.o_proj, rows, 1)
        attention.num_attention_heads = number
        module.config.head_dim = attention.head_dim
    module.config.num_attention_heads = number
    return replace(model, module=module)


def _cut(linear: nn.Linear, chosen: torch.Tensor, side: int) -> nn.Linear:
    """A Linear with some of its outputs (side 0) or inputs (side 1)."""
    weight = linear.weight[chosen] if side == 0 else linear.weight[:, chosen]
    cut = nn.Linear(weight.shape[1], weight.shape[0], linear.bias is not None, weight.device, weight.dtype)
    cut.weight.copy_(weight)
    if linear.bias is not None:
        cut.bias.copy_(linear.bias[chosen] if side == 0 else linear.bias)
        cut.bias.requires_grad_(linear.bias.requires_grad)
    cut.weight.requires_grad_(linear.weight.requires_grad)
    return cut
