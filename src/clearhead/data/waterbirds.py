"""Convert Waterbirds (Sagawa et al. 2020, arXiv 1911.08731) to class folders with metadata.

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
from clearhead.data.writing import link, require_no_metadata, write_metadata, writing

CLASSES = {"0": "landbird", "1": "waterbird"}
PLACES = {"0": "land", "1": "water"}
SPLITS = {"0": "train", "1": "val", "2": "test"}
COLUMNS = {"y": CLASSES, "place": PLACES, "split": SPLITS}


def make_waterbirds(root: str | Path, source: str | Path, masks: str | Path | None = None) -> list[DataIssue]:
    """Write Waterbirds as landbird/, waterbird/ and metadata.csv (file, split, place).

    Files are hard links to the originals, or copies if the file system does not allow links. Each is named by its whole
    path, so that names are unique. metadata.csv is written last: if it exists, the data set is complete.

    Args:
        root: the folder to write.
        source: the official folder.
        masks: the folder of the CUB segmentations (001.Black_footed_Albatross/x.png), which become masks/<class>/.

    Returns:
        The rows that were ignored and the masks that do not exist.

    Raises:
        DataError: if the folder, its metadata.csv or a column is missing, no row can be used, or `root` already holds
            a metadata.csv.
    """
    root, source = Path(root), Path(source)
    require_no_metadata(root)
    for folder in (source, *([Path(masks)] if masks is not None else [])):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder")
    issues: list[DataIssue] = []
    rows = []
    taken: set[str] = set()
    for line, row in _read_rows(source / "metadata.csv"):
        name = row["img_filename"]
        if reason := _invalid(row):
            issues.append(DataIssue("metadata.csv", "metadata-row", f"line {line}: {reason}", "row ignored"))
            continue
        path = PurePosixPath(name)
        flat = "__".join(path.parts)
        stem = PurePosixPath(flat).stem.casefold()
        if stem in taken:
            detail = f"line {line}: an earlier row has the same name"
            issues.append(DataIssue(name, "metadata-duplicate", detail, "row ignored"))
        elif not os.path.isfile(source / path):  # False also for an invalid path
            issues.append(DataIssue(name, "metadata-without-file", "no such image", "row ignored"))
        else:
            taken.add(stem)
            rows.append((path, f"{CLASSES[row['y']]}/{flat}", SPLITS[row["split"]], PLACES[row["place"]]))
    if not rows:
        first = f"; first {issues[0].file}: {issues[0].detail}" if issues else ""
        raise DataError(f"{source}: no row of metadata.csv can be used{first}")
    with writing(root):
        for path, file, _, _ in rows:
            link(source / path, root / file)
            if masks is not None:
                mask = Path(masks) / path.with_suffix(".png")
                if mask.is_file():
                    link(mask, root / "masks" / PurePosixPath(file).with_suffix(".png"))
                else:
                    issues.append(DataIssue(str(path), "no-mask", f"{mask} does not exist", "counted"))
        write_metadata(root, ("file", "split", "place"), (row[1:] for row in rows))
    return issues


def _read_rows(table: Path) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of the official table with their line numbers; a missing cell is empty."""
    needed = ("img_filename", *COLUMNS)
    try:
        with table.open(encoding="utf-8-sig", newline="") as opened:
            lines = csv.reader(opened)
            columns = [cell.strip() for cell in next(lines, [])]
            if missing := [column for column in needed if column not in columns]:
                raise DataError(f"{table}: no column {', '.join(missing)}; its columns are {columns}")
            return [
                (lines.line_num, dict.fromkeys(needed, "") | dict(zip(columns, map(str.strip, cells), strict=False)))
                for cells in lines
                if cells
            ]
    except FileNotFoundError:
        raise DataError(f"{table} does not exist; it names the class, place and split of each image") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as UTF-8 comma-separated text: {error}") from error


def _invalid(row: dict[str, str]) -> str | None:
    """Return why a row cannot be used, or None."""
    path = PurePosixPath(row["img_filename"])
    if not path.name or path.is_absolute() or ".." in path.parts:
        return f"img_filename {row['img_filename']!r} is not a path inside the folder"
    for column, values in COLUMNS.items():
        if row[column] not in values:
            return f"{column} is {row[column]!r}, not one of {', '.join(values)}"
    return None
