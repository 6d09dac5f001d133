"""List the shifted data sets of a suite.

``imagenet`` (val, V2, A, R, Sketch, ObjectNet, ...), ``imagenet-c`` and ``cifar-c`` are read as published;
``corruptions``, the sweeps (``rotation``, ``occlusion``, ...) and ``adversarial`` are applied on the fly to any images.
"""

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from clearhead.data.dataset import ImageIndex, format_names
from clearhead.data.image_io import DataError
from clearhead.data.images import read_images
from clearhead.data.shards import is_sharded
from clearhead.errors import ClearheadError
from clearhead.shifts.adversarial import attack, require_toolbox
from clearhead.shifts.corruption_benchmarks import read_cifar_c, read_imagenet_c
from clearhead.shifts.corruptions import COMMON, EXTRA, corruption_sets
from clearhead.shifts.corruptions.weather import frost_folder
from clearhead.shifts.imagenet import IMAGENET, read_imagenet, read_shards
from clearhead.shifts.sets import ClassMapping, ShiftedDataset, identity_mapping, require_files
from clearhead.shifts.sweeps import SWEEPS, sweep_sets

PUBLISHED = (*IMAGENET, "imagenet-c", "cifar-c")
"""Suites read as published; ``imagenet`` stands for all ImageNet data sets found."""

BUDGETS = (0.5, 1, 2)
"""The largest change of a pixel by each attack, in 1/255."""


def _adversarial_sets(folder: ImageIndex, class_mappings: Mapping[str, ClassMapping]) -> list[ShiftedDataset]:
    """Return projected gradient descent at each budget. Raises ClearheadError if the toolbox is not installed."""
    require_toolbox()
    return [
        ShiftedDataset(
            f"pgd {budget:g}/255",
            folder,
            class_mappings,
            attack=functools.partial(attack, eps=budget / 255),
            family="adversarial",
            level=budget,
        )
        for budget in BUDGETS
    ]


SYNTHETIC: dict[str, Callable[..., list[ShiftedDataset]]] = {
    "corruptions": functools.partial(corruption_sets, types=COMMON),
    "more-corruptions": functools.partial(corruption_sets, types=EXTRA),
    "adversarial": _adversarial_sets,
    **{name.replace(" ", "-"): functools.partial(sweep_sets, name=name) for name in SWEEPS},
}
"""Suites applied on the fly to any images."""

SUITES = (*PUBLISHED, *SYNTHETIC)


def is_small(size: tuple[int, int]) -> bool:
    """Return whether images of this size get the weaker corruptions of CIFAR-10-C."""
    return max(size) <= 64


CLEAN = "clean"
"""The name of the unshifted data set in a synthetic suite."""


def suite_sets(
    suites: Sequence[str],
    root: str | Path,
    classes: Sequence[str],
    *,
    size: tuple[int, int],
    sets: Sequence[str] | None = None,
    split: str | None = None,
) -> tuple[list[ShiftedDataset], list[str]]:
    """Return the data sets of suites, the clean one first, and the names of those that were not found.

    Args:
        suites: names from ``SUITES``.
        root: the folder with the published data sets, or the images to shift.
        classes: the class names of the model.
        size: height and width of the model's input; up to 64 pixels, corruptions use the constants of CIFAR-10-C.
        sets: only these: names of data sets (``fog 3``, ``imagenet-a``) or families (``fog``).
        split: the split of the images to shift.

    Raises:
        DataError: for data that cannot be used.
        ClearheadError: for a suite or data set that does not exist.
    """
    suites = list(dict.fromkeys(suites))
    for name in suites:
        if name not in SUITES:
            close = difflib.get_close_matches(name, SUITES, 3, 0.4)
            raise ClearheadError(f"suite: {name!r} is unknown; choose from {', '.join(close or SUITES)}")
    result: list[ShiftedDataset] = []
    absent: list[str] = []
    for name in suites:
        if name in IMAGENET and is_sharded(root):
            result.append(read_shards(name, root, classes, split))
        elif name in IMAGENET:
            present, missing = read_imagenet(Path(root), None if name == "imagenet" else [name])
            result, absent = result + present, absent + missing
        elif name in PUBLISHED:
            result += (read_cifar_c if name == "cifar-c" else read_imagenet_c)(Path(root))
    if synthetic := [name for name in suites if name in SYNTHETIC]:
        folder = read_images(root, split=split, classes=classes, check=False)
        class_mappings = {f"{len(classes):,} classes": identity_mapping(len(classes))}
        result.insert(0, ShiftedDataset(CLEAN, folder, class_mappings))
        for name in synthetic:
            small = {"constants": "cifar"} if "corruptions" in name and is_small(size) else {}
            result += SYNTHETIC[name](folder, class_mappings, **small)
    try:
        frost_folder()
    except DataError as error:
        if any(one.family == "frost" and one.shift is not None for one in result):
            absent.append(f"frost ({error})")
            result = [one for one in result if one.family != "frost" or one.shift is None]
    if not result:
        raise DataError(f"{root}: none of {', '.join(absent or suites)} was found")
    require_files([one.name for one in result], "sets")
    if sets is None:
        return result, absent
    selected = [one for one in result if one.name in (*sets, CLEAN) or one.family in sets]
    for name in sets:
        if missing := [reason for reason in absent if reason == name or reason.startswith(f"{name} (")]:
            raise DataError(f"{root}: not found: {missing[0]}")
        if not any(name in (one.name, one.family) for one in result):
            known = list(dict.fromkeys(part for one in result for part in (one.name, one.family) if part))
            close = difflib.get_close_matches(name, known, 3, 0.4) or known
            raise ClearheadError(f"sets: {name!r} is not in {', '.join(suites)}; choose from {format_names(close)}")
    return selected, []
