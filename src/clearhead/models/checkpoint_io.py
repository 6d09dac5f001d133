"""The files of a checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from clearhead.models.errors import ModelError
from clearhead.models.preprocessing import Preprocessing

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def existing(file: str) -> Path:
    """A file the user named; ModelError if there is none."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise ModelError(f"no such file: {file}")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ModelError where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a {type(found).__name__}; an object is needed")
    return found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_weights(module: nn.Module, folder: Path) -> None:
    """The state dict as model.safetensors. Copied, for safetensors takes neither shared nor strided tensors."""
    state = {
        k: v.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for k, v in module.state_dict().items()
    }
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def require_same(readable: Preprocessing, preprocess: Preprocessing, library: str) -> None:
    """Raise unless a library would read back, from the config just written, the preprocessing meant."""
    if readable != preprocess:
        raise ModelError(f"a {library} config cannot say {preprocess}; the nearest is {readable}")
