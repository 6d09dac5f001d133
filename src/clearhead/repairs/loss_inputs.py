"""What a loss is called with: a classifier or a plain module, and a batch.

A batch is a mapping with ``image`` (B x 3 x H x W), ``label`` (B), and where the loss needs them ``mask``
(B x 1 x H x W or B x H x W, 1 on the object), ``has_mask`` (B, true by default) and ``group`` (B names). Batches of
``clearhead.data.loading`` have all of them; a training loop of your own needs those of its loss only.
"""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from clearhead.errors import ClearheadError
from clearhead.models import Classifier, Preprocessing, TokenGrid
from clearhead.models.token_grid import probe
from clearhead.training.losses import Batch

_grids: WeakKeyDictionary[nn.Module, dict[tuple[int, int], tuple[int, TokenGrid | None]]] = WeakKeyDictionary()
"""Number of outputs and token grid of plain modules, by input size."""


def with_token_grid(model: Classifier | nn.Module, images: Tensor) -> Classifier:
    """Return the classifier, or a plain module as one that takes `images` as they are, without normalising them.

    The token grid of a module is found by one forward pass the first time it is seen with this input size.
    """
    if isinstance(model, Classifier):
        return model
    height, width = images.shape[-2:]
    known = _grids.setdefault(model, {})
    if (height, width) not in known:
        known[height, width] = probe(model, (height, width))
    outputs, grid = known[height, width]
    preprocess = Preprocessing((height, width), (height, width), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Classifier(
        model, type(model).__name__, "module", preprocess, tuple(f"class {i}" for i in range(outputs)), grid
    )


def is_training(model: Classifier | nn.Module) -> bool:
    """Return whether a classifier or module is in training mode."""
    return (model.module if isinstance(model, Classifier) else model).training


def masks_in(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the masks of a batch, B x H x W on the images' device, and which images have one, B.

    Raises ClearheadError for a batch without masks, or with masks of another size than the images.
    """
    images = batch["image"]
    if "mask" not in batch:
        raise ClearheadError(f"batch: 'mask' is missing; it has {', '.join(batch)}. Add masks of B x H x W, 1 = object")
    mask = batch["mask"]
    mask = (mask[:, 0] if mask.ndim == 4 else mask).to(images)
    if mask.shape != images.shape[:1] + images.shape[-2:]:
        raise ClearheadError(
            f"batch: 'mask' is {tuple(batch['mask'].shape)} for images of {tuple(images.shape)}; B x H x W or "
            "B x 1 x H x W of the same size is needed"
        )
    has_mask = batch.get("has_mask")
    return mask, torch.ones(len(mask), dtype=torch.bool, device=mask.device) if has_mask is None else has_mask
