"""What every shifted set is: images of known classes, how a model's outputs are read as those classes, what is changed.

A set is an ``ImageIndex`` whose labels are the set's own classes (200 for ImageNet-A, 16 for cue conflict). A
``ClassMapping`` says which outputs of the model mean each of them; a set that is scored in several ways names each.
What is
changed on the fly (a corruption, a rotation) is a ``Shift`` of the pixels the model is about to see.
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
"""Pixels, B x 3 x H x W in 0..1, to pixels of the same shape; one generator an image, on the images' device."""


Attack = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]
"""(logits of pixels, pixels in 0..1, the right outputs) to pixels that the model does worse on."""


@dataclass(frozen=True)
class ClassMapping:
    """How K logits of a model become an answer among the C classes of a set.

    Attributes:
        outputs: for each class of the set the outputs of the model that mean it, C tuples of one or more.
        among: ``own``, the answer is one of the set's classes, other outputs do not count; ``all``, any output may be
            the answer, and one that means none of the set's classes is wrong.
        pool: of several outputs for one class (with ``own``): the largest logit, or the mean of the probabilities.
        of: how many outputs the model has.
    """

    outputs: tuple[tuple[int, ...], ...]
    of: int
    among: Literal["own", "all"] = "own"
    pool: Literal["max", "mean"] = "max"


@dataclass(frozen=True)
class ShiftedDataset:
    """A set to measure models on.

    Attributes:
        name: as it stands in tables, ``imagenet-a`` or ``fog 3``.
        folder: the images; labels index ``folder.classes``, the set's own.
        class_mappings: by name, the main one first.
        border: pixels cut off each side before the model's preprocessing.
        shift: what is done to the pixels, None for nothing.
        attack: likewise, by one who knows the model.
        family: the name of sets that are levels of one curve (``fog``), and `level` which one this is.
        level: the severity, angle, share, ... of `shift`.
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
    """Each output is one class of the set."""
    return ClassMapping(tuple((i,) for i in range(classes)), classes)


def file_name(name: str) -> str:
    """The name of the file that holds what belongs to a set or a model of this name."""
    plain_text = re.sub(r"[^\w.]+", "-", name).strip("-.")
    return f"{plain_text}.parquet"


def require_files(names: Sequence[str], what: str) -> None:
    """Raise DataError unless each name has a file of its own."""
    files = [file_name(name) for name in names]
    if wrong := [name for name, file in zip(names, files, strict=True) if files.count(file) > 1 or file == ".parquet"]:
        raise DataError(f"{what}: {', '.join(map(repr, wrong))} cannot be told apart as files; give other names")


def generators(seed: int, indices: Iterable[int], device: torch.device | str = "cpu") -> list[torch.Generator]:
    """A generator for each image, from the seed and the image's index alone: batches and processes change nothing."""
    return [torch.Generator(device).manual_seed(_mixed(seed, index)) for index in indices]


def _mixed(seed: int, index: int) -> int:
    """A seed from two numbers, unlike that of their neighbours (splitmix64)."""
    x = (seed * 0x9E3779B97F4A7C15 + index + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return (x ^ x >> 31) >> 1
