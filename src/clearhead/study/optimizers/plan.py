"""The plan of a study of optimizers, read from a YAML file.

    data: cifar10                      # splits train and test; without val, a tenth of train is for model selection
    models:
      ResNet: zoo:preact_resnet_mini_32
      ViT CLS: zoo:vit_mini_patch4_32
    optimizers:
      SGD: {optimizer: sgd, lr: [0.3, 0.1, 0.03], weight_decay: 5.0e-4}
      AdamW: {optimizer: adamw, lr: [3.0e-3, 1.0e-3], weight_decay: [0.05, 0.5]}
      SAM: {optimizer: sam-sgd, lr: [0.3, 0.1]}
    augment: [weak, strong]
    fractions: [1, 0.3, 0.1, 0.03]     # of the training images; smaller parts lie within larger ones
    seeds: [0, 1]
    epochs: 30
    target: 0.6                        # validation accuracy whose time is measured

Every combination of model, optimizer, augmentation, fraction and seed is a cell. In it every learning rate and weight
decay is tried, and the one of highest validation accuracy is selected and measured. A list may be a single value.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from clearhead.data.images import absolute_source
from clearhead.errors import ClearheadError
from clearhead.study.plan_files import Listed, Name, Seeds, StudyError, read_yaml, slug
from clearhead.training.config import TrainConfig
from clearhead.training.optimizers import require_optimizer

Augmentation = Literal["none", "weak", "strong"]
Positive = Annotated[float, Field(gt=0)]
Rates = Annotated[list[Positive], Listed, Field(min_length=1)]
Decays = Annotated[list[Annotated[float, Field(ge=0)]], Listed, Field(min_length=1)]


class Choice(BaseModel):
    """An optimizer of the plan by its name (``clearhead.training.optimizers``), and the settings to try."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    optimizer: str
    lr: Rates
    weight_decay: Decays = [0.05]


@dataclass(frozen=True)
class Cell:
    """One cell of the grid; `model` and `optimizer` are names in the plan."""

    model: str
    optimizer: str
    augment: Augmentation
    fraction: float
    seed: int

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{slug(self.model)}-{slug(self.optimizer)}-{self.augment}-{self.fraction:g}-{self.seed}"


class Plan(BaseModel):
    """The content of the file; see the head of this module."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path | str
    models: dict[Name, str] = Field(min_length=1)
    optimizers: dict[Name, Choice] = Field(min_length=1)
    augment: Annotated[list[Augmentation], Listed, Field(min_length=1)] = ["weak"]
    fractions: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Listed, Field(min_length=1)] = [1.0]
    seeds: Seeds = [0]
    epochs: Annotated[int, Field(ge=1)] = 30
    batch_size: Annotated[int, Field(ge=1)] = 96
    target: Annotated[float, Field(gt=0, lt=1)] = 0.6
    max_grad_norm: Positive | None = 5.0
    eigenvalue_batches: Annotated[int, Field(ge=2)] = 8

    def cells(self) -> list[Cell]:
        """Return all cells of the grid."""
        return [
            Cell(m, o, a, f, s)
            for s, f, a, m, o in product(self.seeds, self.fractions, self.augment, self.models, self.optimizers)
        ]

    def tried(self, cell: Cell) -> list[tuple[float, float]]:
        """Return the settings (learning rate, weight decay) that are tried in a cell."""
        choice = self.optimizers[cell.optimizer]
        return list(product(choice.lr, choice.weight_decay))

    def settings(self, cell: Cell, lr: float, weight_decay: float) -> TrainConfig:
        """Return how a cell is trained: strong augmentation is that of arXiv 2202.06709 with its soft labels."""
        strong = cell.augment == "strong"
        return TrainConfig(
            epochs=self.epochs,
            lr=lr,
            batch_size=self.batch_size,
            optimizer=self.optimizers[cell.optimizer].optimizer,
            weight_decay=weight_decay,
            max_grad_norm=self.max_grad_norm,
            augment=cell.augment,
            label_smoothing=0.1 if strong else 0.0,
            mixup=1.0 if strong else 0.0,
            cutmix=0.8 if strong else 0.0,
            seed=cell.seed,
        )


def setting_name(lr: float, weight_decay: float) -> str:
    """Return the name of a setting's folder."""
    return f"lr{lr:g}-wd{weight_decay:g}"


def read_plan(file: Path) -> Plan:
    """Read and check a plan; its data is relative to the file. Raises StudyError."""
    plan = read_yaml(file, Plan)
    if len({cell.folder for cell in plan.cells()}) < len(plan.cells()):
        raise StudyError(
            f"plan: {file}: two cells would have the same folder: a value is listed twice, or two models or optimizers "
            "have names that do not differ in letters and digits"
        )
    for name, choice in plan.optimizers.items():
        settings = [setting_name(*setting) for setting in product(choice.lr, choice.weight_decay)]
        if len(set(settings)) < len(settings):
            raise StudyError(f"plan: {file}: optimizers: {name!r}: a learning rate or a weight decay is listed twice")
        try:
            require_optimizer(choice.optimizer)
        except ClearheadError as error:
            raise StudyError(f"plan: {file}: optimizers: {name!r}: {error}") from error
    return plan.model_copy(update={"data": absolute_source(plan.data, file.resolve().parent)})
