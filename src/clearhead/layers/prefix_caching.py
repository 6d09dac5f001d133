"""Resume a forward pass from the middle: calls before that are not computed, empty placeholder tensors replace them.

A first pass records the shape of what each call returns. In a second pass, each call that receives a placeholder
returns one itself, at no cost, up to the call to resume at; what does not depend on the images (masks, position biases)
is computed. A later call that receives a placeholder uses a value that was not computed, which raises an error.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from clearhead.layers.provenance import CallHook, tensors

_READ_VALUES = frozenset(
    {"item", "tolist", "numpy", "__bool__", "__int__", "__index__", "__float__", "equal", "allclose", "is_nonzero"}
)
"""Functions that read values, not shapes."""


class PrefixNeededError(RuntimeError):
    """A later part of the model uses a value that was not computed."""


class PrefixShapes:
    """The shapes of what each call of a pass returns: ``record`` collects them, ``resume_at`` uses them."""

    def __init__(self) -> None:
        self.placeholders: dict[int, Any] = {}

    def record(self, call: int, _name: str, compute: Callable[[], Any], _args: tuple[Any, ...]) -> Any:
        """Compute, and record the shape; a ``CallHook``."""
        value = compute()
        self.placeholders[call] = placeholder(value)
        return value

    def resume_at(self, start: int) -> CallHook:
        """Return a hook for the calls of a pass that resumes at call `start`, whose result that call's hook returns."""

        def hook(call: int, name: str, compute: Callable[[], Any], args: tuple[Any, ...]) -> Any:
            if not any(is_placeholder(tensor) for tensor in tensors(args)):
                return compute()
            recorded = self.placeholders[call]
            returns_tensor = next(tensors(recorded), None) is not None
            if call > start or name in _READ_VALUES:
                if name in _READ_VALUES or returns_tensor or name == "__setitem__":
                    raise PrefixNeededError
                return compute()  # depends on shapes only
            if _is_in_place(name):
                args[0]._is_placeholder = True
                return None if name == "__setitem__" else args[0]
            return recorded if returns_tensor else compute()

        return hook


def _is_in_place(name: str) -> bool:
    """Return whether a function changes its first argument: add_, relu_, __iadd__, __setitem__, ..."""
    if name.endswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name != "__invert__")
    return name.endswith("_")


def placeholder(value: Any) -> Any:
    """Return the value with each tensor replaced by one of a single element, expanded to the same shape."""
    if isinstance(value, Tensor):
        empty = value.new_empty(()).expand(value.shape)
        empty._is_placeholder = True  # type: ignore[attr-defined]
        return empty
    if isinstance(value, Mapping):
        return {name: placeholder(item) for name, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(placeholder(item) for item in value)
    return value


def is_placeholder(tensor: Any) -> bool:
    """Return whether a tensor is a placeholder for a value that is not computed."""
    return getattr(tensor, "_is_placeholder", False)
