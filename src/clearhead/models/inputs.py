"""Images as a user has them, to the pixels that a classifier takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clearhead.data.image_io import load_image
from clearhead.errors import ClearheadError
from clearhead.models.class_names import class_index
from clearhead.models.classifier import Classifier
from clearhead.models.preprocessing import UnknownPreprocessing
from clearhead.models.source import ModelLike, as_classifier

ImageLike = Image.Image | str | Path | np.ndarray[Any, Any] | Tensor
"""A PIL image, a path, an H x W x 3 array of uint8, or a tensor of pixels in 0..1 (3 x H x W or B x 3 x H x W)."""


def classifier_and_pixels(model: ModelLike, images: ImageLike | Sequence[ImageLike]) -> tuple[Classifier, Tensor]:
    """Return a classifier and its pixels from what a user has; as ``as_classifier`` and ``to_pixels``."""
    size = (images.shape[-2], images.shape[-1]) if isinstance(images, Tensor) and images.ndim >= 3 else None
    classifier = as_classifier(model, image_size=size)
    return classifier, to_pixels(classifier, images)


def to_pixels(model: Classifier, images: ImageLike | Sequence[ImageLike]) -> Tensor:
    """Return images as the classifier takes them: B x 3 x H x W, pixels in 0..1, on its device and in its precision.

    PIL images, paths and arrays are resized and cropped by ``model.preprocess``. Tensors keep their size; of a
    classifier whose preprocessing is unknown they are what its module takes.

    Raises:
        ClearheadError: for images of another type, shape or range.
        DataError: for a file that cannot be read.
    """
    like = next(model.parameters(), torch.zeros(()))
    if isinstance(images, Tensor):
        _require_pixels(images, scaled=not isinstance(model.preprocess, UnknownPreprocessing))
        return images.reshape(-1, *images.shape[-3:]).to(like)
    if isinstance(images, str | Path):
        return model.preprocess.image(load_image(Path(images)))[None].to(like)
    if isinstance(images, Image.Image):
        return model.preprocess.image(images)[None].to(like)
    if isinstance(images, np.ndarray) and images.ndim == 3:
        if images.shape[-1] != 3 or images.dtype != np.uint8:
            raise ClearheadError(f"images: got an array {images.shape} of {images.dtype}; H x W x 3 of uint8 is needed")
        return model.preprocess.image(Image.fromarray(images))[None].to(like)
    if isinstance(images, Sequence | np.ndarray) and len(images) and not isinstance(images, bytes):
        return torch.cat([to_pixels(model, image) for image in images])
    raise ClearheadError(
        f"images: got {type(images).__name__}{' of no images' if isinstance(images, Sequence) else ''}; pass a PIL "
        "image, a path, an H x W x 3 array of uint8, a list of these, or a tensor of pixels in 0..1 (B x 3 x H x W)"
    )


def class_to_explain(model: Classifier, target: Tensor | int | str | None) -> Tensor | int | None:
    """Return a class, where it is a name, as its index. Raises ClearheadError with similar names for an unknown one."""
    return class_index(model.classes, target) if isinstance(target, str) else target


def _require_pixels(images: Tensor, scaled: bool) -> None:
    """Raise ClearheadError unless a tensor is 3 x H x W or B x 3 x H x W of floats and, if `scaled`, in 0..1."""
    if images.ndim not in (3, 4) or images.shape[-3] != 3 or not images.is_floating_point():
        raise ClearheadError(
            f"images: got a tensor {tuple(images.shape)} of {images.dtype}; floats of 3 x H x W or B x 3 x H x W are "
            "needed (of uint8: images / 255)"
        )
    if scaled and images.numel() and (images.min() < -1e-3 or images.max() > 1 + 1e-3):
        raise ClearheadError(
            f"images: pixels in 0..1 are needed, got {images.min():.3g}..{images.max():.3g}; pass them before "
            "normalisation, which the classifier does itself"
        )
