"""Read metadata.csv beside a folder of images: the split of each image, and its groups."""

import csv
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from clearhead.data.dataset import DataIssue, Sample, format_names
from clearhead.data.image_io import DataError


def add_metadata(
    root: Path,
    class_root: Path,
    samples: list[Sample],
    files: Mapping[str, list[Path]],
    split: str | None,
    issues: list[DataIssue],
) -> list[Sample]:
    """Return the samples of a split with their group columns from root/metadata.csv; append the issues.

    `class_root` holds the class folders; `files` lists all their images, used or not. Raises DataError.
    """
    table = root / "metadata.csv"
    if not table.is_file():
        if split is not None:
            raise DataError(f"split: {split!r} needs {table}, which does not exist; it names the split of each image")
        return samples
    columns, rows = _read_rows(table, issues)
    if split is not None:
        _require_split(table, columns, rows, split)
    groups = [column for column in columns if column not in ("file", "split")]
    existing = {f"{name}/{path.name}" for name, paths in files.items() for path in paths}
    if rows and not existing & rows.keys():
        raise DataError(
            f"{table}: no row names an existing image; the first is {next(iter(rows))!r}, but paths are relative to "
            f"{class_root}, as in {min(existing)!r}"
        )
    selected = {file for file, same in rows.items() if split is None or any(row["split"] == split for row in same)}
    issues += [
        DataIssue(file, "metadata-without-file", "a row of metadata.csv without an image", "counted")
        for file in rows
        if file in selected - existing
    ]
    result = []
    for sample in samples:
        same = rows.get(sample.file, [])
        if len(same) > 1 and (split is None or sample.file in selected):
            consistent = all(row == same[0] for row in same)
            detail = f"{len(same)} rows of metadata.csv" + ("" if consistent else " that contradict each other")
            action = "counted" if consistent else "skipped"
            issues.append(DataIssue(sample.file, "metadata-duplicate", detail, action))
            if not consistent:
                continue
        row = same[0] if same else {}
        if not row or (split is not None and not row["split"]):
            detail = "no split in metadata.csv" if row else "no row in metadata.csv"
            issues.append(DataIssue(sample.file, "no-metadata", detail, "counted" if split is None else "skipped"))
        if split is None or row.get("split") == split:
            result.append(replace(sample, groups={column: row.get(column, "") for column in groups}))
    return result


def _read_rows(table: Path, issues: list[DataIssue]) -> tuple[list[str], dict[str, list[dict[str, str]]]]:
    """Return the columns of metadata.csv and its rows by file."""
    rows: dict[str, list[dict[str, str]]] = defaultdict(list)
    try:
        with table.open(encoding="utf-8-sig", newline="") as opened:
            lines = csv.reader(opened)
            columns = [cell.strip() for cell in next(lines, [])]
            if "file" not in columns or len(set(columns)) != len(columns):
                raise DataError(f"{table}: the first line must name different columns, one of them file; got {columns}")
            for cells in lines:
                row = dict(zip(columns, (cell.strip() for cell in cells), strict=False))
                if len(cells) == len(columns) and row["file"]:
                    row["file"] = PurePosixPath(row["file"].replace("\\", "/")).as_posix()
                    rows[row["file"]].append(row)
                elif cells:
                    reason = "no file" if len(cells) == len(columns) else f"{len(cells)} cells, {len(columns)} columns"
                    detail = f"line {lines.line_num}: {reason}"
                    issues.append(DataIssue("metadata.csv", "metadata-row", detail, "row ignored"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as UTF-8 comma-separated text: {error}") from error
    return columns, rows


def _require_split(table: Path, columns: list[str], rows: Mapping[str, list[dict[str, str]]], split: str) -> None:
    """Raise DataError unless some row has the split."""
    if "split" not in columns:
        raise DataError(f"split: {split!r} needs a column split in {table}; its columns are {format_names(columns)}")
    splits = Counter(row["split"] for same in rows.values() for row in same if row["split"])
    if split not in splits:
        counts = ", ".join(f"{name} ({count})" for name, count in splits.items())
        choices = f"choose from {counts}" if splits else "its column split is empty"
        raise DataError(f"split: {split!r} is not in {table}; {choices}")
