"""Folders of images in class folders, with optional foreground masks and group attributes.

The layout::

    root/<class>/<stem>.jpg            or root/images/<class>/<stem>.jpg
    root/masks/<class>/<stem>.png      optional; nonzero = foreground
    root/metadata.csv                  optional; `file` (relative to the class folders), `split`, any group columns

What happens to data that is not as it should be. Everything left out is listed in ``ImageFolder.problems``; what
makes the whole folder useless is a ``DataError``.

====================== =============================================================== ===================
kind                   what was found                                                  action
====================== =============================================================== ===================
unreadable, truncated  an image Pillow cannot decode to its end                        skipped
unknown-class          a class folder the model has no class for                       skipped, once a folder
ambiguous-class        a folder name that several classes of the model bear            skipped, once a folder
empty-class            a class folder without images (it keeps its label)              counted
nested-folder          images in a folder inside a class folder                        skipped, once a folder
no-class               an image outside the class folders                              skipped
other-file             a file in a class folder that has no image's extension          skipped
duplicate-name         a.jpg and a.png in one class: which one is the mask's?          mask ignored, or counted
mask-size              a mask that is not as large as its image (EXIF turned)          mask ignored
mask-unreadable        a mask Pillow cannot decode to its end                          mask ignored
mask-empty             a mask without foreground                                       mask ignored
mask-format            a mask that is no PNG file                                      mask ignored
mask-without-image     a mask whose image is not there                                 counted
metadata-without-file  a row whose image is not there                                  counted
metadata-row           a row without a file name, or with too many or too few cells    row ignored
metadata-duplicate     several rows for one file: the same, or contradicting           counted, or skipped
no-metadata            an image without a row, or without a split when one is asked    skipped, or counted
====================== =============================================================== ===================

A ``DataError``: no such folder, a file in its place, no class folders, two folders for one class (``cat`` and
``Cat``), no folder known to the model, a metadata.csv without `file` or that is not UTF-8 text, a split that does not
exist or is empty, no usable image at all. Hidden files and folders are passed over. Images are compared with masks,
and decoded, only with ``check=True``; without it, a broken file is a ``DataError`` when it is loaded.
"""

import csv
import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from clearhead.data.pixels import DataError, Stored, by, load_image, load_mask

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".tga"),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One image: `file` is its path relative to the class folders, or in its shard, and its unique name."""

    file: str
    path: Path | Stored
    label: int
    mask: Path | None
    groups: Mapping[str, str]  # metadata columns other than file and split

    @property
    def own_file(self) -> Path:
        """The file that is the image. Raises DataError for one inside a shard."""
        if not isinstance(self.path, Path):
            raise DataError(f"{self.path}: images that are files are needed here, in class folders")
        return self.path


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the data: the kinds and actions are listed at the head of this file."""

    file: str
    kind: str
    detail: str
    action: str  # 'skipped', 'mask ignored', 'row ignored', 'counted'


@dataclass(frozen=True)
class ImageFolder:
    """The usable samples of a folder, in order of `file`, and what was wrong with the rest."""

    root: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...]


def read_folder(
    root: str | Path,
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    check: bool = True,
    metadata: bool = True,
) -> ImageFolder:
    """Read a folder of images laid out as at the head of this file.

    `classes` are the model's class names in the order of its outputs: a class folder is matched to them by name (case
    aside, ``_`` = space) or, when there are 1000, by WordNet id (``n01440764``) as an ImageNet-1k class. Without
    `classes` the sorted folder names are the classes. `split` keeps the images whose row in metadata.csv has that
    split. `check` decodes every image and mask. `metadata` False passes over metadata.csv, for data with a table of
    another kind by that name. Raises DataError.
    """
    root = Path(root)
    top = _class_root(root)
    folders = [entry for entry in _entries(top) if entry.is_dir() and not (top == root and entry.name == "masks")]
    names = tuple(classes) if classes is not None else tuple(folder.name for folder in folders)
    problems = [
        Problem(entry.name, "no-class", "an image outside the class folders", "skipped") for entry in image_files(top)
    ]
    files = {folder.name: image_files(folder) for folder in folders}
    for folder in folders:
        problems += _stray(folder, len(files[folder.name]))
    if not any(files.values()):
        raise DataError(_no_images(top, folders))
    labels = _labels(files, names, problems)

    samples = []
    for folder in folders:
        if folder.name in labels:
            masks = _masks(root / "masks" / folder.name, files[folder.name], problems)
            samples += [
                Sample(f"{folder.name}/{path.name}", path, labels[folder.name], masks.get(path.stem), {})
                for path in files[folder.name]
            ]
    if metadata:
        samples = _with_metadata(root, top, samples, files, split, problems)
    if check:
        samples, found = check_samples(samples)
        problems += found
    require_samples(root, samples, problems)
    return ImageFolder(root, names, tuple(samples), tuple(sorted(problems, key=lambda p: (p.file, p.kind))))


def require_samples(root: str | Path, samples: Sequence[Sample], problems: Sequence[Problem]) -> None:
    """Raise DataError where no image is left, with what befell them."""
    if not samples:
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(p.kind for p in problems).most_common())
        first = next((p for p in problems if p.action == "skipped"), None)
        raise DataError(
            f"{root}: no usable image is left ({kinds})" + (f"; first {first.file}: {first.detail}" if first else "")
        )


def image_files(folder: Path) -> list[Path]:
    """The image files directly in a folder, by extension in any case, sorted by name. Raises DataError."""
    return [entry for entry in _entries(folder) if entry.suffix.lower() in EXTENSIONS and entry.is_file()]


def check_samples(samples: Sequence[Sample]) -> tuple[list[Sample], list[Problem]]:
    """Decode every image and mask; return the samples that can be used (a bad mask taken off) and the problems."""
    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(_check, samples))
    kept = [
        replace(sample, mask=None) if problem else sample
        for sample, problem in zip(samples, problems, strict=True)
        if not (problem and problem.action == "skipped")
    ]
    return kept, [problem for problem in problems if problem]


def attribute_columns(folder: ImageFolder) -> list[str]:
    """The metadata columns with at most 10 different values, the class aside."""
    values: dict[str, set[str]] = defaultdict(set)
    for sample in folder.samples:
        for column, value in sample.groups.items():
            values[column].add(value)
    return [column for column, seen in values.items() if column != "class" and len(seen) <= 10]


def group_labels(folder: ImageFolder, columns: Sequence[str] | None) -> list[str]:
    """The group of each sample, such as ``class=cat, background=water``: its class crossed with metadata columns.

    `columns` None takes all columns with at most 10 different values; the class always comes first. A cell that is
    empty or missing reads ``unknown``. Raises DataError for a column that does not exist.
    """
    there = dict.fromkeys(column for sample in folder.samples for column in sample.groups if column != "class")
    columns = attribute_columns(folder) if columns is None else [column for column in columns if column != "class"]
    if missing := [column for column in columns if column not in there]:
        raise DataError(
            f"no group column {', '.join(missing)} in {folder.root / 'metadata.csv'}; "
            f"there is {listed(there) if there else 'none besides the class'}"
        )
    return [
        ", ".join(
            [f"class={folder.classes[sample.label]}"]
            + [f"{column}={sample.groups.get(column) or 'unknown'}" for column in columns]
        )
        for sample in folder.samples
    ]


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, hidden entries aside, sorted by name."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except FileNotFoundError:
        raise DataError(f"{folder}: no such folder") from None
    except NotADirectoryError:
        raise DataError(f"{folder} is a file; a folder with one folder of images a class is needed") from None
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error


def _class_root(root: Path) -> Path:
    """root/images where that holds folders, else root."""
    folders = [entry.name for entry in _entries(root) if entry.is_dir()]
    if "images" in folders and any(entry.is_dir() for entry in _entries(root / "images")):
        return root / "images"
    return root


def _stray(folder: Path, images: int) -> list[Problem]:
    """What is in a class folder besides images."""
    found = []
    for entry in _entries(folder):
        name = f"{folder.name}/{entry.name}"
        if entry.is_dir():
            found.append(Problem(name, "nested-folder", "a folder inside a class folder is not read", "skipped"))
        elif entry.suffix.lower() not in EXTENSIONS:
            found.append(Problem(name, "other-file", f"{entry.suffix or 'no extension'} is no image", "skipped"))
    if not images:
        found.append(Problem(folder.name, "empty-class", "no images in this class folder", "counted"))
    return found


def _no_images(top: Path, folders: list[Path]) -> str:
    """Why a folder without images in class folders is refused."""
    for folder in folders:
        if inner := [entry for entry in _entries(folder) if entry.is_dir()]:
            return (
                f"{top}: no images in its folders {listed(f.name for f in folders)}; they hold folders themselves, "
                f"such as {folder.name}/{inner[0].name}: is the data in {folder}?"
            )
    what = f"its folders {listed(f.name for f in folders)} are empty" if folders else "it has no class folders"
    loose = len(image_files(top))
    return (
        f"{top}: {what}"
        + (f" ({loose} images lie directly in it)" if loose else "")
        + "; images belong in one folder a class, as in cat/1.jpg, dog/2.jpg"
    )


def _labels(files: Mapping[str, list[Path]], classes: tuple[str, ...], problems: list[Problem]) -> dict[str, int]:
    """The label of each class folder; those without one go to `problems`."""
    indices = defaultdict(list)
    for index, name in enumerate(classes):
        indices[plain_name(name)].append(index)
    labels: dict[str, int] = {}
    taken: dict[str | int, str] = {}
    for folder, images in files.items():
        found = indices.get(plain_name(folder), [])
        if not found and len(classes) == 1000 and re.fullmatch(r"n\d{8}", folder) and folder in wordnet_ids():
            found = [wordnet_ids()[folder]]
        for key in (plain_name(folder), *(found if len(found) == 1 else ())):
            if taken.setdefault(key, folder) != folder:
                raise DataError(f"folders {taken[key]} and {folder} are for the same class; put their images into one")
        if len(found) == 1:
            labels[folder] = found[0]
        elif found:
            detail = f"the model's classes {found} are all called {classes[found[0]]!r}; {len(images)} images"
            problems.append(Problem(folder, "ambiguous-class", detail, "skipped"))
        else:
            detail = f"not among the model's {len(classes)} classes; {len(images)} images"
            problems.append(Problem(folder, "unknown-class", detail, "skipped"))
    if not labels:
        raise DataError(
            f"no class folder is a class of the model: it has {listed(classes)}, the folder has {listed(files)}; "
            "name the folders as the model's classes"
            + (" or by WordNet id (n01440764)" if len(classes) == 1000 else "")
        )
    return labels


@functools.cache
def wordnet_ids() -> dict[str, int]:
    """The ImageNet-1k class index of each WordNet id: their sorted order."""
    from timm.data import ImageNetInfo

    return {name: index for index, name in enumerate(sorted(ImageNetInfo("imagenet-1k").label_names()))}


def _masks(folder: Path, images: list[Path], problems: list[Problem]) -> dict[str, Path]:
    """The mask file of each image stem; what is wrong goes to `problems`."""
    names = defaultdict(list)
    for path in images:
        names[path.stem].append(path.name)
    masks = {}
    for path in _entries(folder) if folder.is_dir() else []:
        if path.stem not in names:
            problem = Problem(f"masks/{folder.name}/{path.name}", "mask-without-image", "no such image", "counted")
            problems.append(problem)
        elif path.suffix.lower() != ".png":
            file = f"{folder.name}/{names[path.stem][0]}"
            problems.append(Problem(file, "mask-format", f"{path.name}: a mask is a PNG file", "mask ignored"))
        else:
            masks[path.stem] = path
    for stem, same in names.items():
        if len(same) > 1:
            action = "mask ignored" if masks.pop(stem, None) else "counted"
            detail = f"one name with {', '.join(same[1:])}"
            problems.append(Problem(f"{folder.name}/{same[0]}", "duplicate-name", detail, action))
    return masks


def _with_metadata(
    root: Path,
    top: Path,
    samples: list[Sample],
    files: Mapping[str, list[Path]],
    split: str | None,
    problems: list[Problem],
) -> list[Sample]:
    """The samples of a split with their group columns."""
    table = root / "metadata.csv"
    if not table.is_file():
        if split is not None:
            raise DataError(
                f"split {split!r} was asked for, but {table} does not exist; it names the split of each image"
            )
        return samples
    columns, rows = _metadata(table, problems)
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
    problems += [
        Problem(file, "metadata-without-file", "a row of metadata.csv, but no such image", "counted")
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
            problems.append(Problem(sample.file, "metadata-duplicate", detail, action))
            if not alike:
                continue
        row = found[0] if found else {}
        if not row or (split is not None and not row["split"]):
            detail = "no split in metadata.csv" if row else "no row in metadata.csv"
            problems.append(Problem(sample.file, "no-metadata", detail, "counted" if split is None else "skipped"))
        if split is None or row.get("split") == split:
            kept.append(replace(sample, groups={column: row.get(column, "") for column in groups}))
    return kept


def _metadata(table: Path, problems: list[Problem]) -> tuple[list[str], dict[str, list[dict[str, str]]]]:
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
                    rows[PurePosixPath(row["file"].replace("\\", "/")).as_posix()].append(row)
                elif cells:
                    cause = (
                        "no file" if len(cells) == len(columns) else f"{len(cells)} cells for {len(columns)} columns"
                    )
                    detail = f"line {lines.line_num}: {cause}"
                    problems.append(Problem("metadata.csv", "metadata-row", detail, "row ignored"))
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


def _check(sample: Sample) -> Problem | None:
    """What is wrong with the files of a sample."""
    try:
        size = load_image(sample.path).size
    except DataError as error:
        kind = "truncated" if "truncated" in str(error.__cause__).lower() else "unreadable"
        return Problem(sample.file, kind, str(error).removeprefix(f"{sample.path}: "), "skipped")
    if sample.mask is None:
        return None
    try:
        mask = load_mask(sample.mask)
    except DataError as error:
        return Problem(sample.file, "mask-unreadable", str(error).removeprefix(f"{sample.mask}: "), "mask ignored")
    if mask.size != size:
        detail = f"a mask of {by(mask.size)} for an image of {by(size)}"
        return Problem(sample.file, "mask-size", detail, "mask ignored")
    if mask.getbbox() is None:
        return Problem(sample.file, "mask-empty", "a mask without foreground", "mask ignored")
    return None


def plain_name(name: str) -> str:
    """A class name for comparing: case aside, underscores as spaces."""
    return " ".join(name.replace("_", " ").casefold().split())


def listed(names: Iterable[str], most: int = 5) -> str:
    """A few names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
