"""How strongly each token could raise the logit by being attended to more: LeGrad, from the seam.

Bousselham et al., arXiv 2404.03214. With dA = dO vᵀ the gradient of the logit for a layer's attention (B x H x N x M)::

    map = sum over layers of the mean over heads and queries of max(dA, 0)

One forward and one backward pass; dA is made in blocks of rows. What differs from the paper and its public code: they
score each layer by its own tokens, sent straight through the head, and differentiate that score for that layer's
attention. Which modules of a model are its head is nothing the seam shows, so here every layer's dA is that of the
model's own logit, through all layers that follow; for the last layer the two are the same. All layers are summed, as in
the paper (the code's default is the last two), and the read-out is the model's own (the code averages all tokens).
"""

import torch
from torch import Tensor

from clearhead.attention_tap import tap
from clearhead.attribution.gae import blocks, token_grid
from clearhead.models import Classifier
from clearhead.models.classifier import logit_gradients


def legrad(model: Classifier, images: Tensor, target: Tensor | int | None = None) -> tuple[Tensor, Tensor]:
    """Relevance of each patch for a class (B x h x w, raw, not negative) and the logits; see the head of this file.

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
    return row[:, grid.prefix :].unflatten(1, (grid.height, grid.width)), logits.detach()
