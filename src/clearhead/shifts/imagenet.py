"""Readers of the published ImageNet sets, each from its folder as it was published.

================= ========================================== =====================================================
name              folder under the root (in any case)        class folders
================= ========================================== =====================================================
imagenet          val, imagenet/val, ILSVRC2012/val, ...     WordNet ids
imagenet-v2       imagenetv2-matched-frequency-format-val    class indices, 0 to 999; also threshold0.7, top-images
imagenet-a        imagenet-a                                 WordNet ids, 200
imagenet-r        imagenet-r                                 WordNet ids, 200
imagenet-sketch   imagenet-sketch (or its sketch/)           WordNet ids
objectnet         objectnet-1.0 (or its images/)             ObjectNet's names; the 113 that ImageNet has too
si-score          si-score/{rotation,area,location...}       61 names, with the parameters in metadata.csv
cue-conflict      style-transfer-preprocessed-512            16 names; files such as airplane1-bicycle2.png
imagenet-9        bg_challenge/{original,mixed_rand,...}/val 9 names (Backgrounds Challenge)
================= ========================================== =====================================================

No image is decoded here. What ``read_folder`` finds goes to the folder's problems, and besides:

====================== =============================================================== ===================
kind                   what was found                                                  action
====================== =============================================================== ===================
missing-class          classes of the set without images                              counted, one row
no-overlap             ObjectNet's folders of classes that ImageNet does not have      skipped, one row
no-metadata            SI-Score images without a row in metadata.csv                   counted, one row
no-texture             a cue conflict file not named <shape><number>-<texture><number> counted
derived-mapping        ImageNet-9 read without in_to_in9.json                          counted
====================== =============================================================== ===================

The classes of ImageNet-A and -R are those timm ships; the other mappings lie in classes/, each with its source.
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

PLACES: dict[str, tuple[str, ...]] = {
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
"""Where each set is looked for under the root: the folders of the first pattern that is there, in any case."""

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
"""The sets that ``read_shards`` reads."""


def read_imagenet(root: str | Path, names: Sequence[str] | None = None) -> tuple[list[ShiftedDataset], list[str]]:
    """The published sets found under a root, and the names of those that are not there.

    `names` are keys of ``IMAGENET``; None takes what is there of all. Raises DataError: no such root, an unknown name,
    a named set that is not there, a set that cannot be used.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    if unknown := [name for name in names or () if name not in IMAGENET]:
        raise DataError(f"no set is called {', '.join(unknown)}; there is {', '.join(IMAGENET)}")
    sets, missing = [], []
    for name in IMAGENET if names is None else dict.fromkeys(names):
        folders = next(filter(None, (_folders(root, place) for place in PLACES[name])), [])
        if not folders:
            missing.append(name)
        for folder in folders:
            sets += IMAGENET[name](folder)
    if names is not None and missing:
        looked = "; ".join(f"{name} as {', '.join(PLACES[name])}" for name in missing)
        raise DataError(f"{root}: not there: {', '.join(missing)} (looked for {looked})")
    return sets, missing


def read_shards(name: str, source: str | Path, classes: Sequence[str], split: str | None = None) -> ShiftedDataset:
    """One of the sets from Parquet or WebDataset shards, or a set of the Hugging Face Hub, by ``read_images``.

    `name` is imagenet, imagenet-v2, imagenet-a, imagenet-r or imagenet-sketch: the others need files that shards do not
    hold. Labels are named by WordNet id or as the model's 1000 `classes` are. Raises DataError.
    """
    if name not in SHARDED:
        raise DataError(f"{name} is read from its published folder; from shards there is {', '.join(SHARDED)}")
    ids = subset(name) if name in ("imagenet-a", "imagenet-r") else _wordnet()
    try:
        found = read_images(source, split=split, classes=ids, check=False)
    except DataError:
        found = read_images(source, split=split, classes=[classes[wordnet_ids()[i]] for i in ids], check=False)
    whole = len(ids) == 1000
    class_mappings = (
        {"1000 classes": identity_mapping(1000)} if whole else _own_and_all([(wordnet_ids()[i],) for i in ids])
    )
    return ShiftedDataset(name, replace(found, classes=ids), class_mappings)


def _imagenet(folder: Path) -> list[ShiftedDataset]:
    """The validation set in class folders."""
    if any(path.name.startswith("ILSVRC2012_val_") for path in image_files(folder)):
        raise DataError(
            f"{folder}: the validation images lie flat, without class folders; sort them into folders by WordNet id "
            "(n01440764), as torchvision.datasets.ImageNet does from the archive and the devkit. The numbers of "
            "ILSVRC2012_validation_ground_truth.txt follow the devkit's order of classes, not that of the outputs"
        )
    return [ShiftedDataset("imagenet", _read("imagenet", folder, _wordnet()), {"1000 classes": identity_mapping(1000)})]


def _imagenet_v2(folder: Path) -> list[ShiftedDataset]:
    """ImageNet-V2 (Recht et al. 2019): one variant's folder, or a folder of several."""

    def read(name: str, folder: Path) -> ShiftedDataset:
        found = _read(name, folder, [str(index) for index in range(1000)])
        return ShiftedDataset(name, replace(found, classes=_wordnet()), {"1000 classes": identity_mapping(1000)})

    def variant(folder: Path) -> str:
        return next((f"imagenet-v2 ({title})" for key, title in _V2.items() if key in folder.name.lower()), "")

    if variant(folder):
        return [read(variant(folder), folder)]
    inner = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and variant(entry)]
    return [read(variant(entry), entry) for entry in inner] or [read("imagenet-v2", folder)]


def _two_hundred(name: str, folder: Path) -> list[ShiftedDataset]:
    """ImageNet-A (Hendrycks et al. 2021) or -R (the same, 2020): 200 of the 1000 classes."""
    classes = subset(name)
    return [ShiftedDataset(name, _read(name, folder, classes), _own_and_all([(wordnet_ids()[c],) for c in classes]))]


def _sketch(folder: Path) -> list[ShiftedDataset]:
    """ImageNet-Sketch (Wang et al. 2019)."""
    top = folder / "sketch" if (folder / "sketch").is_dir() else folder
    return [
        ShiftedDataset(
            "imagenet-sketch", _read("imagenet-sketch", top, _wordnet()), {"1000 classes": identity_mapping(1000)}
        )
    ]


def _objectnet(folder: Path) -> list[ShiftedDataset]:
    """ObjectNet (Barbu et al. 2019): the 113 classes that ImageNet has too, without the border of 2 pixels."""
    outputs = _classes("objectnet")
    found = _read("objectnet", folder, outputs)
    others = [p for p in found.issues if p.category == "unknown-class"]
    if others:
        images = sum(len(image_files(found.samples[0].image_file.parents[1] / p.file)) for p in others)
        detail = (
            f"{images} images of {len(others)} classes ImageNet does not have: {format_names(p.file for p in others)}"
        )
        kept = [p for p in found.issues if p.category != "unknown-class"]
        found = replace(found, issues=(DataIssue(".", "no-overlap", detail, "skipped"), *kept))
    return [ShiftedDataset("objectnet", found, _own_and_all(outputs.values()), border=2)]


def _si_score(folder: Path) -> list[ShiftedDataset]:
    """SI-Score (Djolonga et al. 2021): one factor's folder, or a folder of several."""
    outputs = _classes("si_score")
    class_mappings = dict(reversed(_own_and_all(outputs.values()).items()))  # the paper's are 1000-way
    sets = []
    for factor, (names, columns) in _FACTORS.items():
        name = f"si-score ({factor})"
        places = [folder] if folder.name.lower() in names else [folder / place for place in names]
        for top in [place for place in places if place.is_dir()][:1]:
            found = _parameters(_read(name, top, outputs, metadata=False), columns)
            sets.append(ShiftedDataset(name, found, class_mappings))
    if not sets:
        looked = ", ".join(name for names, _ in _FACTORS.values() for name in names)
        raise DataError(f"si-score: {folder} has none of the folders {looked}")
    return sets


def _cue_conflict(folder: Path) -> list[ShiftedDataset]:
    """Cue conflict (Geirhos et al. 2019): the label is the shape, ``groups['texture']`` the texture."""
    outputs = _classes("cue_conflict")
    found = _read("cue-conflict", folder, outputs)
    samples, issues = [], list(found.issues)
    for sample in found.samples:
        match = re.search(rf"{found.classes[sample.label]}\d+-([a-z]+)\d+$", PurePosixPath(sample.file).stem)
        if match and match[1] in outputs:
            sample = replace(sample, groups={"texture": match[1]})
        else:
            detail = f"not named like {found.classes[sample.label]}1-bicycle2: it counts for the shape only"
            issues.append(DataIssue(sample.file, "no-texture", detail, "counted"))
        samples.append(sample)
    found = replace(found, samples=tuple(samples), issues=tuple(issues))
    # the mean of the probabilities: bethgelab/model-vs-human, datasets/decision_mappings.py
    return [
        ShiftedDataset("cue-conflict", found, {"16 classes": ClassMapping(tuple(outputs.values()), 1000, pool="mean")})
    ]


def _backgrounds(folder: Path) -> list[ShiftedDataset]:
    """The Backgrounds Challenge (Xiao et al. 2021): ImageNet-9 and its variations.

    The answer is the largest of the 1000 outputs (MadryLab/backgrounds_challenge, tools/model_utils.py). Their
    in_to_in9.json is read where it lies in the folder or beside it; else classes/imagenet9.json stands in, which has
    two vehicle classes too many.
    """
    there = [name for name in _BACKGROUNDS if (folder / name / "val").is_dir()]
    if not there:
        raise DataError(f"imagenet-9: {folder} has none of {', '.join(f'{name}/val' for name in _BACKGROUNDS)}")
    outputs = _classes("imagenet9")
    tables = [path for path in (folder / "in_to_in9.json", folder.parent / "in_to_in9.json") if path.is_file()]
    if tables:
        outputs = dict(zip(outputs, _in_to_in9(tables[0]), strict=True))
    detail = f"not in {folder}: the classes are derived from WordNet, two vehicles more than the official 370 classes"
    derived = () if tables else (DataIssue("in_to_in9.json", "derived-mapping", detail, "counted"),)
    class_mappings = {"9 classes": ClassMapping(tuple(outputs.values()), 1000, among="all")}
    sets = []
    for name in there:
        found = _read(f"imagenet-9 ({name})", folder / name / "val", outputs)
        found = replace(found, issues=(*found.issues, *derived))
        sets.append(ShiftedDataset(f"imagenet-9 ({name})", found, class_mappings))
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
"""The reader of each set: from its own folder to what is measured. Raises DataError."""


@functools.cache
def subset(name: str) -> tuple[str, ...]:
    """The WordNet ids of ``imagenet-a`` or ``imagenet-r``, sorted, from timm."""
    text = (files("timm.data") / "_info" / f"{name.replace('-', '_')}_synsets.txt").read_text("utf-8")
    return tuple(sorted(text.split()))


@functools.cache
def _wordnet() -> tuple[str, ...]:
    """The WordNet ids of ImageNet-1k in the order of the outputs."""
    return tuple(wordnet_ids())


def _classes(name: str) -> dict[str, tuple[int, ...]]:
    """A mapping of classes/: class folders to ImageNet-1k class indices."""
    text = (files("clearhead.shifts") / "classes" / f"{name}.json").read_text("utf-8")
    return {folder: tuple(indices) for folder, indices in json.loads(text)["classes"].items()}


def _own_and_all(outputs: Iterable[tuple[int, ...]]) -> dict[str, ClassMapping]:
    """The answer sought among the set's own classes, and among all 1000."""
    outputs = tuple(outputs)
    return {f"{len(outputs)} classes": ClassMapping(outputs, 1000), "1000 classes": ClassMapping(outputs, 1000, "all")}


def _in_to_in9(table: Path) -> list[tuple[int, ...]]:
    """The ImageNet-1k class indices of the nine classes from the official table: 1000 entries of -1 to 8."""
    try:
        labels = {int(index): int(label) for index, label in json.loads(table.read_text("utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{table} cannot be read: {error}") from error
    if sorted(labels) != list(range(1000)) or set(labels.values()) != set(range(-1, 9)):
        raise DataError(f"{table} must give each of 0..999 one of -1..8; it has {len(labels)} entries")
    return [tuple(index for index in range(1000) if labels[index] == label) for label in range(9)]


def _read(name: str, folder: Path, classes: Iterable[str], *, metadata: bool = True) -> ImageIndex:
    """The images of a set in folders named as its classes; classes without a folder become one problem."""
    classes = tuple(classes)
    try:
        found = read_folder(folder, classes=classes, check=False, metadata=metadata)
    except DataError as error:
        raise DataError(
            f"{name}: {error}".replace("of the model", "of the set").replace("the model's", "the set's")
        ) from error
    there = {sample.label for sample in found.samples}
    missing = [c for label, c in enumerate(classes) if label not in there]
    issues = [replace(p, detail=p.detail.replace("the model's", "the set's")) for p in found.issues]
    if missing:
        detail = f"{len(missing)} of {len(classes)} classes have no images: {format_names(missing)}"
        issues.insert(0, DataIssue(".", "missing-class", detail, "counted"))
    return replace(found, issues=tuple(issues))


def _parameters(found: ImageIndex, columns: Sequence[str]) -> ImageIndex:
    """The images of SI-Score with what metadata.csv says of them, by image id (the file's stem), as groups."""
    table = found.root / "metadata.csv"
    rows: dict[str, dict[str, str]] = {}
    if table.is_file():
        try:
            with table.open(encoding="utf-8-sig", newline="") as opened:
                for row in csv.DictReader(opened):
                    rows[row["image_id"]] = {column: f"{float(row[column]):g}" for column in columns}
        except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
            wanted = ", ".join(("image_id", *columns))
            raise DataError(f"{table} must be a table with numbers in {wanted}: {error!r}") from error
    stems = [PurePosixPath(sample.file).stem for sample in found.samples]
    samples = [replace(s, groups=rows.get(stem, {})) for s, stem in zip(found.samples, stems, strict=True)]
    issues = list(found.issues)
    if without := [sample.file for sample in samples if not sample.groups]:
        where = "no row in metadata.csv" if rows else "there is no metadata.csv"
        detail = f"{len(without)} images, {where}: {format_names(without)}"
        issues.append(DataIssue("metadata.csv", "no-metadata", detail, "counted"))
    return replace(found, samples=tuple(samples), issues=tuple(issues))


def _folders(root: Path, place: str) -> list[Path]:
    """The folders under a root that match a pattern of names, case aside, sorted."""
    found = [root]
    for part in place.lower().split("/"):
        found = [
            entry
            for folder in found
            for entry in sorted(folder.iterdir())
            if fnmatch(entry.name.lower(), part) and entry.is_dir()
        ]
    return found
