"""Remove heads from the weights, for a smaller and faster model, where its architecture can express that.

An ordinary checkpoint must describe its shape. Hugging Face's ViT, DeiT and Dinov2 configs have one number of heads and
of channels per head for all layers, so every layer must keep the same number. timm and torchvision models have
dim / num_heads channels per head and cannot express removed heads: use ``fold_heads`` for them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from clearhead.errors import ClearheadError
from clearhead.models import Classifier
from clearhead.models.classifier import copied

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@torch.no_grad()
def prune_heads(model: Classifier, kept_heads: Mapping[str, Sequence[bool]]) -> Classifier:
    """Return a copy of the model without the removed heads, whose columns of the output projection must be zero.

    Args:
        model: the classifier, as ``fold_heads`` returns it.
        kept_heads: by the names of attention layers, whether each head is kept; other layers keep all their heads.

    Raises:
        ClearheadError: where the architecture cannot express it: a model not from Hugging Face or without heads of
            their own size, a layer that does not exist, or different numbers of heads in different layers.
    """
    module: Any = copied(model.module)
    attentions = {
        n: m for n, m in module.named_modules() if all(isinstance(getattr(m, p, None), nn.Linear) for p in _PROJECTIONS)
    }
    if model.library != "hf" or not attentions or not all(hasattr(m, "head_dim") for m in attentions.values()):
        raise ClearheadError(
            f"prune: the architecture of {model.name} cannot express removed heads; Hugging Face's ViT, DeiT and "
            "Dinov2 can. Without prune the selection is folded into the weights, at the original size"
        )
    if unknown := kept_heads.keys() - attentions.keys():
        raise ClearheadError(
            f"prune: no attention layer is called {', '.join(sorted(unknown))}; choose from {', '.join(attentions)}"
        )
    keep = {name: kept_heads.get(name, [True] * m.num_attention_heads) for name, m in attentions.items()}
    numbers = {sum(heads) for heads in keep.values()}
    if len(numbers) > 1:
        raise ClearheadError(f"prune: every layer must keep as many heads, got {', '.join(map(str, sorted(numbers)))}")
    (number,) = numbers
    for name, attention in attentions.items():
        channels = torch.tensor(keep[name]).repeat_interleave(attention.head_dim)
        for projection in _PROJECTIONS[:3]:
            setattr(attention, projection, _select(getattr(attention, projection), channels, 0))
        attention.o_proj = _select(attention.o_proj, channels, 1)
        attention.num_attention_heads = number
        module.config.head_dim = attention.head_dim
    module.config.num_attention_heads = number
    return replace(model, module=module)


def _select(linear: nn.Linear, channels: Tensor, dim: int) -> nn.Linear:
    """Return a Linear with some of its outputs (`dim` 0) or inputs (`dim` 1)."""
    weight = linear.weight[channels] if dim == 0 else linear.weight[:, channels]
    selected = nn.Linear(weight.shape[1], weight.shape[0], linear.bias is not None, weight.device, weight.dtype)
    selected.weight.copy_(weight)
    if linear.bias is not None:
        selected.bias.copy_(linear.bias[channels] if dim == 0 else linear.bias)
        selected.bias.requires_grad_(linear.bias.requires_grad)
    selected.weight.requires_grad_(linear.weight.requires_grad)
    return selected
