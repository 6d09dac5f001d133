"""Relevance maps to look at: laid over their images, alone or side by side with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from PIL import Image
from torch import Tensor

from clearhead.data.image_io import load_image
from clearhead.errors import ClearheadError
from clearhead.models import Classifier, as_classifier
from clearhead.models.inputs import ImageLike, to_pixels
from clearhead.models.preprocessing import to_uint8
from clearhead.models.source import ModelLike

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]

_STRENGTH = 0.7


def overlay(
    image: ImageLike,
    relevance: Tensor | Array,
    *,
    model: ModelLike | None = None,
    strength: float = _STRENGTH,
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Lay a map over its image: the more relevant, the less transparent and the warmer; at 0 the image shows.

    The image first loses half its saturation, so that colour stands for relevance.

    Args:
        image: a PIL image, a path, an H x W x 3 array of uint8, or a 3 x H x W tensor of pixels in 0..1.
        relevance: the map, h x w in 0..1 (the caller chooses the scaling); resized to H x W.
        model: the model that was explained. With it the image is shown as the model sees it, resized and cropped:
            then map and image coincide. Without it, the image must be what the map was made of, in any resolution.
        strength: opacity in 0..1 at relevance 1.

    Returns:
        H x W x 3, uint8.

    Raises:
        ClearheadError: for an image or a map of another shape or range, or of different proportions.
    """
    heat = relevance.detach().float().cpu().numpy() if isinstance(relevance, Tensor) else np.asarray(relevance)
    if heat.ndim == 3 and len(heat) == 1 and isinstance(relevance, Tensor):  # of one image, as explain returns it
        heat = heat[0]
    if heat.ndim != 2:
        raise ClearheadError(f"relevance: got shape {heat.shape}; one map, h x w, is needed")
    photograph = _shown(image, model, heat.shape)
    if not (np.isfinite(heat).all() and heat.min() >= 0 and heat.max() <= 1):
        raise ClearheadError(
            f"relevance: got values in {heat.min():.3g}..{heat.max():.3g}; 0..1 is needed: scale it, for instance "
            "relevance / relevance.max()"
        )
    height, width = photograph.shape[:2]
    resized = Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    values = np.clip(np.asarray(resized), 0, 1)
    grey = photograph.mean(axis=2, keepdims=True)
    muted = 0.5 * photograph + 0.5 * grey
    alpha = strength * (values**0.8)[..., None]
    blended: np.ndarray[Any, np.dtype[np.uint8]] = np.rint((1 - alpha) * muted + alpha * 255 * _warm(values))
    return blended.astype(np.uint8)


def show(
    images: ImageLike | Sequence[ImageLike],
    maps: Tensor | Array | Mapping[str, Tensor | Array],
    *,
    model: ModelLike | None = None,
    titles: Sequence[str] | None = None,
) -> Figure:
    """Return a Matplotlib figure with each image beside its map laid over it, and a colour bar.

    Args:
        images: B images, as for ``explain``.
        maps: their maps, B x H x W in 0..1; or several of these by the name of the method.
        model: the model that was explained; as for ``overlay``.
        titles: a title for each image.

    Raises:
        ClearheadError: for another number of maps or titles than of images; and as ``overlay``.
    """
    from matplotlib import pyplot  # so that notebooks know how to show a figure
    from matplotlib.figure import Figure

    del pyplot
    columns = maps if isinstance(maps, Mapping) else {"relevance": maps}
    shape = tuple(next(iter(columns.values()))[0].shape)
    photographs = _photographs(images, None if model is None else as_classifier(model), shape)
    for name, values in columns.items():
        if len(values) != len(photographs):
            raise ClearheadError(f"maps: {len(values)} ({name}) for {len(photographs)} images; one per image is needed")
    if titles is not None and len(titles) != len(photographs):
        raise ClearheadError(f"titles: {len(titles)} for {len(photographs)} images; one per image is needed")
    width, height = 1 + len(columns), len(photographs)
    figure = Figure(figsize=(2.6 * width + 0.6, 2.6 * height + 0.3), layout="constrained")
    axes = figure.subplots(height, width, squeeze=False)
    for row, photograph in zip(range(height), photographs, strict=True):
        cells = [photograph, *(overlay(photograph, values[row]) for values in columns.values())]
        captions = [titles[row] if titles is not None else "image" if row == 0 else "", *columns]
        for axis, cell, caption in zip(axes[row], cells, captions, strict=True):
            axis.imshow(cell)
            axis.set_axis_off()
            if row == 0 or caption not in columns:
                axis.set_title(caption, fontsize=9)
    colours = ListedColormap([tuple(map(float, colour)) for colour in _warm(np.linspace(0, 1, 256))])
    figure.colorbar(ScalarMappable(cmap=colours), ax=axes, label="relevance (scaled to 0..1 per map)", fraction=0.05)
    return figure


def _warm(values: Array) -> Array:
    """Return the colours of relevance in 0..1: RGB in 0..1 in the last axis."""
    colours: Array = colormaps["inferno"](0.35 + 0.55 * values)[..., :3]
    return colours


def _photographs(
    images: ImageLike | Sequence[ImageLike], model: Classifier | None, shape: tuple[int, ...]
) -> list[Array]:
    """Return each image, H x W x 3 of uint8."""
    if isinstance(images, Tensor):
        return [_shown(image, None, shape) for image in images.reshape(-1, *images.shape[-3:])]
    if isinstance(images, Sequence) and not isinstance(images, str):
        return [photograph for image in images for photograph in _photographs(image, model, shape)]
    return [_shown(images, model, shape)]


def _shown(image: ImageLike, model: ModelLike | None, shape: tuple[int, ...]) -> Array:
    """Return an image, H x W x 3 of uint8, as a model sees it where one is passed. Raises ClearheadError.

    `shape` is that of its map, h x w: a photograph of other proportions was cropped for the map, and cannot be shown
    under it without the model that says how.
    """
    if isinstance(image, Tensor):
        if image.ndim == 4 and len(image) == 1:
            image = image[0]
        if image.ndim != 3 or image.shape[0] != 3:
            raise ClearheadError(f"image: got a tensor {tuple(image.shape)}; 3 x H x W, pixels in 0..1, is needed")
        return to_uint8(image)
    if model is not None:
        return to_uint8(to_pixels(as_classifier(model), image)[0])
    if isinstance(image, str | Path):
        image = load_image(Path(image))
    if isinstance(image, Image.Image) and abs(image.height * shape[1] / (image.width * shape[0]) - 1) > 0.02:
        raise ClearheadError(
            f"image: {image.height} x {image.width} pixels, of other proportions than its map of {shape[0]} x "
            f"{shape[1]}; pass model=, so that the image is cropped as the model sees it"
        )
    photograph = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if photograph.ndim != 3 or photograph.shape[2] != 3 or photograph.dtype != np.uint8:
        raise ClearheadError(f"image must be H x W x 3 of uint8, got shape {photograph.shape} of {photograph.dtype}")
    return photograph
