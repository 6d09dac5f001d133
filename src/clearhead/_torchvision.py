"""Lets torchvision import beside a torch its compiled operators were not built for (a CPU-only torch, for one).

torchvision registers shape functions for its operators when it is imported, also where its compiled library could not
be loaded; then ``operator torchvision::nms does not exist`` ends the import. clearhead uses only torchvision's
pure-Python transforms and models, so it is enough that the two operators have a schema: calling them still fails.
"""

import importlib.util
from pathlib import Path

import torch


def _compiled_operators_load() -> bool:
    """Whether torchvision's compiled operators can be loaded, tried the way torchvision itself does."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # no torchvision: nothing to mend
    for library in Path(spec.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(library)
        except (OSError, RuntimeError):
            return False
        return True
    return False


if not _compiled_operators_load():
    # Kept alive by this name: a Library takes its definitions back when it is collected.
    _SCHEMAS = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, _name):
            _SCHEMAS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
