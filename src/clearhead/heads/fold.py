"""Fold head masks into the weights: the result is an ordinary checkpoint that needs no mask, at no cost.

The output projection is linear in the heads' outputs, so scaling head h equals scaling its columns of the weight, and
replacing its output by a constant changes the bias: both are exact.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from clearhead.attention_tap import tap
from clearhead.errors import ClearheadError
from clearhead.heads.gradients import network
from clearhead.heads.head_masking import HeadMask
from clearhead.models import Classifier
from clearhead.models.classifier import copied

Model = TypeVar("Model", Classifier, nn.Module)


@torch.no_grad()
def fold_heads(model: Model, heads: Mapping[str, HeadMask | Tensor], images: Tensor) -> Model:
    """Return a copy of the model with head scales folded into its output projections.

    Args:
        model: a classifier or a plain module.
        heads: by layer name, one scale per head (H; 0 removes a head), or a HeadMask with S = 1.
        images: B x 3 x H x W, one is enough; they show which Linear takes a layer's heads.

    Raises:
        NoAttentionError: if the model makes no attention call.
        ClearheadError: where no Linear takes the heads unchanged (a norm or a gate between), where a constant needs a
            bias that the projection lacks, or where a layer would lose all its heads.
    """
    if isinstance(model, Classifier):
        folded: Model = replace(model, module=copied(model.module))
    else:
        folded = copied(model)
    linears = _output_projections(folded, images[:1])
    for name, mask in heads.items():
        if name not in linears:
            raise ClearheadError(
                f"heads: no Linear takes the heads of '{name}' unchanged (is there a norm or a gate between?), so "
                "they cannot be folded into the weights"
            )
        scales, fill = (mask, None) if isinstance(mask, Tensor) else (mask.scales[0], mask.fill)
        if not scales.any() and fill is None:
            raise ClearheadError(f"heads: nothing is left of '{name}'; keep at least one head of each layer")
        linear, size = linears[name]
        scales = scales.to(linear.weight)
        if fill is not None:
            if linear.bias is None:
                raise ClearheadError(f"heads: the output projection of '{name}' has no bias to add a mean output to")
            linear.bias.add_(linear.weight @ ((1 - scales)[:, None] * fill.to(linear.weight)).flatten())
        linear.weight *= scales.repeat_interleave(size)
    return folded


def _output_projections(model: Classifier | nn.Module, images: Tensor) -> dict[str, tuple[nn.Linear, int]]:
    """Return the Linear that takes each layer's concatenated heads, and the channels per head."""
    projections: dict[str, tuple[nn.Linear, int]] = {}
    module = network(model)
    with tap(module) as record:

        def compare_input(linear: nn.Module, args: tuple[Tensor, ...]) -> None:
            if len(record) and args:
                call = record[-1]
                heads = call.output.transpose(1, 2).flatten(2)
                if args[0].shape == heads.shape and torch.equal(args[0], heads) and isinstance(linear, nn.Linear):
                    projections[call.name] = linear, call.output.shape[-1]

        handles = [m.register_forward_pre_hook(compare_input) for m in module.modules() if isinstance(m, nn.Linear)]
        try:
            model(images)
        finally:
            for handle in handles:
                handle.remove()
    for call in record:
        if isinstance(call.module, nn.MultiheadAttention):  # reads the weights of its projection without calling it
            projections[call.name] = call.module.out_proj, call.output.shape[-1]
    return projections
