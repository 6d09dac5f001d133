"""Decoding images and masks of every mode, depth and orientation."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clearhead.data.image_io import DataError, load_image, load_mask
from tests.data.helpers import save_image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_equals_pillows_transpose(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    image = Image.fromarray(np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        expected = ImageOps.exif_transpose(opened)
    assert np.array_equal(load_image(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_tiff_is_applied_once(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    drawn = Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3)
    drawn.save(tmp_path / "a.png", exif=exif)
    drawn.save(tmp_path / "a.tif", exif=exif, compression="tiff_lzw")
    assert load_image(tmp_path / "a.tif").tobytes() == load_image(tmp_path / "a.png").tobytes()
    assert load_image(tmp_path / "a.tif").size == load_mask(tmp_path / "a.tif").size
    assert load_mask(tmp_path / "a.tif").tobytes() == load_mask(tmp_path / "a.png").tobytes()


def test_broken_exif_data_is_ignored(tmp_path: Path) -> None:
    save_image(tmp_path / "a.jpg", exif=b"Exif\0\0broken beyond repair")
    assert load_image(tmp_path / "a.jpg").size == (20, 12)


def test_modes_become_rgb(tmp_path: Path) -> None:
    def load(image: Image.Image, name: str, **options: object) -> np.ndarray:
        image.save(tmp_path / name, **options)
        loaded = load_image(tmp_path / name)
        assert loaded.mode == "RGB"
        return np.asarray(loaded)

    grey = Image.fromarray(np.array([[0, 100, 255]], dtype=np.uint8))
    assert load(grey, "grey.png")[0, :, 0].tolist() == [0, 100, 255]
    deep = Image.fromarray(np.array([[0, 25700, 65535]], dtype=np.uint16))
    assert load(deep, "deep.png")[0, :, 2].tolist() == [0, 100, 255]
    assert load(deep.convert("I"), "deep.tif")[0, :, 2].tolist() == [0, 100, 255]
    unit = Image.fromarray(np.array([[0, 0.4, 1]], dtype=np.float32))
    assert load(unit, "unit.tif")[0, :, 1].tolist() == [0, 102, 255]
    wide = Image.fromarray(np.array([[0, 102, 300]], dtype=np.float32))
    assert load(wide, "wide.tif")[0, :, 1].tolist() == [0, 102, 255]
    assert load(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "cmyk.jpg", quality=100)[4, 4, 0] > 200
    assert load(Image.new("1", (4, 4), 1), "bit.png")[0, 0].tolist() == [255, 255, 255]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert load(palette, "palette.png")[0, 0].tolist() == [10, 20, 30]
    assert load(palette, "clear.png", transparency=1)[0, 0].tolist() == [255, 255, 255]
    assert load(Image.new("RGBA", (4, 4), (200, 0, 0, 0)), "alpha.png")[0, 0].tolist() == [255, 255, 255]
    assert load(Image.new("LA", (4, 4), (50, 255)), "la.png")[0, 0].tolist() == [50, 50, 50]
    frames = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (40, 200)]
    assert load(frames[0], "film.webp", save_all=True, append_images=frames[1:], lossless=True)[0, 0, 0] == 40


def test_masks_are_nonzero_of_any_mode(tmp_path: Path) -> None:
    def load(image: Image.Image) -> list[int]:
        image.save(tmp_path / "m.png")
        mask = load_mask(tmp_path / "m.png")
        assert mask.mode == "L"
        return np.asarray(mask)[0].tolist()

    assert load(Image.fromarray(np.array([[0, 1, 255]], dtype=np.uint8))) == [0, 255, 255]
    assert load(Image.fromarray(np.array([[0, 1, 65535]], dtype=np.uint16))) == [0, 255, 255]
    assert load(Image.fromarray(np.array([[False, True]]))) == [0, 255]
    assert load(Image.fromarray(np.array([[[0, 0, 0], [0, 0, 9]]], dtype=np.uint8))) == [0, 255]
    clear = np.array([[[0, 0, 0, 255], [9, 9, 9, 255], [9, 9, 9, 0]]], dtype=np.uint8)
    assert load(Image.fromarray(clear)) == [0, 255, 0]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([200, 200, 200, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    assert load(palette) == [0, 255]


def test_loading_a_missing_file_raises_a_data_error(tmp_path: Path) -> None:
    for load in (load_image, load_mask):
        with pytest.raises(DataError, match=r"nowhere\.png"):
            load(tmp_path / "nowhere.png")
