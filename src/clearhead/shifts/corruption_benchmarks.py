"""Read CIFAR-10-C, CIFAR-100-C and ImageNet-C as published (Hendrycks & Dietterich, ICLR 2019, arXiv 1903.12261).

Download: zenodo.org, records 2535967 (CIFAR-10-C), 3555552 (CIFAR-100-C), 2235448 (ImageNet-C). Corruption types are
named as in the files and in ``clearhead.shifts.corruptions``. An image has the same name in every data set of a folder,
so that types and severities can be compared image by image.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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
    """Return the data sets of CIFAR-10-C or CIFAR-100-C: ``fog 1`` to ``fog 5`` of the family ``fog``, and so on.

    The classes are CIFAR's in their usual order: 100 if a label exceeds 9. Arrays are memory-mapped.

    Args:
        root: the folder with labels.npy and one array per type (``fog.npy``: 50,000 x 32 x 32 x 3 bytes, the
            severities one after another), or a folder that contains exactly one such folder.

    Raises:
        DataError: if the folder or a corruption type is missing, several folders match, or an array has another shape.
    """
    folder = _cifar_folder(Path(root))
    clear_caches()
    labels = _load(folder / "labels.npy")
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels) or len(labels) % len(_SEVERITIES):
        raise DataError(f"{folder / 'labels.npy'}: {labels.dtype}, {labels.shape}; five blocks of integers are needed")
    if labels.min() < 0 or labels.max() > 99:
        raise DataError(f"{folder / 'labels.npy'}: labels {labels.min()}..{labels.max()}; CIFAR's are 0..9 or 0..99")
    classes = tuple((_CIFAR10 if labels.max() < 10 else _CIFAR100).split())
    count = len(labels) // len(_SEVERITIES)
    names = [str(index) for index in range(count)]
    sets = []
    for path in sorted(folder.glob("*.npy")):
        if path.stem == "labels":
            continue
        images = _load(path)
        if images.shape != (len(labels), 32, 32, 3) or images.dtype != np.uint8:
            raise DataError(f"{path}: {images.dtype}, {images.shape}; uint8, {len(labels)} x 32 x 32 x 3 is needed")
        for block, severity in enumerate(_SEVERITIES):
            rows = range(block * count, (block + 1) * count)
            samples = tuple(
                Sample(name, ArrayRow(str(path), "", row), label, None, {})
                for name, row, label in zip(names, rows, labels[rows.start : rows.stop].tolist(), strict=True)
            )
            index = ImageIndex(folder, classes, samples, ())
            sets.append(_make_set(path.stem, severity, index, identity_mapping(len(classes))))
    if not sets:
        raise DataError(f"{folder}: no arrays of corruptions, such as fog.npy, beside labels.npy")
    return sets


def read_imagenet_c(root: str | Path) -> list[ShiftedDataset]:
    """Return the data sets of ImageNet-C, for the severities found: ``fog 1`` to ``fog 5`` of ``fog``, and so on.

    Images are not decoded here. A subset of the 1000 classes is scored among all 1000.

    Args:
        root: the folder with type/severity/wnid/*.JPEG. The types may be in the folders of the archives (blur, noise,
            weather, digital, extra) or one level further down.

    Raises:
        DataError: if the folder or a corruption type is missing, a class folder is not a WordNet id, or a type has two
            folders.
    """
    root = Path(root)
    types: dict[str, Path] = {}
    for folder in _find_types(root, 3):
        if types.setdefault(folder.name, folder) != folder:
            raise DataError(f"{types[folder.name]} and {folder} are the same corruption; remove one")
    if not types:
        raise DataError(f"{root}: no files TYPE/SEVERITY/WNID/*.JPEG, such as fog/3/n01440764/*.JPEG")
    sets = []
    for name, folder in sorted(types.items()):
        for severity in _SEVERITIES:
            if (folder / str(severity)).is_dir():
                index = read_folder(folder / str(severity), check=False, metadata=False)
                if others := [wnid for wnid in index.classes if wnid not in wordnet_ids()]:
                    raise DataError(f"{index.root}: {others[0]} is not a WordNet id of ImageNet-1k, such as n01440764")
                samples = tuple(replace(sample, file=sys.intern(sample.file)) for sample in index.samples)
                outputs = tuple((wordnet_ids()[wnid],) for wnid in index.classes)
                mapping = identity_mapping(1000) if len(outputs) == 1000 else ClassMapping(outputs, 1000, "all")
                sets.append(_make_set(name, severity, replace(index, samples=samples), mapping))
    return sets


def _make_set(family: str, severity: int, index: ImageIndex, mapping: ClassMapping) -> ShiftedDataset:
    name = f"{len(mapping.outputs) if mapping.among == 'own' else 1000} classes"
    return ShiftedDataset(f"{family} {severity}", index, {name: mapping}, family=family, level=severity)


def _cifar_folder(root: Path) -> Path:
    """Return the folder of labels.npy: the root, or the only folder in it that has this file."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    if (root / "labels.npy").is_file():
        return root
    folders = sorted(path.parent for path in root.glob("*/labels.npy"))
    if len(folders) != 1:
        names = " and ".join(map(str, folders)) or "no folder in it"
        raise DataError(f"{root}: name the folder of labels.npy, as published with CIFAR-10-C; {names} has one")
    return folders[0]


def _load(path: Path) -> npt.NDArray[Any]:
    try:
        return load_array(str(path), "")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an array: {error}") from error


def _find_types(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the folders that contain folders named 1 to 5, at most `depth` levels down."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and any((entry / str(severity)).is_dir() for severity in _SEVERITIES):
            yield entry
        elif entry.is_dir() and depth > 1:
            yield from _find_types(entry, depth - 1)
