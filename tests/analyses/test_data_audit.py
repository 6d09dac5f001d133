"""What predicts the label before any training: leaks that are built in, data without any, and duplicates."""

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from clearhead.analyses import data_audit
from clearhead.analyses.data_audit import measure, page
from clearhead.data.cues import OF_THE_OBJECT_TOO
from clearhead.data.image_io import DataError
from tests.command import clearhead, error, result


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    monkeypatch.setattr(data_audit, "TREES", 10)


def make(folder: Path, save, count: int = 20) -> Path:
    """Write images of coarse noise in two classes; `save(image, path, label, i)` saves them."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = Image.fromarray(rng.integers(0, 256, (8, 10, 3)).astype(np.uint8))
            save(noise.resize((40, 32), Image.Resampling.BICUBIC), folder / name / f"{i:02}.png", label, i)
    return folder


def plain(image, path, label, i):
    image.save(path)


def by_size(image, path, label, i):
    image.resize((40 + 2 * label, 32)).save(path)


def by_quality(image, path, label, i):
    image.save(path.with_suffix(".jpg"), quality=(70, 85)[label])


def by_camera(image, path, label, i):
    exif = Image.Exif()
    exif[271] = ("Canon", "Nikon")[label]
    exif[306] = f"202{i % 3}:01:02 03:04:05"
    image.save(path, exif=exif)


def by_border(image, path, label, i):
    pixels = np.array(image)
    pixels[0:3] = 60 + 60 * label
    Image.fromarray(pixels).save(path)


def shown(outcome) -> list[str]:
    return [cue.name for cue in outcome.cues if cue.is_shown and cue.name not in OF_THE_OBJECT_TOO]


@pytest.mark.parametrize(
    ("save", "cue"),
    [(by_size, "image size"), (by_quality, "file format"), (by_camera, "camera metadata"), (by_border, "border")],
)
def test_a_cue_that_gives_the_label_is_shown_and_no_other(save, cue, tmp_path):
    outcome = measure(make(tmp_path / "data", save))
    assert shown(outcome) == [cue]
    of_cue = next(entry for entry in outcome.cues if entry.name == cue)
    assert of_cue.accuracy.value == 1
    assert (of_cue.chance, of_cue.accuracy.count) == (0.5, 40)
    [verdict] = page(outcome).verdicts
    assert verdict.word == "leak"
    assert verdict.sentence.startswith(f"The class can be predicted from {cue} (100.0%")
    assert outcome.skipped["background"] == "no image has a mask; clearhead data masks makes them"


def test_data_without_a_leak_have_no_verdict(tmp_path):
    outcome = measure(make(tmp_path / "data", plain))
    assert shown(outcome) == []
    assert page(outcome).verdicts == []
    assert outcome.skipped["image size"] == "it is the same in all images"
    assert outcome.duplicates == []


@pytest.mark.parametrize("correlated", [True, False])
def test_the_background_is_separated_from_the_position_of_the_object(correlated, tmp_path):
    """Brighter above than below; cats are high and dogs low. Only a background of the class's own colour is a leak."""

    def save(image, path, label, i):
        clouds = image.resize((64, 64), Image.Resampling.BICUBIC)
        pixels = np.linspace(70, 0, 64)[:, None, None] + np.array(clouds) / 2
        pixels[..., 2] += 50 * (label if correlated else i % 2)
        top = 14 + 20 * label
        pixels[top : top + 16, 20:44] = 255
        mask = np.zeros((64, 64), np.uint8)
        mask[top : top + 16, 20:44] = 255
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        (path.parents[1] / "masks" / path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path.parents[1] / "masks" / path.parent.name / path.name)

    outcome = measure(make(tmp_path / "data", save))
    assert ("background" in shown(outcome)) == correlated
    if correlated:
        assert outcome.cues[0].accuracy.value == 1


def with_duplicates(folder: Path) -> Path:
    make(folder, plain, 12)
    rows = ["file,split,camera"]
    for name in ("cat", "dog"):
        rows += [f"{name}/{i:02}.png,{'train' if i < 8 else 'test'},{'ab'[i % 2]}" for i in range(12)]
    (folder / "cat" / "09.png").write_bytes((folder / "cat" / "01.png").read_bytes())  # in the test split
    with Image.open(folder / "cat" / "02.png") as image:
        image.resize((80, 64), Image.Resampling.BICUBIC).save(folder / "dog" / "03.png")  # as a dog
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_duplicates_between_splits_and_labels_are_listed(tmp_path):
    folder = with_duplicates(tmp_path / "data")
    run = clearhead("data", "audit", "data", "--out", "run", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "2 images have a duplicate in another split; 2 images have a duplicate under another label." in run.stdout
    saved = result(tmp_path / "run")
    assert saved["subject"]["data"] == "data, train split"
    assert (saved["subject"]["images"], saved["searched"]) == (16, 24)
    assert (saved["images_across_splits"], saved["images_across_classes"]) == (2, 2)
    near, exact = saved["duplicates"]
    assert (near["files"], near["labels"], near["exact"]) == (["cat/02.png", "dog/03.png"], ["cat", "dog"], False)
    assert near["correlation"] == pytest.approx(0.99, abs=0.01)
    assert (exact["files"], exact["splits"], exact["exact"]) == (["cat/01.png", "cat/09.png"], ["train", "test"], True)
    table = pyarrow.parquet.read_table(tmp_path / "run" / "duplicates.parquet").to_pylist()
    assert [(row["file_a"], row["file_b"]) for row in table] == [tuple(near["files"]), tuple(exact["files"])]
    html = (tmp_path / "run" / "report.html").read_text()
    assert "cat/01.png = cat/09.png" in html
    assert "column camera" in html
    assert measure(folder, split="test").subject.images == 8
    again = clearhead("data", "audit", "data", "--out", "run", cwd=tmp_path)
    assert "finished earlier" in again.stderr


def test_a_duplicate_does_not_predict_its_own_label(tmp_path):
    """Every image is there twice: its copy would reveal its label if they were in different folds."""
    folder = make(tmp_path / "data", plain, 15)
    for path in sorted(folder.glob("*/*.png")):
        path.with_stem(f"{path.stem}-copy").write_bytes(path.read_bytes())
    outcome = measure(folder)
    assert len(outcome.duplicates) == 30
    assert "border" not in shown(outcome)


def test_unreadable_files_and_small_classes_are_named(tmp_path):
    folder = make(tmp_path / "data", plain, 6)
    (folder / "cat" / "broken.png").write_bytes(b"not an image")
    (folder / "eel").mkdir()
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 256, (32, 40, 3)).astype(np.uint8)
        Image.fromarray(noise).save(folder / "eel" / f"{i}.png")
    outcome = measure(folder)
    assert [(issue.file, issue.category) for issue in outcome.subject.issues] == [("cat/broken.png", "unreadable")]
    assert outcome.small_classes == ["eel"]
    assert {cue.accuracy.count for cue in outcome.cues} == {12}
    assert "Left out, fewer than 5 images: eel." in page(outcome).sections[0].text
    sampled = measure(folder, limit=4)
    assert sampled.cues == []
    assert sampled.skipped["border"] == "fewer than two classes have 5 different images with it"


def test_data_that_cannot_be_audited(tmp_path):
    one = make(tmp_path / "one", plain, 5)
    for path in (one / "dog").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="all 5 images are of one class, cat; two or more classes are needed"):
        measure(one)
    with_duplicates(tmp_path / "data")
    assert "split" in error(clearhead("data", "audit", "data", "--split", "dev", cwd=tmp_path))
    assert "no such folder" in error(clearhead("data", "audit", "nowhere", cwd=tmp_path))


@pytest.mark.slow
def test_x_rays_of_pneumonia_differ_at_their_border_and_some_are_in_two_splits(monkeypatch):
    if "CLEARHEAD_DATA" not in os.environ:
        pytest.skip("CLEARHEAD_DATA names no folder of data sets")
    file = Path(os.environ["CLEARHEAD_DATA"]) / "pneumoniamnist" / "pneumoniamnist.npz"
    if not file.is_file():
        pytest.skip(f"no {file}")
    outcome = measure(str(file))
    assert outcome.cues[0].name == "border"
    assert outcome.cues[0].accuracy.low > 0.8
    assert outcome.images_across_splits == 18
