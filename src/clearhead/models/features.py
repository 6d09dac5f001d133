"""Penultimate features of a model: the input of its classifier head."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from clearhead.errors import ClearheadError
from clearhead.models.classifier import Classifier, evaluation_mode


def last_layer(model: Classifier) -> nn.Linear | None:
    """Return the linear layer whose output is the logits, if there is one."""
    outputs: list[tuple[nn.Linear, Tensor]] = []
    linear = [module for module in model.module.modules() if isinstance(module, nn.Linear)]
    hooks = [m.register_forward_hook(lambda m, _, output: outputs.append((m, output))) for m in linear]
    parameter = next(model.parameters())
    size = model.preprocess.size
    noise = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(parameter)
    try:
        with evaluation_mode(model.module), torch.no_grad():
            logits = model.from_normalized(noise)
    finally:
        for hook in hooks:
            hook.remove()
    # a model whose logits are NaN has a last layer too
    heads = [
        m for m, o in outputs if o.shape == logits.shape and torch.allclose(o, logits, rtol=0, atol=0, equal_nan=True)
    ]
    return heads[-1] if heads else None


def features(model: Classifier, batches: Iterable[dict[str, Any]]) -> Tensor:
    """Return the input of the last layer for each image of the batches, N x D, on the CPU: in many ViTs the CLS token.

    Raises ClearheadError for a model whose logits are not the output of one linear layer.
    """
    head = last_layer(model)
    if head is None:
        raise ClearheadError(
            f"model: {model.name} has no penultimate features: its logits are not the output of one torch.nn.Linear. "
            "Distilled DeiTs, for example, average two heads: take an architecture without distillation"
        )
    inputs: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].cpu()))
    try:
        with evaluation_mode(model.module), torch.no_grad():
            for batch in batches:
                model(batch["image"].to(head.weight.device))
    finally:
        hook.remove()
    return torch.cat(inputs)
