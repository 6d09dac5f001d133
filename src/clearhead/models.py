"""Any image classifier by name: its module, its preprocessing, its class names and its grid of tokens.

    timm:NAME           weights from the hub        timm:NAME@FILE          a local checkpoint in timm's parameter names
    torchvision:NAME    its default weights         torchvision:NAME@FILE   a local state dict
    hf:ID               a Hugging Face model        hf:FOLDER               the same from a folder
    FOLDER              what `save_model`, timm's `save_for_hf` or transformers' `save_pretrained` wrote

>>> model = load_model("timm:deit_tiny_patch16_224")
>>> logits = model(model.preprocess.image(picture)[None])  # 1 x 1000
>>> save_model(model, "my-model")  # an ordinary checkpoint: timm.create_model("local-dir:my-model", pretrained=True)

Names of architectures, checkpoint formats and preprocessing are the libraries' own. What is found out here without
them, by one probe forward, is how the tokens of a vision transformer lie on the image (`Grid`).
"""

import difflib
import functools
import json
import math
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from timm.layers import set_fused_attn, use_fused_attn
from timm.models import load_state_dict
from torch import Tensor, nn
from torch.func import functional_call

from clearhead.tap import Attention, NoAttentionSeen, Tap, tap

__all__ = ["Classifier", "Grid", "ModelError", "Preprocessing", "from_module", "load_model", "save_model"]

Library = Literal["timm", "hf", "torchvision", "module"]
Fit = Literal["cover", "squash", "inside"]

_MOST_PREFIX_TOKENS = 16
_WEIGHTS = "model.safetensors"
_CONFIG = "config.json"


class ModelError(ValueError):
    """A model that cannot be loaded, understood or saved; the message says what was found and what would work."""


@dataclass(frozen=True)
class Preprocessing:
    """What a model does to an RGB image before it sees it: scale, cut out the centre, normalise.

    Attributes:
        size: H, W of the model's input.
        resize: H, W of the box the image is scaled to before `size` is cut out of its centre.
        mean: of each channel, for values in 0..1.
        std: of each channel.
        fit: how it is scaled. ``cover``: the aspect ratio kept, the box just covered (timm's and torchvision's
            default); ``squash``: each side to the box's; ``inside``: the aspect ratio kept, all of the image inside the
            box, the rest filled with the mean (timm's crop_mode ``border``).
        interpolation: Pillow's filter, by its lower-case name.
        odd_margin: which pixel an odd margin is cut at: ``even`` rounds half a pixel to even (timm, torchvision),
            ``down`` rounds it down (Hugging Face).
    """

    size: tuple[int, int]
    resize: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Fit = "cover"
    interpolation: str = "bilinear"
    odd_margin: Literal["even", "down"] = "even"

    def __post_init__(self) -> None:
        if min(*self.size, *self.resize) < 1:
            raise ModelError(f"preprocessing: size {self.size} and resize {self.resize} must be at least 1 pixel")
        if self.fit not in get_args(Fit):
            raise ModelError(f"preprocessing: fit {self.fit!r} is unknown; there is {', '.join(get_args(Fit))}")
        if self.fit != "inside" and (self.resize[0] < self.size[0] or self.resize[1] < self.size[1]):
            raise ModelError(f"preprocessing: no {self.size} can be cut out of {self.resize}; resize must be as large")
        if self.interpolation.upper() not in Image.Resampling.__members__:
            known = ", ".join(Image.Resampling.__members__).lower()
            raise ModelError(f"preprocessing: interpolation {self.interpolation!r} is unknown; there is {known}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0 for value in self.std):
            raise ModelError(f"preprocessing: mean {self.mean}, std {self.std}; three numbers each are needed, std > 0")

    def image(self, image: Image.Image, /) -> Tensor:
        """A picture as the model sees it: 3 x H x W floats, normalised."""
        fill = tuple(round(255 * value) for value in self.mean)
        fitted = self._fitted(image.convert("RGB"), Image.Resampling[self.interpolation.upper()], fill)
        pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous()
        return pixels.float().div(255).sub_(_per_channel(self.mean)).div_(_per_channel(self.std))

    def mask(self, mask: Image.Image, /) -> Tensor:
        """A mask of mode L by the same geometry (bilinear): 1 x H x W floats in 0..1, 0 where there is no image."""
        fitted = self._fitted(mask.convert("L"), Image.Resampling.BILINEAR, 0)
        return torch.from_numpy(np.array(fitted))[None].float().div(255)

    def picture(self, image: Tensor) -> np.ndarray:
        """The picture a normalised image (3 x H x W) shows, H x W x 3 of uint8."""
        values = image.detach().float().cpu() * _per_channel(self.std) + _per_channel(self.mean)
        return values.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()

    def _fitted(self, image: Image.Image, filter_: Image.Resampling, fill: Any) -> Image.Image:
        """The image scaled to the box, and its centre of the model's size; `fill` where that reaches beyond it."""
        scaled = image.resize(self._scaled(image.width, image.height), filter_)
        left, top = self._margin(scaled.width - self.size[1]), self._margin(scaled.height - self.size[0])
        canvas = Image.new(image.mode, (self.size[1], self.size[0]), fill)
        canvas.paste(scaled, (-left, -top))
        return canvas

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        """The width and height the image is scaled to, rounded as torchvision (square box) and timm (else) do it."""
        tall, wide = self.resize
        if self.fit == "squash":
            return wide, tall
        if self.fit == "cover" and tall == wide:
            short = min(width, height)
            return max(int(tall * width / short), 1), max(int(tall * height / short), 1)
        ratio = (min if self.fit == "cover" else max)(height / tall, width / wide)
        return max(round(width / ratio), 1), max(round(height / ratio), 1)

    def _margin(self, spare: int) -> int:
        """How many of the `spare` pixels are cut off before the centre; negative: how many are missing."""
        if spare < 0:
            return -(-spare // 2)
        return round(spare / 2) if self.odd_margin == "even" else spare // 2


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


@dataclass(frozen=True)
class Grid:
    """How a vision transformer's N = prefix + height * width tokens lie on the image, row by row.

    `prefix` tokens (CLS, distillation, registers) come before the patches. `readout` is what the head reads: ``cls``,
    the first token, or ``mean``, the patches' average. A head that reads the first token and others besides it counts
    as ``cls``: DeiT's distilled heads (first and second token), DINOv2's (first token, and the average of the patches).
    One that averages all tokens, the first like any other, counts as ``mean``.
    """

    height: int
    width: int
    prefix: int
    readout: Literal["cls", "mean"]


@dataclass(frozen=True)
class Classifier:
    """An image classifier and what is needed to use it: called on B x 3 x H x W, it gives logits, B x classes.

    Attributes:
        module: the model itself, in eval mode when loaded.
        name: what it was loaded as.
        library: whose it is, and so how `save_model` writes it.
        preprocess: from a picture to its input.
        classes: the names of its outputs, in order.
        grid: how its tokens lie on the image; None where they form no one grid in which all attend to all: windowed
            or hierarchical attention, tokens not made by a convolution, no attention at all. ``dataclasses.replace``
            gives a grid that is known better.
        rebuild: the architecture and its arguments, for `save_model`.
    """

    module: nn.Module
    name: str
    library: Library
    preprocess: Preprocessing
    classes: tuple[str, ...]
    grid: Grid | None = None
    rebuild: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits, B x classes."""
        return _logits(self.module(images))


def load_model(
    name: str,
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    image_size: int | None = None,
    pretrained: bool = True,
) -> Classifier:
    """Load a classifier by a name as at the head of this file, in eval mode on the CPU, in float32.

    Args:
        name: what to load. The weights are loaded strictly: one missing or left over is an error.
        num_classes: number of classes. Where it is not that of the weights, these are loaded strictly all the same,
            and then the head alone is put afresh, drawn from torch's global generator: timm's ``reset_classifier``,
            torchvision's last Linear, the classifiers of transformers' ``ignore_mismatched_sizes``.
        classes: names of the classes. Otherwise those the checkpoint names; ImageNet's for timm and torchvision models
            of its sizes, the first word of each WordNet entry (its id is added where two share that); else
            ``class 0``, ...
        image_size: side of a square input other than the model's own. Position embeddings are resized where timm does
            it; where a library cannot, this is an error. The margin around the centre crop keeps its share.
        pretrained: False keeps the random weights the architecture starts with.

    Raises:
        ModelError: an unknown name (with close matches), weights that cannot be had or do not fit, a model without a
            head, `classes` that are not as many as its outputs, preprocessing that cannot be understood.
    """
    if classes is not None and len(set(classes)) != len(classes):
        twice = next(c for c, n in Counter(classes).items() if n > 1)
        raise ModelError(f"classes: {twice!r} is named twice; each class needs a name of its own")
    if classes is not None and num_classes not in (None, len(classes)):
        raise ModelError(f"num_classes is {num_classes}, but classes has {len(classes)} names")
    for argument, value in (("num_classes", num_classes), ("image_size", image_size)):
        if value is not None and value < 1:
            raise ModelError(f"{argument}: {value}; at least 1 is needed")
    load, target = _loader(name)
    wanted = _Wanted(num_classes, (image_size, image_size) if image_size else None, pretrained)
    with _library_errors(name), _fused_attention():
        loaded = load(target, wanted)
    return _complete(replace(loaded, name=name, module=loaded.module.eval()), classes)


def from_module(
    module: nn.Module, *, preprocess: Preprocessing, classes: Sequence[str], name: str = "module"
) -> Classifier:
    """A classifier from any module that takes B x 3 x H x W and gives logits (or an output with ``.logits``).

    Its tokens are found as for a loaded model; `save_model` writes its state dict. Raises ModelError if it does not run
    on the size of `preprocess`, or has not as many outputs as `classes`.
    """
    return _complete(Classifier(module, name, "module", preprocess, tuple(classes)), classes)


def save_model(classifier: Classifier, folder: str | Path) -> None:
    """Write a classifier as an ordinary checkpoint of its library, whole or not at all.

    timm: the layout of its hub (``timm.create_model("local-dir:FOLDER", pretrained=True)``). hf: ``save_pretrained``
    and the image processor's config. torchvision, module: the state dict in model.safetensors, and a config.json.
    ``load_model(str(folder))`` reads all of them but the last, whose module only its owner can build. A checkpoint
    already there is replaced. Raises ModelError, also for a folder that holds something else.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and ((folder / _CONFIG).is_file() or not any(folder.iterdir()))):
        raise ModelError(f"{folder} exists and is no checkpoint; give a new folder, an empty one, or a checkpoint's")
    unfinished, old = (folder.with_name(f".{folder.name}.{uuid.uuid4().hex}") for _ in range(2))
    try:
        unfinished.mkdir(parents=True)
        _SAVERS[classifier.library](classifier, unfinished)
        if folder.exists():
            folder.rename(old)
        unfinished.rename(folder)
    except ModelError:
        raise
    except Exception as error:  # a full disk is an OSError here, a SafetensorError there
        raise ModelError(f"{folder} could not be written: {_cause(error)}") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for rest in (unfinished, old):
            shutil.rmtree(rest, ignore_errors=True)


# Names


@dataclass(frozen=True)
class _Wanted:
    """What `load_model` was asked for besides the name."""

    num_classes: int | None
    size: tuple[int, int] | None
    pretrained: bool

    def fresh_head(self, outputs: int) -> int | None:
        """The outputs of the fresh head that has to replace one of so many; None where that one stays."""
        return None if self.num_classes == outputs else self.num_classes


def _loader(name: str) -> tuple[Callable[[str, _Wanted], Classifier], str]:
    """The function that loads a name, and what it takes."""
    library, colon, target = name.partition(":")
    if colon and library in _LOADERS:
        if not target:
            raise ModelError(f"{name}: nothing after the colon; write {library}:NAME")
        return _LOADERS[library], target
    path = Path(name).expanduser()
    if path.is_dir():
        return _load_folder, str(path)
    if path.suffix in (".safetensors", ".pth", ".pt", ".bin"):
        raise ModelError(f"{name}: a checkpoint file does not say its architecture; write timm:ARCHITECTURE@{name}")
    if timm.is_model(name.partition(".")[0]):
        raise ModelError(f"{name}: whose model is it? Write timm:{name}")
    raise ModelError(
        f"{name}: neither a folder that exists nor timm:NAME, torchvision:NAME or hf:ID"
        + _close(name, timm.list_models(), "timm:")
    )


def _close(name: str, known: Sequence[str], prefix: str = "") -> str:
    matches = [prefix + match for match in difflib.get_close_matches(name, known, n=4)]
    return f"; did you mean {', '.join(matches)}?" if matches else ""


def _existing(file: str) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():
        raise ModelError(f"no such file: {file}")
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a {type(found).__name__}; an object is needed")
    return found


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _library_errors(name: str) -> Iterator[None]:
    """Whatever a library raises while it loads becomes a ModelError in one line."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error.__cause__
    except OSError as error:  # also what the hubs' clients raise without a network
        raise ModelError(
            f"{name}: its weights or config could not be had: {_cause(error)}. Without a network, give local files: "
            "timm:NAME@FILE, torchvision:NAME@FILE, hf:FOLDER or FOLDER; or pretrained=False for random weights"
        ) from error
    except Exception as error:  # timm, torchvision and transformers raise nearly anything
        raise ModelError(f"{name}: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}{'...' if len(text) > 500 else ''}"


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Lets timm's models of this block call scaled_dot_product_attention wherever they can, as `tap` needs it."""
    enabled, experimental = use_fused_attn(), use_fused_attn(experimental=True)
    set_fused_attn(True, experimental=True)
    try:
        yield
    finally:
        set_fused_attn(enabled, experimental)


# timm


def _load_timm(target: str, wanted: _Wanted) -> Classifier:
    architecture, _, file = target.partition("@")
    base, _, tag = architecture.partition(".")
    if not timm.is_model(base):
        raise ModelError(f"timm has no architecture {base!r}{_close(base, timm.list_models())}")
    tags = [n for n in timm.list_pretrained(f"{base}.*") if n.startswith(f"{base}.")]
    if tag and architecture not in tags:
        raise ModelError(f"timm has no weights {architecture!r}; there is {', '.join(tags) or 'none'}")
    if not file:
        return _create_timm(architecture, wanted)
    if not wanted.pretrained:
        raise ModelError(f"pretrained=False leaves nothing to do for {file}; write timm:{architecture}")
    overlay: dict[str, Any] = {"file": str(_existing(file)), "custom_load": False}
    heads = timm.get_pretrained_cfg(architecture).classifier
    head = heads if isinstance(heads, str) or not heads else heads[0]
    weight = load_state_dict(overlay["file"]).get(f"{head}.weight")
    overlay["num_classes"] = 0 if weight is None else len(weight)
    return _create_timm(architecture, wanted, pretrained_cfg_overlay=overlay)


def _create_timm(name: str, wanted: _Wanted, model_args: Mapping[str, Any] | None = None, **options: Any) -> Classifier:
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
        raise ModelError("these weights have no classification head; give num_classes for a fresh one")
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
        _numbered(module.num_classes) if fresh else _timm_names(config, module.num_classes),
        rebuild={"architecture": config["architecture"], "model_args": kept},
    )


def _fixed_size(name: str) -> bool:
    """Whether timm builds this architecture for one input size."""
    source, colon, folder = name.partition(":")
    if colon:
        return bool(_read_json(Path(folder) / _CONFIG).get("pretrained_cfg", {}).get("fixed_input_size"))
    config = timm.get_pretrained_cfg(source)
    return config is not None and config.fixed_input_size


_FITS: dict[str, Fit] = {"center": "cover", "squash": "squash", "border": "inside"}


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
        fit=_FITS[data["crop_mode"]],
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
    return _imagenet_names(subset) if subset else _numbered(count)


@functools.cache
def _imagenet_names(subset: str) -> tuple[str, ...]:
    """The first lemma of each class, and its WordNet id where another class has the same (case aside)."""
    info = ImageNetInfo(subset)
    names = [description.split(",")[0] for description in info.label_descriptions()]
    taken = Counter(name.casefold() for name in names)
    ids = info.label_names()
    return tuple(n if taken[n.casefold()] == 1 else f"{n} ({i})" for n, i in zip(names, ids, strict=True))


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"class {index}" for index in range(count))


def _save_timm(classifier: Classifier, folder: Path) -> None:
    preprocess = classifier.preprocess
    module: Any = classifier.module
    config = module.pretrained_cfg
    data = {
        "input_size": (3, *preprocess.size),
        "interpolation": preprocess.interpolation,
        "crop_pct": _crop_pct(preprocess),
        "crop_mode": next(mode for mode, fit in _FITS.items() if fit == preprocess.fit),
        "mean": preprocess.mean,
        "std": preprocess.std,
    }
    _require_same(_timm_preprocessing(data), preprocess, "timm")
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
    _write_json(folder / _CONFIG, content)
    _write_weights(classifier.module, folder)


def _crop_pct(preprocess: Preprocessing) -> float:
    """The shortest crop_pct that makes timm resize to the box."""
    sides = zip(preprocess.size, preprocess.resize, strict=True)
    largest = min(side / box for side, box in sides)
    rounded = [round(largest, digits) for digits in range(1, 9)]
    return next((p for p in rounded if p > 0 and _box(preprocess.size, p) == preprocess.resize), largest)


def _require_same(readable: Preprocessing, preprocess: Preprocessing, library: str) -> None:
    if readable != preprocess:
        raise ModelError(f"a {library} config cannot say {preprocess}; the nearest is {readable}")


# torchvision


def _torchvision_names() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def _load_torchvision(target: str, wanted: _Wanted) -> Classifier:
    name, _, file = target.partition("@")
    if name not in _torchvision_names():
        raise ModelError(f"torchvision has no classifier {name!r}{_close(name, _torchvision_names())}")
    if file and not wanted.pretrained:
        raise ModelError(f"pretrained=False leaves nothing to do for {file}; write torchvision:{name}")
    weights = torchvision.models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    side = preset.crop_size[0]
    size = wanted.size or (side, side)
    box = round(preset.resize_size[0] * size[0] / side)
    preprocess = Preprocessing(
        size, (box, box), tuple(preset.mean), tuple(preset.std), interpolation=preset.interpolation.value
    )
    path = _existing(file) if file else None
    return _create_torchvision(name, preprocess, wanted, path, None if file else weights)


def _create_torchvision(
    name: str, preprocess: Preprocessing, wanted: _Wanted, file: Path | None, weights: Any = None
) -> Classifier:
    """A torchvision model with the weights of a file, with torchvision's, or with random ones."""
    sized = {"image_size": preprocess.size[0]} if name.startswith("vit_") else {}
    module = torchvision.models.get_model(name, weights=weights if wanted.pretrained else None, **sized)
    head = next((n for n, m in reversed(list(module.named_modules())) if isinstance(m, nn.Linear)), "")
    if file and wanted.pretrained:
        state = load_state_dict(str(file))
        weight = state.get(f"{head}.weight")
        if weight is not None:
            _put_head(module, head, len(weight))
        module.load_state_dict(state)
    outputs = module.get_submodule(head).out_features if head else 1000
    if fresh := wanted.fresh_head(outputs):
        if not head:
            raise ModelError("num_classes: this model has no Linear head to replace")
        _put_head(module, head, fresh)
        outputs = fresh
    names = _imagenet_names("imagenet-1k") if outputs == 1000 else _numbered(outputs)
    return Classifier(module, name, "torchvision", preprocess, names, rebuild={"architecture": name})


def _put_head(module: nn.Module, head: str, outputs: int) -> None:
    """A fresh Linear in the head's place, unless it has that many outputs already."""
    old: Any = module.get_submodule(head)
    if old.out_features != outputs:
        module.set_submodule(head, nn.Linear(old.in_features, outputs, bias=old.bias is not None))


def _save_state(classifier: Classifier, folder: Path) -> None:
    content = {
        "library": classifier.library,
        **classifier.rebuild,
        "num_classes": len(classifier.classes),
        "label_names": classifier.classes,
        "preprocessing": asdict(classifier.preprocess),
    }
    _write_json(folder / _CONFIG, content)
    _write_weights(classifier.module, folder)


def _write_weights(module: nn.Module, folder: Path) -> None:
    """The state dict as model.safetensors. Copied, for safetensors takes neither shared nor strided tensors."""
    state = {
        k: v.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for k, v in module.state_dict().items()
    }
    save_file(state, folder / _WEIGHTS, metadata={"format": "pt"})


# Hugging Face


def _load_hf(target: str, wanted: _Wanted) -> Classifier:
    try:
        import transformers
    except ImportError:
        raise ModelError("transformers is not installed; pip install clearhead[hf]") from None
    path = Path(target).expanduser()
    source = str(path) if path.is_dir() else target
    auto = transformers.AutoModelForImageClassification
    config = transformers.AutoConfig.from_pretrained(source)
    fresh = wanted.fresh_head(config.num_labels)
    if fresh:
        config.num_labels = fresh  # which also numbers its id2label anew
    # "sdpa" is also what transformers takes by default, but only where the model has it: a CNN must not fail here.
    if wanted.pretrained:
        module, found = auto.from_pretrained(
            source, config=config, ignore_mismatched_sizes=True, output_loading_info=True
        )
        _require_loaded(module, found, wanted.num_classes is not None)
    else:
        module = auto.from_config(config)
    preprocess = _hf_preprocessing(_image_processor(transformers, source))
    if wanted.size not in (None, preprocess.size):
        raise ModelError(f"image_size: {wanted.size[0]}; a Hugging Face model keeps its own, {preprocess.size}")
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    if fresh or names == [f"LABEL_{index}" for index in range(config.num_labels)]:
        names = list(_numbered(config.num_labels))
    return Classifier(module.float(), target, "hf", preprocess, tuple(names))


def _require_loaded(module: Any, found: Mapping[str, Any], fresh: bool) -> None:
    """Raise unless the checkpoint held every parameter, those of a fresh head (Linear of as many outputs) aside."""
    mismatched = [key if isinstance(key, str) else key[0] for key in found["mismatched_keys"]]
    missing = {*found["missing_keys"], *mismatched}
    if fresh:
        outputs = module.config.num_labels
        heads = {n for n, m in module.named_modules() if isinstance(m, nn.Linear) and m.out_features == outputs}
        missing = {key for key in missing if key.rpartition(".")[0] not in heads}
    if missing:
        raise ModelError(
            f"the checkpoint lacks, or has in another shape, {', '.join(sorted(missing)[:4])}"
            + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
            + ("" if fresh else "; if that is the head, give num_classes for a fresh one")
        )


def _image_processor(transformers: Any, source: str) -> Any:
    try:
        return transformers.AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelError(f"no image processor (preprocessor_config.json) could be read: {_cause(error)}") from error


def _hf_preprocessing(processor: Any) -> Preprocessing:
    """The preprocessing of a Hugging Face image processor, proved on one image against the processor itself."""
    preprocess = _from_processor_config(processor.to_dict())
    noise = np.random.default_rng(0).integers(0, 256, (300, 401, 3), dtype=np.uint8)
    wanted = torch.as_tensor(processor(images=Image.fromarray(noise), return_tensors="pt")["pixel_values"][0])
    ours = preprocess.image(Image.fromarray(noise))
    # Noise moved by one pixel is off by 40 levels; the processors' filters are Pillow's, or torchvision's, off by one.
    if wanted.shape != ours.shape or ((wanted - ours) * _per_channel(preprocess.std)).abs().mean() > 4 / 255:
        raise ModelError(
            f"its image processor {type(processor).__name__} does something besides scaling, centre crop and "
            "normalising; load the module yourself and give from_module its preprocessing"
        )
    return preprocess


def _from_processor_config(config: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing a processor's config describes."""
    size = {k: v for k, v in (config.get("size") or {}).items() if v is not None}
    fit: Fit
    crop = config.get("crop_size") if config.get("do_center_crop") else None
    if set(size) == {"shortest_edge"}:
        edge = size["shortest_edge"]
        box, fit = (edge, edge), "cover"
        if config.get("crop_pct"):  # ConvNext's: `size` is that of the crop, and from 384 on it is squashed
            crop, fit = {"height": edge, "width": edge}, "cover" if edge < 384 else "squash"
            box = (int(edge / config["crop_pct"]),) * 2 if edge < 384 else box
    elif set(size) == {"height", "width"}:
        box, fit = (size["height"], size["width"]), "squash"
    else:
        box, fit = None, "squash"
    if not config.get("do_resize") or box is None or (fit == "cover" and not crop):
        told = {key: config.get(key) for key in ("do_resize", "size", "do_center_crop", "crop_size")}
        raise ModelError(f"its image processor does not bring every image to one size: {told}")
    normalise = config.get("do_normalize")
    return Preprocessing(
        size=(crop["height"], crop["width"]) if crop else box,
        resize=box,
        mean=tuple(config["image_mean"]) if normalise else (0.0, 0.0, 0.0),
        std=tuple(config["image_std"]) if normalise else (1.0, 1.0, 1.0),
        fit=fit,
        interpolation=Image.Resampling(config["resample"]).name.lower(),
        odd_margin="down",
    )


def _save_hf(classifier: Classifier, folder: Path) -> None:
    preprocess = classifier.preprocess
    (height, width), (tall, wide) = preprocess.size, preprocess.resize
    processor = {
        "image_processor_type": "CLIPImageProcessor",  # the plain one: scaling, centre crop, normalising
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": tall} if preprocess.fit == "cover" else {"height": tall, "width": wide},
        "resample": Image.Resampling[preprocess.interpolation.upper()].value,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": preprocess.mean,
        "image_std": preprocess.std,
    }
    _require_same(_from_processor_config(processor), preprocess, "Hugging Face")
    module: Any = classifier.module
    module.save_pretrained(folder)
    names = dict(enumerate(classifier.classes))
    config = _read_json(folder / _CONFIG) | {"id2label": names, "label2id": {n: i for i, n in names.items()}}
    _write_json(folder / _CONFIG, config)
    _write_json(folder / "preprocessor_config.json", processor)


# Folders


def _load_folder(target: str, wanted: _Wanted) -> Classifier:
    """A folder of any of the layouts `save_model` writes."""
    folder = Path(target)
    config = _read_json(folder / _CONFIG)
    if "model_type" in config:
        return _load_hf(target, wanted)
    if config.get("library") == "torchvision":
        saved: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config["preprocessing"].items()}
        preprocess = Preprocessing(**saved)
        if wanted.size not in (None, preprocess.size):
            raise ModelError(f"image_size: {wanted.size[0]}; a saved torchvision model keeps its own")
        loaded = _create_torchvision(config["architecture"], preprocess, wanted, folder / _WEIGHTS)
        fresh = len(loaded.classes) != len(config["label_names"])
        return loaded if fresh else replace(loaded, classes=tuple(config["label_names"]))
    if "architecture" in config:
        return _create_timm(f"local-dir:{folder}", wanted, config.get("model_args", {}))
    if config.get("library") == "module":
        raise ModelError(
            "the weights of a module of your own: build it, load_state_dict("
            f"safetensors.torch.load_file({str(folder / _WEIGHTS)!r})), and give it to from_module"
        )
    raise ModelError(f"{_CONFIG} names no architecture (timm, torchvision) and no model_type (Hugging Face)")


_LOADERS: dict[str, Callable[[str, _Wanted], Classifier]] = {
    "timm": _load_timm,
    "torchvision": _load_torchvision,
    "hf": _load_hf,
}
_SAVERS: dict[Library, Callable[[Classifier, Path], None]] = {
    "timm": _save_timm,
    "hf": _save_hf,
    "torchvision": _save_state,
    "module": _save_state,
}


# The probe


def _complete(classifier: Classifier, classes: Sequence[str] | None) -> Classifier:
    """The classifier with the grid its probe shows and the class names that were asked for."""
    try:
        outputs, grid = _probe(classifier.module, classifier.preprocess.size)
    except Exception as error:  # whatever a model raises on an input it was not made for
        size = " x ".join(str(side) for side in classifier.preprocess.size)
        raise ModelError(
            f"{classifier.name}: the model does not run on a 1 x 3 x {size} image: {_cause(error)}"
        ) from error
    names = classifier.classes if classes is None else tuple(classes)
    if outputs != len(names):
        raise ModelError(
            f"{classifier.name}: the model has {outputs} outputs, but there are {len(names)} class names"
            + ("" if classifier.library == "module" else f"; num_classes={len(names)} gives it a fresh head for them")
        )
    return replace(classifier, classes=names, grid=grid)


def _logits(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


def _probe(module: nn.Module, size: tuple[int, int]) -> tuple[int, Grid | None]:
    """The number of outputs and the token grid, from one forward of a random image; it leaves no trace.

    Parameters that are all zero (a fresh head's, for one) are stood in for by random ones, as they let no gradient
    through that would tell what the head reads.
    """
    like = next(module.parameters(), torch.zeros(1))
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(like)

    patches: list[tuple[int, int]] = []
    record = Tap()
    gradient, outputs = None, 0

    def note(_module: nn.Module, _args: object, output: Tensor) -> None:
        if not len(record):
            patches.append((output.shape[-2], output.shape[-1]))

    handles = [m.register_forward_hook(note) for m in module.modules() if isinstance(m, nn.Conv2d)]
    try:
        with _undisturbed(module, like.device), tap(module, needs_grad=True) as record:
            stand_ins = {name: 0.02 * draw(*p.shape) for name, p in module.named_parameters() if not p.any()}
            logits = _logits(functional_call(module, stand_ins, (draw(1, 3, *size),)))
            outputs = logits.shape[-1]
            if len(record):
                gradient = torch.autograd.grad(logits.sum(), record.outputs[-1], allow_unused=True)[0]
    except NoAttentionSeen:
        return outputs, None
    finally:
        for handle in handles:
            handle.remove()
    if gradient is None or not patches:
        return outputs, None
    return outputs, _grid(list(record), gradient, patches[-1])


@contextmanager
def _undisturbed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """A block with gradients and in eval mode, after which mode and random state are as before."""
    modes = [(m, m.training) for m in module.modules()]
    cuda = [device] if device.type == "cuda" else []
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(cuda):
            module.eval()
            yield
    finally:
        for m, training in modes:
            m.training = training


def _grid(layers: Sequence[Attention], gradient: Tensor, patches: tuple[int, int]) -> Grid | None:
    """The grid, where all layers attend from all N tokens to all N, and the last convolution before them made N.

    What the head reads shows in the gradient (1 x H x N x d) at the last layer's output, after which tokens do not mix
    any more: it is zero at what is not read. A token read alone outweighs each of n averaged ones about n times.
    """
    tokens = layers[0].q.shape[-2]
    if any(a.q.ndim != 4 or len(a.q) != 1 or {a.q.shape[-2], a.k.shape[-2]} != {tokens} for a in layers):
        return None
    prefix = tokens - math.prod(patches)
    if not 0 <= prefix <= _MOST_PREFIX_TOKENS:
        return None
    weight = gradient.float().square().sum((0, 1, 3)).sqrt()
    alone = prefix > 0 and weight[0] > weight[prefix:].mean() * math.sqrt(math.prod(patches))
    return Grid(*patches, prefix, "cls" if alone else "mean")
