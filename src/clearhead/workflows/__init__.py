"""The verbs, from names to a run folder: load model and data, do the work, keep the numbers, write the page.

Each takes the name of a model and the path of a folder, and leaves a folder as ``clearhead.runs`` describes. All that
is computed is computed by the instruments (``explain``, ``evaluate``, ``repair``, ``train``); here they are joined.
"""

from clearhead.models.classifier import on_device
from clearhead.workflows.evaluation import (
    run_audit,
    run_compare,
    run_report,
)
from clearhead.workflows.pieces import Progress, load_backbone, model_name
from clearhead.workflows.training import run_repair, run_select, run_train

__all__ = [
    "Progress",
    "load_backbone",
    "model_name",
    "on_device",
    "run_audit",
    "run_compare",
    "run_repair",
    "run_report",
    "run_select",
    "run_train",
]
