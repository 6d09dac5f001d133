"""Which part of a model is trained: all of it, the classifier head, or low-rank updates (LoRA).

Low-rank updates (Hu et al., arXiv 2106.09685) add B A to the weight of each linear layer, with B and A of rank 8, and
train those alone. They are merged into the weights after training, so the checkpoint is an ordinary one.
"""

from dataclasses import replace
from importlib.util import find_spec
from typing import Literal

import torch
from torch import nn

from clearhead.errors import ClearheadError
from clearhead.models import Classifier
from clearhead.models.classifier import copied
from clearhead.models.features import last_layer

Trainable = Literal["all", "head", "lora"]

RANK = 8
"""Rank of the updates; they are scaled by 2, as is usual (peft's ``lora_alpha`` is 16)."""


def with_trainable(model: Classifier, part: Trainable, seed: int = 0) -> Classifier:
    """Return the model, or a copy in which this part alone requires a gradient; the outputs are the same.

    Args:
        model: the model; it is not changed.
        part: ``all`` the parameters that require a gradient now, the ``head`` (the linear layer whose output is the
            logits), or ``lora``: updates of rank 8 of each linear layer outside ``nn.MultiheadAttention``.
        seed: random seed of the updates' initial values.

    Raises ClearheadError for a model without such layers, an unknown part, or if peft is not installed.
    """
    if part == "all":
        return model
    model = replace(model, module=copied(model.module))
    if part == "head":
        head = last_layer(model)
        if head is None:
            raise ClearheadError(
                f"trainable: {model.name} has no classifier head that can be trained alone: no linear layer's output "
                "is its logits; use all or lora"
            )
        model.module.requires_grad_(False)
        head.requires_grad_(True)
        return model
    if part != "lora":
        raise ClearheadError(f"trainable: {part!r} is unknown; choose from all, head, lora")
    if find_spec("peft") is None:
        raise ClearheadError("trainable: lora needs peft: pip install 'clearhead[lora]'")
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds to import

    # F.multi_head_attention_forward reads the weight itself, where an update would go unused
    inside = {
        id(m)
        for parent in model.module.modules()
        if isinstance(parent, nn.MultiheadAttention)
        for m in parent.modules()
    }
    names = [n for n, m in model.module.named_modules() if isinstance(m, nn.Linear) and id(m) not in inside]
    if not names:
        raise ClearheadError(f"trainable: {model.name} has no linear layers that low-rank updates can be added to")
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model.module)
    return model


def merged(trained: Classifier, original: Classifier) -> Classifier:
    """Return the trained model as a module like the original one: with updates merged, and its ``requires_grad``.

    `trained` is from ``with_trainable(original, ...)``, and is used up.
    """
    module = trained.module
    if any(name.endswith(".lora_A") for name, _ in module.named_modules()):
        from peft.tuners.tuners_utils import BaseTunerLayer

        for name, layer in list(module.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
                parent, _, child = name.rpartition(".")
                setattr(module.get_submodule(parent), child, layer.get_base_layer())
    for parameter, before in zip(module.parameters(), original.parameters(), strict=True):
        parameter.requires_grad_(before.requires_grad)
    return trained
