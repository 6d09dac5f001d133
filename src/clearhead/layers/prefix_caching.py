"""To go on from the middle of a forward pass: what comes before is not computed, empty tensors stand in for it.

A first pass notes the shape of what each call gives. In a second one, every call that is given a stand-in gives one
itself, at no cost, until the call to go on from; what does not stem from the images (masks, position biases) is
computed. A call after that one that is given a stand-in looks back at what was not computed, and is refused.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from clearhead.layers.provenance import tensors

_VALUES = frozenset(
    {"item", "tolist", "numpy", "__bool__", "__int__", "__index__", "__float__", "equal", "allclose", "is_nonzero"}
)
"""Functions that tell values, not shapes."""


class LooksBack(RuntimeError):
    """A model's later part uses what is not computed."""


class Outline:
    """The shapes of what each call of a pass gives; ``note`` takes them down, ``from_call`` goes on from a call."""

    def __init__(self) -> None:
        self.given: dict[int, Any] = {}

    def note(self, call: int, _name: str, compute: Callable[[], Any], _args: tuple[Any, ...]) -> Any:
        """Compute, and take down the shape."""
        value = compute()
        self.given[call] = stand_in(value)
        return value

    def from_call(self, start: int) -> Callable[[int, str, Callable[[], Any], tuple[Any, ...]], Any]:
        """What to do at every call of a pass that goes on from call `start` with what it is given there."""

        def act(call: int, name: str, compute: Callable[[], Any], args: tuple[Any, ...]) -> Any:
            if not any(stands_in(tensor) for tensor in tensors(args)):
                return compute()
            given = self.given[call]
            if call > start or name in _VALUES:
                if name in _VALUES or next(tensors(given), None) is not None or name == "__setitem__":
                    raise LooksBack
                return compute()  # of a shape
            if _in_place(name):
                args[0]._stands_in = True
                return None if name == "__setitem__" else args[0]
            return given if next(tensors(given), None) is not None else compute()

        return act


def _in_place(name: str) -> bool:
    """Whether a function changes its first argument: add_, relu_, __iadd__, __setitem__, ..."""
    if name.endswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name != "__invert__")
    return name.endswith("_")


def stand_in(value: Any) -> Any:
    """The same with an empty tensor of one element, seen as of that shape, for each tensor."""
    if isinstance(value, Tensor):
        empty = value.new_empty(()).expand(value.shape)
        empty._stands_in = True  # type: ignore[attr-defined]
        return empty
    if isinstance(value, Mapping):
        return {name: stand_in(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(stand_in(item) for item in value) if type(value) in (tuple, list) else value
    return value


def stands_in(tensor: Any) -> bool:
    """Whether a tensor is one that stands in for what is not computed."""
    return getattr(tensor, "_stands_in", False)
