"""Models of torchvision, and the folder that `save_model` writes for them."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import torchvision
from torch import nn

from clearhead.models.checkpoint_io import CONFIG, existing, read_state, write_json, write_weights
from clearhead.models.class_names import imagenet_names, numbered
from clearhead.models.classifier import Classifier, LoadOptions
from clearhead.models.errors import ModelError, close_matches
from clearhead.models.hub import hub_access
from clearhead.models.preprocessing import Preprocessing


def load_torchvision(target: str, options: LoadOptions) -> Classifier:
    """Load a torchvision model: NAME with its default weights, or NAME@FILE."""
    name, _, file = target.partition("@")
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise ModelError(f"torchvision has no classifier {name!r}{close_matches(name, names)}")
    if file and not options.pretrained:
        raise ModelError(f"pretrained=False contradicts {file}; write torchvision:{name}")
    weights = torchvision.models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    side = preset.crop_size[0]
    size = options.size or (side, side)
    box = round(preset.resize_size[0] * size[0] / side)
    preprocess = Preprocessing(
        size, (box, box), tuple(preset.mean), tuple(preset.std), interpolation=preset.interpolation.value
    )
    if file:
        return create_torchvision(name, preprocess, options, existing(file))
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name
    if not options.pretrained or cached.is_file():
        return create_torchvision(name, preprocess, options, None, weights)
    with hub_access(weights.url) as offline:
        if offline:
            raise OSError
        return create_torchvision(name, preprocess, options, None, weights)


def create_torchvision(
    name: str, preprocess: Preprocessing, options: LoadOptions, file: Path | None, weights: Any = None
) -> Classifier:
    """Create a torchvision model with the weights of a file, with torchvision's, or with random ones."""
    sized = {"image_size": preprocess.size[0]} if name.startswith("vit_") else {}
    module: nn.Module = torchvision.models.get_model(name, weights=weights if options.pretrained else None, **sized)
    head = next((n for n, m in reversed(list(module.named_modules())) if isinstance(m, nn.Linear)), "")
    entry = ""
    if file and options.pretrained:
        state, entry = read_state(file)
        weight = state.get(f"{head}.weight")
        if weight is not None:
            _put_head(module, head, len(weight))
        module.load_state_dict(state)
    outputs = _linear(module, head).out_features if head else 1000
    if new_head := options.new_head(outputs):
        if not head:
            raise ModelError("num_classes: this model has no Linear head to replace")
        _put_head(module, head, new_head)
        outputs = new_head
    names = imagenet_names("imagenet-1k") if outputs == 1000 else numbered(outputs)
    loaded = Classifier(module, name, "torchvision", preprocess, names, rebuild={"architecture": name})
    return replace(loaded, weights=entry)


def _linear(module: nn.Module, name: str) -> nn.Linear:
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def _put_head(module: nn.Module, head: str, outputs: int) -> None:
    """Put a new Linear in place of the head, unless that has so many outputs already."""
    old = _linear(module, head)
    if old.out_features != outputs:
        module.set_submodule(head, nn.Linear(old.in_features, outputs, bias=old.bias is not None))


def save_state(classifier: Classifier, folder: Path) -> None:
    """Write the state dict as model.safetensors, and a config.json of clearhead's own; torchvision has none."""
    content = {
        "library": classifier.library,
        **classifier.rebuild,
        "num_classes": len(classifier.classes),
        "label_names": classifier.classes,
        "preprocessing": asdict(classifier.preprocess),
    }
    write_json(folder / CONFIG, content)
    write_weights(classifier.module, folder)
