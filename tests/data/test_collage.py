"""Collages of small generated images and, if CLEARHEAD_DATA is set, of pets and scenes."""

import csv
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clearhead.data.collage import make_collage
from clearhead.data.dataset import group_labels
from clearhead.data.folder import read_folder
from clearhead.data.image_io import DataError, load_image, load_mask

CLASSES = {"cat": ["tabby", "lynx"], "dog": ["pug"]}
PAIRING = {"cat": "land", "dog": "water"}
COLOURS = {"tabby": (250, 10, 10), "lynx": (240, 20, 10), "pug": (250, 250, 10)}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """20 foregrounds per source, of one colour on green, and 12 blue or grey scenes per background."""
    rng = np.random.default_rng(0)
    for source, colour in COLOURS.items():
        (tmp_path / "images" / source).mkdir(parents=True)
        (tmp_path / "masks" / source).mkdir(parents=True)
        for i in range(20):
            mask = np.zeros((90, 120), dtype=np.uint8)
            top, left, height, width = rng.integers([5, 5, 30, 30], [30, 30, 55, 80])
            mask[top : top + height, left : left + width] = 255
            image = np.full((90, 120, 3), (0, 255, 0), dtype=np.uint8)
            image[mask > 0] = colour
            image[0, 0] = i  # all files differ
            Image.fromarray(image).save(tmp_path / "images" / source / f"{source}_{i}.png")
            Image.fromarray(mask).save(tmp_path / "masks" / source / f"{source}_{i}.png")
    for name, colour in (("water", (20, 20, 200)), ("land", (120, 120, 120))):
        (tmp_path / name).mkdir()
        for i in range(12):
            scene = Image.new("RGB", (64, 64), colour)
            scene.putpixel((0, 0), (i, i, i))
            scene.save(tmp_path / name / f"{i}.png")
    return tmp_path


def make(sources: Path, out: Path, **options: object) -> tuple:
    arguments = {
        "images": sources / "images",
        "masks": sources / "masks",
        "backgrounds": {"water": sources / "water", "land": sources / "land"},
        "classes": CLASSES,
        "pairing": PAIRING,
        "correlation": 0.75,
        "size": 48,
    }
    return make_collage(out, **(arguments | options))


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "metadata.csv").open(newline="") as opened:
        return list(csv.DictReader(opened))


def require_disjoint(table: list[dict[str, str]]) -> None:
    for column in ("source", "scene"):
        splits = {split: {row[column] for row in table if row["split"] == split} for split in ("train", "val", "test")}
        assert all(splits.values())
        assert not splits["train"] & splits["val"]
        assert not splits["train"] & splits["test"]
        assert not splits["val"] & splits["test"]


def test_splits_share_no_foreground_and_no_scene(sources: Path, tmp_path: Path) -> None:
    assert make(sources, tmp_path / "out") == ()
    table = rows(tmp_path / "out")
    require_disjoint(table)
    assert len({row["source"] for row in table}) == 60  # all foregrounds are used
    assert len({row["file"] for row in table}) == len(table) == 45 + 15 * 2


def test_groups_of_train_val_and_test(sources: Path, tmp_path: Path) -> None:
    make(sources, tmp_path / "out")
    counts = {}
    for split in ("train", "val", "test"):
        folder = read_folder(tmp_path / "out", split=split)
        assert folder.issues == ()
        assert folder.classes == ("cat", "dog")
        counts[split] = Counter(label.replace("class=", "") for label in group_labels(folder, ["background"]))
    assert counts["train"] == {
        "cat, background=land": 18,
        "cat, background=water": 6,
        "dog, background=water": 9,
        "dog, background=land": 3,
    }
    assert counts["val"]["cat, background=land"] == round(0.75 * 6)
    assert counts["test"] == {
        "cat, background=land": 10,
        "cat, background=water": 10,
        "dog, background=water": 5,
        "dog, background=land": 5,
    }


@pytest.mark.parametrize("correlation", [0.0, 1.0])
def test_extreme_correlations(sources: Path, tmp_path: Path, correlation: float) -> None:
    make(sources, tmp_path / "out", correlation=correlation)
    train = [row for row in rows(tmp_path / "out") if row["split"] == "train"]
    fits = {PAIRING[row["file"].split("/")[0]] == row["background"] for row in train}
    assert fits == {bool(correlation)}


def test_images_of_a_test_foreground_differ_only_in_the_scene(sources: Path, tmp_path: Path) -> None:
    make(sources, tmp_path / "out")
    for row in rows(tmp_path / "out"):
        if row["split"] == "test" and row["background"] == "land":
            land = tmp_path / "out" / row["file"]
            water = land.with_name(land.name.replace("land", "water"))
            mask = load_mask(tmp_path / "out/masks" / row["file"])
            assert np.array_equal(mask, load_mask(tmp_path / "out/masks" / land.parent.name / water.name))
            inside = np.asarray(mask.resize(mask.size)) > 0
            inside[1:-1, 1:-1] &= inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
            same = (np.asarray(load_image(land)) == np.asarray(load_image(water))).all(axis=2)
            assert same[inside].all()
            assert not same[np.asarray(mask) == 0].all()


def test_images_show_the_foreground_inside_the_mask_and_the_scene_outside(sources: Path, tmp_path: Path) -> None:
    make(sources, tmp_path / "out")
    folder = read_folder(tmp_path / "out")
    for sample, row in zip(folder.samples, sorted(rows(tmp_path / "out"), key=lambda row: row["file"]), strict=True):
        assert sample.mask is not None
        image, mask = np.asarray(load_image(sample.path), dtype=int), np.asarray(load_mask(sample.mask)) > 0
        assert image.shape == (48, 48, 3)
        ys, xs = np.nonzero(mask)
        side = max(np.ptp(ys), np.ptp(xs)) + 1
        assert 0.45 * 48 - 1 <= side <= 0.75 * 48 + 1
        assert 0 <= (np.ptp(ys) + 1) * (np.ptp(xs) + 1) - mask.sum() <= 4  # a rectangle, rounded at its corners
        colour = np.array(COLOURS[row["source"].split("/")[0]])
        centre = image[ys.min() + 2 : ys.max() - 1, xs.min() + 2 : xs.max() - 1]
        assert np.abs(centre - colour).max() <= 1
        scene = np.array((20, 20, 200) if row["background"] == "water" else (120, 120, 120))
        # Every pixel mixes foreground and scene: no green from around the foreground.
        share = ((image - scene) @ (colour - scene)) / ((colour - scene) @ (colour - scene))
        rest = image - scene - share[..., None] * (colour - scene)
        assert np.abs(rest[4:, 4:]).max() <= 2  # the corner holds the scene's number
        assert (share[4:, 4:][mask[4:, 4:]] >= 0.48).all()
        assert (share[4:, 4:][~mask[4:, 4:]] <= 0.52).all()


def test_equal_seeds_give_equal_bytes(sources: Path, tmp_path: Path) -> None:
    def content(out: Path) -> dict[str, bytes]:
        return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}

    make(sources, tmp_path / "one")
    make(sources, tmp_path / "two")
    make(sources, tmp_path / "three", seed=1)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert content(tmp_path / "one")["metadata.csv"] != content(tmp_path / "three")["metadata.csv"]


def test_unusable_sources_become_issues(sources: Path, tmp_path: Path) -> None:
    pug, masks = sources / "images/pug", sources / "masks/pug"
    (pug / "pug_0.png").write_bytes(b"x")
    (masks / "pug_1.png").unlink()
    Image.new("L", (5, 5), 255).save(masks / "pug_2.png")
    Image.new("L", (120, 90), 0).save(masks / "pug_3.png")
    shutil.copy(pug / "pug_4.png", pug / "pug_4.bmp")
    shutil.copy(pug / "pug_5.png", pug / "pug_6.png")
    shutil.copy(sources / "water/0.png", sources / "land/copy.png")
    issues = make(sources, tmp_path / "out")
    assert [(p.file, p.category) for p in issues] == [
        ("land/copy.png", "duplicate-image"),
        ("pug/pug_0.png", "unreadable"),
        ("pug/pug_1.png", "no-mask"),
        ("pug/pug_2.png", "mask-size"),
        ("pug/pug_3.png", "mask-empty"),
        ("pug/pug_4.bmp", "duplicate-name"),
        ("pug/pug_4.png", "duplicate-name"),
        ("pug/pug_6.png", "duplicate-image"),
    ]
    assert {p.action for p in issues} == {"skipped"}
    assert not {row["source"] for row in rows(tmp_path / "out")} & {p.file for p in issues}


def test_a_foreground_that_vanishes_becomes_an_issue(sources: Path, tmp_path: Path) -> None:
    thin = np.zeros((90, 4000), dtype=np.uint8)
    thin[40, :] = 255
    Image.fromarray(thin).save(sources / "masks/pug/pug_0.png")
    Image.new("RGB", (4000, 90)).save(sources / "images/pug/pug_0.png")
    (issue,) = make(sources, tmp_path / "out")
    assert (issue.file, issue.category) == ("pug/pug_0.png", "mask-empty")
    assert read_folder(tmp_path / "out").issues == ()


def test_the_output_folder_must_be_empty(sources: Path, tmp_path: Path) -> None:
    out = tmp_path / "new/out"
    out.mkdir(parents=True)
    make(sources, out)
    before = sorted(out.rglob("*"))
    with pytest.raises(DataError, match="not an empty folder"):
        make(sources, out)
    assert sorted(out.rglob("*")) == before
    assert list(out.parent.iterdir()) == [out]
    with pytest.raises(DataError, match="not an empty folder"):
        make(sources, out / "metadata.csv")


def test_a_failed_run_leaves_no_files(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []

    def save(self: Image.Image, *_: object, **__: object) -> None:
        saved.append(self)
        if len(saved) > 5:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    (tmp_path / "new").mkdir()
    with pytest.raises(DataError, match=r"could not be written: .*No space left"):
        make(sources, tmp_path / "new/out")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": {"cat": ["tabby"]}}, "two classes"),
        ({"classes": {"cat": ["tabby"], "dog": ["tabby"]}}, "sources of its own"),
        ({"classes": {"cat": ["tabby"], "dog": []}}, "sources of its own"),
        ({"classes": {"cat": ["tabby"], "Cat": ["pug"]}}, "more than case"),
        ({"classes": {"cat": ["tabby"], "masks": ["pug"]}}, "'masks' cannot name"),
        ({"classes": {"cat": ["tabby"], "../dog": ["pug"]}}, "cannot name"),
        ({"classes": {"cat": ["tabby"], "dog": ["poodle"]}}, "no such folder"),
        ({"pairing": {"cat": "land"}}, "pairing must give"),
        ({"pairing": {"cat": "land", "dog": "air"}}, "pairing must give"),
        ({"correlation": 95}, "0..1"),
        ({"size": 8}, "at least 16"),
        ({"seed": -1}, "at least 0"),
        ({"fractions": (0.6, 0.4, 0.0)}, "sum to 1"),
        ({"fractions": (0.6, 0.3, 0.3)}, "sum to 1"),
        ({"fractions": (0.98, 0.01, 0.01)}, "12 usable scenes of water .* too few"),
    ],
)
def test_invalid_arguments_raise_an_error(
    sources: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make(sources, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_backgrounds_must_have_different_folders(sources: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder of its own"):
        make(sources, tmp_path / "out", backgrounds={"water": sources / "water", "land": sources / "water"})


@pytest.mark.skipif("CLEARHEAD_DATA" not in os.environ, reason="CLEARHEAD_DATA (pets/, backgrounds/) is not set")
def test_pets_on_land_and_water(tmp_path: Path) -> None:
    data = Path(os.environ["CLEARHEAD_DATA"])
    issues = make_collage(
        tmp_path / "out",
        images=data / "pets/images",
        masks=data / "pets/masks",
        backgrounds={name: data / "backgrounds" / name for name in ("water", "land")},
        classes={"cat": ["Abyssinian", "Bengal"], "dog": ["american_bulldog"]},
        pairing=PAIRING,
    )
    assert [(p.file, p.category) for p in issues] == [("Abyssinian/Abyssinian_34.jpg", "mask-empty")]
    table = rows(tmp_path / "out")
    require_disjoint(table)
    assert len({row["source"] for row in table}) == 599
    assert read_folder(tmp_path / "out").issues == ()
    for split, expected in (("train", 0.95), ("val", 0.95), ("test", 0.5)):
        folder = read_folder(tmp_path / "out", split=split, check=False)
        fits = [PAIRING[folder.classes[s.label]] == s.groups["background"] for s in folder.samples]
        assert np.mean(fits) == pytest.approx(expected, abs=1 / len(fits))
        if split == "test":
            counts = Counter(group_labels(folder, None))
            assert counts["class=cat, background=land"] == counts["class=cat, background=water"] == 100
            assert counts["class=dog, background=land"] == counts["class=dog, background=water"] == 50
