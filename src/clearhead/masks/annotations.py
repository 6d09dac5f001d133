"""Foreground masks from annotations that exist: boxes, polygons, run lengths, segmentation PNGs.

One function a format, by name in ``FORMATS``; each gives every image of a folder its mask, H x W, or says why there is
none. Images are found in the annotations by file name (of those in COCO files, their last part, or as much of the path
as ends in <class>/<name>), PNG and XML files as FOLDER/<class>/<stem> or FOLDER/<stem>.

Foreground are the objects of the image's own class, where the annotations have one by its name (case aside, ``_`` =
space); else all objects. Pixels marked as void, or to be ignored, are background.
"""

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import matplotlib.path
import numpy as np
from PIL import Image

from clearhead.data.dataset import ImageIndex, Sample
from clearhead.data.folder import normalize_name
from clearhead.data.image_io import DataError, format_size, load_image

Found = tuple[Sample, np.ndarray | tuple[str, str]]
"""An image and its mask (H x W, bool, of the upright image's size), or why there is none: its kind, and words."""

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
VOC_VOID = 255
IMAGENET_S_IGNORE = 1000


class _Broken(ValueError):
    """An annotation that cannot be understood, or does not fit its image."""


def coco_boxes(file: Path, data: ImageIndex) -> Iterator[Found]:
    """Boxes (``bbox``: left, top, width, height) of a COCO instances file. Raises DataError for a file that is none."""
    return _coco(file, data, lambda annotation, size: _box(*_coco_box(annotation), size))


def coco_masks(file: Path, data: ImageIndex) -> Iterator[Found]:
    """Segmentations of a COCO instances file: polygons, run lengths as a list or as a string. Raises DataError."""
    return _coco(file, data, _coco_segmentation)


def voc_boxes(folder: Path, data: ImageIndex) -> Iterator[Found]:
    """Boxes of VOC's Annotations/<stem>.xml (``bndbox``: its first and last pixels, from 1). Raises DataError."""
    trees: dict[Path, Any] = {}
    for _, path in _files(folder, ".xml", data):
        if isinstance(path, Path):
            try:
                trees[path] = ElementTree.parse(path).getroot()
            except (ElementTree.ParseError, OSError) as error:
                trees[path] = _Broken(f"{path}: {error}")
    known = {
        normalize_name(o.findtext("name", ""))
        for t in trees.values()
        if not isinstance(t, _Broken)
        for o in t.iter("object")
    }

    def read(path: Path, sample: Sample) -> np.ndarray:
        tree = trees[path]
        if isinstance(tree, _Broken):
            raise tree
        size = load_image(sample.path).size
        if tree.find("size") is not None:
            _require_size((_number(tree, "size/width"), _number(tree, "size/height")), size)
        objects = []
        for one in tree.iter("object"):
            left, top, right, bottom = (_number(one, f"bndbox/{end}") for end in ("xmin", "ymin", "xmax", "ymax"))
            objects.append((one.findtext("name", ""), _box(left - 1, top - 1, right, bottom, size)))
        return _union(objects, data.classes[sample.label], known, size)

    return _each(_files(folder, ".xml", data), read)


def voc_classes(folder: Path, data: ImageIndex) -> Iterator[Found]:
    """VOC's SegmentationClass/<stem>.png: palette images of class indices, 255 void. Raises DataError."""
    known = {normalize_name(name) for name in VOC_CLASSES}

    def read(path: Path, sample: Sample) -> np.ndarray:
        indices = _indices(path, sample)
        names = {int(i): VOC_CLASSES[i - 1] for i in np.unique(indices) if 0 < i <= len(VOC_CLASSES)}
        objects = [(name, indices == index) for index, name in names.items()]
        return _union(objects, data.classes[sample.label], known, indices.shape[::-1])

    return _each(_files(folder, ".png", data), read)


def voc_objects(folder: Path, data: ImageIndex) -> Iterator[Found]:
    """VOC's SegmentationObject/<stem>.png: palette images of object numbers, 255 void. Raises DataError."""

    def read(path: Path, sample: Sample) -> np.ndarray:
        indices = _indices(path, sample)
        return (indices > 0) & (indices != VOC_VOID)

    return _each(_files(folder, ".png", data), read)


def imagenet_s(folder: Path, data: ImageIndex) -> Iterator[Found]:
    """ImageNet-S, such as its train-semi-segmentation/<id>/<stem>.png: class R + 256 G from 1, 1000 to be ignored.

    The file does not say which number is which class, so objects of all its classes count. Raises DataError.
    """

    def read(path: Path, sample: Sample) -> np.ndarray:
        pixels = _pixels(path, sample)
        if pixels.ndim != 3:
            raise _Broken(f"{path}: one channel; ImageNet-S has RGB files, the class in red and green")
        number = pixels[..., 0].astype(int) + 256 * pixels[..., 1].astype(int)
        return (number > 0) & (number != IMAGENET_S_IGNORE)

    return _each(_files(folder, ".png", data), read)


FORMATS: dict[str, Callable[[Path, ImageIndex], Iterator[Found]]] = {
    "coco-boxes": coco_boxes,
    "coco": coco_masks,
    "voc-boxes": voc_boxes,
    "voc": voc_classes,
    "voc-objects": voc_objects,
    "imagenet-s": imagenet_s,
}


def _coco(
    file: Path, data: ImageIndex, mask: Callable[[dict[str, Any], tuple[int, int]], np.ndarray]
) -> Iterator[Found]:
    """The masks of a COCO file, where `mask` makes that of one annotation for an image's width and height."""
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        images = {image["id"]: image for image in content["images"]}
        names = {category["id"]: str(category["name"]) for category in content.get("categories", [])}
        objects = defaultdict(list)
        for annotation in content["annotations"]:
            objects[annotation["image_id"]].append(annotation)
        entries = defaultdict(list)
        for image in images.values():
            entries[PurePosixPath(image["file_name"]).name].append(image)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file}: no COCO instances file: {type(error).__name__} {error}; it is a JSON object with images (id, "
            "file_name), annotations (image_id, category_id, bbox, segmentation) and categories (id, name)"
        ) from error
    known = {normalize_name(name) for name in names.values()}

    def entry(sample: Sample, shared: bool) -> dict[str, Any] | tuple[str, str]:
        found = entries[sample.image_file.name]
        exact = [image for image in found if f"/{image['file_name']}".endswith(f"/{sample.file}")]
        if exact or not shared:
            found = exact or found
        elif found:
            return "annotation-ambiguous", f"images of several classes are called {sample.image_file.name}"
        if len(found) > 1:
            return "annotation-ambiguous", f"{len(found)} annotated images are called {sample.image_file.name}"
        return found[0] if found else ("no-annotation", f"no image of this name in {file}")

    def read(image: dict[str, Any], sample: Sample) -> np.ndarray:
        size = load_image(sample.path).size
        _require_size((image.get("width", size[0]), image.get("height", size[1])), size)
        of_class = [(names.get(one.get("category_id"), ""), mask(one, size)) for one in objects[image["id"]]]
        return _union(of_class, data.classes[sample.label], known, size)

    counts = Counter(sample.image_file.name for sample in data.samples)
    return _each(((sample, entry(sample, counts[sample.image_file.name] > 1)) for sample in data.samples), read)


def _coco_box(annotation: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom."""
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(end, int | float) for end in box):
        raise _Broken(f"bbox of annotation {annotation.get('id')}: {box!r}; [left, top, width, height] is needed")
    return box[0], box[1], box[0] + box[2], box[1] + box[3]


def _coco_segmentation(annotation: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """A mask from polygons, or from run lengths."""
    shape = annotation.get("segmentation")
    try:
        if isinstance(shape, list) and shape:
            return np.any([_polygon(np.array(outline, dtype=float).reshape(-1, 2), size) for outline in shape], axis=0)
        if isinstance(shape, dict):
            _require_size((shape["size"][1], shape["size"][0]), size)
            counts = shape["counts"]
            return _runs(_counts(counts) if isinstance(counts, str) else counts, size)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        cause = f"{type(error).__name__} {error}" if not isinstance(error, _Broken) else error
        raise _Broken(f"segmentation of annotation {annotation.get('id')}: {cause}") from error
    raise _Broken(f"segmentation of annotation {annotation.get('id')}: neither polygons nor run lengths")


def _polygon(outline: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels whose centres lie in a polygon (n x 2, x and y from the image's corner)."""
    mask = np.zeros(size[::-1], dtype=bool)
    if len(outline) < 3 or not np.isfinite(outline).all():
        raise _Broken(f"a polygon of {len(outline)} points; three or more are needed, all finite")
    left, top = np.floor(outline.min(0)).astype(int).clip(0, size)
    right, bottom = np.ceil(outline.max(0)).astype(int).clip(0, size)
    y, x = np.mgrid[top:bottom, left:right]
    inside = matplotlib.path.Path(outline).contains_points(np.stack([x.ravel(), y.ravel()], 1) + 0.5)
    mask[y, x] = inside.reshape(y.shape)
    return mask


def _counts(text: str) -> list[int]:
    """The run lengths in COCO's string: six bits a character, five of a number and whether it goes on; from the fourth
    on, each is told by what it differs from the last but one.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text.encode("ascii"):
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def _runs(counts: list[int], size: tuple[int, int]) -> np.ndarray:
    """A mask from run lengths down the columns, background first."""
    if min(counts, default=0) < 0 or sum(counts) != size[0] * size[1]:
        raise _Broken(f"its runs cover {sum(counts)} pixels of an image of {format_size(size)}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size).T


def _box(left: float, top: float, right: float, bottom: float, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a box, those it cuts included."""
    if not np.isfinite((left, top, right, bottom)).all():
        raise _Broken(f"its box is {left:g}, {top:g}, {right:g}, {bottom:g}")
    mask = np.zeros(size[::-1], dtype=bool)
    x, y = (slice(max(0, int(np.floor(a))), max(0, int(np.ceil(b)))) for a, b in ((left, right), (top, bottom)))
    mask[y, x] = True
    return mask


def _union(objects: list[tuple[str, np.ndarray]], name: str, known: set[str], size: tuple[int, ...]) -> np.ndarray:
    """All objects of the class `name` where the annotations know it, else all."""
    if normalize_name(name) in known:
        objects = [one for one in objects if normalize_name(one[0]) == normalize_name(name)]
    mask = np.zeros(size[::-1], dtype=bool)
    for _, part in objects:
        mask |= part
    return mask


def _each(found: Iterable[tuple[Sample, Any]], read: Callable[[Any, Sample], np.ndarray]) -> Iterator[Found]:
    """What `read` makes of the annotation found for each sample; a reason stays one."""
    for sample, annotation in found:
        if isinstance(annotation, tuple):
            yield sample, annotation
            continue
        try:
            yield sample, read(annotation, sample)
        except _Broken as error:
            yield sample, ("annotation-broken", str(error))


def _files(folder: Path, suffix: str, data: ImageIndex) -> Iterator[tuple[Sample, Path | tuple[str, str]]]:
    """The annotation file of each sample, or why there is none. Raises DataError where there is no such folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    stems = Counter(sample.image_file.stem for sample in data.samples)
    for sample in data.samples:
        names = sample.file, sample.image_file.name
        nested, flat = (folder / PurePosixPath(name).with_suffix(suffix) for name in names)
        if nested.is_file():
            yield sample, nested
        elif not flat.is_file():
            yield sample, ("no-annotation", f"neither {nested} nor {flat} exists")
        elif stems[sample.image_file.stem] > 1:
            yield sample, ("annotation-ambiguous", f"{flat} could be that of several images")
        else:
            yield sample, flat


def _indices(path: Path, sample: Sample) -> np.ndarray:
    """The indices of a palette or grey PNG, H x W."""
    indices = _pixels(path, sample)
    if indices.ndim != 2:
        raise _Broken(f"{path}: colours; VOC has palette files, whose indices count")
    return indices


def _pixels(path: Path, sample: Sample) -> np.ndarray:
    """What is stored in a PNG file that must be as large as its image."""
    try:
        with Image.open(path) as opened:
            pixels = np.asarray(opened)
    except Exception as error:  # Pillow's plugins raise nearly anything on broken files
        raise _Broken(f"{path}: {error}") from error
    _require_size(pixels.shape[1::-1], load_image(sample.path).size)
    return pixels


def _require_size(annotated: tuple[float, ...], size: tuple[int, int]) -> None:
    if tuple(annotated) != size:
        raise _Broken(
            f"made for an image of {annotated[0]} x {annotated[1]}, but this one has {format_size(size)} pixels"
        )


def _number(tree: Any, path: str) -> float:
    """The number an XML element holds."""
    text = tree.findtext(path)
    try:
        return float(text)
    except (TypeError, ValueError):
        raise _Broken(f"{path.replace('/', ' > ')}: {text!r}; a number is needed") from None
