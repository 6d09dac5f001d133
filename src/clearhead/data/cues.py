"""Describe images by cues that are no object: background, borders, size, file, camera metadata, brightness and colour.

Each cue is a short vector of numbers per image, computed without a network. A classifier that predicts the label from
one of them (``clearhead.analyses.data_audit``) shows that a model could learn it in place of the object.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from sklearn.feature_extraction import DictVectorizer

from clearhead.data.dataset import Sample
from clearhead.data.image_io import ImageRef, load_image, load_mask
from clearhead.progress import Progress, track

Features = Mapping[str, float | str]
"""One image's description: numbers, and text that is one of several categories."""

CUES = (
    *("background", "border", "image size", "file format", "camera metadata"),
    *("file size", "mean colour"),
)
"""The cues, in this order; the object too decides the last two."""

OF_THE_OBJECT_TOO = ("file size", "mean colour")

THUMBNAIL = 32
"""Side of the grey thumbnails that near duplicates are found by."""

_SIDE, _RING = 20, 2  # the outer 10% of a side
_LARGE, _OUTER = 64, 9
_LONGEST_TEXT = 64


@dataclass(frozen=True)
class Description:
    """What is measured of one image.

    Attributes:
        cues: the features of each cue that the image has, by name.
        thumbnail: its grey values at ``THUMBNAIL`` x ``THUMBNAIL``, flat.
        digest: of its decoded pixels.
    """

    cues: dict[str, Features]
    thumbnail: npt.NDArray[np.float32]
    digest: str


def describe_images(samples: tuple[Sample, ...], progress: Progress | None = None) -> list[Description]:
    """Return the description of each image. Raises DataError for one that cannot be decoded."""
    with ThreadPoolExecutor() as pool:
        return list(track(pool.map(describe, samples), progress, "images", len(samples)))


def describe(sample: Sample) -> Description:
    """Return the description of an image, decoded as a model sees it (RGB, EXIF orientation applied)."""
    image = load_image(sample.path)
    cues: dict[str, Features] = dict(_header(sample))
    width, height = image.size
    cues["image size"] = {"width": width, "height": height, "aspect ratio": width / height}
    large, small = (_channels(image, side) for side in (_LARGE, _SIDE))
    cues["mean colour"] = _numbered("channel", large.mean((1, 2)))
    ring = np.ones((_SIDE, _SIDE), dtype=bool)
    ring[_RING:-_RING, _RING:-_RING] = False
    cues["border"] = _numbered("pixel", small[:, ring].ravel()) | _colour(small[:, ring])
    if sample.mask is not None and (features := _background(large, sample.mask)):
        cues["background"] = features
    cues |= {f"column {name}": {name: value or "unknown"} for name, value in sample.groups.items()}
    grey = image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    digest = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
    return Description(cues, np.asarray(grey, dtype=np.float32).ravel(), digest)


def _header(sample: Sample) -> dict[str, Features]:
    """Return what the file says of the image: format, compression and EXIF data."""
    path = sample.path
    with Image.open(path) if isinstance(path, Path) else path.open() as opened:
        size = path.stat().st_size if isinstance(path, Path) else getattr(path, "size", 0)
        weight = {"bytes": float(size), "bytes per pixel": size / (opened.width * opened.height)}
        file: dict[str, float | str] = {"format": opened.format or "array", "mode": opened.mode}
        for number, table in enumerate(getattr(opened, "quantization", {}).values()):
            file[f"quantization {number}"] = float(sum(table))
        file["progressive"] = float(bool(opened.info.get("progressive")))
        camera = {name: value for name in ("dpi", "comment", "icc_profile") if (value := opened.info.get(name))}
        try:
            exif = opened.getexif()
            camera |= {ExifTags.TAGS.get(tag, str(tag)): value for tag, value in exif.items()}
            camera |= {ExifTags.TAGS.get(tag, str(tag)): v for tag, v in exif.get_ifd(ExifTags.IFD.Exif).items()}
        except Exception:  # broken EXIF data counts as none, as in load_image
            camera = dict(camera)
    metadata = _plain(camera) | {"entries": float(len(camera))}
    return {"file format": file, "camera metadata": metadata, "file size": weight}


def _plain(entries: Mapping[str, Any]) -> dict[str, float | str]:
    """Return EXIF entries as numbers and short texts; dates as year, month and hour."""
    plain: dict[str, float | str] = {}
    for name, value in entries.items():
        value = value[0] if isinstance(value, tuple) and value else value
        if isinstance(value, bytes):
            plain[name] = hashlib.sha256(value).hexdigest()[:16]
        elif isinstance(value, str):
            text = value.strip("\0 ")[:_LONGEST_TEXT]
            date = text.replace(":", " ").split()
            if name.startswith("DateTime") and len(date) >= 4 and all(part.isdigit() for part in date[:4]):
                plain |= {f"{name} {unit}": float(date[i]) for i, unit in ((0, "year"), (1, "month"), (3, "hour"))}
            else:
                plain[name] = text
        else:
            try:
                number = float(value)
            except (TypeError, ValueError, ZeroDivisionError):
                continue
            if np.isfinite(number):
                plain[name] = number
    return plain


def _background(large: npt.NDArray[np.float32], mask: Path | ImageRef) -> Features | None:
    """Return colours and texture of the outer 14% of an image, 3 x H x W, outside the bounding box of the object.

    Neither the silhouette nor the position of the object is part of it. All of the background would depend on the
    position: with a sky above, its mean colour follows from how much of it the box leaves. None if less than 2% of the
    image is left.
    """
    inside = np.asarray(load_mask(mask).resize((_LARGE, _LARGE), Image.Resampling.NEAREST)) > 0
    outside = np.ones_like(inside)
    outside[_OUTER:-_OUTER, _OUTER:-_OUTER] = False
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if len(rows):  # one pixel more: those at the edge are mixed
        outside[max(rows[0] - 1, 0) : rows[-1] + 2, max(columns[0] - 1, 0) : columns[-1] + 2] = False
    if outside.mean() < 0.02:
        return None
    colours = large[:, outside]
    bins = np.array([16, 4, 1]) @ (colours // 64).astype(int)
    histogram = np.bincount(bins, minlength=64) / len(bins)
    steps = [np.abs(np.diff(large.mean(0), axis=axis)) for axis in (0, 1)]
    within = [outside[1:] & outside[:-1], outside[:, 1:] & outside[:, :-1]]
    texture = [float(step[part].mean()) if part.any() else 0.0 for step, part in zip(steps, within, strict=True)]
    return _numbered("colour", histogram) | _numbered("texture", np.array(texture)) | _colour(colours)


def _channels(image: Image.Image, side: int) -> npt.NDArray[np.float32]:
    """Return an RGB image at side x side pixels as 3 x H x W, in 0..255."""
    small = image.resize((side, side), Image.Resampling.BOX)
    return np.ascontiguousarray(np.asarray(small, dtype=np.float32).transpose(2, 0, 1))


def _colour(pixels: npt.NDArray[np.float32]) -> dict[str, float | str]:
    """Return mean and spread of each channel and of the grey values, and the mean saturation, of 3 x N pixels."""
    grey, saturation = pixels.mean(0), np.ptp(pixels, axis=0)
    values = [*pixels.mean(1), *pixels.std(1), grey.std(), *np.quantile(grey, (0.05, 0.5, 0.95)), saturation.mean()]
    return _numbered("colour statistic", np.array(values))


def _numbered(name: str, values: npt.NDArray[Any]) -> dict[str, float | str]:
    return {f"{name} {i}": float(value) for i, value in enumerate(values)}


def feature_matrix(features: list[Features]) -> npt.NDArray[np.float32] | None:
    """Return N images' features as an N x D matrix; None where all images are equal in them.

    Texts become one column per value that at least two images have, a missing entry is 0.
    """
    vectorizer = DictVectorizer(sparse=False, dtype=np.float32)
    matrix: npt.NDArray[np.float32] = vectorizer.fit_transform(features)
    texts = np.array(["=" in name for name in vectorizer.get_feature_names_out()], dtype=bool)
    varied = (np.ptp(matrix, axis=0) > 0) & ~(texts & ((matrix != 0).sum(0) < 2))
    return matrix[:, varied] if varied.any() else None
