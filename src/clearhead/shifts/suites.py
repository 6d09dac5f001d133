"""A suite is a name for several sets.

``imagenet`` (val, V2, A, R, Sketch, ObjectNet, ...), ``imagenet-c`` and ``cifar-c`` are read as published;
``corruptions``, the sweeps (``rotation``, ``occlusion``, ...) and ``adversarial`` are made on the fly of any images.
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
"""Suites read from the folders they were published in; ``imagenet`` is all of its family that is there."""

BUDGETS = (0.5, 1, 2)
"""Of the attacks: the largest change of a pixel, in 255ths."""


def _attacks(folder: ImageIndex, class_mappings: Mapping[str, ClassMapping]) -> list[ShiftedDataset]:
    """Projected gradient descent at each budget. Raises ClearheadError where the toolbox is not installed."""
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
    "adversarial": _attacks,
    **{name.replace(" ", "-"): functools.partial(sweep_sets, name=name) for name in SWEEPS},
}
"""Suites made on the fly, of any images."""

SUITES = (*PUBLISHED, *SYNTHETIC)


def is_small(size: tuple[int, int]) -> bool:
    """Whether images of this size get the weaker corruptions of CIFAR-10-C."""
    return max(size) <= 64


CLEAN = "clean"
"""The set of the images that shifts are made of, before they are."""


def suite_sets(
    suites: Sequence[str],
    root: str | Path,
    classes: Sequence[str],
    *,
    size: tuple[int, int],
    sets: Sequence[str] | None = None,
    split: str | None = None,
) -> tuple[list[ShiftedDataset], list[str]]:
    """The sets of suites, the unchanged one first, and the names of those that are not there.

    Args:
        suites: keys of ``SUITES``.
        root: the folder the published sets are in, or the images that shifts are made of.
        classes: the class names of the model.
        size: H, W of its input; up to 64 pixels corruptions have the weaker constants of CIFAR-10-C.
        sets: take these alone: names of sets (``fog 3``, ``imagenet-a``) or of families (``fog``).
        split: of the images that shifts are made of.

    Raises:
        DataError: for data that cannot be used.
        ClearheadError: for a suite or set that does not exist.
    """
    suites = list(dict.fromkeys(suites))
    for name in suites:
        if name not in SUITES:
            close = difflib.get_close_matches(name, SUITES, 3, 0.4)
            raise ClearheadError(f"suite {name!r}: there is {', '.join(close or SUITES)}")
    found: list[ShiftedDataset] = []
    absent: list[str] = []
    for name in suites:
        if name in IMAGENET and is_sharded(root):
            found.append(read_shards(name, root, classes, split))
        elif name in IMAGENET:
            there, missing = read_imagenet(Path(root), None if name == "imagenet" else [name])
            found, absent = found + there, absent + missing
        elif name in PUBLISHED:
            found += (read_cifar_c if name == "cifar-c" else read_imagenet_c)(Path(root))
    if made := [name for name in suites if name in SYNTHETIC]:
        folder = read_images(root, split=split, classes=classes, check=False)
        class_mappings = {f"{len(classes):,} classes": identity_mapping(len(classes))}
        found.insert(0, ShiftedDataset(CLEAN, folder, class_mappings))
        for name in made:
            small = {"constants": "cifar"} if "corruptions" in name and is_small(size) else {}
            found += SYNTHETIC[name](folder, class_mappings, **small)
    try:
        frost_folder()
    except DataError as error:
        if any(one.family == "frost" and one.shift is not None for one in found):
            absent.append(f"frost ({error})")
            found = [one for one in found if one.family != "frost" or one.shift is None]
    if not found:
        raise DataError(f"{root}: none of {', '.join(absent or suites)} is there")
    require_files([one.name for one in found], "sets")
    if sets is None:
        return found, absent
    wanted = [one for one in found if one.name in (*sets, CLEAN) or one.family in sets]
    for name in sets:
        if missing := [told for told in absent if told == name or told.startswith(f"{name} (")]:
            raise DataError(f"{root}: not there: {missing[0]}")
        if not any(name in (one.name, one.family) for one in found):
            known = list(dict.fromkeys(part for one in found for part in (one.name, one.family) if part))
            close = difflib.get_close_matches(name, known, 3, 0.4) or known
            raise ClearheadError(f"set {name!r} is not of {', '.join(suites)}; there is {format_names(close)}")
    return wanted, []
