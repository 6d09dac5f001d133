"""Masks from annotations of every format, on images of 8 x 6 pixels with known objects."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clearhead.data.dataset import ImageIndex
from clearhead.data.folder import read_folder
from clearhead.data.image_io import DataError, load_mask
from clearhead.masks import FORMATS, Limits, write_masks

BOX = np.zeros((6, 8), dtype=bool)
BOX[1:4, 2:5] = True  # rows 1 to 3, columns 2 to 4
POINT = np.zeros((6, 8), dtype=bool)
POINT[5, 7] = True
ALL = Limits(0, 1)


@pytest.fixture
def data(tmp_path: Path) -> ImageIndex:
    for name in ("cat/1.png", "dog/2.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), "white").save(tmp_path / "data" / name)
    return read_folder(tmp_path / "data")


def read_masks(form: str, path: Path, data: ImageIndex) -> dict[str, Any]:
    return {sample.file: mask for sample, mask in FORMATS[form](path, data)}


def coco(folder: Path, *annotations: dict[str, Any], names: tuple[str, ...] = ("1.png", "2.png"), **image: int) -> Path:
    """A COCO file of images 0, 1, ... by name and categories 0 cat, 1 sofa."""
    content = {
        "images": [{"id": i, "file_name": name, "width": 8, "height": 6} | image for i, name in enumerate(names)],
        "annotations": [{"id": i, "category_id": 0, **one} for i, one in enumerate(annotations)],
        "categories": [{"id": 0, "name": "Cat"}, {"id": 1, "name": "sofa"}],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path


SHAPES: dict[str, Any] = {
    "polygon": [[2, 1, 5, 1, 5, 4, 2, 4]],
    "polygons": [[2, 1, 5, 1, 5, 4, 2, 4], [7, 5, 8, 5, 8, 6, 7, 6]],
    "list of runs": {"size": [6, 8], "counts": [13, 3, 3, 3, 3, 3, 19, 1]},
    "string of runs": {"size": [6, 8], "counts": "=33000`0N"},  # as pycocotools 2.0.11 encodes it
}


@pytest.mark.parametrize("shape", SHAPES)
def test_coco_segmentations(shape: str, tmp_path: Path, data: ImageIndex) -> None:
    masks = read_masks("coco", coco(tmp_path, {"image_id": 0, "segmentation": SHAPES[shape]}), data)
    np.testing.assert_array_equal(masks["cat/1.png"], BOX if shape == "polygon" else BOX | POINT)
    assert not masks["dog/2.png"].any()


def test_coco_boxes_are_clipped_and_include_every_pixel_they_touch(tmp_path: Path, data: ImageIndex) -> None:
    path = coco(tmp_path, {"image_id": 0, "bbox": [2.4, 1.0, 2.2, 3.0]}, {"image_id": 0, "bbox": [7, 5, 50, 60]})
    np.testing.assert_array_equal(read_masks("coco-boxes", path, data)["cat/1.png"], BOX | POINT)
    outside = coco(tmp_path, {"image_id": 0, "bbox": [-9, -9, 3, 3]}, {"image_id": 0, "bbox": [90, 90, 3, 3]})
    assert not read_masks("coco-boxes", outside, data)["cat/1.png"].any()
    polygons = [[20, 20, 30, 20, 30, 30], [-9, -9, -5, -9, -5, -5]]
    outside = coco(tmp_path, {"image_id": 0, "segmentation": polygons})
    assert not read_masks("coco", outside, data)["cat/1.png"].any()


def test_only_objects_of_the_images_own_class_count_if_it_is_annotated(tmp_path: Path, data: ImageIndex) -> None:
    box, point = {"bbox": [2, 1, 3, 3]}, {"bbox": [7, 5, 1, 1], "category_id": 1}
    path = coco(tmp_path, *({"image_id": i, **one} for i in (0, 1) for one in (box, point)))
    masks = read_masks("coco-boxes", path, data)
    np.testing.assert_array_equal(masks["cat/1.png"], BOX)  # "Cat" is a category
    np.testing.assert_array_equal(masks["dog/2.png"], BOX | POINT)  # dog is none


def test_coco_images_match_by_name_or_by_class_and_name(tmp_path: Path, data: ImageIndex) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "data/dog/1.png")
    data = read_folder(tmp_path / "data")
    annotation = {"image_id": 0, "bbox": [2, 1, 3, 3]}
    masks = read_masks("coco-boxes", coco(tmp_path, annotation, names=("train/cat/1.png", "x/2.png", "y/2.png")), data)
    np.testing.assert_array_equal(masks["cat/1.png"], BOX)
    assert masks["dog/1.png"][0] == "annotation-ambiguous"
    assert masks["dog/2.png"] == ("annotation-ambiguous", "2 annotated images are named 2.png")
    masks = read_masks("coco-boxes", coco(tmp_path, annotation, names=("1.png",)), data)
    assert masks["cat/1.png"] == ("annotation-ambiguous", "images of several classes are named 1.png")
    assert masks["dog/2.png"][0] == "no-annotation"


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "odd": ({"segmentation": [[1, 2, 3]]}, "segmentation of annotation 0: ValueError cannot reshape"),
    "two points": ({"segmentation": [[1, 2, 3, 4]]}, "a polygon of 2 points; three or more"),
    "text": ({"segmentation": [["a", "b"]]}, "could not convert string to float"),
    "no segmentation": ({}, "neither polygons nor run lengths"),
    "short": ({"segmentation": {"size": [6, 8], "counts": [13, 3]}}, "runs cover 16 pixels of an image of 8 x 6"),
    "negative": ({"segmentation": {"size": [6, 8], "counts": [50, -2]}}, "runs cover 48 pixels"),
    "not ascii": ({"segmentation": {"size": [6, 8], "counts": "é"}}, "Invalid RLE mask representation"),
    "short string": ({"segmentation": {"size": [6, 8], "counts": "=3"}}, "runs do not cover an image of 8 x 6"),
    "infinite": ({"segmentation": [[1, 2, 3, float("inf"), 5, 6]]}, "three or more finite ones are needed"),
    "no counts": ({"segmentation": {"size": [6, 8]}}, "KeyError 'counts'"),
    "size": ({"segmentation": {"size": [8, 6], "counts": [48]}}, "made for an image of 6 x 8, but this one has 8 x 6"),
    "bbox": ({"bbox": [1, 2, 3]}, r"bbox of annotation 0: \[1, 2, 3\]; \[left, top, width, height\] is needed"),
    "bbox not finite": ({"bbox": [1, 2, float("nan"), 3]}, "box is 1, 2, nan, 5"),
    "no bbox": ({}, "bbox of annotation 0: None"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_invalid_coco_annotations_are_reported(case: str, tmp_path: Path, data: ImageIndex) -> None:
    annotation, message = BROKEN[case]
    form = "coco-boxes" if "bbox" in case else "coco"
    category, detail = read_masks(form, coco(tmp_path, {"image_id": 0, **annotation}), data)["cat/1.png"]
    assert category == "annotation-broken"
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(detail)


def test_annotations_of_another_size_are_reported(tmp_path: Path, data: ImageIndex) -> None:
    category, detail = read_masks("coco-boxes", coco(tmp_path, width=6, height=8), data)["cat/1.png"]
    assert (category, detail) == ("annotation-broken", "made for an image of 6 x 8, but this one has 8 x 6 pixels")


@pytest.mark.parametrize("content", ["", "[]", '{"images": []}', '{"images": [{}], "annotations": []}'])
def test_a_file_that_is_not_coco_raises_an_error(content: str, tmp_path: Path, data: ImageIndex) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=r"x\.json is not a COCO instances file: .* a JSON object with images"):
        read_masks("coco-boxes", tmp_path / "x.json", data)


def test_a_missing_path_raises_an_error(tmp_path: Path, data: ImageIndex) -> None:
    for form in FORMATS:
        with pytest.raises(DataError, match=r"none.*(cannot be read|no such folder)"):
            read_masks(form, tmp_path / "none", data)


XML = """<annotation><size><width>{width}</width><height>6</height></size>
<object><name>cat</name><bndbox><xmin>3</xmin><ymin>2</ymin><xmax>5</xmax><ymax>{ymax}</ymax></bndbox></object>
<object><name>sofa</name><bndbox><xmin>8</xmin><ymin>6</ymin><xmax>8</xmax><ymax>6</ymax></bndbox></object>
</annotation>"""


def test_voc_boxes(tmp_path: Path, data: ImageIndex) -> None:
    (tmp_path / "dog").mkdir()
    (tmp_path / "1.xml").write_text(XML.format(width=8, ymax=4))
    (tmp_path / "dog/2.xml").write_text(XML.format(width=8, ymax=4))
    masks = read_masks("voc-boxes", tmp_path, data)
    np.testing.assert_array_equal(masks["cat/1.png"], BOX)
    np.testing.assert_array_equal(masks["dog/2.png"], BOX | POINT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (XML.format(width=9, ymax=4), "made for an image of 9.0 x 6.0, but this one has 8 x 6 pixels"),
        (XML.format(width=8, ymax="x"), "bndbox > ymax: 'x'; a number is needed"),
        ("<annotation><object></annotation>", "1.xml: mismatched tag"),
    ],
)
def test_invalid_voc_boxes_are_reported(content: str, message: str, tmp_path: Path, data: ImageIndex) -> None:
    (tmp_path / "1.xml").write_text(content)
    masks = read_masks("voc-boxes", tmp_path, data)
    assert masks["cat/1.png"][0] == "annotation-broken"
    assert message in masks["cat/1.png"][1]
    assert masks["dog/2.png"][0] == "no-annotation"


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(exist_ok=True)
    image = Image.fromarray(pixels.astype(np.uint8))
    if mode == "P":
        image = image.copy()
        image.putpalette([i % 256 for i in range(768)])
    image.save(path)


def test_voc_pngs(tmp_path: Path, data: ImageIndex) -> None:
    indices = 8 * BOX + 18 * POINT  # 8 is a cat, 18 a sofa
    indices[0] = 255
    for name in ("cat/1.png", "dog/2.png"):
        save(tmp_path / name, indices, "P")
    classes, objects = (read_masks(form, tmp_path, data) for form in ("voc", "voc-objects"))
    np.testing.assert_array_equal(classes["cat/1.png"], BOX)
    assert not classes["dog/2.png"].any()  # dog is a VOC class, but no dog is annotated
    for file in ("cat/1.png", "dog/2.png"):
        np.testing.assert_array_equal(objects[file], BOX | POINT)


def test_imagenet_s_pngs(tmp_path: Path, data: ImageIndex) -> None:
    number = 300 * BOX + 7 * POINT
    number[0] = 1000
    save(tmp_path / "1.png", np.stack([number % 256, number // 256, 0 * number], -1))
    np.testing.assert_array_equal(read_masks("imagenet-s", tmp_path, data)["cat/1.png"], BOX | POINT)


@pytest.mark.parametrize(
    ("form", "pixels", "message"),
    [
        ("imagenet-s", np.zeros((6, 8)), "one channel; ImageNet-S has RGB files"),
        ("voc", np.zeros((6, 8, 3)), "an RGB file; VOC has palette files"),
        ("voc-objects", np.zeros((8, 6)), "made for an image of 6 x 8, but this one has 8 x 6 pixels"),
        ("voc-objects", None, "1.png: cannot identify image file"),
    ],
)
def test_invalid_pngs(form: str, pixels: np.ndarray, message: str, tmp_path: Path, data: ImageIndex) -> None:
    if pixels is None:
        (tmp_path / "1.png").write_bytes(b"no image")
    else:
        save(tmp_path / "1.png", pixels)
    category, detail = read_masks(form, tmp_path, data)["cat/1.png"]
    assert category == "annotation-broken"
    assert message in detail


@pytest.mark.parametrize(
    ("form", "make"), [("coco-boxes", lambda folder: coco(folder, {"image_id": 0, "bbox": [2, 1, 3, 3]}))]
)
def test_masks_are_written_from_annotations(
    form: str, make: Callable[[Path], Path], tmp_path: Path, data: ImageIndex
) -> None:
    done = write_masks(tmp_path / "data", annotations=partial(FORMATS[form], make(tmp_path)), limits=ALL)
    assert (done.images, done.masks, done.dropped) == (2, 1, {"no-object": 1})
    assert done.area.value == BOX.mean()
    assert done.patch_iou is None
    np.testing.assert_array_equal(np.asarray(load_mask(tmp_path / "data/masks/cat/1.png")) > 0, BOX)


def test_annotations_fit_the_upright_image(tmp_path: Path) -> None:
    (tmp_path / "data/cat").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 8)).save(tmp_path / "data/cat/1.jpg", exif=exif)
    path = coco(tmp_path, {"image_id": 0, "bbox": [2, 1, 3, 3]}, names=("1.jpg",))
    write_masks(tmp_path / "data", annotations=partial(FORMATS["coco-boxes"], path), limits=ALL)
    assert load_mask(tmp_path / "data/masks/cat/1.png").size == (8, 6)
    assert not [p for p in read_folder(tmp_path / "data").issues if p.category == "mask-size"]
