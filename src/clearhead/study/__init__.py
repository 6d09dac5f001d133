"""A grid of repairs from one file: methods, samples a class, numbers of classes, seeds; resumed, measured, drawn."""

from clearhead.study.plan import Method, Plan, StudyError, Variant, read_plan
from clearhead.study.run import StudyRow, run_study

__all__ = ["Method", "Plan", "StudyError", "StudyRow", "Variant", "read_plan", "run_study"]
