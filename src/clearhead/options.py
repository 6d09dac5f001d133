"""Options of analyses, each described once: a Python keyword argument, a command-line option and a key in config.yaml.

An analysis annotates the keyword arguments of its ``measure`` with these aliases or with
``Annotated[type, Option(...)]``. The command line is made from that signature (``clearhead.cli.signature``). Two
arguments of many analyses are not options: ``progress``, which shows progress, and ``state``, a folder in which
finished parts are saved, to continue after an interruption. This module imports nothing heavy.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from clearhead.errors import ClearheadError

__all__ = ["ARGUMENTS", "Option", "parse_budget"]


@dataclass(frozen=True)
class Option:
    """How a keyword argument appears on the command line.

    Attributes:
        help: one sentence or noun phrase.
        min: lowest number allowed.
        max: highest number allowed.
        name: the option's name where it is not that of the argument (``--class``).
        panel: heading in the help text; options without one come first.
    """

    help: str
    min: float | None = None
    max: float | None = None
    name: str = ""
    panel: str = ""


ARGUMENTS = {
    "model": "Model name (timm:NAME, hf:NAME, torchvision:NAME, zoo:NAME, timm:NAME@FILE), checkpoint or run folder.",
    "models": "One or more models: names, checkpoints or run folders. The first is the baseline.",
    "before": "The baseline: a model name, checkpoint or run folder.",
    "after": "The model to compare with it.",
    "data": "Folder of class folders (masks/, metadata.csv optional); .parquet, .tar or .npz files; hf-dataset:NAME.",
    "images": "Image files, or folders of images.",
    "run": "Folder of a finished run.",
    "before_run": "Folder of the baseline's finished run.",
    "after_run": "Folder of the finished run to compare with it.",
    "table": "table.csv of other models, as clearhead evaluate writes it.",
    "plan": "YAML file that describes the study.",
}
"""Help of positional arguments, by name."""

Split = Annotated[str | None, Option("Use only the images of this split. Default: all.")]
Groups = Annotated[
    Sequence[str] | None, Option("Columns of metadata.csv that define groups, comma-separated. Default: all.")
]
Masks = Annotated[
    Literal["auto", "none"],
    Option("auto: where the data has no masks, make them with the model (TokenCut); none: use only those of the data."),
]
Limit = Annotated[int | None, Option("Use at most this many images, drawn at random. Default: all.", min=2)]
Method = Annotated[str | None, Option("Attribution method. Default: gae, or input-gradient for models without tokens.")]
Methods = Annotated[
    Sequence[str] | None,
    Option("Attribution methods, comma-separated, or all. Default: gae, or input-gradient for models without tokens."),
]
BatchSize = Annotated[int, Option("Batch size.", min=1)]
Workers = Annotated[int, Option("Number of data-loading processes; 0 loads in the main process.", min=0)]
Seed = Annotated[int, Option("Random seed.", min=0)]
Margin = Annotated[
    float, Option("Non-inferiority margin: accuracy loss that still counts as no regression (0.02 = 2 points).", 0, 1)
]
TrainSplit = Annotated[
    str, Option("Training split. Without a validation split, 20% of each class is held out.", panel="Data")
]
ValidationSplit = Annotated[str, Option("Split that selects the epoch, heads or penalty.", panel="Data")]
TestSplit = Annotated[
    str | None,
    Option("Split for a final comparison with the original model; nothing is selected on it.", panel="Data"),
]
Layers = Annotated[
    Literal["last", "all"] | Sequence[int],
    Option("Attention layers: last, all, or comma-separated positions (0,5,11)."),
]
Precision = Annotated[Literal["no", "bf16", "fp16"], Option("Mixed precision of the forward pass.")]
Jobs = Annotated[int, Option("Number of parallel processes.", min=1)]


def parse_budget(text: str) -> float:
    """Return a time such as ``90s``, ``30m`` or ``1h30m`` in seconds. Raises ClearheadError for anything else."""
    parts = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text.replace(" ", ""))
    seconds = sum(float(n or 0) * unit for n, unit in zip(parts.groups(), (3600, 60, 1), strict=True)) if parts else 0.0
    if seconds <= 0:
        raise ClearheadError(f"budget: got {text!r}; give a time with its unit, such as 90s, 30m, 2h or 1h30m")
    return seconds
