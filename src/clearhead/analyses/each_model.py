"""Measure several models one after the other, each result saved for a run that is interrupted."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from clearhead.data.dataset import ImageIndex
from clearhead.errors import ClearheadError
from clearhead.models.source import ModelLike, as_classifier
from clearhead.progress import Progress, prefixed
from clearhead.storage import resumable

Result = TypeVar("Result")


def measure_each(
    function: Callable[..., Result],
    result_type: type[Result],
    models: Mapping[str, ModelLike],
    index: ImageIndex | Callable[[tuple[str, ...]], ImageIndex],
    *,
    progress: Progress | None,
    state: Path | None,
    **options: Any,
) -> tuple[dict[str, Result], ImageIndex]:
    """Return ``function(model, index, progress=..., **options)`` for each model, and the index of the last one.

    Args:
        function: measures one model.
        result_type: what it returns, which is saved in `state`.
        models: by display name.
        index: the images; a function of the class names of a model where labels have to be the model's classes.
        progress: shows progress.
        state: folder in which the result of each model is saved; those that it has are not measured again.
        options: the other arguments of `function`.

    Raises ClearheadError without models.
    """
    if not models:
        raise ClearheadError("models: got none; give at least one")
    results: dict[str, Result] = {}
    indices: dict[tuple[str, ...], ImageIndex] = {}
    for name, model in models.items():
        if callable(index):
            model = as_classifier(model)
            images = indices[model.classes] = indices.get(model.classes) or index(model.classes)
        else:
            images = index
        compute = partial(function, model, images, progress=prefixed(progress, name), **options)
        results[name] = resumable(state, name, compute, result_type)
    return results, images
