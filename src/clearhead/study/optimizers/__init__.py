"""How fast and how well models train under optimizers, learning rates, augmentations and amounts of data."""

from clearhead.study.optimizers.measures import Measures, measure
from clearhead.study.optimizers.plan import Cell, Choice, Plan, read_plan
from clearhead.study.optimizers.run import CellResult, Moment, OptimizerStudy, Trial, run_study

__all__ = [
    "Cell",
    "CellResult",
    "Choice",
    "Measures",
    "Moment",
    "OptimizerStudy",
    "Plan",
    "Trial",
    "measure",
    "read_plan",
    "run_study",
]
