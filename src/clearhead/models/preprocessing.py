"""Convert images to the pixels that a model takes, and normalise them."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clearhead.models.errors import ModelError

CropMode = Literal["center", "squash", "border"]


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an RGB image before a network takes it: resize, centre crop, scale to 0..1, normalise.

    ``image`` does all but the last step, which a ``Classifier`` does itself: it takes pixels in 0..1.

    Attributes:
        size: H, W of the model's input.
        resize: H, W of the box the image is resized to before `size` is cut out of its centre.
        mean: mean of each channel, for values in 0..1.
        std: standard deviation of each channel.
        crop_mode: how the image is resized, in timm's terms. ``center``: keep the aspect ratio and cover the box
            (the default of timm and torchvision); ``squash``: resize each side to that of the box; ``border``: keep
            the aspect ratio, fit the whole image into the box and fill the rest with the mean colour.
        interpolation: Pillow's filter, by its lower-case name.
        odd_margin: which pixel an odd margin is cut at: ``even`` rounds half a pixel to even (timm, torchvision),
            ``down`` rounds it down (Hugging Face).
    """

    size: tuple[int, int]
    resize: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_mode: CropMode = "center"
    interpolation: str = "bilinear"
    odd_margin: Literal["even", "down"] = "even"

    def __post_init__(self) -> None:
        if min(*self.size, *self.resize) < 1:
            raise ModelError(f"preprocessing: size {self.size} and resize {self.resize} must be at least 1 pixel")
        if self.crop_mode not in get_args(CropMode):
            known = ", ".join(get_args(CropMode))
            raise ModelError(f"preprocessing: crop_mode {self.crop_mode!r} is unknown; choose from {known}")
        if self.crop_mode != "border" and (self.resize[0] < self.size[0] or self.resize[1] < self.size[1]):
            raise ModelError(f"preprocessing: no {self.size} can be cut out of {self.resize}; resize must be as large")
        if self.interpolation.upper() not in Image.Resampling.__members__:
            known = ", ".join(Image.Resampling.__members__).lower()
            raise ModelError(f"preprocessing: interpolation {self.interpolation!r} is unknown; choose from {known}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0 for value in self.std):
            raise ModelError(f"preprocessing: mean {self.mean}, std {self.std}; three numbers each are needed, std > 0")

    def image(self, image: Image.Image, /) -> Tensor:
        """Return an image, resized and cropped, as pixels in 0..1: 3 x H x W floats, not normalised."""
        fill = tuple(round(255 * value) for value in self.mean)
        fitted = self._fitted(image.convert("RGB"), Image.Resampling[self.interpolation.upper()], fill)
        return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous().float().div(255)

    def mask(self, mask: Image.Image, /) -> Tensor:
        """Return a mask of mode L in the same geometry (bilinear): 1 x H x W floats in 0..1, 0 outside the image."""
        fitted = self._fitted(mask.convert("L"), Image.Resampling.BILINEAR, 0)
        return torch.from_numpy(np.array(fitted))[None].float().div(255)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return pixels in 0..1 (... x 3 x H x W) as the network takes them: (pixels - mean) / std of each channel."""
        if not any(self.mean) and all(value == 1 for value in self.std):
            return pixels
        mean, std = (_constant(tuple(values), pixels.device, pixels.dtype) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def _fitted(self, image: Image.Image, filter_: Image.Resampling, fill: Any) -> Image.Image:
        """Return the centre, of the model's size, of the resized image; `fill` where that reaches beyond it."""
        scaled = image.resize(self._scaled(image.width, image.height), filter_)
        left, top = self._margin(scaled.width - self.size[1]), self._margin(scaled.height - self.size[0])
        canvas = Image.new(image.mode, (self.size[1], self.size[0]), fill)
        canvas.paste(scaled, (-left, -top))
        return canvas

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of the resized image, rounded as torchvision (square box) and timm (else) do."""
        tall, wide = self.resize
        if self.crop_mode == "squash":
            return wide, tall
        if self.crop_mode == "center" and tall == wide:
            short = min(width, height)
            return max(int(tall * width / short), 1), max(int(tall * height / short), 1)
        ratio = (min if self.crop_mode == "center" else max)(height / tall, width / wide)
        return max(round(width / ratio), 1), max(round(height / ratio), 1)

    def _margin(self, spare: int) -> int:
        """Return how many of the `spare` pixels are cut off before the centre; negative: how many are missing."""
        if spare < 0:
            return -(-spare // 2)
        return round(spare / 2) if self.odd_margin == "even" else spare // 2


@dataclass(frozen=True)
class UnknownPreprocessing(Preprocessing):
    """Stands in where a model's preprocessing is unknown: tensors reach the network unchanged, images raise an error.

    Attributes:
        reason: why it is unknown, for the error.
    """

    reason: str = ""

    def image(self, image: Image.Image, /) -> Tensor:
        """Raise ModelError: how to prepare an image is unknown."""
        raise ModelError(
            f"{self.reason}: images and paths cannot be prepared. Pass transform=... (the transform that was used in "
            "evaluation) to from_module, or tensors as the model takes them (B x 3 x H x W)"
        )

    def mask(self, mask: Image.Image, /) -> Tensor:
        """Raise ModelError, as for an image."""
        return self.image(mask)


def unknown_preprocessing(size: tuple[int, int], reason: str) -> UnknownPreprocessing:
    """Return the stand-in for a model that takes H x W tensors whose preparation is unknown."""
    return UnknownPreprocessing(size, size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), reason=reason)


def box_of(size: tuple[int, int], crop_pct: float) -> tuple[int, int]:
    """Return H, W of the box that an image is resized to so that a crop of `size` is `crop_pct` of it, as timm does."""
    return int(size[0] / crop_pct), int(size[1] / crop_pct)


def to_uint8(pixels: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return pixels in 0..1 (3 x H x W) as an image to show: H x W x 3 of uint8."""
    image: np.ndarray[Any, np.dtype[np.uint8]] = (
        pixels.detach().float().cpu().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    )
    return image


def per_channel(values: Sequence[float]) -> Tensor:
    """Return one number per channel in the shape C x 1 x 1, which broadcasts to C x H x W."""
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


@functools.lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return numbers of the channels on a device; cached, because copying them to a GPU waits for it."""
    with torch.inference_mode(False):  # autograd cannot save an inference tensor
        return torch.tensor(values, dtype=dtype, device=device)[:, None, None]
