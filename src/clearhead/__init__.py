"""clearhead: see what a vision transformer relies on, repair it cheaply, and prove that the repair helped."""

from clearhead import _torchvision  # noqa: F401  (must come before anything that imports torchvision)
from clearhead.tap import AttentionCall, NoAttentionError, tap

__version__ = "0.1.0"
__all__ = ["AttentionCall", "NoAttentionError", "__version__", "tap"]
