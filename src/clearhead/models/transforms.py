"""Read the preprocessing from a transform of timm or torchvision, or from an image processor of Hugging Face."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clearhead.models.errors import ModelError, cause
from clearhead.models.preprocessing import CropMode, Preprocessing, per_channel

_TO_TENSOR = {
    *("ToTensor", "PILToTensor", "ConvertImageDtype", "ToImage", "ToDtype", "ToPureTensor"),
    *("MaybeToTensor", "MaybePILToTensor"),
}


def preprocessing_of(transform: Any) -> Preprocessing:
    """Return what a transform does, as a Preprocessing, after comparing both on an image.

    Understood are compositions of resize, centre crop, conversion to a tensor and normalisation (timm's
    ``create_transform``, torchvision's Compose and ``weights.transforms()``), and Hugging Face's image processors.
    Raises ModelError for anything else.
    """
    if hasattr(transform, "to_dict"):
        return preprocessing_of_processor(transform)
    if hasattr(transform, "crop_size") and hasattr(transform, "resize_size"):  # torchvision's preset
        (edge,), (side,) = transform.resize_size, transform.crop_size
        preprocess = Preprocessing(
            size=(side, side),
            resize=(edge, edge),
            mean=tuple(transform.mean),
            std=tuple(transform.std),
            interpolation=transform.interpolation.value,
        )
    else:
        preprocess = _from_steps(getattr(transform, "transforms", [transform]))
    require_equivalent(preprocess, transform, "transform")
    return preprocess


def _from_steps(steps: list[Any]) -> Preprocessing:
    """Return the preprocessing that a list of transforms describes. Raises ModelError for one of another type."""
    read: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    crop = None
    crop_mode: CropMode = "center"
    for step in steps:
        name = type(step).__name__
        if name in ("Resize", "ResizeKeepRatio"):
            size = step.size
            if isinstance(size, int) or len(size) == 1:
                size = (size, size) if isinstance(size, int) else (size[0], size[0])
            elif name == "Resize":
                crop_mode = "squash"
            if getattr(step, "longest", 0.0) == 1.0:
                crop_mode = "border"
            read |= {"resize": tuple(size), "interpolation": _filter_name(step.interpolation)}
        elif name in ("CenterCrop", "CenterCropOrPad"):
            crop = (step.size, step.size) if isinstance(step.size, int) else tuple(step.size)
        elif name == "Normalize":
            read |= {key: tuple(torch.as_tensor(getattr(step, key)).double().tolist()) for key in ("mean", "std")}
        elif name not in _TO_TENSOR:
            raise ModelError(
                f"transform: {name} is more than resize, centre crop and normalisation; pass the transform of "
                "evaluation, or preprocess=Preprocessing(...)"
            )
    if "resize" not in read or (crop is None and crop_mode == "center"):
        raise ModelError(
            "transform: it does not bring every image to one size; a resize and a centre crop, or a resize to H x W, "
            "are needed"
        )
    return Preprocessing(size=crop or read["resize"], crop_mode=crop_mode, **read)


def _filter_name(interpolation: Any) -> str:
    """Return Pillow's name of a filter from torchvision's mode or Pillow's number."""
    if isinstance(interpolation, int):
        return Image.Resampling(interpolation).name.lower()
    return str(getattr(interpolation, "value", interpolation))


def preprocessing_of_processor(processor: Any) -> Preprocessing:
    """Return what an image processor of Hugging Face does, after comparing both on an image. Raises ModelError."""
    preprocess = from_processor_config(processor.to_dict())
    require_equivalent(
        preprocess,
        lambda image: torch.as_tensor(processor(images=image, return_tensors="pt")["pixel_values"][0]),
        f"its image processor {type(processor).__name__}",
    )
    return preprocess


def from_processor_config(config: dict[str, Any]) -> Preprocessing:
    """Return the preprocessing that the config of an image processor describes. Raises ModelError."""
    size = {k: v for k, v in (config.get("size") or {}).items() if v is not None}
    crop_mode: CropMode
    crop = config.get("crop_size") if config.get("do_center_crop") else None
    if set(size) == {"shortest_edge"}:
        edge = size["shortest_edge"]
        box, crop_mode = (edge, edge), "center"
        if config.get("crop_pct"):  # ConvNext's: `size` is that of the crop, and from 384 on it is squashed
            crop, crop_mode = {"height": edge, "width": edge}, "center" if edge < 384 else "squash"
            box = (int(edge / config["crop_pct"]),) * 2 if edge < 384 else box
    elif set(size) == {"height", "width"}:
        box, crop_mode = (size["height"], size["width"]), "squash"
    else:
        box, crop_mode = None, "squash"
    if not config.get("do_resize") or box is None or (crop_mode == "center" and not crop):
        shown = {key: config.get(key) for key in ("do_resize", "size", "do_center_crop", "crop_size")}
        raise ModelError(f"its image processor does not bring every image to one size: {shown}")
    normalise = config.get("do_normalize")
    return Preprocessing(
        size=(crop["height"], crop["width"]) if crop else box,
        resize=box,
        mean=tuple(config["image_mean"]) if normalise else (0.0, 0.0, 0.0),
        std=tuple(config["image_std"]) if normalise else (1.0, 1.0, 1.0),
        crop_mode=crop_mode,
        interpolation=Image.Resampling(config["resample"]).name.lower(),
        odd_margin="down",
    )


def require_equivalent(preprocess: Preprocessing, transform: Callable[[Image.Image], Tensor], name: str) -> None:
    """Raise ModelError unless the preprocessing gives what a transform gives, on an image of noise."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 401, 3), dtype=np.uint8))
    try:
        expected = transform(image)
    except Exception as error:  # a transform of the user's may raise anything
        raise ModelError(f"{name} does not run on an RGB image: {cause(error)}") from error
    ours = preprocess.normalize(preprocess.image(image))
    # Noise moved by one pixel is off by 40 levels; filters other than Pillow's, such as torchvision's, by one.
    if (
        not isinstance(expected, Tensor)
        or expected.shape != ours.shape
        or ((expected - ours) * per_channel(preprocess.std)).abs().mean() > 4 / 255
    ):
        raise ModelError(
            f"{name} does something besides resize, centre crop and normalisation; pass preprocess=Preprocessing(...) "
            "to from_module, with the module that you loaded"
        )
