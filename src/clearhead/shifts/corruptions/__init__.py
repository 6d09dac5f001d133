"""The corruptions of Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (ICLR 2019, arXiv 1903.12261), made on the fly on the images' device, and the mean corruption error.

The published sets, ImageNet-C and CIFAR-10-C, were made with random numbers nobody kept; what is made here has the
same distribution, not the same pixels, and is not stored as JPEG of quality 85 as ImageNet-C was. Numbers to be
compared with published ones come from the published sets.
"""

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from clearhead.data.dataset import ImageIndex
from clearhead.errors import ClearheadError
from clearhead.shifts.corruptions.blur import defocus_blur, gaussian_blur, glass_blur, motion_blur, zoom_blur
from clearhead.shifts.corruptions.digital import contrast, elastic_transform, jpeg_compression, pixelate, saturate
from clearhead.shifts.corruptions.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from clearhead.shifts.corruptions.severity import Constants, Corruption
from clearhead.shifts.corruptions.weather import brightness, fog, frost, snow, spatter
from clearhead.shifts.sets import ClassMapping, ShiftedDataset

CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
    "speckle_noise": speckle_noise,
    "gaussian_blur": gaussian_blur,
    "spatter": spatter,
    "saturate": saturate,
}
"""All types in published order: the 15 that are averaged over, then the 4 meant for choosing on."""

COMMON = tuple(CORRUPTIONS)[:15]
EXTRA = tuple(CORRUPTIONS)[15:]

SEVERITIES = (1, 2, 3, 4, 5)

ALEXNET_ERRORS = dict(
    zip(
        COMMON,
        (
            *(0.886428, 0.894468, 0.922640),
            *(0.819880, 0.826268, 0.785948, 0.798360),
            *(0.866816, 0.826572, 0.819324, 0.564592),
            *(0.853204, 0.646056, 0.717840, 0.606500),
        ),
        strict=True,
    )
)
"""AlexNet's top-1 error on ImageNet-C, mean over the severities (google-research/augmix, imagenet.py, ALEXNET_ERR)."""


def mean_corruption_error(errors: Mapping[str, Sequence[float]]) -> float:
    """The mCE in percent: the mean over the 15 types of the error, summed over severities, over that of AlexNet.

    100 is as bad as AlexNet on ImageNet-C; published values (76.7 for a ResNet-50) are top-1 errors on the published
    set.

    Args:
        errors: for each of the types ``COMMON`` (others are passed over) the five top-1 errors, shares of 0..1.

    Raises:
        ClearheadError: for a missing type, another number of severities, an error outside 0..1.
    """
    if missing := [name for name in COMMON if name not in errors]:
        raise ClearheadError(f"errors are missing for {', '.join(missing)}: the mCE is over all 15 types")
    ratios = []
    for name in COMMON:
        found = errors[name]
        if len(found) != len(SEVERITIES):
            raise ClearheadError(f"{len(found)} errors for {name}: there is one for each of the severities 1 to 5")
        if not all(0 <= error <= 1 for error in found):
            raise ClearheadError(f"errors {list(found)} for {name}: they are shares of 0..1, not percent")
        ratios.append(sum(found) / len(found) / ALEXNET_ERRORS[name])
    return 100 * sum(ratios) / len(ratios)


def corruption_sets(
    folder: ImageIndex,
    scoring: Mapping[str, ClassMapping],
    types: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    constants: Constants = "imagenet",
) -> list[ShiftedDataset]:
    """The images of a folder under each type and severity: sets ``fog 1`` to ``fog 5`` of the family ``fog``.

    `types` are keys of ``CORRUPTIONS``, None for the 15 of ``COMMON``. Raises ClearheadError for others, and for
    severities
    that are not 1..5.
    """
    types = COMMON if types is None else types
    if unknown := [name for name in types if name not in CORRUPTIONS]:
        raise ClearheadError(f"corruption types {', '.join(unknown)}: there is {', '.join(CORRUPTIONS)}")
    if wrong := [severity for severity in severities if severity not in SEVERITIES]:
        raise ClearheadError(f"severities {wrong}: they are 1, 2, 3, 4, 5")
    return [
        ShiftedDataset(
            f"{name} {severity}",
            folder,
            scoring,
            shift=functools.partial(_corrupted, name, severity, constants),
            family=name,
            level=severity,
        )
        for name in types
        for severity in severities
    ]


def _corrupted(
    name: str, severity: int, constants: Constants, images: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    """A corruption as a Shift, by name (processes can be sent it), cut to 8 bits as the published code does."""
    found = CORRUPTIONS[name](images, severity, generators, constants)
    return (found * 255 + 1e-4).floor() / 255  # 1e-4: what lies on a level stays there
