"""From a picture to a model's input, and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clearhead.models.errors import ModelError

CropMode = Literal["cover", "squash", "inside"]


@dataclass(frozen=True)
class Preprocessing:
    """What a model does to an RGB image before it sees it: scale, cut out the centre, normalise.

    Attributes:
        size: H, W of the model's input.
        resize: H, W of the box the image is scaled to before `size` is cut out of its centre.
        mean: of each channel, for values in 0..1.
        std: of each channel.
        fit: how it is scaled. ``cover``: the aspect ratio kept, the box just covered (timm's and torchvision's
            default); ``squash``: each side to the box's; ``inside``: the aspect ratio kept, all of the image inside the
            box, the rest filled with the mean (timm's crop_mode ``border``).
        interpolation: Pillow's filter, by its lower-case name.
        odd_margin: which pixel an odd margin is cut at: ``even`` rounds half a pixel to even (timm, torchvision),
            ``down`` rounds it down (Hugging Face).
    """

    size: tuple[int, int]
    resize: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: CropMode = "cover"
    interpolation: str = "bilinear"
    odd_margin: Literal["even", "down"] = "even"

    def __post_init__(self) -> None:
        if min(*self.size, *self.resize) < 1:
            raise ModelError(f"preprocessing: size {self.size} and resize {self.resize} must be at least 1 pixel")
        if self.fit not in get_args(CropMode):
            raise ModelError(f"preprocessing: fit {self.fit!r} is unknown; there is {', '.join(get_args(CropMode))}")
        if self.fit != "inside" and (self.resize[0] < self.size[0] or self.resize[1] < self.size[1]):
            raise ModelError(f"preprocessing: no {self.size} can be cut out of {self.resize}; resize must be as large")
        if self.interpolation.upper() not in Image.Resampling.__members__:
            known = ", ".join(Image.Resampling.__members__).lower()
            raise ModelError(f"preprocessing: interpolation {self.interpolation!r} is unknown; there is {known}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0 for value in self.std):
            raise ModelError(f"preprocessing: mean {self.mean}, std {self.std}; three numbers each are needed, std > 0")

    def image(self, image: Image.Image, /) -> Tensor:
        """A picture as the model sees it: 3 x H x W floats, normalised."""
        fill = tuple(round(255 * value) for value in self.mean)
        fitted = self._fitted(image.convert("RGB"), Image.Resampling[self.interpolation.upper()], fill)
        pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous()
        return pixels.float().div(255).sub_(per_channel(self.mean)).div_(per_channel(self.std))

    def mask(self, mask: Image.Image, /) -> Tensor:
        """A mask of mode L by the same geometry (bilinear): 1 x H x W floats in 0..1, 0 where there is no image."""
        fitted = self._fitted(mask.convert("L"), Image.Resampling.BILINEAR, 0)
        return torch.from_numpy(np.array(fitted))[None].float().div(255)

    def picture(self, image: Tensor) -> np.ndarray:
        """The picture a normalised image (3 x H x W) shows, H x W x 3 of uint8."""
        values = image.detach().float().cpu() * per_channel(self.std) + per_channel(self.mean)
        return values.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()

    def _fitted(self, image: Image.Image, filter_: Image.Resampling, fill: Any) -> Image.Image:
        """The image scaled to the box, and its centre of the model's size; `fill` where that reaches beyond it."""
        scaled = image.resize(self._scaled(image.width, image.height), filter_)
        left, top = self._margin(scaled.width - self.size[1]), self._margin(scaled.height - self.size[0])
        canvas = Image.new(image.mode, (self.size[1], self.size[0]), fill)
        canvas.paste(scaled, (-left, -top))
        return canvas

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        """The width and height the image is scaled to, rounded as torchvision (square box) and timm (else) do it."""
        tall, wide = self.resize
        if self.fit == "squash":
            return wide, tall
        if self.fit == "cover" and tall == wide:
            short = min(width, height)
            return max(int(tall * width / short), 1), max(int(tall * height / short), 1)
        ratio = (min if self.fit == "cover" else max)(height / tall, width / wide)
        return max(round(width / ratio), 1), max(round(height / ratio), 1)

    def _margin(self, spare: int) -> int:
        """How many of the `spare` pixels are cut off before the centre; negative: how many are missing."""
        if spare < 0:
            return -(-spare // 2)
        return round(spare / 2) if self.odd_margin == "even" else spare // 2


def per_channel(values: Sequence[float]) -> Tensor:
    """Numbers of the channels, to go with C x H x W."""
    return torch.tensor(values, dtype=torch.float32)[:, None, None]
