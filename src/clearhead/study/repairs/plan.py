"""The plan of a study of repairs, read from a YAML file.

    model: timm:deit_small_patch16_224   # any model name
    data: imagenet-s                     # images to train on, with masks
    tests: {ObjectNet: objectnet}        # images to measure on, from any source; nothing is selected on them
    samples: [1, 3]                      # images per class
    classes: [100, 500]                  # how many classes to train on, drawn by the seed; validation has the others
    seeds: [0, 1, 2]
    validation: 414                      # images that select the epoch, of classes that are not trained on
    epochs: 50
    lr: 1.0e-6
    batch_size: 8
    methods:
      relevance: {method: relevance}
      no foreground: {method: relevance, foreground: 0}
      rollout: {method: relevance, attribution: rollout}
      RRR: {method: rrr, background: 0.5, lr: 2.0e-6}
      fine-tuning: {method: train}

Every combination of method, samples, classes and seed is a training. A list may be a single value. The terms of a
method are the fields of its loss (``clearhead.repairs``); its ``lr``, ``epochs``, ``batch_size`` override the plan's.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from clearhead.data.images import absolute_source
from clearhead.repairs import build_loss, require_repair
from clearhead.study.plan_files import Counts, Name, Seeds, StudyError, read_yaml, slug
from clearhead.training.loop import Loss, TrainConfig, cross_entropy


class Method(BaseModel):
    """A method of the plan: what overrides the plan's settings, and the terms of its loss."""

    model_config = ConfigDict(extra="allow", frozen=True)

    method: Literal["relevance", "gradmask", "rrr", "train"]
    epochs: Annotated[int, Field(ge=1)] | None = None
    lr: Annotated[float, Field(gt=0)] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None


@dataclass(frozen=True)
class Variant:
    """One cell of the grid: a method by its name in the plan, images per class, number of classes, and the seed."""

    name: str
    samples: int
    classes: int
    seed: int

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{slug(self.name)}-{self.samples}x{self.classes}-{self.seed}"


class Plan(BaseModel):
    """The content of the file; see the head of this module."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    data: Path
    tests: dict[Name, Path | str] = Field(min_length=1)
    methods: dict[str, Method] = Field(min_length=1)
    samples: Counts = [3]
    classes: Counts = [500]
    seeds: Seeds = [0]
    validation: Annotated[int, Field(ge=1)] = 414
    epochs: Annotated[int, Field(ge=1)] = 10
    lr: Annotated[float, Field(gt=0)] = 1e-5
    batch_size: Annotated[int, Field(ge=1)] = 8

    def variants(self) -> list[Variant]:
        """Return all cells of the grid; the methods on the same images follow one another."""
        return [Variant(m, n, c, s) for s, c, n, m in product(self.seeds, self.classes, self.samples, self.methods)]

    def loss(self, name: str) -> Loss:
        """Return the loss of a method of the plan. Raises StudyError for an unknown term or an impossible value."""
        entry = self.methods[name]
        terms = entry.model_extra or {}
        try:
            if entry.method == "train":
                if terms:
                    raise StudyError(f"{', '.join(terms)}: not an option of the method train")
                return cross_entropy
            require_repair(entry.method, TrainConfig(1, 0.0), terms)
            loss = build_loss(entry.method, options=terms)
            # numbers that YAML reads as text, such as 1e-4, become numbers
            return TypeAdapter(type(loss)).validate_python(vars(loss))
        except (TypeError, ValueError) as error:
            raise StudyError(f"methods: {name!r}: {error}") from error

    def settings(self, variant: Variant) -> TrainConfig:
        """Return how a variant is trained: as in arXiv 2206.01161."""
        own = self.methods[variant.name]
        values = {key: getattr(own, key) or getattr(self, key) for key in _SETTINGS}
        return TrainConfig(**values, schedule="decay", min_crop_area=0.75, seed=variant.seed)


_SETTINGS = ("epochs", "lr", "batch_size")


def read_plan(file: Path) -> Plan:
    """Read and check a plan; folders in it are relative to the file. Raises StudyError."""
    plan = read_yaml(file, Plan)
    folders = {variant.folder: variant for variant in plan.variants()}
    if len(folders) < len(plan.variants()):
        raise StudyError(
            f"plan: {file}: two trainings would have the same folder: a value is listed twice, or two methods have "
            "names that do not differ in letters and digits"
        )
    for name in plan.methods:
        plan.loss(name)
    parent = file.resolve().parent
    return plan.model_copy(
        update={
            "data": parent / plan.data,
            "tests": {name: absolute_source(source, parent) for name, source in plan.tests.items()},
        }
    )
