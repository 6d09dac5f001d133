"""A classifier from a module that the user built."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from clearhead.models.class_names import class_names, imagenet_names, numbered
from clearhead.models.classifier import Classifier
from clearhead.models.errors import ModelError, cause
from clearhead.models.from_hf import describe_hf, processor_config
from clearhead.models.from_timm import data_config, describe_timm
from clearhead.models.preprocessing import Preprocessing, unknown_preprocessing
from clearhead.models.token_grid import probe
from clearhead.models.transforms import preprocessing_of

_DEFAULT_SIZE = (224, 224)


def from_module(
    module: nn.Module,
    *,
    preprocess: Preprocessing | None = None,
    transform: Any = None,
    classes: Sequence[str] | None = None,
    name: str | None = None,
    image_size: tuple[int, int] | None = None,
) -> Classifier:
    """Return a classifier from a module that takes B x 3 x H x W, normalised, and returns logits, or ``.logits``.

    How its tokens cover the image is found by one forward pass, as for a loaded model. What is not passed is read from
    the module: preprocessing and class names of a timm module from its ``pretrained_cfg``; class names of a Hugging
    Face module from its config, preprocessing from its image processor if that is on this machine; ImageNet's class
    names for a torchvision module of 1000 outputs. Where the preprocessing stays unknown, the classifier works on
    tensors as the module takes them and raises ModelError for images and paths.

    Args:
        module: the network. It stays in its mode and on its device.
        preprocess: the preprocessing.
        transform: the transform of evaluation, in place of `preprocess`: of timm (``create_transform``), of torchvision
            (a Compose, or ``weights.transforms()``), or an image processor of Hugging Face.
        classes: names of the classes.
        name: name of the model in messages and reports; by default that of its class.
        image_size: H, W of the input, for a module that does not fix it and without `preprocess`.

    Raises:
        ModelError: for a module that does not run on an image of the size, another number of outputs than of
            `classes`, a transform that is more than resize, centre crop and normalisation.
    """
    if preprocess is not None and transform is not None:
        raise ModelError("preprocess, transform: pass one of the two")
    if transform is not None:
        preprocess = preprocessing_of(transform)
    described = describe_timm(module, image_size) or describe_hf(module, image_size)
    if described is None:
        architecture = type(module).__name__
        size = getattr(module, "image_size", None)  # of torchvision's ViT
        size = (size, size) if isinstance(size, int) else image_size or _DEFAULT_SIZE
        unknown = unknown_preprocessing(size, f"the preprocessing of {architecture} is unknown")
        described = Classifier(module, architecture, "module", unknown, ())
    if preprocess is not None:
        described = _with_preprocessing(described, preprocess)
    return complete(replace(described, name=name or described.name), None if classes is None else class_names(classes))


def _with_preprocessing(model: Classifier, preprocess: Preprocessing) -> Classifier:
    """Return a classifier with another preprocessing; to be saved by its library where that can express it."""
    configs = {"hf": processor_config, "timm": data_config}
    library = model.library
    try:
        if library in configs:
            configs[library](preprocess)
    except ModelError:
        library = "module"
    return replace(model, library=library, preprocess=preprocess)


def complete(classifier: Classifier, classes: tuple[str, ...] | None) -> Classifier:
    """Return the classifier with its token grid, found by a probe, and its class names; by default its own.

    Raises ModelError for one that does not run on an image of its size, or has another number of outputs than names.
    """
    try:
        outputs, grid = probe(classifier.module, classifier.preprocess.size)
    except Exception as error:  # whatever a model raises on an input it was not made for
        size = " x ".join(str(side) for side in classifier.preprocess.size)
        raise ModelError(
            f"{classifier.name}: the model does not run on a 1 x 3 x {size} image: {cause(error)}"
        ) from error
    names = classes or classifier.classes or _default_names(classifier.module, outputs)
    if outputs != len(names):
        raise ModelError(
            f"{classifier.name}: the model has {outputs} outputs, but there are {len(names)} class names"
            + ("" if classifier.library == "module" else f"; num_classes={len(names)} gives it a new head for them")
        )
    return replace(classifier, classes=names, grid=grid)


def _default_names(module: nn.Module, outputs: int) -> tuple[str, ...]:
    """Return ImageNet's names for a torchvision module of 1000 outputs, else numbers."""
    of_torchvision = type(module).__module__.startswith("torchvision.models.") and outputs == 1000
    return imagenet_names("imagenet-1k") if of_torchvision else numbered(outputs)
