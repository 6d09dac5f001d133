"""One number for many sets: mean corruption accuracy and error, shape bias, the gap between backgrounds."""

from collections.abc import Mapping, Sequence

import numpy as np

from clearhead.evaluate.answers import Answers
from clearhead.evaluate.statistics import Estimate, accuracy_difference, mean, proportion
from clearhead.shifts.corruptions import ALEXNET_ERRORS, COMMON
from clearhead.shifts.sets import ShiftedSet


def summaries(sets: Sequence[ShiftedSet], said: Mapping[str, Answers], seed: int = 0) -> dict[str, Estimate]:
    """What can be told of a model over several sets.

    Args:
        sets: the sets.
        said: the model's answers on each under its main scoring, by name.
        seed: of the bootstrap.

    Returns:
        Those of these whose sets are all there:

        - ``mean corruption accuracy``: over 15 corruptions and 5 severities.
        - ``mCE``: mean corruption error, percent of AlexNet's (arXiv 1903.12261); for ImageNet-1k only.
        - ``shape bias``: shape decisions among those for the shape or the texture (arXiv 1811.12231).
        - ``background gap``: accuracy with a background of the same class less that with one of another
          (arXiv 2006.09994); paired where the files are.
    """
    found: dict[str, Estimate] = {}
    levels = {(one.family, one.level): said[one.name] for one in sets if one.family}
    if all((name, severity) in levels for name in COMMON for severity in range(1, 6)):
        right = {name: np.mean([levels[name, severity].right for severity in range(1, 6)], axis=0) for name in COMMON}
        found["mean corruption accuracy"] = mean(np.mean(list(right.values()), axis=0), "%", seed)
        if len(sets[0].folder.classes) == 1000:
            errors = [(1 - right[name]) / ALEXNET_ERRORS[name] for name in COMMON]
            found["mCE"] = mean(100 * np.mean(errors, axis=0), "", seed)
    by_name = {one.name: one for one in sets}
    if "cue-conflict" in by_name:
        found["shape bias"] = _shape_bias(by_name["cue-conflict"], said["cue-conflict"])
    same, random = (said.get(f"imagenet-9 ({variant})") for variant in ("mixed_same", "mixed_rand"))
    if same and random and np.array_equal(same.file, random.file):
        found["background gap"] = accuracy_difference(random.right, same.right)
    return found


def _shape_bias(one: ShiftedSet, said: Answers) -> Estimate:
    """Shape decisions among the decisions for shape or texture, images where both are one class left out."""
    textures = {sample.file: sample.groups["texture"] for sample in one.folder.samples}
    texture = np.array([textures[file] for file in said.file], dtype=object)
    decided = (texture != said.label) & ((said.predicted == said.label) | (said.predicted == texture))
    return proportion(said.right[decided])
