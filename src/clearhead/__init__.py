"""clearhead: see what a vision transformer relies on, repair it cheaply, and prove that the repair helped.

>>> import clearhead
>>> maps = clearhead.explain(model, "photo.jpg", target="sports car")  # model: a torch module or a name
>>> clearhead.show("photo.jpg", maps, model=model).savefig("map.png")

Names are loaded when they are first used, so importing clearhead imports nothing heavy. The modules have more.
"""

import importlib
from typing import TYPE_CHECKING, Any

from clearhead import _torchvision  # noqa: F401  (its hook must be in place before anything imports torchvision)

if TYPE_CHECKING:
    from clearhead.analyses.audit import measure as audit  # noqa: F401
    from clearhead.analyses.battery import measure as battery  # noqa: F401
    from clearhead.analyses.cka import cka as cka
    from clearhead.analyses.compare import measure as compare  # noqa: F401
    from clearhead.analyses.evaluate import measure as evaluate_suite  # noqa: F401
    from clearhead.analyses.faithfulness import faithfulness as faithfulness
    from clearhead.analyses.fourier import feature_maps as feature_maps
    from clearhead.analyses.head_scores import score_heads as score_heads
    from clearhead.analyses.knn import knn as knn
    from clearhead.analyses.lesion import lesions as lesions
    from clearhead.analyses.slices import find_slices as find_slices
    from clearhead.attention_tap import AttentionCall as AttentionCall
    from clearhead.attention_tap import NoAttentionError as NoAttentionError
    from clearhead.attention_tap import tap as tap
    from clearhead.attribution import explain as explain
    from clearhead.attribution import list_methods as list_methods
    from clearhead.attribution import overlay as overlay
    from clearhead.attribution import register_method as register_method
    from clearhead.attribution import show as show
    from clearhead.attribution.sis import sufficient_subset as sufficient_subset
    from clearhead.data.images import read_images as read_images
    from clearhead.data.loading import ImageDataset as ImageDataset
    from clearhead.errors import ClearheadError as ClearheadError
    from clearhead.heads import DiversityLoss as DiversityLoss
    from clearhead.heads import fold_heads as fold_heads
    from clearhead.heads import head_gradients as head_gradients
    from clearhead.landscape import hessian as hessian
    from clearhead.metrics.power import plan as plan
    from clearhead.models import Classifier as Classifier
    from clearhead.models import Preprocessing as Preprocessing
    from clearhead.models import TokenGrid as TokenGrid
    from clearhead.models import as_classifier as as_classifier
    from clearhead.models import from_module as from_module
    from clearhead.models import load_model as load_model
    from clearhead.models import save_model as save_model
    from clearhead.prediction.predict import predict as predict
    from clearhead.repairs import GradMaskLoss as GradMaskLoss
    from clearhead.repairs import GroupDRO as GroupDRO
    from clearhead.repairs import RelevanceLoss as RelevanceLoss
    from clearhead.repairs import RRRLoss as RRRLoss
    from clearhead.repairs import repair as repair
    from clearhead.repairs import select_heads as select_heads
    from clearhead.runs import render_report as render_report
    from clearhead.training.config import TrainConfig as TrainConfig
    from clearhead.training.loop import fit as fit

__version__ = "0.2.0"

_MODULES = {
    "AttentionCall": "attention_tap",
    "Classifier": "models",
    "ClearheadError": "errors",
    "DiversityLoss": "heads",
    "GradMaskLoss": "repairs",
    "GroupDRO": "repairs",
    "ImageDataset": "data.loading",
    "NoAttentionError": "attention_tap",
    "Preprocessing": "models",
    "RRRLoss": "repairs",
    "RelevanceLoss": "repairs",
    "TokenGrid": "models",
    "TrainConfig": "training.config",
    "as_classifier": "models",
    "audit": "analyses.audit:measure",
    "battery": "analyses.battery:measure",
    "cka": "analyses.cka",
    "compare": "analyses.compare:measure",
    "evaluate_suite": "analyses.evaluate:measure",
    "explain": "attribution",
    "faithfulness": "analyses.faithfulness",
    "feature_maps": "analyses.fourier",
    "find_slices": "analyses.slices",
    "fit": "training.loop",
    "fold_heads": "heads",
    "from_module": "models",
    "head_gradients": "heads",
    "hessian": "landscape",
    "knn": "analyses.knn",
    "lesions": "analyses.lesion",
    "list_methods": "attribution",
    "load_model": "models",
    "overlay": "attribution",
    "plan": "metrics.power",
    "predict": "prediction.predict",
    "read_images": "data.images",
    "register_method": "attribution",
    "render_report": "runs",
    "repair": "repairs",
    "save_model": "models",
    "score_heads": "analyses.head_scores",
    "select_heads": "repairs",
    "show": "attribution",
    "sufficient_subset": "attribution.sis",
    "tap": "attention_tap",
}
"""Public name -> module that defines it, under the same name or that after a colon; a line above for type checkers."""

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'clearhead' has no attribute {name!r}")
    module, _, own_name = _MODULES[name].partition(":")
    value = getattr(importlib.import_module(f"clearhead.{module}"), own_name or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
