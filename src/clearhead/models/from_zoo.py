"""Models of the zoo: timm's in all but their names, and without pretrained weights."""

from dataclasses import replace
from inspect import Parameter, signature

from timm.models import model_entrypoint

from clearhead.models.classifier import Classifier, LoadOptions
from clearhead.models.errors import ModelError, close_matches
from clearhead.models.from_timm import create_timm, load_timm
from clearhead.zoo import MODELS


def load_zoo(target: str, options: LoadOptions) -> Classifier:
    """Load a model of the zoo: NAME, with random weights, or NAME@FILE; NAME can have arguments, ``NAME,window=3``."""
    architecture, _, file = target.partition("@")
    name, *pairs = architecture.split(",")
    if name not in MODELS:
        matches = close_matches(name, MODELS, "zoo:") or f"; choose from {', '.join(MODELS)}"
        raise ModelError(f"the zoo has no model {name!r}{matches}")
    arguments = dict(_argument(name, pair) for pair in pairs)
    if file:
        return load_timm(f"{name}@{file}", options, arguments)
    return create_timm(name, replace(options, pretrained=False), arguments, **arguments)


def _argument(name: str, pair: str) -> tuple[str, int | float]:
    """Return an argument of a constructor, written ``key=number``."""
    key, _, value = pair.partition("=")
    if key in ("num_classes", "img_size"):
        raise ModelError(f"{pair!r}: pass num_classes and image_size to load_model itself, beside the name")
    if value and key not in (known := _argument_names(name)):
        raise ModelError(f"{pair!r}: {name} has no argument {key!r}{close_matches(key, known)}")
    try:
        return key, float(value) if "." in value else int(value)
    except ValueError:
        raise ModelError(f"{pair!r}: arguments after a name are written key=number, as in NAME,window=3") from None


def _argument_names(name: str) -> list[str]:
    """Return the arguments that a model of the zoo takes: those of its function, its class and the base classes."""
    entry = model_entrypoint(name)
    parameters = [
        parameter
        for function in (entry, *signature(entry).return_annotation.__mro__)
        for parameter in signature(function).parameters.values()
    ]
    return [p.name for p in parameters if p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]
