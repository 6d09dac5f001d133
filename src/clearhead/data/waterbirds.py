"""Waterbirds (Sagawa et al. 2020, arXiv 1911.08731) in the layout of `clearhead.data.folder`.

The official folder, waterbird_complete95_forest2water2::

    metadata.csv                                      img_id, img_filename, y, split, place, place_filename
    001.Black_footed_Albatross/Black_..._0046_18.jpg  y: 0 landbird, 1 waterbird; place: 0 land, 1 water;
    ...                                               split: 0 train, 1 validation, 2 test

The birds were cut out by the CUB segmentations, images times grey values: where a segmentation is zero, the pixel
is background. Nonzero pixels, which count as foreground here, include those that few annotators marked.
"""

import csv
import os
from pathlib import Path, PurePosixPath

from clearhead.data.dataset import DataIssue
from clearhead.data.image_io import DataError
from clearhead.data.writing import link

CLASSES = {"0": "landbird", "1": "waterbird"}
PLACES = {"0": "land", "1": "water"}
SPLITS = {"0": "train", "1": "val", "2": "test"}
COLUMNS = {"y": CLASSES, "place": PLACES, "split": SPLITS}


def make_waterbirds(root: str | Path, source: str | Path, masks: str | Path | None = None) -> list[DataIssue]:
    """Write Waterbirds below `root` as landbird/, waterbird/ and metadata.csv (file, split, place).

    `source` is the official folder, `masks` that of the CUB segmentations (001.Black_footed_Albatross/x.png), which
    become masks/<class>/. Files are hard links to the originals where the file system allows it, else copies, each
    named by its whole path, so names are unique. The table is written last: where it is there, the set is complete.
    Returns the rows that could not be used and the masks that are not there. Raises DataError when the folder, its
    metadata.csv or a column is missing, when no row can be used, or when `root` already holds a metadata.csv.
    """
    root, source = Path(root), Path(source)
    table = root / "metadata.csv"
    if table.exists():
        raise DataError(f"{table} exists: give an empty folder, or delete this one to make the data set anew")
    for folder in (source, *([Path(masks)] if masks is not None else [])):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder")
    issues: list[DataIssue] = []
    rows = []
    taken: set[str] = set()
    for line, row in _read(source / "metadata.csv"):
        name = row["img_filename"]
        if cause := _wrong(row):
            issues.append(DataIssue("metadata.csv", "metadata-row", f"line {line}: {cause}", "row ignored"))
            continue
        path = PurePosixPath(name)
        flat = "__".join(path.parts)
        stem = PurePosixPath(flat).stem.casefold()
        if stem in taken:
            detail = f"line {line}: an earlier row has its name"
            issues.append(DataIssue(name, "metadata-duplicate", detail, "row ignored"))
        elif not os.path.isfile(source / path):  # False also for what cannot be a path
            issues.append(DataIssue(name, "metadata-without-file", "no such image", "row ignored"))
        else:
            taken.add(stem)
            rows.append((path, f"{CLASSES[row['y']]}/{flat}", SPLITS[row["split"]], PLACES[row["place"]]))
    if not rows:
        first = f"; first {issues[0].file}: {issues[0].detail}" if issues else ""
        raise DataError(f"{source}: no row of metadata.csv can be used{first}")
    try:
        for path, file, _, _ in rows:
            link(source / path, root / file)
            if masks is not None:
                mask = Path(masks) / path.with_suffix(".png")
                if mask.is_file():
                    link(mask, root / "masks" / PurePosixPath(file).with_suffix(".png"))
                else:
                    issues.append(DataIssue(str(path), "no-mask", f"{mask} does not exist", "counted"))
        unfinished = table.with_suffix(".tmp")
        with unfinished.open("w", newline="", encoding="utf-8") as opened:
            csv.writer(opened).writerows([("file", "split", "place"), *(row[1:] for row in rows)])
        unfinished.replace(table)
    except OSError as error:
        raise DataError(f"{root} could not be written: {error}") from error
    return issues


def _read(table: Path) -> list[tuple[int, dict[str, str]]]:
    """The rows of the official table with their lines; a cell that is not there is empty."""
    needed = ("img_filename", *COLUMNS)
    try:
        with table.open(encoding="utf-8-sig", newline="") as opened:
            lines = csv.reader(opened)
            columns = [cell.strip() for cell in next(lines, [])]
            if missing := [column for column in needed if column not in columns]:
                raise DataError(f"{table}: no column {', '.join(missing)}; it has {columns}")
            return [
                (lines.line_num, dict.fromkeys(needed, "") | dict(zip(columns, map(str.strip, cells), strict=False)))
                for cells in lines
                if cells
            ]
    except FileNotFoundError:
        raise DataError(f"{table} does not exist; it names the class, place and split of each image") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as UTF-8 comma-separated text: {error}") from error


def _wrong(row: dict[str, str]) -> str | None:
    """What makes a row unusable by itself."""
    path = PurePosixPath(row["img_filename"])
    if not path.name or path.is_absolute() or ".." in path.parts:
        return f"img_filename {row['img_filename']!r} is no path below the folder"
    for column, values in COLUMNS.items():
        if row[column] not in values:
            return f"{column} is {row[column]!r}, not one of {', '.join(values)}"
    return None
