"""A grid of repairs: methods, images per class, numbers of classes, seeds."""

from clearhead.study.repairs.plan import Method, Plan, Variant, read_plan
from clearhead.study.repairs.run import StudyRow, run_study

__all__ = ["Method", "Plan", "StudyRow", "Variant", "read_plan", "run_study"]
