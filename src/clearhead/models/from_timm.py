"""Models of timm: from its hub, from a file, from a module, and from and to a folder in the layout of its hub."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import timm
import torch
from huggingface_hub import constants
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from timm.layers import set_fused_attn, use_fused_attn
from torch import nn

from clearhead.models.checkpoint_io import (
    CONFIG,
    existing,
    read_json,
    read_state,
    require_same,
    write_json,
    write_weights,
)
from clearhead.models.class_names import imagenet_names, numbered
from clearhead.models.classifier import Classifier, LoadOptions, evaluation_mode
from clearhead.models.errors import ModelError, NoHeadError, close_matches
from clearhead.models.from_torchvision import save_state
from clearhead.models.hub import hub_access
from clearhead.models.preprocessing import Preprocessing, box_of


def load_timm(target: str, options: LoadOptions, model_args: Mapping[str, Any] = MappingProxyType({})) -> Classifier:
    """Load a timm model, built with `model_args`: NAME with the weights of the hub, or NAME@FILE."""
    architecture, _, file = target.partition("@")
    base, _, tag = architecture.partition(".")
    if not timm.is_model(base):
        raise ModelError(f"timm has no architecture {base!r}{close_matches(base, timm.list_models())}")
    tags = [n for n in timm.list_pretrained(f"{base}.*") if n.startswith(f"{base}.")]
    if tag and architecture not in tags:
        raise ModelError(f"timm has no weights {architecture!r}; choose from {', '.join(tags) or 'none'}")
    if not file:
        if not options.pretrained:
            return create_timm(architecture, options, model_args, **model_args)
        with hub_access() as offline:
            if offline:
                _require_cached(architecture)
            return create_timm(architecture, options, model_args, **model_args)
    if not options.pretrained:
        raise ModelError(f"pretrained=False contradicts {file}; write timm:{architecture}")
    state, entry = read_state(existing(file))
    heads = timm.get_pretrained_cfg(architecture).classifier
    head = heads if isinstance(heads, str) or not heads else heads[0]
    weight = state.get(f"{head}.weight")
    overlay = {"state_dict": state, "custom_load": False, "num_classes": 0 if weight is None else len(weight)}
    try:
        loaded = create_timm(architecture, options, model_args, pretrained_cfg_overlay=overlay, **model_args)
    except RuntimeError as error:
        raise ModelError(f"{file} does not fit: {' '.join(str(error).split())[:500]}") from error
    return replace(loaded, weights=entry)


def _require_cached(architecture: str) -> None:
    """Raise OSError unless the weights were downloaded before, without building a large model to learn that."""
    config = timm.get_pretrained_cfg(architecture)
    if config is not None and config.hf_hub_id:
        repository = Path(constants.HF_HUB_CACHE) / f"models--{config.hf_hub_id.replace('/', '--')}"
        if not repository.is_dir():
            raise OSError(f"{config.hf_hub_id} is not in the cache")


def create_timm(
    name: str, options: LoadOptions, model_args: Mapping[str, Any] | None = None, **creation: Any
) -> Classifier:
    """Create a timm model; `name` and `creation` as timm.create_model takes them."""
    arguments: dict[str, Any] = {}
    if options.size and ("img_size" in (model_args or {}) or _fixed_size(name)):
        arguments["img_size"] = options.size
    if overlay := creation.get("pretrained_cfg_overlay"):
        arguments["num_classes"] = overlay["num_classes"]
    module = timm.create_model(name, pretrained=options.pretrained, **arguments, **creation)
    config = module.pretrained_cfg
    config.pop("state_dict", None)  # the weights of a file, which are in the module now
    new_head = options.new_head(module.num_classes)
    if new_head:
        module.reset_classifier(new_head)
    if not module.num_classes:
        raise NoHeadError("these weights have no classification head; pass num_classes for a new one")
    data = resolve_model_data_config(module)
    if options.size:
        data["input_size"] = (3, *options.size)
    saved = {k: v for k, v in (model_args or {}).items() if k != "num_classes"}
    saved |= {k: v for k, v in arguments.items() if k == "img_size"}
    return Classifier(
        module,
        name,
        "timm",
        _timm_preprocessing(data),
        numbered(module.num_classes) if new_head else _timm_names(config, module.num_classes),
        rebuild={"architecture": config["architecture"], "model_args": saved},
    )


def describe_timm(module: nn.Module, image_size: tuple[int, int] | None) -> Classifier | None:
    """Return a module that timm built as a classifier with what its config says; None for another module."""
    config: Any = getattr(module, "pretrained_cfg", None)
    count: Any = getattr(module, "num_classes", None)
    if not isinstance(config, Mapping) or "architecture" not in config or not count:
        return None
    data = resolve_model_data_config(module)
    size = _built_size(module) or image_size
    if size:
        data["input_size"] = (3, *size)
    return Classifier(
        module, str(config["architecture"]), "timm", _timm_preprocessing(data), _timm_names(config, count)
    )


def _built_size(module: nn.Module) -> tuple[int, int] | None:
    """Return H, W that a timm module was built for; None where it takes any size."""
    embedding = getattr(module, "patch_embed", None)
    size = getattr(embedding, "img_size", None)
    if not isinstance(size, tuple) or not getattr(embedding, "strict_img_size", True):
        return None
    return size


def _fixed_size(name: str) -> bool:
    """Whether timm builds this architecture for one input size."""
    source, colon, folder = name.partition(":")
    if colon:
        return bool(read_json(Path(folder) / CONFIG).get("pretrained_cfg", {}).get("fixed_input_size"))
    config = timm.get_pretrained_cfg(source)
    return config is not None and config.fixed_input_size


def _timm_preprocessing(data: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing of a timm data config, as timm's create_transform applies it."""
    channels, height, width = data["input_size"]
    if channels != 3:
        raise ModelError(f"the model takes {channels} channels; only RGB models are supported")
    return Preprocessing(
        size=(height, width),
        resize=box_of((height, width), data["crop_pct"]),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        crop_mode=data["crop_mode"],
        interpolation=data["interpolation"],
    )


def _timm_names(config: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Return the class names of a timm model: those of its config, ImageNet's, or numbers."""
    names = config.get("label_names") or ()
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names, key=int)]
    subset = infer_imagenet_subset({"num_classes": count})
    if len(names) == count and not (subset and list(names) == ImageNetInfo(subset).label_names()):
        described = config.get("label_descriptions") or {}
        return tuple(str(described.get(name, name)) for name in names)
    return imagenet_names(subset) if subset else numbered(count)


def save_timm(classifier: Classifier, folder: Path) -> None:
    """Write the folder layout of timm's hub: config.json and model.safetensors.

    A module that timm built with arguments which cannot be recovered is written as a state dict instead.
    """
    rebuild = classifier.rebuild or _recovered(classifier)
    if rebuild is None:
        return save_state(replace(classifier, library="module"), folder)
    module: Any = classifier.module
    config = module.pretrained_cfg
    data = data_config(classifier.preprocess)
    copied = ("fixed_input_size", "min_input_size", "pool_size", "first_conv", "classifier", "license")
    content = {
        "architecture": rebuild["architecture"],
        "num_classes": len(classifier.classes),
        "num_features": module.num_features,
        "label_names": classifier.classes,
        "model_args": {**rebuild["model_args"], "num_classes": len(classifier.classes)},
        "pretrained_cfg": {key: config[key] for key in copied if key in config}
        | {"num_classes": len(classifier.classes), **data},
    }
    write_json(folder / CONFIG, content)
    write_weights(classifier.module, folder)
    return None


def data_config(preprocess: Preprocessing) -> dict[str, Any]:
    """Return the entries of a pretrained_cfg that describe a preprocessing. Raises ModelError if none do."""
    data = {
        "input_size": (3, *preprocess.size),
        "interpolation": preprocess.interpolation,
        "crop_pct": _crop_pct(preprocess),
        "crop_mode": preprocess.crop_mode,
        "mean": preprocess.mean,
        "std": preprocess.std,
    }
    require_same(_timm_preprocessing(data), preprocess, "timm")
    return data


def _recovered(classifier: Classifier) -> Mapping[str, Any] | None:
    """Return what rebuilds a module that timm built: its architecture and size, if that computes the same."""
    module: Any = classifier.module
    architecture, size = module.pretrained_cfg["architecture"], _built_size(module)
    arguments: dict[str, Any] = {"img_size": size} if size else {}
    device = classifier.device
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), fused_attention(), torch.no_grad(), evaluation_mode(module):
            rebuilt = timm.create_model(architecture, num_classes=len(classifier.classes), **arguments).eval()
            rebuilt.to(next(module.parameters())).load_state_dict(module.state_dict())
            images = torch.randn(2, 3, *classifier.preprocess.size).to(next(module.parameters()))
            same = torch.allclose(rebuilt(images), module(images), rtol=1e-3, atol=1e-4)
    except (RuntimeError, TypeError, AssertionError):  # other shapes, or an argument the architecture lacks
        return None
    return {"architecture": architecture, "model_args": arguments} if same else None


def _crop_pct(preprocess: Preprocessing) -> float:
    """Return the shortest crop_pct that makes timm resize to the box."""
    sides = zip(preprocess.size, preprocess.resize, strict=True)
    largest = min(side / box for side, box in sides)
    # 34 / (34 / 50) is below 50: the next smaller number is not
    nearest = [*(round(largest, digits) for digits in range(1, 9)), math.nextafter(largest, 0)]
    return next((p for p in nearest if p > 0 and box_of(preprocess.size, p) == preprocess.resize), largest)


@contextmanager
def fused_attention() -> Iterator[None]:
    """A block in which timm models are built to call scaled_dot_product_attention, which `tap` needs."""
    enabled, experimental = use_fused_attn(), use_fused_attn(experimental=True)
    set_fused_attn(True, experimental=True)
    try:
        yield
    finally:
        set_fused_attn(enabled, experimental)
