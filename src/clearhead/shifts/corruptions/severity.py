"""What all corruptions share: a table of published constants, and the check of what goes in.

A corruption is written as a function of the images, the constants of one severity and the generators; ``corruption``
gives it the signature of ``Corruption``.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from clearhead.errors import ClearheadError

Constants = Literal["imagenet", "cifar"]
"""The constants of ImageNet-C (for images of 224 px) or the weaker ones of CIFAR-10-C (32 px)."""

_TOGETHER = 2**20
"""Values a processor is given at once, 7 images of 224 px: larger intermediate results leave its caches."""


class Corruption(Protocol):
    """Images, B x 3 x H x W in 0..1, to the same changed: shape, dtype and range stay.

    `severity` is 1..5; each image draws its random numbers from its own generator, which is on the images' device.
    Raises ClearheadError for images of another shape or dtype, another severity, unknown constants, or when there is
    not
    one generator an image.
    """

    __name__: str

    def __call__(
        self,
        images: Tensor,
        severity: int,
        generators: Sequence[torch.Generator],
        constants: Constants = "imagenet",
    ) -> Tensor:
        """Corrupt the images."""


def corruption(
    imagenet: Sequence[Any], cifar: Sequence[Any], together: int = _TOGETHER
) -> Callable[[Callable[..., Tensor]], Corruption]:
    """Make a Corruption of a function of (images, constants of a severity, generators).

    The tables have one entry a severity. The function is given float32 or float64 images, on a processor at most
    `together` values at once; what it returns is cut off at 0 and 1.
    """
    tables = {"imagenet": imagenet, "cifar": cifar}

    def wrap(function: Callable[..., Tensor]) -> Corruption:
        @functools.wraps(function)
        def corrupted(
            images: Tensor,
            severity: int,
            generators: Sequence[torch.Generator],
            constants: Constants = "imagenet",
        ) -> Tensor:
            if constants not in tables:
                raise ClearheadError(f"constants {constants!r}: there are 'imagenet' and 'cifar'")
            if severity not in (1, 2, 3, 4, 5):
                raise ClearheadError(f"severity {severity!r}: it is one of 1, 2, 3, 4, 5")
            if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
                raise ClearheadError(
                    f"images of shape {tuple(images.shape)} and {images.dtype}: B x 3 x H x W floats in 0..1 are needed"
                )
            if len(generators) != len(images):
                raise ClearheadError(f"{len(generators)} generators for {len(images)} images: each image needs its own")
            table = tables[constants][int(severity) - 1]
            count = max(1, together // max(1, images[:1].numel())) if images.device.type == "cpu" else len(images)
            result = torch.empty_like(images)
            with torch.no_grad():
                for start in range(0, len(images), max(1, count)):
                    part = slice(start, start + count)
                    exact = images[part].contiguous()  # sums of other strides round otherwise
                    exact = exact if images.dtype == torch.float64 else exact.float()
                    result[part] = function(exact, table, generators[part]).clamp(0, 1)
            return result

        del corrupted.__dict__["__wrapped__"]  # the signature to show is this one
        return corrupted

    return wrap
