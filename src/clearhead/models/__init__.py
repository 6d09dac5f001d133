"""Any image classifier by name: its module, its preprocessing, its class names and its grid of tokens.

    timm:NAME           weights from the hub        timm:NAME@FILE          a local checkpoint in timm's parameter names
    torchvision:NAME    its default weights         torchvision:NAME@FILE   a local state dict
    hf:ID               a Hugging Face model        hf:FOLDER               the same from a folder
    zoo:NAME            `clearhead.zoo`'s, random   zoo:NAME@FILE           with the weights of a file
    FOLDER              what `save_model`, timm's `save_for_hf` or transformers' `save_pretrained` wrote

>>> model = load_model("timm:deit_tiny_patch16_224")
>>> logits = model(model.preprocess.image(image)[None])  # pixels in 0..1; 1 x 1000
>>> save_model(model, "my-model")  # an ordinary checkpoint: timm.create_model("local-dir:my-model", pretrained=True)

Names of architectures, checkpoint formats and preprocessing are the libraries' own. What is found out here without
them, by one probe forward, is how the tokens of a vision transformer lie on the image (`Grid`).
"""

import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from torch import nn

from clearhead.models.checkpoint_io import CONFIG, WEIGHTS, read_json
from clearhead.models.classifier import Classifier, Library, TokenGrid, Wanted
from clearhead.models.errors import ModelError, NoHeadError, cause, close_matches, library_errors
from clearhead.models.from_hf import load_hf, save_hf
from clearhead.models.from_timm import create_timm, fused_attention, load_timm, save_timm
from clearhead.models.from_torchvision import create_torchvision, load_torchvision, save_state
from clearhead.models.from_zoo import load_zoo
from clearhead.models.preprocessing import Preprocessing
from clearhead.models.token_grid import probe
from clearhead.zoo import MODELS as ZOO

__all__ = [
    "Classifier",
    "ModelError",
    "NoHeadError",
    "Preprocessing",
    "TokenGrid",
    "from_module",
    "load_model",
    "save_model",
]


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
    wanted = Wanted(num_classes, (image_size, image_size) if image_size else None, pretrained)
    with library_errors(name), fused_attention():
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
    if folder.exists() and not (folder.is_dir() and ((folder / CONFIG).is_file() or not any(folder.iterdir()))):
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
        raise ModelError(f"{folder} could not be written: {cause(error)}") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for rest in (unfinished, old):
            shutil.rmtree(rest, ignore_errors=True)


def _loader(name: str) -> tuple[Callable[[str, Wanted], Classifier], str]:
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
        raise ModelError(f"{name}: whose model is it? Write {'zoo' if name in ZOO else 'timm'}:{name}")
    raise ModelError(
        f"{name}: neither a folder that exists nor timm:NAME, torchvision:NAME, hf:ID or zoo:NAME"
        + close_matches(name, timm.list_models(), "timm:")
    )


def _load_folder(target: str, wanted: Wanted) -> Classifier:
    """A folder of any of the layouts `save_model` writes."""
    folder = Path(target)
    config = read_json(folder / CONFIG)
    if "model_type" in config:
        return load_hf(target, wanted)
    if config.get("library") == "torchvision":
        saved: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config["preprocessing"].items()}
        if "fit" in saved:  # written by version 0.1
            saved["crop_mode"] = {"cover": "center", "inside": "border"}.get(fit := saved.pop("fit"), fit)
        preprocess = Preprocessing(**saved)
        if wanted.size not in (None, preprocess.size):
            raise ModelError(f"image_size: {wanted.size[0]}; a saved torchvision model keeps its own")
        loaded = create_torchvision(config["architecture"], preprocess, wanted, folder / WEIGHTS)
        fresh = len(loaded.classes) != len(config["label_names"])
        return loaded if fresh else replace(loaded, classes=tuple(config["label_names"]))
    if "architecture" in config:
        return create_timm(f"local-dir:{folder}", wanted, config.get("model_args", {}))
    if config.get("library") == "module":
        raise ModelError(
            "the weights of a module of your own: build it, load_state_dict("
            f"safetensors.torch.load_file({str(folder / WEIGHTS)!r})), and give it to from_module"
        )
    raise ModelError(f"{CONFIG} names no architecture (timm, torchvision) and no model_type (Hugging Face)")


_LOADERS: dict[str, Callable[[str, Wanted], Classifier]] = {
    "timm": load_timm,
    "torchvision": load_torchvision,
    "hf": load_hf,
    "zoo": load_zoo,
}
_SAVERS: dict[Library, Callable[[Classifier, Path], None]] = {
    "timm": save_timm,
    "hf": save_hf,
    "torchvision": save_state,
    "module": save_state,
}


def _complete(classifier: Classifier, classes: Sequence[str] | None) -> Classifier:
    """The classifier with the grid its probe shows and the class names that were asked for."""
    try:
        outputs, grid = probe(classifier.module, classifier.preprocess.size)
    except Exception as error:  # whatever a model raises on an input it was not made for
        size = " x ".join(str(side) for side in classifier.preprocess.size)
        raise ModelError(
            f"{classifier.name}: the model does not run on a 1 x 3 x {size} image: {cause(error)}"
        ) from error
    names = classifier.classes if classes is None else tuple(classes)
    if outputs != len(names):
        raise ModelError(
            f"{classifier.name}: the model has {outputs} outputs, but there are {len(names)} class names"
            + ("" if classifier.library == "module" else f"; num_classes={len(names)} gives it a fresh head for them")
        )
    return replace(classifier, classes=names, grid=grid)
