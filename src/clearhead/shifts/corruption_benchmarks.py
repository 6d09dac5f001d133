"""CIFAR-10-C, CIFAR-100-C and ImageNet-C as published (Hendrycks & Dietterich, ICLR 2019, arXiv 1903.12261).

Their files lie at zenodo.org: records 2535967 (CIFAR-10-C), 3555552 (CIFAR-100-C), 2235448 (ImageNet-C). Names of types
are those of the files, the same as in ``clearhead.shifts.corruptions``; the image of a name is the same in every set of
a folder, so that types and severities can be held against each other image by image.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from clearhead.data.dataset import ImageIndex, Sample
from clearhead.data.folder import read_folder, wordnet_ids
from clearhead.data.image_io import DataError
from clearhead.data.image_refs import ArrayRow, clear_caches, load_array
from clearhead.shifts.sets import ClassMapping, ShiftedDataset, identity_mapping

_SEVERITIES = (1, 2, 3, 4, 5)
_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)


def read_cifar_c(root: str | Path) -> list[ShiftedDataset]:
    """The sets of CIFAR-10-C or CIFAR-100-C: ``fog 1`` to ``fog 5`` of the family ``fog``, and so on.

    Args:
        root: the folder with labels.npy and an array a type (``fog.npy``: 50,000 x 32 x 32 x 3 bytes, the severities
            one after another), or one that holds that folder alone of its kind. The arrays are mapped into memory. The
            classes are CIFAR's, in their usual order, 100 where a label passes 9.

    Raises:
        DataError: for no such folder, several, no types, arrays of another shape.
    """
    folder = _cifar_folder(Path(root))
    clear_caches()
    labels = _mapped(folder / "labels.npy")
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels) or len(labels) % len(_SEVERITIES):
        raise DataError(f"{folder / 'labels.npy'}: {labels.dtype}, {labels.shape}; whole numbers, five blocks of them")
    if labels.min() < 0 or labels.max() > 99:
        raise DataError(f"{folder / 'labels.npy'}: labels {labels.min()}..{labels.max()}; CIFAR's are 0..9 or 0..99")
    classes = tuple((_CIFAR10 if labels.max() < 10 else _CIFAR100).split())
    count = len(labels) // len(_SEVERITIES)
    names = [str(index) for index in range(count)]
    sets = []
    for path in sorted(folder.glob("*.npy")):
        if path.stem == "labels":
            continue
        images = _mapped(path)
        if images.shape != (len(labels), 32, 32, 3) or images.dtype != np.uint8:
            raise DataError(f"{path}: {images.dtype}, {images.shape}; bytes, {len(labels)} x 32 x 32 x 3, are wanted")
        for block, severity in enumerate(_SEVERITIES):
            rows = range(block * count, (block + 1) * count)
            samples = tuple(
                Sample(name, ArrayRow(str(path), "", row), label, None, {})
                for name, row, label in zip(names, rows, labels[rows.start : rows.stop].tolist(), strict=True)
            )
            found = ImageIndex(folder, classes, samples, ())
            sets.append(_set(path.stem, severity, found, identity_mapping(len(classes))))
    if not sets:
        raise DataError(f"{folder}: no type beside labels.npy; as published there are fog.npy and others")
    return sets


def read_imagenet_c(root: str | Path) -> list[ShiftedDataset]:
    """The sets of ImageNet-C: ``fog 1`` to ``fog 5`` of the family ``fog``, and so on; those severities that are there.

    Args:
        root: the folder with type/severity/wnid/*.JPEG; the types may lie in the folders of the archives (blur, noise,
            weather, digital, extra) or one further down. Images are not decoded here. A subset of the 1000 classes is
            scored among all 1000.

    Raises:
        DataError: for no such folder, no types, class folders that are not WordNet ids, two folders of one type.
    """
    root = Path(root)
    types: dict[str, Path] = {}
    for folder in _types(root, 3):
        if types.setdefault(folder.name, folder) != folder:
            raise DataError(f"{types[folder.name]} and {folder} are of one type; keep one of them")
    if not types:
        raise DataError(f"{root}: no TYPE/SEVERITY/WNID/*.JPEG below it, such as fog/3/n01440764")
    sets = []
    for name, folder in sorted(types.items()):
        for severity in _SEVERITIES:
            if (folder / str(severity)).is_dir():
                found = read_folder(folder / str(severity), check=False, metadata=False)
                if others := [wnid for wnid in found.classes if wnid not in wordnet_ids()]:
                    raise DataError(f"{found.root}: {others[0]} is no WordNet id of ImageNet-1k, such as n01440764")
                samples = tuple(replace(sample, file=sys.intern(sample.file)) for sample in found.samples)
                outputs = tuple((wordnet_ids()[wnid],) for wnid in found.classes)
                scoring = identity_mapping(1000) if len(outputs) == 1000 else ClassMapping(outputs, 1000, "all")
                sets.append(_set(name, severity, replace(found, samples=samples), scoring))
    return sets


def _set(family: str, severity: int, folder: ImageIndex, scoring: ClassMapping) -> ShiftedDataset:
    title = f"{len(scoring.outputs) if scoring.among == 'own' else 1000} classes"
    return ShiftedDataset(f"{family} {severity}", folder, {title: scoring}, family=family, level=severity)


def _cifar_folder(root: Path) -> Path:
    """The folder of labels.npy: the root, or the one folder in it that has such a file."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    if (root / "labels.npy").is_file():
        return root
    found = sorted(path.parent for path in root.glob("*/labels.npy"))
    if len(found) != 1:
        there = " and ".join(map(str, found)) or "none"
        raise DataError(f"{root}: give the folder of labels.npy, as published in CIFAR-10-C; below it there is {there}")
    return found[0]


def _mapped(path: Path) -> np.ndarray:
    try:
        return load_array(str(path), "")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an array: {error}") from error


def _types(folder: Path, depth: int) -> Iterator[Path]:
    """The folders that have folders called 1 to 5, at most so deep."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and any((entry / str(severity)).is_dir() for severity in _SEVERITIES):
            yield entry
        elif entry.is_dir() and depth > 1:
            yield from _types(entry, depth - 1)
