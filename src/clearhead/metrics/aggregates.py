"""One number for many sets: mean corruption accuracy and error, shape bias, the gap between backgrounds."""

from collections.abc import Mapping, Sequence

import numpy as np

from clearhead.data.folder import wordnet_ids
from clearhead.metrics.statistics import Estimate, accuracy_difference, independent_difference, mean, proportion
from clearhead.models.class_names import imagenet_names
from clearhead.prediction.suite_predictions import SuitePredictions
from clearhead.shifts.corruptions import ALEXNET_ERRORS, COMMON
from clearhead.shifts.sets import ShiftedDataset


def aggregate_metrics(
    sets: Sequence[ShiftedDataset], said: Mapping[str, SuitePredictions], seed: int = 0, imagenet: bool = True
) -> dict[str, Estimate]:
    """What can be told of a model over several sets.

    Args:
        sets: the sets.
        said: the model's answers on each under its main scoring, by name.
        seed: of the bootstrap.
        imagenet: whether corruptions have ImageNet-C's constants, not CIFAR-10-C's.

    Returns:
        Those of these whose sets are all there:

        - ``mean corruption accuracy``: over 15 corruptions and 5 severities.
        - ``mCE``: mean corruption error, percent of AlexNet's (arXiv 1903.12261); for models of ImageNet-1k, on its
          classes and ImageNet-C's constants only.
        - ``shape bias``: shape decisions among those for the shape or the texture (arXiv 1811.12231).
        - ``background gap``: accuracy with a background of the same class less that with one of another
          (arXiv 2006.09994); paired where the files are.
    """
    found: dict[str, Estimate] = {}
    levels = {(one.family, one.level): one for one in sets if one.family in COMMON}
    if len(levels) == 5 * len(COMMON):
        each = {key: dict(zip(said[one.name].file, said[one.name].correct, strict=True)) for key, one in levels.items()}
        # an image that could not be read under one of them counts under none
        files = [file for file in next(iter(each.values())) if all(file in right for right in each.values())]
        right = {
            name: np.mean([[each[name, severity][file] for file in files] for severity in range(1, 6)], axis=0)
            for name in COMMON
        }
        found["mean corruption accuracy"] = mean(np.mean(list(right.values()), axis=0), "%", seed)
        one = next(iter(levels.values()))
        if next(iter(one.class_mappings.values())).of == 1000 and imagenet and _of_imagenet(one.folder.classes):
            errors = [(1 - right[name]) / ALEXNET_ERRORS[name] for name in COMMON]
            found["mCE"] = mean(100 * np.mean(errors, axis=0), "", seed)
    by_name = {one.name: one for one in sets}
    if "cue-conflict" in by_name:
        found["shape bias"] = _shape_bias(by_name["cue-conflict"], said["cue-conflict"])
    same, random = (said.get(f"imagenet-9 ({variant})") for variant in ("mixed_same", "mixed_rand"))
    if same and random:
        paired = np.array_equal(same.file, random.file)
        difference = accuracy_difference if paired else independent_difference
        found["background gap"] = difference(random.correct, same.correct)
    return found


def _of_imagenet(classes: Sequence[str]) -> bool:
    """Whether all classes are ImageNet-1k's, by WordNet id or by the names that its models have here."""
    return {*classes} <= {*wordnet_ids()} or tuple(classes) == imagenet_names("imagenet-1k")


def _shape_bias(one: ShiftedDataset, said: SuitePredictions) -> Estimate:
    """Shape decisions among the decisions for shape or texture, images where both are one class left out.

    As in bethgelab/model-vs-human, plotting/analyses.py. An image of unknown texture does not count.
    """
    textures = {s.file: s.groups.get("texture", one.folder.classes[s.label]) for s in one.folder.samples}
    texture = np.array([textures[file] for file in said.file], dtype=object)
    decided = (texture != said.label) & ((said.predicted == said.label) | (said.predicted == texture))
    return proportion(said.correct[decided])
