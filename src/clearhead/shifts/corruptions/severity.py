"""Define a corruption: tables of published constants by severity, and checks of the arguments.

A corruption is written as a function of images, the constants of one severity, and generators; the decorator
``corruption`` gives it the signature of ``Corruption``.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from clearhead.errors import ClearheadError

Constants = Literal["imagenet", "cifar"]
"""The constants of ImageNet-C (for images of 224 px) or the weaker ones of CIFAR-10-C (32 px)."""

_CHUNK = 2**20
"""Values that a CPU processes at a time, 7 images of 224 px: larger intermediate results exceed its caches."""


class Corruption(Protocol):
    """A function that corrupts images, B x 3 x H x W in 0..1, keeping shape, dtype and range.

    `severity` is 1..5. Each image has its own generator, on the images' device. Raises ClearheadError for images of
    another shape or dtype, another severity, unknown constants, or another number of generators than images.
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
    imagenet: Sequence[Any], cifar: Sequence[Any], chunk: int = _CHUNK
) -> Callable[[Callable[..., Tensor]], Corruption]:
    """Decorate a function of (images, constants of one severity, generators) to make it a ``Corruption``.

    The tables have one entry per severity. The function gets float32 or float64 images, on a CPU at most `chunk` values
    at a time; its result is clipped to 0..1.
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
                raise ClearheadError(f"constants: {constants!r} is unknown; choose from imagenet, cifar")
            if severity not in (1, 2, 3, 4, 5):
                raise ClearheadError(f"severity: got {severity!r}; choose from 1, 2, 3, 4, 5")
            if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
                raise ClearheadError(
                    f"images: got {images.dtype}, {tuple(images.shape)}; floats in 0..1, B x 3 x H x W, are needed"
                )
            if len(generators) != len(images):
                raise ClearheadError(
                    f"generators: got {len(generators)} for {len(images)} images; one per image is needed"
                )
            table = tables[constants][int(severity) - 1]
            count = max(1, chunk // max(1, images[:1].numel())) if images.device.type == "cpu" else len(images)
            result = torch.empty_like(images)
            with torch.no_grad():
                for start in range(0, len(images), max(1, count)):
                    part = slice(start, start + count)
                    exact = images[part].contiguous()  # sums over other strides round differently
                    exact = exact if images.dtype == torch.float64 else exact.float()
                    result[part] = function(exact, table, generators[part]).clamp(0, 1)
            return result

        del corrupted.__dict__["__wrapped__"]  # so that this signature is shown
        return corrupted

    return wrap
