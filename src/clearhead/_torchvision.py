"""Let torchvision import beside a torch that its compiled operators were not built for, such as a CPU-only torch.

torchvision registers shape functions for its operators when it is imported, even if its compiled library could not be
loaded; then ``operator torchvision::nms does not exist`` ends the import. clearhead uses only torchvision's
pure-Python transforms and models, so it is enough that the two operators have a schema: calling them still fails.

Importing this module is cheap: torch is imported when torchvision is.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any


class _BeforeTorchvision:
    """An import hook that defines the operators just before torchvision is imported, and then removes itself."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Find nothing, so that the import goes on as usual."""
        if name == "torchvision":
            sys.meta_path.remove(self)
            _define_operators()


_libraries: list[Any] = []
"""The operator definitions: a torch Library takes them back when it is collected."""


def _define_operators() -> None:
    """Give torchvision's operators a schema where its compiled library cannot be loaded."""
    import torch

    if _compiled_operators_load():
        return
    untyped: Any = torch.library
    library = untyped.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)


def _compiled_operators_load() -> bool:
    """Whether torchvision's compiled operators can be loaded, tried the way torchvision itself does."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # no torchvision: nothing to do
    operators: Any = torch.ops
    for library in Path(spec.origin).parent.glob("_C.*"):
        try:
            operators.load_library(library)
        except (OSError, RuntimeError):
            return False
        return True
    return False


if "torchvision" not in sys.modules:
    sys.meta_path.insert(0, _BeforeTorchvision())
