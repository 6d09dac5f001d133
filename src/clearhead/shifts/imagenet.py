"""Read the published ImageNet data sets, each from its folder as it was published.

================= ========================================== =====================================================
name              folder under the root (in any case)        class folders
================= ========================================== =====================================================
imagenet          val, imagenet/val, ILSVRC2012/val, ...     WordNet ids
imagenet-v2       imagenetv2-matched-frequency-format-val    class indices, 0 to 999; also threshold0.7, top-images
imagenet-a        imagenet-a                                 WordNet ids, 200
imagenet-r        imagenet-r                                 WordNet ids, 200
imagenet-sketch   imagenet-sketch (or its sketch/)           WordNet ids
objectnet         objectnet-1.0 (or its images/)             ObjectNet's names; the 113 that are in ImageNet
si-score          si-score/{rotation,area,location...}       61 names, with the parameters in metadata.csv
cue-conflict      style-transfer-preprocessed-512            16 names; files such as airplane1-bicycle2.png
imagenet-9        bg_challenge/{original,mixed_rand,...}/val 9 names (Backgrounds Challenge)
================= ========================================== =====================================================

No image is decoded here. Issues are those of ``read_folder``, and:

====================== =============================================================== ===================
category               issue                                                           action
====================== =============================================================== ===================
missing-class          classes of the data set without images                          counted, one row
no-overlap             ObjectNet's class folders that are not in ImageNet              skipped, one row
no-metadata            SI-Score images without a row in metadata.csv                   counted, one row
no-texture             a cue conflict file not named <shape><number>-<texture><number> counted
derived-mapping        ImageNet-9 read without in_to_in9.json                          counted
====================== =============================================================== ===================

The classes of ImageNet-A and -R are from timm; the other mappings are in classes/, each with its source.
"""

import csv
import functools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path, PurePosixPath

from clearhead.data.dataset import DataIssue, ImageIndex, format_names
from clearhead.data.folder import image_files, read_folder, wordnet_ids
from clearhead.data.image_io import DataError
from clearhead.data.images import read_images
from clearhead.shifts.sets import ClassMapping, ShiftedDataset, identity_mapping

FOLDERS: dict[str, tuple[str, ...]] = {
    "imagenet": (
        *("imagenet/val", "imagenet/validation", "imagenet-1k/val", "ILSVRC2012/val", "ILSVRC2012_img_val"),
        *("ILSVRC/Data/CLS-LOC/val", "val"),
    ),
    "imagenet-v2": ("imagenetv2-*", "imagenet-v2", "imagenetv2"),
    "imagenet-a": ("imagenet-a",),
    "imagenet-r": ("imagenet-r",),
    "imagenet-sketch": ("imagenet-sketch", "sketch"),
    "objectnet": ("objectnet-1.0", "objectnet"),
    "si-score": ("si-score", "si_score", "siscore", "object_[lrs][oi]*"),
    "cue-conflict": (
        *("cue-conflict", "style-transfer-preprocessed-512"),
        "texture-vs-shape/stimuli/style-transfer-preprocessed-512",
    ),
    "imagenet-9": ("bg_challenge", "backgrounds_challenge/bg_challenge", "backgrounds_challenge", "imagenet-9"),
}
"""Folder patterns of each data set under the root, in any case; the first that matches is used."""

_V2 = {
    **{"matched-frequency": "matched-frequency", "threshold0.7": "threshold-0.7"},
    **{"top-images": "top-images", "topimages": "top-images"},
}
_FACTORS = {
    "location": (("object_location", "location", "location20_area02_min0pc"), ("x_coord", "y_coord")),
    "rotation": (("object_rotation", "rotation"), ("rotation",)),
    "size": (("object_size", "size", "area"), ("area",)),
}
_BACKGROUNDS = ("original", "mixed_same", "mixed_rand", "mixed_next", "only_fg", "no_fg", "only_bg_b", "only_bg_t")


SHARDED = ("imagenet", "imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch")
"""The data sets that ``read_shards`` can read."""


def read_imagenet(root: str | Path, names: Sequence[str] | None = None) -> tuple[list[ShiftedDataset], list[str]]:
    """Return the published data sets found under a root, and the names of those that were not found.

    `names` are from ``IMAGENET``; the default is all of them. Raises DataError if the root does not exist, a name is
    unknown, a named data set was not found, or a data set cannot be used.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    if unknown := [name for name in names or () if name not in IMAGENET]:
        raise DataError(f"names: {', '.join(unknown)} is unknown; choose from {', '.join(IMAGENET)}")
    sets, missing = [], []
    for name in IMAGENET if names is None else dict.fromkeys(names):
        folders = next(filter(None, (_match_folders(root, pattern) for pattern in FOLDERS[name])), [])
        if not folders:
            missing.append(name)
        for folder in folders:
            sets += IMAGENET[name](folder)
    if names is not None and missing:
        patterns = "; ".join(f"{name} as {', '.join(FOLDERS[name])}" for name in missing)
        raise DataError(f"{root}: not found: {', '.join(missing)} (looked for {patterns})")
    return sets, missing


def read_shards(name: str, source: str | Path, classes: Sequence[str], split: str | None = None) -> ShiftedDataset:
    """Read a data set from Parquet or WebDataset shards, or from the Hugging Face Hub, with ``read_images``.

    `name` is imagenet, imagenet-v2, imagenet-a, imagenet-r or imagenet-sketch: the others need files that shards do not
    contain. Labels are named by WordNet id or like the model's 1000 `classes`. Raises DataError.
    """
    if name not in SHARDED:
        raise DataError(f"{name} is read from its published folder; shards are read of {', '.join(SHARDED)}")
    ids = subset(name) if name in ("imagenet-a", "imagenet-r") else _wordnet()
    try:
        index = read_images(source, split=split, classes=ids, check=False)
    except DataError:
        index = read_images(source, split=split, classes=[classes[wordnet_ids()[i]] for i in ids], check=False)
    whole = len(ids) == 1000
    class_mappings = (
        {"1000 classes": identity_mapping(1000)} if whole else _own_and_all([(wordnet_ids()[i],) for i in ids])
    )
    return ShiftedDataset(name, replace(index, classes=ids), class_mappings)


def _imagenet(folder: Path) -> list[ShiftedDataset]:
    """Read the validation set in class folders."""
    if any(path.name.startswith("ILSVRC2012_val_") for path in image_files(folder)):
        raise DataError(
            f"{folder}: the validation images are not in class folders; sort them into folders by WordNet id "
            "(n01440764), as torchvision.datasets.ImageNet does from the archive and the devkit. The numbers in "
            "ILSVRC2012_validation_ground_truth.txt follow the devkit's order of classes, not that of the outputs"
        )
    return [ShiftedDataset("imagenet", _read("imagenet", folder, _wordnet()), {"1000 classes": identity_mapping(1000)})]


def _imagenet_v2(folder: Path) -> list[ShiftedDataset]:
    """Read ImageNet-V2 (Recht et al. 2019): one variant's folder, or a folder of several."""

    def read(name: str, folder: Path) -> ShiftedDataset:
        index = _read(name, folder, [str(number) for number in range(1000)])
        return ShiftedDataset(name, replace(index, classes=_wordnet()), {"1000 classes": identity_mapping(1000)})

    def variant(folder: Path) -> str:
        return next((f"imagenet-v2 ({title})" for key, title in _V2.items() if key in folder.name.lower()), "")

    if variant(folder):
        return [read(variant(folder), folder)]
    inner = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and variant(entry)]
    return [read(variant(entry), entry) for entry in inner] or [read("imagenet-v2", folder)]


def _two_hundred(name: str, folder: Path) -> list[ShiftedDataset]:
    """Read ImageNet-A or -R (Hendrycks et al. 2021, 2020): 200 of the 1000 classes."""
    classes = subset(name)
    return [ShiftedDataset(name, _read(name, folder, classes), _own_and_all([(wordnet_ids()[c],) for c in classes]))]


def _sketch(folder: Path) -> list[ShiftedDataset]:
    """Read ImageNet-Sketch (Wang et al. 2019)."""
    top = folder / "sketch" if (folder / "sketch").is_dir() else folder
    return [
        ShiftedDataset(
            "imagenet-sketch", _read("imagenet-sketch", top, _wordnet()), {"1000 classes": identity_mapping(1000)}
        )
    ]


def _objectnet(folder: Path) -> list[ShiftedDataset]:
    """Read ObjectNet (Barbu et al. 2019): the 113 classes that are in ImageNet, without the border of 2 pixels."""
    outputs = _classes("objectnet")
    index = _read("objectnet", folder, outputs)
    others = [issue for issue in index.issues if issue.category == "unknown-class"]
    if others:
        class_root = index.samples[0].image_file.parents[1]
        images = sum(len(image_files(class_root / issue.file)) for issue in others)
        detail = (
            f"{images} images of {len(others)} classes that are not in ImageNet: {format_names(p.file for p in others)}"
        )
        rest = [issue for issue in index.issues if issue.category != "unknown-class"]
        index = replace(index, issues=(DataIssue(".", "no-overlap", detail, "skipped"), *rest))
    return [ShiftedDataset("objectnet", index, _own_and_all(outputs.values()), border=2)]


def _si_score(folder: Path) -> list[ShiftedDataset]:
    """Read SI-Score (Djolonga et al. 2021): one factor's folder, or a folder of several."""
    outputs = _classes("si_score")
    class_mappings = dict(reversed(_own_and_all(outputs.values()).items()))  # the paper's are 1000-way
    sets = []
    for factor, (names, columns) in _FACTORS.items():
        name = f"si-score ({factor})"
        candidates = [folder] if folder.name.lower() in names else [folder / subfolder for subfolder in names]
        for top in [candidate for candidate in candidates if candidate.is_dir()][:1]:
            index = _add_parameters(_read(name, top, outputs, metadata=False), columns)
            sets.append(ShiftedDataset(name, index, class_mappings))
    if not sets:
        expected = ", ".join(name for names, _ in _FACTORS.values() for name in names)
        raise DataError(f"si-score: {folder} has none of the folders {expected}")
    return sets


def _cue_conflict(folder: Path) -> list[ShiftedDataset]:
    """Read cue conflict (Geirhos et al. 2019): the label is the shape, ``groups['texture']`` the texture."""
    outputs = _classes("cue_conflict")
    index = _read("cue-conflict", folder, outputs)
    samples, issues = [], list(index.issues)
    for sample in index.samples:
        match = re.search(rf"{index.classes[sample.label]}\d+-([a-z]+)\d+$", PurePosixPath(sample.file).stem)
        if match and match[1] in outputs:
            sample = replace(sample, groups={"texture": match[1]})
        else:
            detail = f"not named like {index.classes[sample.label]}1-bicycle2: its texture is unknown"
            issues.append(DataIssue(sample.file, "no-texture", detail, "counted"))
        samples.append(sample)
    index = replace(index, samples=tuple(samples), issues=tuple(issues))
    # the mean probability: bethgelab/model-vs-human, datasets/decision_mappings.py
    return [
        ShiftedDataset("cue-conflict", index, {"16 classes": ClassMapping(tuple(outputs.values()), 1000, pool="mean")})
    ]


def _backgrounds(folder: Path) -> list[ShiftedDataset]:
    """Read the Backgrounds Challenge (Xiao et al. 2021): ImageNet-9 and its variations.

    The prediction is the argmax over the 1000 outputs (MadryLab/backgrounds_challenge, tools/model_utils.py). Their
    in_to_in9.json is read from the folder or its parent; otherwise classes/imagenet9.json is used, which has two
    vehicle classes more.
    """
    variants = [name for name in _BACKGROUNDS if (folder / name / "val").is_dir()]
    if not variants:
        raise DataError(f"imagenet-9: {folder} has none of {', '.join(f'{name}/val' for name in _BACKGROUNDS)}")
    outputs = _classes("imagenet9")
    tables = [path for path in (folder / "in_to_in9.json", folder.parent / "in_to_in9.json") if path.is_file()]
    if tables:
        outputs = dict(zip(outputs, _in_to_in9(tables[0]), strict=True))
    detail = f"not in {folder}: the classes are derived from WordNet, two vehicles more than the official 370 classes"
    derived = () if tables else (DataIssue("in_to_in9.json", "derived-mapping", detail, "counted"),)
    class_mappings = {"9 classes": ClassMapping(tuple(outputs.values()), 1000, among="all")}
    sets = []
    for name in variants:
        index = _read(f"imagenet-9 ({name})", folder / name / "val", outputs)
        index = replace(index, issues=(*index.issues, *derived))
        sets.append(ShiftedDataset(f"imagenet-9 ({name})", index, class_mappings))
    return sets


IMAGENET: dict[str, Callable[[Path], list[ShiftedDataset]]] = {
    "imagenet": _imagenet,
    "imagenet-v2": _imagenet_v2,
    "imagenet-a": functools.partial(_two_hundred, "imagenet-a"),
    "imagenet-r": functools.partial(_two_hundred, "imagenet-r"),
    "imagenet-sketch": _sketch,
    "objectnet": _objectnet,
    "si-score": _si_score,
    "cue-conflict": _cue_conflict,
    "imagenet-9": _backgrounds,
}
"""The reader of each data set, from its folder. Raises DataError."""


@functools.cache
def subset(name: str) -> tuple[str, ...]:
    """Return the WordNet ids of ``imagenet-a`` or ``imagenet-r``, sorted, from timm."""
    text = (files("timm.data") / "_info" / f"{name.replace('-', '_')}_synsets.txt").read_text("utf-8")
    return tuple(sorted(text.split()))


@functools.cache
def _wordnet() -> tuple[str, ...]:
    """Return the WordNet ids of ImageNet-1k in the order of the outputs."""
    return tuple(wordnet_ids())


def _classes(name: str) -> dict[str, tuple[int, ...]]:
    """Load a mapping of classes/, from class folders to ImageNet-1k class indices."""
    text = (files("clearhead.shifts") / "classes" / f"{name}.json").read_text("utf-8")
    return {folder: tuple(indices) for folder, indices in json.loads(text)["classes"].items()}


def _own_and_all(outputs: Iterable[tuple[int, ...]]) -> dict[str, ClassMapping]:
    """Return the mappings with the argmax over the data set's own classes, and over all 1000 outputs."""
    outputs = tuple(outputs)
    return {f"{len(outputs)} classes": ClassMapping(outputs, 1000), "1000 classes": ClassMapping(outputs, 1000, "all")}


def _in_to_in9(table: Path) -> list[tuple[int, ...]]:
    """Return the ImageNet-1k class indices of the nine classes from the official table: 1000 entries of -1 to 8."""
    try:
        labels = {int(index): int(label) for index, label in json.loads(table.read_text("utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{table} cannot be read: {error}") from error
    if sorted(labels) != list(range(1000)) or set(labels.values()) != set(range(-1, 9)):
        raise DataError(f"{table} must map each of 0..999 to one of -1..8; it has {len(labels)} entries")
    return [tuple(index for index in range(1000) if labels[index] == label) for label in range(9)]


def _read(name: str, folder: Path, classes: Iterable[str], *, metadata: bool = True) -> ImageIndex:
    """Read class folders named as `classes`; classes without images become one issue."""
    classes = tuple(classes)
    try:
        index = read_folder(folder, classes=classes, check=False, metadata=metadata)
    except DataError as error:
        raise DataError(f"{name}: {error}".replace("the model", "the data set")) from error
    labels = {sample.label for sample in index.samples}
    missing = [c for label, c in enumerate(classes) if label not in labels]
    issues = [replace(issue, detail=issue.detail.replace("the model", "the data set")) for issue in index.issues]
    if missing:
        detail = f"{len(missing)} of {len(classes)} classes have no images: {format_names(missing)}"
        issues.insert(0, DataIssue(".", "missing-class", detail, "counted"))
    return replace(index, issues=tuple(issues))


def _add_parameters(index: ImageIndex, columns: Sequence[str]) -> ImageIndex:
    """Add the parameters in SI-Score's metadata.csv, by image id (the file's stem), as groups."""
    table = index.root / "metadata.csv"
    rows: dict[str, dict[str, str]] = {}
    if table.is_file():
        try:
            with table.open(encoding="utf-8-sig", newline="") as opened:
                for row in csv.DictReader(opened):
                    rows[row["image_id"]] = {column: f"{float(row[column]):g}" for column in columns}
        except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
            names = ", ".join(("image_id", *columns))
            raise DataError(f"{table} must have the columns {names}, all but the first numbers: {error!r}") from error
    stems = [PurePosixPath(sample.file).stem for sample in index.samples]
    samples = [replace(s, groups=rows.get(stem, {})) for s, stem in zip(index.samples, stems, strict=True)]
    issues = list(index.issues)
    if missing := [sample.file for sample in samples if not sample.groups]:
        reason = "no row in metadata.csv" if rows else "metadata.csv does not exist"
        detail = f"{len(missing)} images, {reason}: {format_names(missing)}"
        issues.append(DataIssue("metadata.csv", "no-metadata", detail, "counted"))
    return replace(index, samples=tuple(samples), issues=tuple(issues))


def _match_folders(root: Path, pattern: str) -> list[Path]:
    """Return the folders under a root that match a pattern, ignoring case, sorted."""
    folders = [root]
    for part in pattern.lower().split("/"):
        folders = [
            entry
            for folder in folders
            for entry in sorted(folder.iterdir())
            if fnmatch(entry.name.lower(), part) and entry.is_dir()
        ]
    return folders
