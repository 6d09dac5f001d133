"""A model that is loaded when it is needed, and any of the ways to name a model as a classifier."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clearhead.inputs import model_name, number_duplicates
from clearhead.models.classifier import Classifier, on_device
from clearhead.models.errors import ModelError, NoHeadError
from clearhead.models.from_module import from_module
from clearhead.models.load import load_model


@dataclass
class ModelSource:
    """A model by name, on a device; loaded by ``as_classifier``, so that of many models one is in memory at a time.

    Attributes:
        name: as for ``load_model``.
        device: as for ``torch.device``; None is a GPU where there is one.
        options: further arguments of ``load_model``.
        seed: seeds the weights that are drawn at random.
    """

    name: str
    device: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    _held: Classifier | None = field(default=None, repr=False)

    def load(self, *, hold: bool = False) -> Classifier:
        """Return the classifier; with `hold`, keep it in memory for the next call."""
        model, self._held = self._held, None
        if model is None:
            torch.manual_seed(self.seed)
            model = on_device(load_model(self.name, **self.options), self.device)
        if hold:
            self._held = model
        return model

    def name_classes(self, classes: tuple[str, ...]) -> Classifier:
        """Give the model these class names from now on, and return it."""
        self.options = {**self.options, "classes": classes}
        if self._held is not None:
            self._held = replace(self._held, classes=classes)
            return self._held
        return self.load()

    def load_backbone(self) -> Classifier:
        """Return the classifier, with an unused head of one class where the weights have none."""
        try:
            return self.load()
        except NoHeadError:
            return on_device(load_model(self.name, **{**self.options, "num_classes": 1}), self.device)


ModelLike = Classifier | ModelSource | nn.Module | str | Path
"""Whatever a user has: a classifier, a plain module, or a name that ``load_model`` takes."""


def as_classifier(model: ModelLike, *, image_size: tuple[int, int] | None = None) -> Classifier:
    """Return a classifier from whatever a user has.

    A name is loaded, on a GPU if there is one. A plain module stays on its device; it is described by itself where
    possible: see `from_module`, which also takes the preprocessing of modules that cannot. `image_size` (H, W) is the
    input size of a module that has no fixed one. Raises ModelError.
    """
    if isinstance(model, Classifier):
        return model
    if isinstance(model, ModelSource):
        return model.load()
    if isinstance(model, nn.Module):
        return from_module(model, image_size=image_size)
    if isinstance(model, str | Path):
        return on_device(load_model(model), None)
    raise ModelError(
        f"model: got {type(model).__name__}; pass a Classifier, a torch.nn.Module, or a name such as "
        "'timm:deit_tiny_patch16_224'"
    )


def as_backbone(model: ModelLike) -> Classifier:
    """Return a classifier for its features alone: weights without a head get one that is not used."""
    if isinstance(model, str | Path):
        model = ModelSource(str(model))
    return model.load_backbone() if isinstance(model, ModelSource) else as_classifier(model)


def display_names(models: Sequence[ModelLike]) -> list[str]:
    """Return how people call some models, numbered where several have the same name."""
    return number_duplicates([_name(model) for model in models])


def _name(model: ModelLike) -> str:
    if isinstance(model, nn.Module):
        return type(model).__name__
    return model_name(str(model) if isinstance(model, str | Path) else model.name)


def require_same_classes(models: Sequence[ModelLike]) -> tuple[str, ...]:
    """Return the class names that all models have, in the order of their outputs. Raises ModelError where they differ.

    Models are loaded one at a time; up to two stay in memory for ``as_classifier``.
    """
    names, classes = display_names(models), []
    for model in models:
        hold = isinstance(model, ModelSource) and len(models) <= 2
        classes.append((model.load(hold=hold) if isinstance(model, ModelSource) else as_classifier(model)).classes)
    for name, other in zip(names[1:], classes[1:], strict=True):
        if other != classes[0]:
            raise ModelError(different_classes(names[0], classes[0], name, other))
    return classes[0]


def different_classes(name: str, classes: Sequence[str], other: str, other_classes: Sequence[str]) -> str:
    """Return the message about two models of different classes."""
    return (
        f"models: the classes differ: {name} has {_listed(classes)}, {other} has {_listed(other_classes)}; give "
        "models of the same classes"
    )


def _listed(classes: Sequence[str]) -> str:
    return f"{len(classes)} ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''})"
