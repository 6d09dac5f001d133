"""Conversion of a small folder in the layout of Waterbirds."""

import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clearhead.data import writing
from clearhead.data.dataset import group_labels
from clearhead.data.folder import read_folder
from clearhead.data.image_io import DataError
from clearhead.data.waterbirds import make_waterbirds

COLUMNS = ["img_id", "img_filename", "y", "split", "place", "place_filename"]
# two species share a file name; every split, class and place occurs
ROWS = [
    ["1", "001.Black_footed_Albatross/a.jpg", "1", "0", "1", "/o/ocean/1.jpg"],
    ["2", "001.Black_footed_Albatross/b.jpg", "1", "1", "0", "/f/forest/2.jpg"],
    ["3", "002.Laysan_Albatross/a.jpg", "1", "2", "1", "/o/ocean/3.jpg"],
    ["4", "004.Groove_billed_Ani/a.jpg", "0", "0", "0", "/f/forest/4.jpg"],
    ["5", "004.Groove_billed_Ani/b.jpg", "0", "1", "1", "/o/ocean/5.jpg"],
    ["6", "004.Groove_billed_Ani/c.jpg", "0", "2", "0", "/f/forest/6.jpg"],
]


@pytest.fixture
def official(tmp_path) -> Path:
    source = tmp_path / "waterbirds"
    for number, row in enumerate(ROWS):
        (source / row[1]).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 9), (40 * number, 0, 0)).save(source / row[1])
        mask = np.zeros((9, 12), np.uint8)
        mask[number, :] = 51  # one annotator of five
        path = (tmp_path / "segmentations" / row[1]).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    write_table(source, ROWS)
    return source


def write_table(source: Path, rows: list[list[str]], columns: list[str] = COLUMNS) -> None:
    with (source / "metadata.csv").open("w", newline="") as opened:
        csv.writer(opened).writerows([columns, *rows])


def test_the_written_folder_has_splits_places_and_masks(official, tmp_path):
    out = tmp_path / "out"
    assert make_waterbirds(str(out), str(official), str(tmp_path / "segmentations")) == []
    everything = read_folder(out)
    assert (everything.issues, everything.classes) == ((), ("landbird", "waterbird"))
    assert Counter(group_labels(everything, None)) == {
        "class=landbird, place=land": 2,
        "class=landbird, place=water": 1,
        "class=waterbird, place=land": 1,
        "class=waterbird, place=water": 2,
    }
    originals = {(official / row[1]).read_bytes(): row for row in ROWS}
    for code, split in enumerate(("train", "val", "test")):
        samples = read_folder(out, split=split).samples
        rows = [originals[sample.path.read_bytes()] for sample in samples]
        assert sorted(row[0] for row in rows) == [row[0] for row in ROWS if row[3] == str(code)]
        assert [sample.label for sample in samples] == [int(row[2]) for row in rows]
        assert [sample.groups["place"] for sample in samples] == [("land", "water")[int(row[4])] for row in rows]
    for sample in everything.samples:
        number = next(i for i, row in enumerate(ROWS) if os.path.samefile(official / row[1], sample.path))
        assert (np.asarray(Image.open(sample.mask))[number] == 51).all()
    with pytest.raises(DataError, match=r"metadata\.csv exists"):
        make_waterbirds(out, official)


def test_without_masks_none_are_written(official, tmp_path):
    assert make_waterbirds(tmp_path / "out", official) == []
    assert not (tmp_path / "out/masks").exists()
    assert all(sample.mask is None for sample in read_folder(tmp_path / "out").samples)


def test_without_hard_links_files_are_copied_and_originals_stay_unchanged(official, tmp_path, monkeypatch):
    out = tmp_path / "out"
    make_waterbirds(out, official)  # like a stopped run, whose links exist but not its table
    (out / "metadata.csv").unlink()
    before = {row[1]: (official / row[1]).read_bytes() for row in ROWS}

    def fail(*_: object) -> None:
        raise OSError("another device")

    monkeypatch.setattr(writing.os, "link", fail)
    assert make_waterbirds(out, official) == []
    folder = read_folder(out)
    assert sorted(sample.path.read_bytes() for sample in folder.samples) == sorted(before.values())
    assert all(sample.path.stat().st_nlink == 1 for sample in folder.samples)
    assert {row[1]: (official / row[1]).read_bytes() for row in ROWS} == before


def test_symbolic_links_in_the_source_are_followed(official, tmp_path):
    first = official / ROWS[0][1]
    first.rename(official / "blob")
    first.symlink_to("../blob")
    assert make_waterbirds(tmp_path / "out", official) == []
    assert len(read_folder(tmp_path / "out").samples) == 6


def test_unusable_rows_become_issues(official, tmp_path):
    bad = [
        ["7", "004.Groove_billed_Ani/none.jpg", "0", "0", "0", ""],
        ["8", "004.Groove_billed_Ani/a.jpg", "1", "0", "0", ""],
        ["9", "004.Groove_billed_Ani/d.jpg", "2", "0", "0", ""],
        ["10", "004.Groove_billed_Ani/d.jpg", "0", "3", "0", ""],
        ["11", "004.Groove_billed_Ani/d.jpg", "0", "0", "sea", ""],
        ["12", "../outside.jpg", "0", "0", "0", ""],
        ["13", "/etc/hostname", "0", "0", "0", ""],
        ["14", "", "0", "0", "0", ""],
        ["15", "004.Groove_billed_Ani/d.jpg"],
        [],
        ["16", "x" * 5000, "0", "0", "0", ""],
    ]
    (tmp_path / "outside.jpg").touch()
    write_table(official, ROWS + bad)
    (tmp_path / "segmentations" / ROWS[0][1]).with_suffix(".png").unlink()
    issues = make_waterbirds(tmp_path / "out", official, tmp_path / "segmentations")
    categories = [(p.file[:30], p.category, p.action) for p in issues]
    assert categories == [
        ("004.Groove_billed_Ani/none.jpg", "metadata-without-file", "row ignored"),
        ("004.Groove_billed_Ani/a.jpg", "metadata-duplicate", "row ignored"),
        *[("metadata.csv", "metadata-row", "row ignored")] * 7,
        ("x" * 30, "metadata-without-file", "row ignored"),
        (ROWS[0][1][:30], "no-mask", "counted"),
    ]
    details = [p.detail for p in issues]
    assert details[1] == "line 9: an earlier row has the same name"
    assert details[2:5] == [
        "line 10: y is '2', not one of 0, 1",
        "line 11: split is '3', not one of 0, 1, 2",
        "line 12: place is 'sea', not one of 0, 1",
    ]
    assert details[5] == "line 13: img_filename '../outside.jpg' is not a path inside the folder"
    assert len(read_folder(tmp_path / "out").samples) == 6


def test_unusable_folders_raise_an_error(official, tmp_path):
    def raises(message: str, source: Path = official, masks: Path | None = None) -> None:
        with pytest.raises(DataError, match=message):
            make_waterbirds(tmp_path / "out", source, masks)
        assert not (tmp_path / "out").exists()

    raises("nowhere: no such folder", tmp_path / "nowhere")
    raises("nothing: no such folder", masks=tmp_path / "nothing")
    raises(r"metadata\.csv does not exist", tmp_path / "segmentations")
    write_table(official, [["1", "a.jpg", "0"]], ["img_id", "img_filename", "y"])
    raises("no column place, split; its columns are")
    write_table(official, [[*row[:1], f"elsewhere/{row[1]}", *row[2:]] for row in ROWS])
    raises(r"no row of metadata\.csv can be used; first elsewhere/001\.Black_footed_Albatross/a\.jpg: no such image")
    write_table(official, [])
    raises(r"no row of metadata\.csv can be used$")
    (official / "metadata.csv").write_bytes("img_filename,y,split,place\nKäfer".encode("latin-1"))
    raises("cannot be read as UTF-8")
    write_table(official, ROWS)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="could not be written"):
        make_waterbirds(tmp_path / "file", official)
