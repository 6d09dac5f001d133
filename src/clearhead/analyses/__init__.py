"""Analyses of a model on data, a module each: ``measure`` gives the numbers, ``page`` shows them.

To add one, write the module and add a line here: the command, its help, the run folder and the page follow from it
(``clearhead.runs``). This module imports none of them.
"""

ANALYSES: dict[str, str] = {
    "explain": "clearhead.analyses.explain",
    "heads": "clearhead.analyses.heads",
    "faithfulness": "clearhead.analyses.faithfulness",
    "audit": "clearhead.analyses.audit",
    "battery": "clearhead.analyses.battery",
    "compare": "clearhead.analyses.compare",
    "localize": "clearhead.analyses.localisation",
    "knn": "clearhead.analyses.knn",
    "sis": "clearhead.analyses.sis",
    "slices": "clearhead.analyses.slices",
    "train": "clearhead.analyses.train",
    "tag": "clearhead.analyses.tag",
    "repair": "clearhead.analyses.repair",
    "evaluate": "clearhead.analyses.evaluate",
    "compare-suites": "clearhead.analyses.compare_suites",
    "effective-robustness": "clearhead.analyses.effective_robustness",
    "layers fourier": "clearhead.analyses.fourier",
    "layers lesion": "clearhead.analyses.lesion",
    "layers cka": "clearhead.analyses.cka",
    "landscape hessian": "clearhead.analyses.hessian",
    "landscape surface": "clearhead.analyses.surface",
    "landscape trajectory": "clearhead.analyses.trajectory",
    "data audit": "clearhead.analyses.data_audit",
    "study repairs": "clearhead.study.repairs.analysis",
    "study optimizers": "clearhead.study.optimizers.analysis",
}
"""Commands to modules."""
