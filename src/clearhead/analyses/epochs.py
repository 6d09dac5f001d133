"""The epochs that a training run has saved: a run folder among models stands for them and for its checkpoint."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clearhead.inputs import checkpoint_run, model_name, number_duplicates
from clearhead.models.source import ModelLike, ModelSource, display_names


def saved_epochs(run: Path) -> list[Path]:
    """Return the checkpoints of the epochs that a run has saved, in order."""
    return sorted((f for f in run.glob("epochs/*") if f.name.isdecimal()), key=lambda folder: int(folder.name))


def expand_epochs(models: Sequence[ModelLike]) -> dict[str, ModelLike]:
    """Return models by display name; a run of ``train --save-epochs`` becomes its epochs and its checkpoint.

    Names are ``epoch 3`` and ``checkpoint`` where one run is all there is, else ``RUN, epoch 3``. Several runs of one
    name are numbered.
    """
    parts: list[tuple[Path, str, ModelLike]] = []  # the run, which part of it, the model
    for model in models:
        model = str(model) if isinstance(model, Path) else model
        if not isinstance(model, str | ModelSource):
            parts.append((Path(display_names([model])[0]), "", model))
            continue
        name = model if isinstance(model, str) else model.name
        epochs, checkpoint = saved_epochs(Path(name)), Path(name) / "checkpoint"
        folders = [str(folder) for folder in (*epochs, *([checkpoint] if checkpoint.is_dir() else []))] or [name]
        for folder in folders:
            run, epoch = checkpoint_run(folder)
            part = folder if isinstance(model, str) else replace(model, name=folder)
            parts.append((run, epoch or ("checkpoint" if epochs else ""), part if folder != name else model))
    runs = list(dict.fromkeys(run for run, _, _ in parts))
    names = dict(zip(runs, number_duplicates([model_name(str(run)) for run in runs]), strict=True))
    alone = len(models) == 1 < len(parts)
    labels = [part if alone else ", ".join(filter(None, [names[run], part])) for run, part, _ in parts]
    return dict(zip(number_duplicates(labels), (model for _, _, model in parts), strict=True))
