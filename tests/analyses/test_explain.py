"""Attribution maps of images through the Python API and the command."""

import shutil

import numpy as np
import pytest
from PIL import Image

from clearhead.analyses import explain
from clearhead.attribution import explain as attribution_maps
from clearhead.models import load_model
from clearhead.report.page import Gallery, Table
from clearhead.report.sheet import colour_bar, draw_sheet
from tests.cases import classifier
from tests.command import clearhead, error, result


def test_explain_writes_overlays_sheets_and_maps_of_each_image(workspace):
    images = ("data/cat", "data/fish/00.png")
    command = ("explain", "model", *images, "--class", "cat", "--method", "gae,libragrad", "--out", "maps")
    run = clearhead(*command, cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert len(list((workspace / "maps" / "maps").glob("*.npz"))) == 13
    assert len(list((workspace / "maps" / "overlays").glob("*.png"))) == 26
    assert len(list((workspace / "maps" / "sheets").glob("*.png"))) == 13
    raw = np.load(workspace / "maps" / "maps" / "01.npz")
    assert raw["gae"].shape == raw["libragrad"].shape == (32, 32)
    assert (raw["gae"].min(), raw["gae"].max(), int(raw["target"])) == (0, 1, 1)
    assert 0 < float(raw["probability"]) <= float(raw["predicted_probability"]) <= 1
    measured = result(workspace / "maps")
    assert [one["name"] for one in measured["images"]][:2] == ["cat-00", "01"]  # 00 is in two folders
    assert {one["target"] for one in measured["images"]} == {"cat"}
    table = run.stdout.splitlines()
    assert table[1].split() == ["file", "predicted", "probability", "probability", "of", "cat"]
    assert table[2].split()[0] == "data/cat/00.png"
    assert not (workspace / "maps" / "state").exists()
    page = (workspace / "maps" / "report.html").read_text()
    assert "data/fish/00.png" in page
    assert "relevance 0 (left) to 1 (right)" in page


def test_folders_of_class_folders_and_a_broken_file(workspace, tmp_path):
    shutil.copytree(workspace / "data" / "cat", tmp_path / "photos" / "cat")
    shutil.copytree(workspace / "data" / "fish", tmp_path / "photos" / "fish")
    (tmp_path / "photos" / "fish" / "00.png").write_bytes((workspace / "data" / "fish" / "00.png").read_bytes()[:100])
    run = clearhead("explain", workspace / "model", "photos", "--limit", 23, "--seed", 1, "--out", "maps", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "data: 1 " in run.stderr
    assert "photos/fish/00.png" in run.stderr
    measured = result(tmp_path / "maps")
    assert [issue["file"] for issue in measured["subject"]["issues"]] == ["photos/fish/00.png"]
    assert len(measured["images"]) == 22
    message = error(clearhead("explain", workspace / "model", "photos/fish/00.png", cwd=tmp_path))
    assert "images: no usable image is left" in message
    assert "photos/fish/00.png" in message


def test_the_images_are_not_overwritten(workspace, tmp_path):
    shutil.copytree(workspace / "data" / "cat", tmp_path / "photos")
    (tmp_path / "photos" / "a[b].png").write_bytes((workspace / "data" / "cat" / "00.png").read_bytes())
    before = {file.name: file.read_bytes() for file in (tmp_path / "photos").iterdir()}
    message = error(clearhead("explain", workspace / "model", "photos", "--out", "photos", cwd=tmp_path))
    assert "out: photos holds other files" in message
    assert {file.name: file.read_bytes() for file in (tmp_path / "photos").iterdir()} == before
    run = clearhead("explain", workspace / "model", "photos/a[b].png", "--out", "maps", cwd=tmp_path)
    assert "photos/a[b].png" in run.stdout
    assert (tmp_path / "maps" / "overlays" / "a[b]-gae.png").is_file()


def test_maps_are_those_of_the_function_whatever_the_batches(workspace):
    model = load_model(str(workspace / "model"))
    files = sorted((workspace / "data" / "bird").glob("*.png"))[:5]
    measured = explain.measure(model, files, method=["gae", "input-gradient"], batch_size=2)
    pixels = explain.ImageDataset(explain.index_files(files, model.classes), model.preprocess)
    for i, (image, (name, arrays)) in enumerate(zip(measured.images, measured.maps.items(), strict=True)):
        assert (image.file, image.name) == (str(files[i]), name)
        one = pixels[i]["image"][None]
        probabilities = model(one).softmax(-1)[0].detach()
        assert image.predicted == image.target == model.classes[probabilities.argmax()]
        assert image.probability == image.target_probability == pytest.approx(probabilities.max().item(), rel=1e-4)
        for method in ("gae", "input-gradient"):
            expected = attribution_maps(model, one, method=method)[0].detach().numpy()
            np.testing.assert_allclose(arrays[method], expected, atol=1e-4)
    named = explain.measure(model, files, target="2", method="gae")
    assert named.target == "fish"
    assert all(image.target_probability <= image.probability for image in named.images)


def test_an_interrupted_run_goes_on(workspace, tmp_path):
    model, files = str(workspace / "model"), sorted((workspace / "data" / "bird").glob("*.png"))
    whole = explain.measure(model, files, batch_size=1, state=tmp_path / "state")
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "state" / "maps").iterdir()}
    assert len(stamps) == 12
    lost = tmp_path / "state" / "maps" / f"{whole.images[3].name}.npz"
    lost.unlink()
    again = explain.measure(model, files, batch_size=1, state=tmp_path / "state")
    assert again.images == whole.images
    assert lost.is_file()
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in stamps.items() if file != lost)
    explain.export(again, tmp_path)
    assert len(list((tmp_path / "maps").iterdir())) == 12


def test_the_page_shows_the_first_images_and_a_row_of_each(workspace, monkeypatch):
    monkeypatch.setattr(explain, "SHOWN", 3)
    files = sorted((workspace / "data" / "bird").glob("*.png"))
    measured = explain.measure(str(workspace / "model"), files, method="all")
    page = explain.page(measured)
    table = next(section for section in page.sections if isinstance(section, Table))
    assert len(table.rows) == 12
    assert table.columns == ["predicted", "probability"]
    gallery = next(section for section in page.sections if isinstance(section, Gallery))
    assert "The first 3 of 12 images" in gallery.text
    colours, *shown = gallery.examples
    assert [caption for caption, _ in shown[0].images] == ["image", *measured.methods]
    assert len(shown) == 3
    assert len(measured.methods) > 5
    assert colours.images[0][1].shape == (24, 320, 3)


def test_a_model_without_tokens_has_its_own_methods(workspace):
    files = sorted((workspace / "data" / "bird").glob("*.png"))[:2]
    swin = classifier("timm-swin")
    assert explain.measure(swin, files).methods == ["input-gradient"]
    assert explain.measure(swin, files, method=["all"]).methods == ["input-gradient", "input-x-gradient"]
    with pytest.raises(ValueError, match="input-gradient"):
        explain.measure(swin, files, method=["gae"])


def test_what_cannot_be_explained(workspace):
    def message(*arguments):
        return error(clearhead("explain", *arguments, cwd=workspace))

    assert "class 'dog'" in message("model", "data/cat/00.png", "--class", "dog")
    assert "nothing.png" in message("model", "nothing.png")
    (workspace / "empty").mkdir()
    assert "no images in empty" in message("model", "empty")
    assert "method: 'lrp' is unknown" in message("model", "data/cat/00.png", "--method", "gae,lrp")
    assert "model: modle" in message("modle", "data/cat/00.png")
    assert "out: data holds other files" in message("model", "data/cat/00.png", "--out", "data")


def test_a_sheet_enlarges_small_images_by_a_whole_factor():
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, 16:] = (200, 0, 0)
    sheet = draw_sheet([("image", pixels), ("gae", pixels)], "a title " * 20, bar=True)
    red = (sheet == (200, 0, 0)).all(-1)
    assert red.any(1).sum() == 224
    assert red.any(0).sum() == 224  # two halves of 112
    assert (Image.fromarray(sheet).width, sheet.shape[2]) == (2 * 224 + 3 * 12 + 84, 3)
    bar = colour_bar(100, 5).astype(int)
    assert np.abs(np.diff(bar[:, 0], axis=0)).sum() > 0
    assert (bar[-1, 0] == 128).all()
