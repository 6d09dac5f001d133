"""Define a shifted data set: images, a mapping from a model's outputs to their classes, and a shift.

Labels are the data set's own classes (200 for ImageNet-A, 16 for cue conflict). A ``ClassMapping`` assigns the model's
outputs to them; a data set that is scored in several ways has several. A ``Shift`` changes the pixels on the fly (a
corruption, a rotation).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from clearhead.data.dataset import ImageIndex
from clearhead.data.image_io import DataError

Shift = Callable[[Tensor, Sequence[torch.Generator]], Tensor]
"""(pixels, B x 3 x H x W in 0..1; one generator per image on their device) to pixels of the same shape."""

Attack = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]
"""(model from pixels to logits, pixels in 0..1, correct outputs) to adversarial pixels."""


@dataclass(frozen=True)
class ClassMapping:
    """How the logits of a model become a prediction among the C classes of a data set.

    Attributes:
        outputs: for each class of the data set, the outputs of the model that mean it: C tuples of one or more.
        of: the number of outputs of the model.
        among: ``own``: the argmax over the data set's own classes, other outputs are ignored; ``all``: the argmax over
            all outputs, and an output that means none of the classes is wrong.
        pool: for several outputs per class (with ``own``): the largest logit, or the mean probability.
    """

    outputs: tuple[tuple[int, ...], ...]
    of: int
    among: Literal["own", "all"] = "own"
    pool: Literal["max", "mean"] = "max"


@dataclass(frozen=True)
class ShiftedDataset:
    """A data set to evaluate models on.

    Attributes:
        name: its name in tables, such as ``imagenet-a`` or ``fog 3``.
        folder: the images; labels are indices of ``folder.classes``.
        class_mappings: by name; the first is the main one.
        border: pixels cropped from each side before the model's preprocessing.
        shift: applied to the pixels, if any.
        attack: applied to the pixels with knowledge of the model, if any.
        family: common name of the data sets that are levels of one curve, such as ``fog``.
        level: the severity, angle, fraction, ... within the family.
    """

    name: str
    folder: ImageIndex
    class_mappings: Mapping[str, ClassMapping]
    border: int = 0
    shift: Shift | None = None
    attack: Attack | None = None
    family: str = ""
    level: float | None = None


def identity_mapping(classes: int) -> ClassMapping:
    """Return the mapping for a data set whose classes are the model's outputs."""
    return ClassMapping(tuple((i,) for i in range(classes)), classes)


def file_name(name: str) -> str:
    """Return the name of the Parquet file for a data set or model of this name."""
    plain_text = re.sub(r"[^\w.]+", "-", name).strip("-.")
    return f"{plain_text}.parquet"


def require_files(names: Sequence[str], what: str) -> None:
    """Raise DataError if two names would share a file name, or one has none."""
    files = [file_name(name) for name in names]
    if wrong := [name for name, file in zip(names, files, strict=True) if files.count(file) > 1 or file == ".parquet"]:
        raise DataError(f"{what}: {', '.join(map(repr, wrong))} share a file name, or have none; choose other names")


def generators(seed: int, indices: Iterable[int], device: torch.device | str = "cpu") -> list[torch.Generator]:
    """Return a generator per image that depends only on the seed and the image's index, not on the batch or process."""
    return [torch.Generator(device).manual_seed(_mix(seed, index)) for index in indices]


def _mix(seed: int, index: int) -> int:
    """Hash two numbers to one seed (splitmix64)."""
    x = (seed * 0x9E3779B97F4A7C15 + index + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return (x ^ x >> 31) >> 1
