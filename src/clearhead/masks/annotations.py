"""Make foreground masks from existing annotations: boxes, polygons, run lengths, segmentation PNGs.

``FORMATS`` has one function per format. Each yields, for every image of a folder, its mask (H x W), or the reason why
it has none. Images are matched to COCO entries by file name (by <class>/<name> if the entry's path ends so), and to PNG
and XML files named FOLDER/<class>/<stem> or FOLDER/<stem>.

The foreground is the objects of the image's own class if the annotations have a class of that name (ignoring case,
``_`` = space), else all objects. Pixels marked as void or to be ignored are background.
"""

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco

from clearhead.data.dataset import ImageIndex, Sample
from clearhead.data.folder import normalize_name
from clearhead.data.image_io import DataError, format_size, load_image

Mask = npt.NDArray[np.bool_]
"""H x W, of the size of the upright image."""

Annotated = tuple[Sample, Mask | tuple[str, str]]
"""An image and its mask, or the category and detail of the issue with it."""

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
VOC_VOID = 255
IMAGENET_S_IGNORE = 1000


class _InvalidAnnotation(ValueError):
    """An annotation that cannot be parsed or does not fit its image."""


def coco_boxes(file: Path, data: ImageIndex) -> Iterator[Annotated]:
    """Read the boxes (``bbox``: left, top, width, height) of a COCO instances file. Raises DataError."""
    return _read_coco(file, data, lambda annotation, size: _box(*_coco_box(annotation), size))


def coco_masks(file: Path, data: ImageIndex) -> Iterator[Annotated]:
    """Read the segmentations of a COCO instances file: polygons, run lengths as list or string. Raises DataError."""
    return _read_coco(file, data, _coco_segmentation)


def voc_boxes(folder: Path, data: ImageIndex) -> Iterator[Annotated]:
    """Read the boxes of VOC's Annotations/<stem>.xml (``bndbox``: first and last pixel, from 1). Raises DataError."""
    trees: dict[Path, Any] = {}
    for _, path in _files(folder, ".xml", data):
        if isinstance(path, Path):
            try:
                trees[path] = ElementTree.parse(path).getroot()
            except (ElementTree.ParseError, OSError) as error:
                trees[path] = _InvalidAnnotation(f"{path}: {error}")
    known = {
        normalize_name(o.findtext("name", ""))
        for t in trees.values()
        if not isinstance(t, _InvalidAnnotation)
        for o in t.iter("object")
    }

    def read(path: Path, sample: Sample) -> Mask:
        tree = trees[path]
        if isinstance(tree, _InvalidAnnotation):
            raise tree
        size = load_image(sample.path).size
        if tree.find("size") is not None:
            _require_size((_number(tree, "size/width"), _number(tree, "size/height")), size)
        objects = []
        for element in tree.iter("object"):
            x0, y0, x1, y1 = (_number(element, f"bndbox/{end}") for end in ("xmin", "ymin", "xmax", "ymax"))
            objects.append((element.findtext("name", ""), _box(x0 - 1, y0 - 1, x1, y1, size)))
        return _union(objects, data.classes[sample.label], known, size)

    return _read_each(_files(folder, ".xml", data), read)


def voc_classes(folder: Path, data: ImageIndex) -> Iterator[Annotated]:
    """Read VOC's SegmentationClass/<stem>.png: palette images of class indices, 255 = void. Raises DataError."""
    known = {normalize_name(name) for name in VOC_CLASSES}

    def read(path: Path, sample: Sample) -> Mask:
        indices = _indices(path, sample)
        names = {int(i): VOC_CLASSES[i - 1] for i in np.unique(indices) if 0 < i <= len(VOC_CLASSES)}
        objects = [(name, indices == index) for index, name in names.items()]
        return _union(objects, data.classes[sample.label], known, indices.shape[::-1])

    return _read_each(_files(folder, ".png", data), read)


def voc_objects(folder: Path, data: ImageIndex) -> Iterator[Annotated]:
    """Read VOC's SegmentationObject/<stem>.png: palette images of object numbers, 255 = void. Raises DataError."""

    def read(path: Path, sample: Sample) -> Mask:
        indices = _indices(path, sample)
        return cast(Mask, (indices > 0) & (indices != VOC_VOID))

    return _read_each(_files(folder, ".png", data), read)


def imagenet_s(folder: Path, data: ImageIndex) -> Iterator[Annotated]:
    """Read ImageNet-S, such as train-semi-segmentation/<id>/<stem>.png: class R + 256 G from 1, 1000 = ignore.

    The files do not name the classes, so objects of all classes count. Raises DataError.
    """

    def read(path: Path, sample: Sample) -> Mask:
        pixels = _pixels(path, sample)
        if pixels.ndim != 3:
            raise _InvalidAnnotation(f"{path}: one channel; ImageNet-S has RGB files with the class in red and green")
        number = pixels[..., 0].astype(int) + 256 * pixels[..., 1].astype(int)
        return cast(Mask, (number > 0) & (number != IMAGENET_S_IGNORE))

    return _read_each(_files(folder, ".png", data), read)


FORMATS: dict[str, Callable[[Path, ImageIndex], Iterator[Annotated]]] = {
    "coco-boxes": coco_boxes,
    "coco": coco_masks,
    "voc-boxes": voc_boxes,
    "voc": voc_classes,
    "voc-objects": voc_objects,
    "imagenet-s": imagenet_s,
}


def _read_coco(
    file: Path, data: ImageIndex, mask: Callable[[dict[str, Any], tuple[int, int]], Mask]
) -> Iterator[Annotated]:
    """Read the masks of a COCO file; `mask` makes that of one annotation for an image's width and height."""
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
            f"{file} is not a COCO instances file: {type(error).__name__} {error}; a JSON object with images (id, "
            "file_name), annotations (image_id, category_id, bbox, segmentation) and categories (id, name) is needed"
        ) from error
    known = {normalize_name(name) for name in names.values()}

    def find_entry(sample: Sample, shared: bool) -> dict[str, Any] | tuple[str, str]:
        matches = entries[sample.image_file.name]
        exact = [image for image in matches if f"/{image['file_name']}".endswith(f"/{sample.file}")]
        if exact or not shared:
            matches = exact or matches
        elif matches:
            return "annotation-ambiguous", f"images of several classes are named {sample.image_file.name}"
        if len(matches) > 1:
            return "annotation-ambiguous", f"{len(matches)} annotated images are named {sample.image_file.name}"
        return matches[0] if matches else ("no-annotation", f"no image of this name in {file}")

    def read(image: dict[str, Any], sample: Sample) -> Mask:
        size = load_image(sample.path).size
        _require_size((image.get("width", size[0]), image.get("height", size[1])), size)
        parts = [(names.get(one.get("category_id"), ""), mask(one, size)) for one in objects[image["id"]]]
        return _union(parts, data.classes[sample.label], known, size)

    counts = Counter(sample.image_file.name for sample in data.samples)
    return _read_each(
        ((sample, find_entry(sample, counts[sample.image_file.name] > 1)) for sample in data.samples), read
    )


def _coco_box(annotation: dict[str, Any]) -> tuple[float, float, float, float]:
    """Return the left, top, right and bottom edges."""
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(end, int | float) for end in box):
        raise _InvalidAnnotation(
            f"bbox of annotation {annotation.get('id')}: {box!r}; [left, top, width, height] is needed"
        )
    return box[0], box[1], box[0] + box[2], box[1] + box[3]


def _coco_segmentation(annotation: dict[str, Any], size: tuple[int, int]) -> Mask:
    """Return a mask from polygons or run lengths, rasterised by pycocotools."""
    shape = annotation.get("segmentation")
    height, width = size[1], size[0]
    try:
        if isinstance(shape, list) and shape:
            outlines = [np.array(outline, dtype=float).reshape(-1, 2) for outline in shape]
            for outline in outlines:  # pycocotools takes two points for a box and does not end for infinite ones
                if len(outline) < 3 or not (np.abs(outline) < 1e6).all():
                    raise _InvalidAnnotation(
                        f"a polygon of {len(outline)} points; three or more finite ones are needed"
                    )
            encoded = coco.merge(coco.frPyObjects([outline.ravel().tolist() for outline in outlines], height, width))
            return cast(Mask, coco.decode(encoded) > 0)
        if isinstance(shape, dict):
            _require_size((shape["size"][1], shape["size"][0]), size)
            counts = shape["counts"]
            if isinstance(counts, list):
                if min(counts, default=0) < 0 or sum(counts) != height * width:
                    raise _InvalidAnnotation(f"its runs cover {sum(counts)} pixels of an image of {format_size(size)}")
                shape = coco.frPyObjects(shape, height, width)
            mask = coco.decode(shape)
            if isinstance(counts, str) and coco.encode(mask)["counts"] != counts.encode():
                raise _InvalidAnnotation(f"its runs do not cover an image of {format_size(size)}")
            return cast(Mask, mask > 0)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        reason = f"{type(error).__name__} {error}" if not isinstance(error, _InvalidAnnotation) else error
        raise _InvalidAnnotation(f"segmentation of annotation {annotation.get('id')}: {reason}") from error
    raise _InvalidAnnotation(f"segmentation of annotation {annotation.get('id')}: neither polygons nor run lengths")


def _box(x0: float, y0: float, x1: float, y1: float, size: tuple[int, int]) -> Mask:
    """Return the pixels that a box touches."""
    if not np.isfinite((x0, y0, x1, y1)).all():
        raise _InvalidAnnotation(f"its box is {x0:g}, {y0:g}, {x1:g}, {y1:g}")
    mask = np.zeros(size[::-1], dtype=bool)
    x, y = (slice(max(0, int(np.floor(a))), max(0, int(np.ceil(b)))) for a, b in ((x0, x1), (y0, y1)))
    mask[y, x] = True
    return mask


def _union(objects: list[tuple[str, Mask]], name: str, known: set[str], size: tuple[int, ...]) -> Mask:
    """Return the objects of the class `name` if it is a `known` class of the annotations, else all objects."""
    if normalize_name(name) in known:
        objects = [one for one in objects if normalize_name(one[0]) == normalize_name(name)]
    mask = np.zeros(size[::-1], dtype=bool)
    for _, part in objects:
        mask |= part
    return mask


def _read_each(annotations: Iterable[tuple[Sample, Any]], read: Callable[[Any, Sample], Mask]) -> Iterator[Annotated]:
    """Yield the mask that `read` makes of each sample's annotation; reasons are passed on."""
    for sample, annotation in annotations:
        if isinstance(annotation, tuple):
            yield sample, annotation
            continue
        try:
            yield sample, read(annotation, sample)
        except _InvalidAnnotation as error:
            yield sample, ("annotation-broken", str(error))


def _files(folder: Path, suffix: str, data: ImageIndex) -> Iterator[tuple[Sample, Path | tuple[str, str]]]:
    """Yield the annotation file of each sample, or why it has none. Raises DataError if the folder does not exist."""
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
            yield sample, ("annotation-ambiguous", f"{flat} matches several images")
        else:
            yield sample, flat


def _indices(path: Path, sample: Sample) -> npt.NDArray[np.integer]:
    """Return the indices of a palette or grey PNG, H x W."""
    indices = _pixels(path, sample)
    if indices.ndim != 2:
        raise _InvalidAnnotation(f"{path}: an RGB file; VOC has palette files")
    return indices


def _pixels(path: Path, sample: Sample) -> npt.NDArray[np.integer]:
    """Return the raw values of a PNG file that must have the size of its image."""
    try:
        with Image.open(path) as opened:
            pixels = np.asarray(opened)
    except Exception as error:  # Pillow's plugins raise nearly anything on broken files
        raise _InvalidAnnotation(f"{path}: {error}") from error
    _require_size(pixels.shape[1::-1], load_image(sample.path).size)
    return pixels


def _require_size(annotated: tuple[float, ...], size: tuple[int, int]) -> None:
    if tuple(annotated) != size:
        raise _InvalidAnnotation(
            f"made for an image of {annotated[0]} x {annotated[1]}, but this one has {format_size(size)} pixels"
        )


def _number(tree: Any, path: str) -> float:
    """Return the number in an XML element."""
    text = tree.findtext(path)
    try:
        return float(text)
    except (TypeError, ValueError):
        raise _InvalidAnnotation(f"{path.replace('/', ' > ')}: {text!r}; a number is needed") from None
