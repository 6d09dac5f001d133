"""Aggregate metrics over several data sets: mean corruption accuracy and error, shape bias, background gap."""

from collections.abc import Mapping, Sequence

import numpy as np

from clearhead.data.folder import wordnet_ids
from clearhead.metrics.statistics import Estimate, accuracy_difference, independent_difference, mean, proportion
from clearhead.models.class_names import imagenet_names
from clearhead.prediction.suite_predictions import SuitePredictions
from clearhead.shifts.corruptions import COMMON, mean_corruption_error
from clearhead.shifts.sets import ShiftedDataset


def aggregate_metrics(
    sets: Sequence[ShiftedDataset], predictions: Mapping[str, SuitePredictions], seed: int = 0, imagenet: bool = True
) -> dict[str, Estimate]:
    """Return the aggregate metrics of one model whose data sets are all present.

    Args:
        sets: the data sets.
        predictions: the model's predictions for each under its main class mapping, by name.
        seed: of the bootstrap.
        imagenet: whether corruptions have ImageNet-C's constants, not CIFAR-10-C's.

    Returns:
        By name, any of:

        - ``mean corruption accuracy``: over 15 corruptions and 5 severities.
        - ``mCE``: mean corruption error, percent of AlexNet's (arXiv 1903.12261); for ImageNet-1k models on its classes
          with ImageNet-C's constants only.
        - ``shape bias``: shape decisions among the decisions for shape or texture (arXiv 1811.12231).
        - ``background gap``: accuracy with a background of the same class - accuracy with that of another class (arXiv
          2006.09994); paired if the files are the same.
    """
    metrics = _corruption_metrics(sets, predictions, seed, imagenet)
    by_name = {dataset.name: dataset for dataset in sets}
    if "cue-conflict" in by_name:
        metrics["shape bias"] = _shape_bias(by_name["cue-conflict"], predictions["cue-conflict"])
    same, random = (predictions.get(f"imagenet-9 ({variant})") for variant in ("mixed_same", "mixed_rand"))
    if same and random:
        is_paired = np.array_equal(same.file, random.file)
        difference = accuracy_difference if is_paired else independent_difference
        metrics["background gap"] = difference(random.correct, same.correct)
    return metrics


def _corruption_metrics(
    sets: Sequence[ShiftedDataset], predictions: Mapping[str, SuitePredictions], seed: int, imagenet: bool
) -> dict[str, Estimate]:
    levels = {(dataset.family, dataset.level): dataset for dataset in sets if dataset.family in COMMON}
    if len(levels) < 5 * len(COMMON):
        return {}
    correct = {
        key: dict(zip(predictions[dataset.name].file, predictions[dataset.name].correct, strict=True))
        for key, dataset in levels.items()
    }
    # an image that is unreadable under one corruption is excluded under all
    files = [file for file in next(iter(correct.values())) if all(file in by_file for by_file in correct.values())]
    errors = {
        name: 1 - np.array([[correct[name, severity][file] for file in files] for severity in range(1, 6)], dtype=float)
        for name in COMMON
    }
    metrics = {"mean corruption accuracy": mean(1 - np.mean(list(errors.values()), axis=(0, 1)), "%", seed)}
    first = next(iter(levels.values()))
    if next(iter(first.class_mappings.values())).of == 1000 and imagenet and _has_imagenet_classes(first):
        metrics["mCE"] = mean(mean_corruption_error(errors), "", seed)
    return metrics


def _has_imagenet_classes(dataset: ShiftedDataset) -> bool:
    """Return whether all classes are those of ImageNet-1k, by WordNet id or by the names that its models have here."""
    classes = dataset.folder.classes
    return {*classes} <= {*wordnet_ids()} or tuple(classes) == imagenet_names("imagenet-1k")


def _shape_bias(dataset: ShiftedDataset, predictions: SuitePredictions) -> Estimate:
    """Return shape decisions among the decisions for shape or texture, without images where both are one class.

    As in bethgelab/model-vs-human, plotting/analyses.py. Images of unknown texture are excluded.
    """
    textures = {s.file: s.groups.get("texture", dataset.folder.classes[s.label]) for s in dataset.folder.samples}
    texture = np.array([textures[file] for file in predictions.file], dtype=object)
    predicted, label = predictions.predicted, predictions.label
    decided = (texture != label) & ((predicted == label) | (predicted == texture))
    return proportion(predictions.correct[decided])
