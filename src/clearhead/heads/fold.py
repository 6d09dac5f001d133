"""A choice of heads put into the weights: an ordinary checkpoint that needs no mask, at no cost.

The output projection is linear in the heads' outputs, so scaling head h is scaling its columns of the weight, and a
constant in its place is a change of the bias: both exact.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from clearhead.errors import ClearheadError
from clearhead.heads.head_masking import HeadMask
from clearhead.models import Classifier
from clearhead.models.classifier import copied
from clearhead.tap import tap


@torch.no_grad()
def fold_heads(model: Classifier, heads: Mapping[str, HeadMask], images: Tensor) -> Classifier:
    """A copy of the model with head scalings (S = 1, by layer name) folded into its output projections.

    `images` (one is enough) show which Linear takes a layer's heads. Raises ClearheadError where none takes them as
    they
    are (a norm or a gate between), where a constant needs a bias that is not there, or where a layer would lose all its
    heads.
    """
    module = copied(model.module)
    folded = replace(model, module=module)
    linears = _projections(folded, images[:1])
    for name, chosen in heads.items():
        if name not in linears:
            raise ClearheadError(
                f"heads: no Linear takes the heads of '{name}' as they are (is there a norm or a gate between?), so "
                "the choice cannot be folded into the weights"
            )
        if not chosen.scales[0].any() and chosen.fill is None:
            raise ClearheadError(f"heads: nothing is left of '{name}'; keep at least one head of a layer")
        linear, size = linears[name]
        scales = chosen.scales[0].to(linear.weight)
        if chosen.fill is not None:
            if linear.bias is None:
                raise ClearheadError(f"heads: the output projection of '{name}' has no bias to take a mean output")
            linear.bias.add_(linear.weight @ ((1 - scales)[:, None] * chosen.fill.to(linear.weight)).flatten())
        linear.weight *= scales.repeat_interleave(size)
    return folded


def _projections(model: Classifier, images: Tensor) -> dict[str, tuple[nn.Linear, int]]:
    """The Linear that takes each layer's heads side by side, and the channels a head."""
    found: dict[str, tuple[nn.Linear, int]] = {}
    with tap(model.module) as record:

        def look(linear: nn.Module, args: tuple[Tensor, ...]) -> None:
            if len(record) and args:
                layer = record[-1]
                joined = layer.output.transpose(1, 2).flatten(2)
                if args[0].shape == joined.shape and torch.equal(args[0], joined) and isinstance(linear, nn.Linear):
                    found[layer.name] = linear, layer.output.shape[-1]

        handles = [m.register_forward_pre_hook(look) for m in model.module.modules() if isinstance(m, nn.Linear)]
        try:
            model(images)
        finally:
            for handle in handles:
                handle.remove()
    for layer in record:
        if isinstance(layer.module, nn.MultiheadAttention):  # calls its projection by its weights
            found[layer.name] = layer.module.out_proj, layer.output.shape[-1]
    return found
