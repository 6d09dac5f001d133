"""The class that is explained, and the gradient of its logit."""

import torch
from torch import Tensor


def chosen(logits: Tensor, target: Tensor | int | None) -> Tensor:
    """The logit of the class to explain for each image, B: the predicted one where ``target`` is None."""
    classes = logits.shape[-1]
    if target is None:
        target = logits.detach().argmax(-1)
    target = torch.as_tensor(target, device=logits.device).expand(len(logits))
    if target.min() < 0 or target.max() >= classes:
        raise ValueError(f"target: class {target.min()}..{target.max()}, but the model has classes 0..{classes - 1}")
    return logits.gather(1, target[:, None])[:, 0]
