"""A grid of optimizers, learning rates, augmentations and amounts of data: how fast and how well models train."""

from clearhead.study.optimizers.measures import Measures, measure
from clearhead.study.optimizers.plan import Cell, Choice, Plan, read_plan
from clearhead.study.optimizers.run import CellResult, Moment, Trial, Trials, run_study

__all__ = [
    "Cell",
    "CellResult",
    "Choice",
    "Measures",
    "Moment",
    "Plan",
    "Trial",
    "Trials",
    "measure",
    "read_plan",
    "run_study",
]
