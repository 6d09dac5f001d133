"""The table beside a folder of images: which split each image is in, and its groups."""

import csv
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from clearhead.data.dataset import DataIssue, Sample, listed
from clearhead.data.image_io import DataError


def with_metadata(
    root: Path,
    top: Path,
    samples: list[Sample],
    files: Mapping[str, list[Path]],
    split: str | None,
    issues: list[DataIssue],
) -> list[Sample]:
    """The samples of a split with their group columns, by root/metadata.csv; what is wrong goes to `problems`.

    `top` holds the class folders, `files` their images, used or not. Raises DataError.
    """
    table = root / "metadata.csv"
    if not table.is_file():
        if split is not None:
            raise DataError(
                f"split {split!r} was asked for, but {table} does not exist; it names the split of each image"
            )
        return samples
    columns, rows = _read(table, issues)
    if split is not None:
        _require_split(table, columns, rows, split)
    groups = [column for column in columns if column not in ("file", "split")]
    there = {f"{name}/{path.name}" for name, paths in files.items() for path in paths}
    if rows and not there & rows.keys():
        raise DataError(
            f"{table}: no row names an image that is there; the first is {next(iter(rows))!r}, "
            f"paths are relative to {top}, as in {min(there)!r}"
        )
    wanted = {file for file, found in rows.items() if split is None or any(row["split"] == split for row in found)}
    issues += [
        DataIssue(file, "metadata-without-file", "a row of metadata.csv, but no such image", "counted")
        for file in rows
        if file in wanted - there
    ]
    kept = []
    for sample in samples:
        found = rows.get(sample.file, [])
        if len(found) > 1 and (split is None or sample.file in wanted):
            alike = all(row == found[0] for row in found)
            detail = f"{len(found)} rows of metadata.csv" + ("" if alike else " that contradict each other")
            action = "counted" if alike else "skipped"
            issues.append(DataIssue(sample.file, "metadata-duplicate", detail, action))
            if not alike:
                continue
        row = found[0] if found else {}
        if not row or (split is not None and not row["split"]):
            detail = "no split in metadata.csv" if row else "no row in metadata.csv"
            issues.append(DataIssue(sample.file, "no-metadata", detail, "counted" if split is None else "skipped"))
        if split is None or row.get("split") == split:
            kept.append(replace(sample, groups={column: row.get(column, "") for column in groups}))
    return kept


def _read(table: Path, issues: list[DataIssue]) -> tuple[list[str], dict[str, list[dict[str, str]]]]:
    """The columns of metadata.csv and its rows by file."""
    rows: dict[str, list[dict[str, str]]] = defaultdict(list)
    try:
        with table.open(encoding="utf-8-sig", newline="") as opened:
            lines = csv.reader(opened)
            columns = [cell.strip() for cell in next(lines, [])]
            if "file" not in columns or len(set(columns)) != len(columns):
                raise DataError(
                    f"{table}: the first line must name each column once, one of them file; it has {columns}"
                )
            for cells in lines:
                row = dict(zip(columns, (cell.strip() for cell in cells), strict=False))
                if len(cells) == len(columns) and row["file"]:
                    row["file"] = PurePosixPath(row["file"].replace("\\", "/")).as_posix()
                    rows[row["file"]].append(row)
                elif cells:
                    cause = (
                        "no file" if len(cells) == len(columns) else f"{len(cells)} cells for {len(columns)} columns"
                    )
                    detail = f"line {lines.line_num}: {cause}"
                    issues.append(DataIssue("metadata.csv", "metadata-row", detail, "row ignored"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as UTF-8 comma-separated text: {error}") from error
    return columns, rows


def _require_split(table: Path, columns: list[str], rows: Mapping[str, list[dict[str, str]]], split: str) -> None:
    """Raise DataError unless some row has the split."""
    if "split" not in columns:
        raise DataError(f"split {split!r} was asked for, but {table} has no column split; it has {listed(columns)}")
    splits = Counter(row["split"] for found in rows.values() for row in found if row["split"])
    if split not in splits:
        there = ", ".join(f"{name} ({count})" for name, count in splits.items()) or "none"
        raise DataError(f"no split {split!r} in {table}; there is {there}")
