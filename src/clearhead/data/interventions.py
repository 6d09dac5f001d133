"""Remove, swap or isolate the background of images.

As in Xiao et al., "Noise or Signal" (arXiv 2006.09994), on the image x with the foreground mask S (both of the model's
input size) and the mean colour m of the model's training data (0 after normalisation):

- background removed: x S + m (1 - S);
- background swapped: x S + b (1 - S), with b another image's background;
- background only: x outside the bounding box of the foreground, m inside (so that no silhouette is left).

A background of another image is that image with the box of its own foreground filled by the mean of what is around it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

INTERVENTIONS = ("background removed", "background swapped", "background only")
"""Their names in tables: those of ``remove_background``, ``swap_backgrounds`` and ``remove_object``."""


def remove_background(image: Tensor, mask: Tensor, fill: Sequence[float]) -> Tensor:
    """Return the objects on the colour `fill`.

    Args:
        image: the images, B x C x H x W, pixels in 0..1.
        mask: their foreground masks, B x 1 x H x W in 0..1.
        fill: the colour that replaces what is removed, one value in 0..1 per channel: the model's mean colour.
    """
    return image * mask + _colour(image, fill) * (1 - mask)


def swap_backgrounds(image: Tensor, mask: Tensor, _fill: Sequence[float]) -> Tensor:
    """Put the background of image i behind image i + 1, the last one's behind the first; arguments as above."""
    outside = 1 - _box(mask)
    mean = (image * outside).sum((2, 3), keepdim=True) / outside.sum((2, 3), keepdim=True).clamp(min=1)
    background = torch.where(outside > 0, image, mean).roll(1, 0)
    return image * mask + background * (1 - mask)


def remove_object(image: Tensor, mask: Tensor, fill: Sequence[float]) -> Tensor:
    """Fill the bounding boxes of the objects with the colour `fill`; arguments as above."""
    return torch.where(_box(mask) == 0, image, _colour(image, fill))


def _colour(image: Tensor, fill: Sequence[float]) -> Tensor:
    return image.new_tensor(fill)[:, None, None]


def _box(mask: Tensor) -> Tensor:
    """Return the bounding box of each mask as a mask; B x 1 x H x W of 0 and 1."""
    inside = mask > 0

    def between(line: Tensor) -> Tensor:
        """Return True from the first true entry to the last."""
        return (line.cumsum(-1) > 0) & (line.flip(-1).cumsum(-1).flip(-1) > 0)

    rows, columns = between(inside.any(-1)), between(inside.any(-2))
    return (rows[..., :, None] & columns[..., None, :]).to(mask.dtype)
