"""Load a classifier by name."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm

from clearhead.models.checkpoint_io import CONFIG, WEIGHTS, read_json
from clearhead.models.class_names import class_names
from clearhead.models.classifier import Classifier, LoadOptions
from clearhead.models.errors import ModelError, close_matches, library_errors
from clearhead.models.from_hf import load_hf
from clearhead.models.from_module import complete
from clearhead.models.from_timm import create_timm, fused_attention, load_timm
from clearhead.models.from_torchvision import create_torchvision, load_torchvision
from clearhead.models.from_zoo import load_zoo
from clearhead.models.preprocessing import Preprocessing, UnknownPreprocessing, box_of
from clearhead.zoo import MODELS as ZOO


def load_model(
    name: str | Path,
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | str | Path | None = None,
    image_size: int | None = None,
    pretrained: bool = True,
    preprocess: Preprocessing | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop_pct: float | None = None,
) -> Classifier:
    """Load a classifier by a name as in the documentation of `clearhead.models`: in eval mode, on the CPU, in float32.

    Args:
        name: what to load. The weights are loaded strictly: a missing or unexpected one is an error.
        num_classes: number of classes. If the weights have another number, they are loaded strictly all the same, and
            then the head alone is replaced by a random one, drawn from torch's global generator: timm's
            ``reset_classifier``, torchvision's last Linear, the classifiers of transformers'
            ``ignore_mismatched_sizes``.
        classes: names of the classes: a list, or a text file with one name per line. By default those that the
            checkpoint names; ImageNet's for timm and torchvision models of its sizes, the first word of each WordNet
            entry (with its id where two share that word); else ``class 0``, ...
        image_size: side of a square input other than the model's own. Position embeddings are resized where timm can;
            where a library cannot, this is an error. The crop keeps its fraction of the image.
        pretrained: False keeps the random initial weights of the architecture.
        preprocess: the preprocessing, in place of the one that belongs to the checkpoint.
        mean: mean of each channel, in place of the checkpoint's.
        std: standard deviation of each channel, in place of the checkpoint's.
        crop_pct: fraction of the resized image that the centre crop takes, in 0..1, in place of the checkpoint's.

    Raises:
        ModelError: an unknown name (with similar ones), weights that are unavailable or do not fit, a model without a
            head, another number of `classes` than of outputs, preprocessing that is unknown or unsupported.
    """
    name = str(name)
    names = None if classes is None else class_names(classes)
    if names is not None and num_classes not in (None, len(names)):
        raise ModelError(f"num_classes is {num_classes}, but classes has {len(names)} names")
    for argument, value in (("num_classes", num_classes), ("image_size", image_size)):
        if value is not None and value < 1:
            raise ModelError(f"{argument}: {value}; at least 1 is needed")
    if preprocess is not None and any(value is not None for value in (image_size, mean, std, crop_pct)):
        raise ModelError("preprocess: it includes image_size, mean, std and crop_pct; pass either it or those")
    size = preprocess.size if preprocess else (image_size, image_size) if image_size else None
    load, target = _loader(name)
    with library_errors(name), fused_attention():
        loaded = load(target, LoadOptions(num_classes, size, pretrained))
        chosen = preprocess or _with_changes(loaded.preprocess, mean, std, crop_pct)
    return complete(replace(loaded, name=name, module=loaded.module.eval(), preprocess=chosen), names)


def _with_changes(
    preprocess: Preprocessing, mean: Sequence[float] | None, std: Sequence[float] | None, crop_pct: float | None
) -> Preprocessing:
    """Return the preprocessing with what the user asked to change. Raises ModelError where it stays unknown."""
    if crop_pct is not None and not 0 < crop_pct <= 1:
        raise ModelError(f"crop_pct: {crop_pct}; a fraction above 0 and up to 1 is needed, such as 0.875")
    for argument, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != 3:
            raise ModelError(f"{argument}: {tuple(values)}; three numbers, one per channel, are needed")
    if isinstance(preprocess, UnknownPreprocessing) and (mean is None or std is None):
        raise ModelError(
            f"{preprocess.reason}. Pass mean and std of its channels, and image_size and crop_pct where they matter: "
            "--mean --std --size --crop-pct on the command line"
        )
    changes: dict[str, Any] = {name: tuple(v) for name, v in (("mean", mean), ("std", std)) if v is not None}
    if crop_pct is not None:
        changes["resize"] = box_of(preprocess.size, crop_pct)
    if isinstance(preprocess, UnknownPreprocessing):
        return Preprocessing(**({"size": preprocess.size, "resize": preprocess.resize} | changes))
    return replace(preprocess, **changes)


def _loader(name: str) -> tuple[Callable[[str, LoadOptions], Classifier], str]:
    """Return the function that loads a name, and its argument."""
    library, colon, target = name.partition(":")
    if colon and library in _LOADERS:
        if not target:
            raise ModelError(f"{name}: nothing after the colon; write {library}:NAME")
        return _LOADERS[library], target
    path = Path(name).expanduser()
    if path.is_dir():
        return _load_folder, str(path)
    if path.suffix in (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar"):
        raise ModelError(f"{name}: a checkpoint file does not name its architecture; write timm:ARCHITECTURE@{name}")
    if timm.is_model(name.partition(".")[0]):
        raise ModelError(f"{name}: the library is missing; write {'zoo' if name in ZOO else 'timm'}:{name}")
    raise ModelError(
        f"{name}: neither a folder that exists nor timm:NAME, torchvision:NAME, hf:ID or zoo:NAME"
        + close_matches(name, timm.list_models(), "timm:")
    )


def _load_folder(target: str, options: LoadOptions) -> Classifier:
    """Load a folder in any of the formats that `save_model` writes, or the checkpoint of a run folder."""
    folder = Path(target)
    if not (folder / CONFIG).is_file() and (folder / "config.yaml").is_file():  # a run of clearhead
        if not (folder / "checkpoint").is_dir():
            raise ModelError("the folder of a run that left no model: it has no checkpoint/")
        folder = folder / "checkpoint"
    config = read_json(folder / CONFIG)
    if "model_type" in config:
        return load_hf(str(folder), options)
    if config.get("library") == "torchvision":
        return _load_torchvision_folder(folder, config, options)
    if "architecture" in config:
        return create_timm(f"local-dir:{folder}", options, config.get("model_args", {}))
    if config.get("library") == "module":
        raise ModelError(
            "the weights of a module of your own: build it, load_state_dict("
            f"safetensors.torch.load_file({str(folder / WEIGHTS)!r})), and pass it to from_module"
        )
    raise ModelError(f"{CONFIG} names no architecture (timm, torchvision) and no model_type (Hugging Face)")


def _load_torchvision_folder(folder: Path, config: dict[str, Any], options: LoadOptions) -> Classifier:
    saved: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config["preprocessing"].items()}
    if "fit" in saved:  # written by version 0.1
        saved["crop_mode"] = {"cover": "center", "inside": "border"}.get(fit := saved.pop("fit"), fit)
    preprocess = Preprocessing(**saved)
    if options.size not in (None, preprocess.size):
        raise ModelError(f"image_size: {options.size[0]}; a saved torchvision model has a fixed size")
    loaded = create_torchvision(config["architecture"], preprocess, options, folder / WEIGHTS)
    new_head = len(loaded.classes) != len(config["label_names"])
    return loaded if new_head else replace(loaded, classes=tuple(config["label_names"]))


_LOADERS: dict[str, Callable[[str, LoadOptions], Classifier]] = {
    "timm": load_timm,
    "torchvision": load_torchvision,
    "hf": load_hf,
    "zoo": load_zoo,
}
