"""Folders of images in class folders, with optional foreground masks and group attributes.

The layout::

    root/<class>/<stem>.jpg            or root/images/<class>/<stem>.jpg
    root/masks/<class>/<stem>.png      optional; nonzero = foreground
    root/metadata.csv                  optional; `file` (relative to the class folders), `split`, any group columns

What happens to data that is not as it should be. Everything left out is listed in ``ImageIndex.problems``; what
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

import functools
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from clearhead.data.dataset import DataIssue, ImageIndex, Sample, check_samples, listed, require_samples
from clearhead.data.image_io import DataError
from clearhead.data.metadata import with_metadata

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".tga"),
)


def read_folder(
    root: str | Path,
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    check: bool = True,
    metadata: bool = True,
) -> ImageIndex:
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
    issues = [
        DataIssue(entry.name, "no-class", "an image outside the class folders", "skipped") for entry in image_files(top)
    ]
    files = {folder.name: _named_in_text(image_files(folder), issues) for folder in folders}
    for folder in folders:
        issues += _stray(folder, len(files[folder.name]))
    if not any(files.values()):
        raise DataError(_no_images(top, folders))
    labels = _labels(files, names, issues)

    samples = []
    for folder in folders:
        if folder.name in labels:
            masks = _masks(root / "masks" / folder.name, files[folder.name], issues)
            samples += [
                Sample(f"{folder.name}/{path.name}", path, labels[folder.name], masks.get(path.stem), {})
                for path in files[folder.name]
            ]
    for entry in _entries(root / "masks") if (root / "masks").is_dir() else []:
        if entry.is_dir() and entry.name not in files:
            issues.append(DataIssue(f"masks/{entry.name}", "mask-without-image", "no such class folder", "counted"))
    if metadata:
        samples = with_metadata(root, top, samples, files, split, issues)
    if check:
        samples, found = check_samples(samples)
        issues += found
    require_samples(root, samples, issues)
    return ImageIndex(root, names, tuple(samples), tuple(sorted(issues, key=lambda p: (p.file, p.category))))


def image_files(folder: Path) -> list[Path]:
    """The image files directly in a folder, by extension in any case, sorted by name. Raises DataError."""
    return [entry for entry in _entries(folder) if entry.suffix.lower() in EXTENSIONS and entry.is_file()]


def _named_in_text(files: list[Path], issues: list[DataIssue]) -> list[Path]:
    """The files whose names are text, which tables and pages can hold; the others go to `problems`."""
    kept = []
    for file in files:
        plain = os.fsencode(f"{file.parent.name}/{file.name}").decode("utf-8", "backslashreplace")
        if plain == f"{file.parent.name}/{file.name}":
            kept.append(file)
        else:
            issues.append(DataIssue(plain, "name", "the file's name is no valid text", "skipped"))
    return kept


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


def _stray(folder: Path, images: int) -> list[DataIssue]:
    """What is in a class folder besides images."""
    found = []
    for entry in _entries(folder):
        name = f"{folder.name}/{entry.name}"
        if entry.is_dir():
            found.append(DataIssue(name, "nested-folder", "a folder inside a class folder is not read", "skipped"))
        elif entry.suffix.lower() not in EXTENSIONS:
            found.append(DataIssue(name, "other-file", f"{entry.suffix or 'no extension'} is no image", "skipped"))
    if not images:
        found.append(DataIssue(folder.name, "empty-class", "no images in this class folder", "counted"))
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


def _labels(files: Mapping[str, list[Path]], classes: tuple[str, ...], issues: list[DataIssue]) -> dict[str, int]:
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
            issues.append(DataIssue(folder, "ambiguous-class", detail, "skipped"))
        else:
            detail = f"not among the model's {len(classes)} classes; {len(images)} images"
            issues.append(DataIssue(folder, "unknown-class", detail, "skipped"))
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


def _masks(folder: Path, images: list[Path], issues: list[DataIssue]) -> dict[str, Path]:
    """The mask file of each image stem; what is wrong goes to `problems`."""
    names = defaultdict(list)
    for path in images:
        names[path.stem].append(path.name)
    masks = {}
    for path in _entries(folder) if folder.is_dir() else []:
        if path.stem not in names:
            issue = DataIssue(f"masks/{folder.name}/{path.name}", "mask-without-image", "no such image", "counted")
            issues.append(issue)
        elif path.suffix.lower() != ".png":
            file = f"{folder.name}/{names[path.stem][0]}"
            issues.append(DataIssue(file, "mask-format", f"{path.name}: a mask is a PNG file", "mask ignored"))
        else:
            masks[path.stem] = path
    for stem, same in names.items():
        if len(same) > 1:
            action = "mask ignored" if masks.pop(stem, None) else "counted"
            detail = f"one name with {', '.join(same[1:])}"
            issues.append(DataIssue(f"{folder.name}/{same[0]}", "duplicate-name", detail, action))
    return masks


def plain_name(name: str) -> str:
    """A class name for comparing: case aside, underscores as spaces."""
    return " ".join(name.replace("_", " ").casefold().split())
