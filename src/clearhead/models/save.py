"""Save a classifier as an ordinary checkpoint."""

from collections.abc import Callable
from pathlib import Path

from clearhead.models.checkpoint_io import CONFIG
from clearhead.models.classifier import Classifier, Library
from clearhead.models.errors import ModelError, cause
from clearhead.models.from_hf import save_hf
from clearhead.models.from_timm import save_timm
from clearhead.models.from_torchvision import save_state
from clearhead.storage import atomic_path, restore


def save_model(classifier: Classifier, folder: str | Path) -> None:
    """Write a classifier as an ordinary checkpoint of its library, whole or not at all.

    timm: the layout of its hub (``timm.create_model("local-dir:FOLDER", pretrained=True)``). hf: ``save_pretrained``
    and the config of the image processor. torchvision, module: the state dict in model.safetensors, and a config.json.
    ``load_model(str(folder))`` reads all of them but the last, whose module only its owner can build. An existing
    checkpoint is replaced. Raises ModelError, also for a folder that holds something else.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and ((folder / CONFIG).is_file() or not any(folder.iterdir()))):
        raise ModelError(f"{folder} exists and is no checkpoint; give a new folder, an empty one, or a checkpoint's")
    try:
        restore(folder)
        with atomic_path(folder) as unfinished:
            unfinished.mkdir()
            _SAVERS[classifier.library](classifier, unfinished)
    except ModelError:
        raise
    except Exception as error:  # a full disk is an OSError here, a SafetensorError there
        raise ModelError(f"{folder} could not be written: {cause(error)}") from error
    finally:
        restore(folder)


_SAVERS: dict[Library, Callable[[Classifier, Path], None]] = {
    "timm": save_timm,
    "hf": save_hf,
    "torchvision": save_state,
    "module": save_state,
}
