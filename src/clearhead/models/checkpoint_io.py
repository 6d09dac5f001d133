"""The files of a checkpoint."""

import argparse
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clearhead.models.errors import ModelError
from clearhead.models.preprocessing import Preprocessing

WEIGHTS = "model.safetensors"
CONFIG = "config.json"

_ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
"""Where training scripts put the weights: those of timm, whose averaged weights (EMA) come first, and of others."""
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""What DataParallel, torch.compile and Lightning modules put before the names of parameters."""
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float32", "float64", "int64")),
    *((np.float64(0).__reduce__()[0], f"numpy.{package}.multiarray.scalar") for package in ("core", "_core")),
]
"""Types besides tensors that training scripts save, whose construction runs no other code."""


def existing(file: str) -> Path:
    """Return the path of a file that the user named. Raises ModelError if it does not exist."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise ModelError(f"no such file: {file}")
    return path


def read_state(file: Path) -> tuple[dict[str, Tensor], str]:
    """Return the state dict in a checkpoint file, and the entry of the file that was read (empty: the whole file).

    Reads safetensors and what ``torch.save`` wrote: a state dict, or a checkpoint of a training script (timm, with
    averaged weights preferred; Lightning; others) that has one in it. Prefixes of DataParallel, torch.compile and
    Lightning are removed. Pickles are read with ``weights_only=True``. Raises ModelError.
    """
    if file.suffix == ".safetensors":
        checkpoint: Any = load_file(file)
    else:
        try:
            with torch.serialization.safe_globals(_HARMLESS):
                checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ModelError(
                f"{file} is no checkpoint that can be read without running the code in it ({_first_line(error)}). If "
                "you trust it, write its state dict alone: torch.save(torch.load(FILE, weights_only=False)"
                "['state_dict'], NEW_FILE)"
            ) from error
    if not isinstance(checkpoint, Mapping):
        raise ModelError(f"{file} holds a {type(checkpoint).__name__}; a state dict is needed")
    entry = next((name for name in _ENTRIES if isinstance(checkpoint.get(name), Mapping)), "")
    state: Any = checkpoint[entry] if entry else checkpoint
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(
            f"{file} holds no state dict, only {', '.join(map(str, [*checkpoint][:5]))}; needed are tensors by "
            f"parameter name, alone or under {', '.join(_ENTRIES)}"
        )
    return _without_prefixes(dict(state), "pytorch-lightning_version" in checkpoint), entry


def _without_prefixes(state: dict[str, Tensor], lightning: bool) -> dict[str, Tensor]:
    """Return a state dict without what wraps all its names; of a Lightning module, the tensors of its model alone."""
    for prefix in _PREFIXES:
        inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if inner and (lightning or len(inner) == len(state)):
            return _without_prefixes(inner, lightning)
    return state


def _first_line(error: Exception) -> str:
    """Return what torch did not read: the sentence of its message that names it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "WeightsUnpickler error" in line or "Unsupported" in line), lines[0])[:200]


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises ModelError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}; an object is needed")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_weights(module: nn.Module, folder: Path) -> None:
    """Write the state dict as model.safetensors. Copied, because safetensors rejects shared and strided tensors."""
    state = {
        k: v.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for k, v in module.state_dict().items()
    }
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def require_same(readable: Preprocessing, preprocess: Preprocessing, library: str) -> None:
    """Raise ModelError unless a library would read the intended preprocessing from the config written for it."""
    if readable != preprocess:
        raise ModelError(f"a {library} config cannot express {preprocess}; the nearest is {readable}")
