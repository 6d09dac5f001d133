"""torchvision's models, and the folder `save_model` writes for them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torchvision
from timm.models import load_state_dict
from torch import nn

from clearhead.models.checkpoint_io import CONFIG, existing, write_json, write_weights
from clearhead.models.class_names import imagenet_names, numbered
from clearhead.models.classifier import Classifier, Wanted
from clearhead.models.errors import ModelError, close_matches
from clearhead.models.preprocessing import Preprocessing


def _torchvision_names() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def load_torchvision(target: str, wanted: Wanted) -> Classifier:
    """A torchvision model: NAME with its default weights, or NAME@FILE."""
    name, _, file = target.partition("@")
    if name not in _torchvision_names():
        raise ModelError(f"torchvision has no classifier {name!r}{close_matches(name, _torchvision_names())}")
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
    path = existing(file) if file else None
    return create_torchvision(name, preprocess, wanted, path, None if file else weights)


def create_torchvision(
    name: str, preprocess: Preprocessing, wanted: Wanted, file: Path | None, weights: Any = None
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
    names = imagenet_names("imagenet-1k") if outputs == 1000 else numbered(outputs)
    return Classifier(module, name, "torchvision", preprocess, names, rebuild={"architecture": name})


def _put_head(module: nn.Module, head: str, outputs: int) -> None:
    """A fresh Linear in the head's place, unless it has that many outputs already."""
    old: Any = module.get_submodule(head)
    if old.out_features != outputs:
        module.set_submodule(head, nn.Linear(old.in_features, outputs, bias=old.bias is not None))


def save_state(classifier: Classifier, folder: Path) -> None:
    """A state dict as model.safetensors, and a config.json of ours, for want of one of torchvision's."""
    content = {
        "library": classifier.library,
        **classifier.rebuild,
        "num_classes": len(classifier.classes),
        "label_names": classifier.classes,
        "preprocessing": asdict(classifier.preprocess),
    }
    write_json(folder / CONFIG, content)
    write_weights(classifier.module, folder)
