"""Apply the corruptions of Hendrycks & Dietterich (ICLR 2019, arXiv 1903.12261) on the images' device.

The random numbers of the published data sets, ImageNet-C and CIFAR-10-C, are unknown: the corruptions here have the
same distribution, but not the same pixels, and are not stored as JPEG of quality 85 as ImageNet-C was. Use the
published data sets for numbers to compare with published ones.

Formulas and constants are from the published code, hendrycks/robustness, ImageNet-C/create_c/make_imagenet_c.py and
make_cifar_c.py. They are in pixels, whatever the size of the image; where that code uses 224 (or 32), the height and
width of the image are used. It computes in float64 and in 8 bits, these functions in float32, rounded to 8 bits where
that code does.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
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
"""All types in published order: the 15 that are averaged, then the 4 for model selection."""

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
"""AlexNet's top-1 error on ImageNet-C, averaged over severities (google-research/augmix, imagenet.py, ALEXNET_ERR)."""


def mean_corruption_error(errors: Mapping[str, npt.ArrayLike]) -> npt.NDArray[np.float64]:
    """Return the mCE in percent: the mean over 15 types of the error, averaged over severities, divided by AlexNet's.

    100 is the error of AlexNet on ImageNet-C. Published values (76.7 for a ResNet-50) are for the published data set.

    Args:
        errors: for each of the types ``COMMON`` (others are ignored), the top-1 errors in 0..1 at the five severities:
            5 numbers, or 5 x N for N images.

    Returns:
        One number, or N.

    Raises:
        ClearheadError: for a missing type, another number of severities, or an error outside 0..1.
    """
    if missing := [name for name in COMMON if name not in errors]:
        raise ClearheadError(f"errors: {', '.join(missing)} is missing; the mCE needs all 15 types")
    ratios = []
    for name in COMMON:
        values = np.asarray(errors[name], dtype=float)
        if len(values) != len(SEVERITIES):
            raise ClearheadError(f"errors: got {len(values)} errors for {name}; one per severity 1 to 5 is needed")
        if not ((values >= 0) & (values <= 1)).all():
            raise ClearheadError(f"errors: got {values.min():g}..{values.max():g} for {name}; use 0..1, not percent")
        ratios.append(values.mean(0) / ALEXNET_ERRORS[name])
    mce: npt.NDArray[np.float64] = 100 * np.mean(ratios, axis=0)
    return mce


def corruption_sets(
    folder: ImageIndex,
    class_mappings: Mapping[str, ClassMapping],
    types: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    constants: Constants = "imagenet",
) -> list[ShiftedDataset]:
    """Return the images under each type and severity: data sets ``fog 1`` to ``fog 5`` of the family ``fog``.

    `types` are names from ``CORRUPTIONS``; the default is the 15 of ``COMMON``. Raises ClearheadError for unknown types
    and severities.
    """
    types = COMMON if types is None else types
    if unknown := [name for name in types if name not in CORRUPTIONS]:
        raise ClearheadError(f"types: {', '.join(unknown)} is unknown; choose from {', '.join(CORRUPTIONS)}")
    if wrong := [severity for severity in severities if severity not in SEVERITIES]:
        raise ClearheadError(f"severities: got {wrong}; choose from 1, 2, 3, 4, 5")
    return [
        ShiftedDataset(
            f"{name} {severity}",
            folder,
            class_mappings,
            shift=functools.partial(_corrupt, name, severity, constants),
            family=name,
            level=severity,
        )
        for name in types
        for severity in severities
    ]


def _corrupt(
    name: str, severity: int, constants: Constants, images: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    """Apply a corruption by name (so that it can be pickled), truncated to 8 bits as in the published code."""
    corrupted = CORRUPTIONS[name](images, severity, generators, constants)
    return (corrupted * 255 + 1e-4).floor() / 255  # 1e-4: values on a grey level stay on it
