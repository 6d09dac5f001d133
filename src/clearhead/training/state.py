"""The state of a training on disk, from which an interrupted training resumes to the same weights."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from clearhead.storage import replace_path, restore
from clearhead.training.history import Epoch

_BEST, _HISTORY, _STOPPED = "best.safetensors", "history.json", "ended"


@dataclass
class TrainingState:
    """The results of a training so far; Accelerate saves weights, optimizer, schedule and random generators.

    Attributes:
        history: the epochs so far.
        best: weights of the best epoch, on the CPU.
        stopped: whether training is to end before its last epoch.
    """

    history: list[Epoch]
    best: dict[str, Tensor]
    stopped: bool = False


def weights_on_cpu(accelerator: Accelerator, module: torch.nn.Module) -> dict[str, Tensor]:
    """Copy the parameters and buffers of a module, which may be wrapped for several processes, to the CPU."""
    state = accelerator.unwrap_model(module).state_dict()
    return {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}


def save_state(accelerator: Accelerator, folder: Path | None, state: TrainingState) -> None:
    """Replace the saved state of the previous epoch, whole or not at all; every process has to call it."""
    if folder is None:
        return
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        save_file(state.best, unfinished / _BEST)
        (unfinished / _HISTORY).write_text(json.dumps([asdict(e) for e in state.history]), encoding="utf-8")
        if state.stopped:
            (unfinished / _STOPPED).touch()
        replace_path(unfinished, folder)
    accelerator.wait_for_everyone()


def load_state(accelerator: Accelerator, folder: Path | None) -> TrainingState | None:
    """Restore what ``save_state`` wrote; None where there is nothing to resume."""
    if folder is None:
        return None
    if accelerator.is_main_process:
        restore(folder)
    accelerator.wait_for_everyone()
    if not folder.is_dir():
        return None
    accelerator.load_state(str(folder))
    history = [Epoch(**epoch) for epoch in json.loads((folder / _HISTORY).read_text(encoding="utf-8"))]
    return TrainingState(history, load_file(folder / _BEST), (folder / _STOPPED).exists())
