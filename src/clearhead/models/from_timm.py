"""timm's models: from its hub, from a file, from and to a folder of its hub's layout."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import timm
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from timm.layers import set_fused_attn, use_fused_attn
from timm.models import load_state_dict

from clearhead.models.checkpoint_io import CONFIG, existing, read_json, require_same, write_json, write_weights
from clearhead.models.class_names import imagenet_names, numbered
from clearhead.models.classifier import Classifier, Wanted
from clearhead.models.errors import ModelError, NoHeadError, close_matches
from clearhead.models.preprocessing import Preprocessing


def load_timm(target: str, wanted: Wanted, model_args: Mapping[str, Any] = MappingProxyType({})) -> Classifier:
    """A timm model: NAME with the hub's weights, or NAME@FILE; built with `model_args`."""
    architecture, _, file = target.partition("@")
    base, _, tag = architecture.partition(".")
    if not timm.is_model(base):
        raise ModelError(f"timm has no architecture {base!r}{close_matches(base, timm.list_models())}")
    tags = [n for n in timm.list_pretrained(f"{base}.*") if n.startswith(f"{base}.")]
    if tag and architecture not in tags:
        raise ModelError(f"timm has no weights {architecture!r}; there is {', '.join(tags) or 'none'}")
    if not file:
        return create_timm(architecture, wanted, model_args, **model_args)
    if not wanted.pretrained:
        raise ModelError(f"pretrained=False leaves nothing to do for {file}; write timm:{architecture}")
    overlay: dict[str, Any] = {"file": str(existing(file)), "custom_load": False}
    heads = timm.get_pretrained_cfg(architecture).classifier
    head = heads if isinstance(heads, str) or not heads else heads[0]
    weight = load_state_dict(overlay["file"]).get(f"{head}.weight")
    overlay["num_classes"] = 0 if weight is None else len(weight)
    return create_timm(architecture, wanted, model_args, pretrained_cfg_overlay=overlay, **model_args)


def create_timm(name: str, wanted: Wanted, model_args: Mapping[str, Any] | None = None, **options: Any) -> Classifier:
    """A timm model; `name` as timm.create_model takes it."""
    arguments: dict[str, Any] = {}
    if wanted.size and ("img_size" in (model_args or {}) or _fixed_size(name)):
        arguments["img_size"] = wanted.size
    if overlay := options.get("pretrained_cfg_overlay"):
        arguments["num_classes"] = overlay["num_classes"]
    module = timm.create_model(name, pretrained=wanted.pretrained, **arguments, **options)
    config = module.pretrained_cfg
    fresh = wanted.fresh_head(module.num_classes)
    if fresh:
        module.reset_classifier(fresh)
    if not module.num_classes:
        raise NoHeadError("these weights have no classification head; give num_classes for a fresh one")
    data = resolve_model_data_config(module)
    if wanted.size:
        data["input_size"] = (3, *wanted.size)
    kept = {k: v for k, v in (model_args or {}).items() if k != "num_classes"}
    kept |= {k: v for k, v in arguments.items() if k == "img_size"}
    return Classifier(
        module,
        name,
        "timm",
        _timm_preprocessing(data),
        numbered(module.num_classes) if fresh else _timm_names(config, module.num_classes),
        rebuild={"architecture": config["architecture"], "model_args": kept},
    )


def _fixed_size(name: str) -> bool:
    """Whether timm builds this architecture for one input size."""
    source, colon, folder = name.partition(":")
    if colon:
        return bool(read_json(Path(folder) / CONFIG).get("pretrained_cfg", {}).get("fixed_input_size"))
    config = timm.get_pretrained_cfg(source)
    return config is not None and config.fixed_input_size


def _timm_preprocessing(data: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing of a timm data config, as its create_transform does it."""
    channels, height, width = data["input_size"]
    if channels != 3:
        raise ModelError(f"the model takes {channels} channels; only RGB models can be used")
    return Preprocessing(
        size=(height, width),
        resize=_box((height, width), data["crop_pct"]),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        crop_mode=data["crop_mode"],
        interpolation=data["interpolation"],
    )


def _box(size: tuple[int, int], crop_pct: float) -> tuple[int, int]:
    return math.floor(size[0] / crop_pct), math.floor(size[1] / crop_pct)


def _timm_names(config: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """The class names of a timm model: those of its config, ImageNet's, or numbers."""
    names = config.get("label_names") or ()
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names, key=int)]
    subset = infer_imagenet_subset({"num_classes": count})
    if len(names) == count and not (subset and list(names) == ImageNetInfo(subset).label_names()):
        described = config.get("label_descriptions") or {}
        return tuple(str(described.get(name, name)) for name in names)
    return imagenet_names(subset) if subset else numbered(count)


def save_timm(classifier: Classifier, folder: Path) -> None:
    """The folder layout of timm's hub: config.json and model.safetensors."""
    preprocess = classifier.preprocess
    module: Any = classifier.module
    config = module.pretrained_cfg
    data = {
        "input_size": (3, *preprocess.size),
        "interpolation": preprocess.interpolation,
        "crop_pct": _crop_pct(preprocess),
        "crop_mode": preprocess.crop_mode,
        "mean": preprocess.mean,
        "std": preprocess.std,
    }
    require_same(_timm_preprocessing(data), preprocess, "timm")
    kept = ("fixed_input_size", "min_input_size", "pool_size", "first_conv", "classifier", "license")
    content = {
        "architecture": classifier.rebuild["architecture"],
        "num_classes": len(classifier.classes),
        "num_features": module.num_features,
        "label_names": classifier.classes,
        "model_args": {**classifier.rebuild["model_args"], "num_classes": len(classifier.classes)},
        "pretrained_cfg": {key: config[key] for key in kept if key in config}
        | {"num_classes": len(classifier.classes), **data},
    }
    write_json(folder / CONFIG, content)
    write_weights(classifier.module, folder)


def _crop_pct(preprocess: Preprocessing) -> float:
    """The shortest crop_pct that makes timm resize to the box."""
    sides = zip(preprocess.size, preprocess.resize, strict=True)
    largest = min(side / box for side, box in sides)
    # 34 / (34 / 50) is below 50: the next smaller number is not
    nearest = [*(round(largest, digits) for digits in range(1, 9)), math.nextafter(largest, 0)]
    return next((p for p in nearest if p > 0 and _box(preprocess.size, p) == preprocess.resize), largest)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Lets timm's models of this block call scaled_dot_product_attention wherever they can, as `tap` needs it."""
    enabled, experimental = use_fused_attn(), use_fused_attn(experimental=True)
    set_fused_attn(True, experimental=True)
    try:
        yield
    finally:
        set_fused_attn(enabled, experimental)
