"""LeGrad: how strongly each token would raise the logit if it were attended to more.

Bousselham et al., arXiv 2404.03214. With dA = dO vᵀ the gradient of the logit for a layer's attention (B x H x N x M)::

    map = sum over layers of the mean over heads and queries of max(dA, 0)

One forward and one backward pass; dA is computed in blocks of rows. It differs from the paper and its public code,
which score each layer by its own tokens, passed through the head directly, and differentiate that score for the
attention of that layer. The tap does not reveal which modules of a model are its head, so here dA of every layer is
that of the model's own logit, through all later layers; for the last layer the two are the same. All layers are summed,
as in the paper (the code's default is the last two), and pooling is the model's own (the code averages all tokens).
"""

import torch
from torch import Tensor

from clearhead.attention_tap import tap
from clearhead.attribution.gae import blocks, on_grid, token_grid
from clearhead.models import Classifier
from clearhead.models.classifier import logit_gradients


def legrad(model: Classifier, images: Tensor, target: Tensor | int | None = None) -> tuple[Tensor, Tensor]:
    """Return the relevance of each patch for a class (B x h x w, raw, non-negative) and the logits.

    Raises as ``gae``.
    """
    grid = token_grid(model, "legrad", images)
    with torch.inference_mode(False), torch.enable_grad(), tap(model.module, needs_grad=True) as record:
        logits = model(images.clone() if images.is_inference() else images)
    gradients = logit_gradients(record.outputs, logits, target)
    row = torch.zeros((), device=images.device)
    with torch.no_grad():
        for layer, gradient in zip(record, gradients, strict=True):
            for rows in blocks(layer.q, layer.k):
                slope = layer.attn_grad(gradient, rows).clamp_(min=0)
                row = row + slope.mean(1).sum(1) / layer.q.shape[-2]
    return on_grid(row, grid), logits.detach()
