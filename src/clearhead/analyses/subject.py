"""What an analysis was made of: the models, the images, and what was wrong with them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clearhead.data.dataset import DataIssue, ImageIndex
from clearhead.data.images import source_name
from clearhead.models.classifier import Classifier


@dataclass(frozen=True)
class Subject:
    """What a result is about; each result has one.

    Attributes:
        models: display names, each different.
        data: name of the data, with its split.
        images: how many images were used.
        masks: how many of them have a mask.
        input_size: H, W of the model's input; empty where models differ.
        issues: problems of the data.
    """

    models: list[str]
    data: str = ""
    images: int = 0
    masks: int = 0
    input_size: list[int] = field(default_factory=list)
    issues: list[DataIssue] = field(default_factory=list)

    @property
    def model(self) -> str:
        """The name of the first model."""
        return self.models[0]

    def listed(self) -> str:
        """Return the names of up to three models, else of two and how many more there are."""
        names = self.models
        return " and ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def subject_of(
    models: Sequence[str],
    index: ImageIndex,
    data: object = None,
    split: str | None = None,
    model: Classifier | None = None,
) -> Subject:
    """Return the subject of a result on an index; `data` is what the index was read from."""
    source = data if isinstance(data, str | Path) else index.root
    name = source_name(source)
    return Subject(
        list(models),
        f"{name}, {split} split" if split else name,
        len(index.samples),
        sum(sample.mask is not None for sample in index.samples),
        list(model.preprocess.size) if model is not None else [],
        list(dict.fromkeys(index.issues)),
    )
