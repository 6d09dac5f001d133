"""Read images from class folders, with optional foreground masks and metadata.

The layout::

    root/<class>/<stem>.jpg            or root/images/<class>/<stem>.jpg
    root/masks/<class>/<stem>.png      optional; nonzero = foreground
    root/metadata.csv                  optional; `file` (relative to the class folders), `split`, any group columns

Issues with single files are listed in ``ImageIndex.issues``:

====================== =============================================================== ===================
category               issue                                                           action
====================== =============================================================== ===================
unreadable, truncated  Pillow cannot decode the image completely                       skipped
unknown-class          the folder name is not a class of the model                     skipped, one per folder
ambiguous-class        the folder name matches several classes of the model            skipped, one per folder
empty-class            the class folder has no images (it keeps its label)             counted
nested-folder          a folder inside a class folder                                  skipped, one per folder
no-class               an image outside the class folders                              skipped
other-file             a file in a class folder without an image extension             skipped
name                   the file name is not valid text                                 skipped
duplicate-name         two images, such as a.jpg and a.png, share one mask name        mask ignored, or counted
mask-size              mask and image differ in size (after EXIF orientation)          mask ignored
mask-unreadable        Pillow cannot decode the mask completely                        mask ignored
mask-empty             the mask has no foreground                                      mask ignored
mask-format            the mask is not a PNG file                                      mask ignored
mask-without-image     the image of a mask does not exist                              counted
metadata-without-file  the image of a row does not exist                               counted
metadata-row           a row without a file name, or with too many or too few cells    row ignored
metadata-duplicate     several rows for one file: equal, or contradicting              counted, or skipped
no-metadata            an image without a row, or without a split if one is requested  skipped, or counted
====================== =============================================================== ===================

If the folder as a whole is unusable, reading raises ``DataError``: the folder does not exist or is a file, there are no
class folders, two folders are the same class (``cat`` and ``Cat``), no folder is a class of the model, metadata.csv has
no column `file` or is not UTF-8 text, the split does not exist or is empty, or no usable image is left. Hidden files
and folders are ignored. Images are decoded and compared with their masks only if ``check=True``; otherwise a broken
file raises ``DataError`` when it is loaded.
"""

import functools
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from clearhead.data.dataset import (
    DataIssue,
    ImageIndex,
    Sample,
    check_samples,
    format_names,
    require_samples,
    sort_issues,
)
from clearhead.data.image_io import DataError
from clearhead.data.metadata import add_metadata

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
    """Read images from class folders; the layout and the issues are described at the top of this module.

    Args:
        root: the folder.
        split: read only the images with this split in metadata.csv.
        classes: the model's class names, in the order of its outputs. A class folder matches by name (ignoring case,
            ``_`` = space) or, if there are 1000 classes, by WordNet id (``n01440764``) as an ImageNet-1k class. By
            default the sorted folder names are the classes.
        check: decode every image and mask, and leave out what cannot be decoded.
        metadata: read metadata.csv. False for data whose metadata.csv is something else.

    Raises:
        DataError: if the folder is unusable.
    """
    root = Path(root)
    class_root = _find_class_root(root)
    folders = [entry for entry in _entries(class_root) if entry.is_dir() and entry != root / "masks"]
    names = tuple(classes) if classes is not None else tuple(folder.name for folder in folders)
    issues = [
        DataIssue(entry.name, "no-class", "an image outside the class folders", "skipped")
        for entry in image_files(class_root)
    ]
    files = {folder.name: _with_valid_names(image_files(folder), issues) for folder in folders}
    for folder in folders:
        issues += _other_entries(folder, len(files[folder.name]))
    if not any(files.values()):
        raise DataError(_explain_no_images(class_root, folders))
    labels = _match_classes(files, names, issues)

    samples = []
    for folder in folders:
        if folder.name in labels:
            masks = _find_masks(root / "masks" / folder.name, files[folder.name], issues)
            samples += [
                Sample(f"{folder.name}/{path.name}", path, labels[folder.name], masks.get(path.stem), {})
                for path in files[folder.name]
            ]
    for entry in _entries(root / "masks") if (root / "masks").is_dir() else []:
        if entry.is_dir() and entry.name not in files:
            issues.append(DataIssue(f"masks/{entry.name}", "mask-without-image", "no such class folder", "counted"))
    if metadata:
        samples = add_metadata(root, class_root, samples, files, split, issues)
    if check:
        samples, decoding = check_samples(samples)
        issues += decoding
    require_samples(root, samples, issues)
    return ImageIndex(root, names, tuple(samples), sort_issues(issues))


def image_files(folder: Path) -> list[Path]:
    """Return the image files directly in a folder, by extension in any case, sorted by name. Raises DataError."""
    return [entry for entry in _entries(folder) if entry.suffix.lower() in EXTENSIONS and entry.is_file()]


def _with_valid_names(files: list[Path], issues: list[DataIssue]) -> list[Path]:
    """Return the files whose names are valid text, as tables and pages need."""
    valid = []
    for file in files:
        name = f"{file.parent.name}/{file.name}"
        escaped = os.fsencode(name).decode("utf-8", "backslashreplace")
        if escaped == name:
            valid.append(file)
        else:
            issues.append(DataIssue(escaped, "name", "the file name is not valid text", "skipped"))
    return valid


def _entries(folder: Path) -> list[Path]:
    """Return the entries of a folder except hidden ones, sorted by name."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except FileNotFoundError:
        raise DataError(f"{folder}: no such folder") from None
    except NotADirectoryError:
        raise DataError(f"{folder} is a file; a folder with one folder of images per class is needed") from None
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error


def _find_class_root(root: Path) -> Path:
    """Return root/images if that holds folders, else root."""
    folders = [entry.name for entry in _entries(root) if entry.is_dir()]
    if "images" in folders and any(entry.is_dir() for entry in _entries(root / "images")):
        return root / "images"
    return root


def _other_entries(folder: Path, images: int) -> list[DataIssue]:
    """Return an issue for each entry of a class folder that is not an image."""
    issues = []
    for entry in _entries(folder):
        name = f"{folder.name}/{entry.name}"
        if entry.is_dir():
            issues.append(DataIssue(name, "nested-folder", "a folder inside a class folder is not read", "skipped"))
        elif entry.suffix.lower() not in EXTENSIONS:
            detail = f"{entry.suffix} is not an image extension" if entry.suffix else "the file has no extension"
            issues.append(DataIssue(name, "other-file", detail, "skipped"))
    if not images:
        issues.append(DataIssue(folder.name, "empty-class", "no images in this class folder", "counted"))
    return issues


def _explain_no_images(class_root: Path, folders: list[Path]) -> str:
    """Return the error message for a folder without images in class folders."""
    names = format_names(folder.name for folder in folders)
    for folder in folders:
        if inner := [entry for entry in _entries(folder) if entry.is_dir()]:
            return (
                f"{class_root}: no images in its folders {names}; they hold folders themselves, such as "
                f"{folder.name}/{inner[0].name}: is the data in {folder}?"
            )
    reason = f"its folders {names} are empty" if folders else "it has no class folders"
    loose = len(image_files(class_root))
    return (
        f"{class_root}: {reason}"
        + (f" ({loose} images lie directly in it)" if loose else "")
        + "; one folder of images per class is needed, as in cat/1.jpg, dog/2.jpg"
    )


def _match_classes(
    files: Mapping[str, list[Path]], classes: tuple[str, ...], issues: list[DataIssue]
) -> dict[str, int]:
    """Return the label of each class folder that matches one class."""
    indices = defaultdict(list)
    for index, name in enumerate(classes):
        indices[normalize_name(name)].append(index)
    labels: dict[str, int] = {}
    folder_of: dict[str | int, str] = {}
    for folder, images in files.items():
        matches = indices.get(normalize_name(folder), [])
        if not matches and len(classes) == 1000 and re.fullmatch(r"n\d{8}", folder) and folder in wordnet_ids():
            matches = [wordnet_ids()[folder]]
        for key in (normalize_name(folder), *(matches if len(matches) == 1 else ())):
            if folder_of.setdefault(key, folder) != folder:
                raise DataError(f"folders {folder_of[key]} and {folder} are the same class; merge them")
        if len(matches) == 1:
            labels[folder] = matches[0]
        elif matches:
            detail = f"classes {matches} of the model are all named {classes[matches[0]]!r}; {len(images)} images"
            issues.append(DataIssue(folder, "ambiguous-class", detail, "skipped"))
        else:
            detail = f"not among the model's {len(classes)} classes; {len(images)} images"
            issues.append(DataIssue(folder, "unknown-class", detail, "skipped"))
    if not labels:
        raise DataError(
            f"no class folder is a class of the model: the folders are {format_names(files)}, the model's classes "
            f"{format_names(classes)}; name the folders like the classes"
            + (" or by WordNet id (n01440764)" if len(classes) == 1000 else "")
        )
    return labels


@functools.cache
def wordnet_ids() -> dict[str, int]:
    """Return the ImageNet-1k class index of each WordNet id (their sorted order)."""
    from timm.data import ImageNetInfo

    return {name: index for index, name in enumerate(sorted(ImageNetInfo("imagenet-1k").label_names()))}


def _find_masks(folder: Path, images: list[Path], issues: list[DataIssue]) -> dict[str, Path]:
    """Return the mask file of each image stem."""
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
            issues.append(DataIssue(file, "mask-format", f"{path.name} is not a PNG file", "mask ignored"))
        else:
            masks[path.stem] = path
    for stem, same in names.items():
        if len(same) > 1:
            action = "mask ignored" if masks.pop(stem, None) else "counted"
            detail = f"its mask would also be that of {', '.join(same[1:])}"
            issues.append(DataIssue(f"{folder.name}/{same[0]}", "duplicate-name", detail, action))
    return masks


def normalize_name(name: str) -> str:
    """Return a class name for comparison: case-folded, underscores as spaces."""
    return " ".join(name.replace("_", " ").casefold().split())
