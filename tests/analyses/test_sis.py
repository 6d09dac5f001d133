"""Sufficient input subsets through the Python API and the command."""

import numpy as np
import pytest
import torch
from PIL import Image

from clearhead.analyses import sis
from clearhead.attribution.sis import sufficient_subset
from clearhead.data.image_io import load_image
from clearhead.models import load_model
from clearhead.report.page import Gallery, Table
from tests.command import clearhead, error, result


def test_sufficient_subsets_of_any_class(workspace):
    command = ("sis", "model", "data/cat/00.png", "data/fish/01.png", "--class", "bird", "--out", "sis")
    run = clearhead(*command, cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert "90% reached" in run.stdout
    images = result(workspace / "sis")["images"]
    assert [image["file"] for image in images] == ["data/cat/00.png", "data/fish/01.png"]
    for image in images:
        classes = image["classes"]
        assert [one["predicted"] for one in classes] == [True, False][: len(classes)]
        assert {one["label"] for one in classes} == {classes[0]["label"], "bird"}  # one row where that is predicted
    saved = np.load(workspace / "sis" / "subsets" / "00.npz")
    assert saved["subset"].shape == (len(images[0]["classes"]), 32, 32)
    assert saved["subset"].mean((1, 2)) == pytest.approx([one["share"] for one in images[0]["classes"]], abs=1e-3)
    assert Image.open(workspace / "sis" / "sheets" / "00.png").height > 224
    assert "Sufficient pixels" in (workspace / "sis" / "report.html").read_text()
    assert not (workspace / "sis" / "state").exists()


def test_subsets_are_those_of_the_function(workspace):
    model = load_model(str(workspace / "model"))
    files = sorted((workspace / "data" / "bird").glob("*.png"))[:3]
    measured = sis.measure(model, files, target=["cat", "1", "fish"], confidence=0.5, steps=6, batch_size=2)
    for file, image in zip(files, measured.images, strict=True):
        pixels = model.preprocess.image(load_image(file))[None]
        predicted = int(model(pixels).argmax())
        wanted = [predicted, *(label for label in (1, 2) if label != predicted)]
        assert [one.label for one in image.classes] == [model.classes[label] for label in wanted]
        for row, (label, one) in enumerate(zip(wanted, image.classes, strict=True)):
            expected = sufficient_subset(model, pixels, label, confidence=0.5, steps=6)
            assert one.share == pytest.approx(expected.share.item())
            assert one.curve == pytest.approx(expected.curve[0].tolist(), rel=1e-4)
            assert one.whole == pytest.approx(one.curve[0], rel=1e-4)
            assert one.reached == bool(expected.reached)
            assert torch.equal(torch.from_numpy(measured.subsets[image.name]["subset"][row]), expected.subset[0])
    page = sis.page(measured)
    assert isinstance(page.sections[0], Table)
    gallery = next(section for section in page.sections if isinstance(section, Gallery))
    assert all(len(example.images) == 2 for example in gallery.examples)  # large enough to see


def test_an_interrupted_search_goes_on(workspace, tmp_path):
    model, files = str(workspace / "model"), sorted((workspace / "data" / "bird").glob("*.png"))[:4]
    whole = sis.measure(model, files, steps=5, batch_size=1, state=tmp_path / "state")
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "state" / "subsets").iterdir()}
    lost = tmp_path / "state" / "subsets" / f"{whole.images[3].name}.npz"
    lost.unlink()
    again = sis.measure(model, files, steps=5, batch_size=1, state=tmp_path / "state")
    assert again.images == whole.images
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in stamps.items() if file != lost)
    assert lost.is_file()


def test_a_broken_file_is_skipped_and_named(workspace, tmp_path):
    (tmp_path / "broken.png").write_text("no image")
    command = (
        "sis",
        workspace / "model",
        workspace / "data" / "cat" / "00.png",
        "broken.png",
        "--steps",
        4,
        "--out",
        "sis",
    )
    run = clearhead(*command, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "broken.png" in run.stderr
    assert len(result(tmp_path / "sis")["images"]) == 1
    assert "images: no usable image is left" in error(clearhead("sis", workspace / "model", "broken.png", cwd=tmp_path))


def test_what_cannot_be_searched(workspace):
    def message(*arguments):
        return error(clearhead("sis", *arguments, cwd=workspace))

    assert "class 'dog'" in message("model", "data/cat/00.png", "--class", "bird,dog")
    assert "--confidence" in message("model", "data/cat/00.png", "--confidence", "90")
    assert "'grey'" in message("model", "data/cat/00.png", "--fill", "grey")
    assert "nothing.png" in message("model", "nothing.png")
    assert "model: modle" in message("modle", "data/cat/00.png")
    assert "out: data holds other files" in message("model", "data/cat/00.png", "--out", "data")
