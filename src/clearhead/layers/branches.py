"""Find the residual branches of a model, and run forward passes with a hook at each of them.

A residual branch computes what a residual connection adds: an attention, an MLP, a block of convolutions. Its feature
map is the sum, after the addition. The embedding, the input of the first branch, is listed first. Branches are found by
recording one forward pass (``provenance``), without knowledge of the architecture and without changing any module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clearhead.errors import ClearheadError
from clearhead.layers.prefix_caching import stands_in
from clearhead.layers.provenance import Calls, Provenance, ResidualAdd
from clearhead.models import Classifier, TokenGrid
from clearhead.models.classifier import evaluation_mode


class LayersError(ClearheadError):
    """A model whose layers cannot be told apart, or a feature map without positions; the message says why."""


@dataclass(frozen=True)
class Layout:
    """How the positions of a feature map lie: B x C x height x width (``first``), B x height x width x C or
    B x (prefix + height * width) x C (``last``).
    """

    channels: Literal["first", "last"]
    height: int
    width: int
    prefix: int = 0


@dataclass(frozen=True)
class ResidualBranch:
    """A residual sum, or the embedding.

    Attributes:
        name: ``embedding``, or the module that adds and the kind.
        kind: what is added: by an ``attention``, by a ``conv``olution over positions, else by an ``mlp``.
        depth: 0 for the embedding, 1 for the last unit, evenly between.
        module: dotted name of the module that adds.
        shape: of the feature map of one image.
        layout: how its positions lie; None where they form no grid.
        call: which call of a torch function in a forward pass makes it.
        function: the name of that function.
        skip: which of its two operands is the shortcut; None for the embedding.
    """

    name: str
    kind: Literal["embed", "attention", "mlp", "conv"]
    depth: float
    module: str
    shape: tuple[int, ...]
    layout: Layout | None
    call: int
    function: str
    skip: int | None


Around = Callable[[int, str, Callable[[], Any], tuple[Any, ...]], Any]
"""What to do at a call of a torch function: given its number, its name, a function that computes its result and its
arguments, what the model goes on with."""

At = Callable[[int, Callable[[], Tensor], Tensor | None], Tensor]
"""What to do at a unit: given its number, a function that makes its feature map and the shortcut (None for the
embedding), what the model goes on with."""

_PROBED = 2
"""Images that units are found on."""


def find_branches(model: Classifier) -> list[ResidualBranch]:
    """The embedding, where there is one, and the residual sums, in call order.

    Found on images of noise in eval mode, by three small forward passes.

    Raises:
        LayersError: for a model without residual sums, a compiled one, or one that does not do the same at every call.
    """
    with repeatable_forward(model):
        watched = model.normalize(_noise(model, _PROBED))
        provenance = Provenance(model.module, watched)
        with _plain(), provenance.watched():
            output = model.from_normalized(watched)
        sums = provenance.sums(output)
        if not sums:
            raise LayersError(
                f"{model.name}: no residual sum was seen in {type(model.module).__name__}: a model is told apart into "
                "layers where it adds to an activation (B x N x D, B x H x W x D or B x C x H x W) what it computed "
                "from it"
            )
        found = _as_branches(sums, model.preprocess.size, model.grid)
        # raises where it goes another way
        hooked_forward(model, _noise(model, _PROBED + 1), found, lambda _unit, value, _shortcut: value())
    return found


def hooked_forward(
    model: Classifier, images: Tensor, units: Sequence[ResidualBranch], at: At, around: Around | None = None
) -> Tensor:
    """The logits (B x classes) of a forward pass in which ``at`` has its say at each unit, ``around`` at every call.

    In eval mode and without gradients; outside ``repeatable_forward`` a small pass comes first. Raises LayersError if
    the pass does not come by all units as they were found.
    """
    by_call = {unit.call: (i, unit) for i, unit in enumerate(units)}
    seen = 0

    def act(call: int, name: str, compute: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        nonlocal seen
        made = compute if around is None else partial(around, call, name, compute, args)
        if call not in by_call:
            return made()
        i, unit = by_call[call]
        if name != unit.function:
            raise _inconsistent_forward(model, unit)
        seen += 1
        if unit.skip is None:
            return at(i, made, None)
        value = at(i, made, args[unit.skip])
        if tuple(value.shape[1:]) != unit.shape:
            raise _inconsistent_forward(model, unit)
        if name in ("add_", "__iadd__") and value is not args[0] and not stands_in(args[0]):
            return args[0].copy_(value)  # who holds the tensor that is added to sees it too
        return value

    inputs = images if stands_in(images) else model.normalize(images)
    with repeatable_forward(model), _plain(), Calls(act):
        output = model.from_normalized(inputs)
    if seen != len(units):
        raise _inconsistent_forward(model, next(unit for unit in units if unit.call == sorted(by_call)[seen]))
    return output


def flatten_positions(values: Tensor, layout: Layout) -> Tensor:
    """The feature map as B x positions x C, without prefix tokens; a view where there can be one."""
    if layout.channels == "first":
        return values.flatten(2).mT
    return (values.flatten(1, 2) if values.ndim == 4 else values)[:, layout.prefix :]


def group_blocks(units: Sequence[ResidualBranch]) -> list[list[int]]:
    """The positions of units that make a block: those next to each other whose modules are the same or nested."""
    blocks: list[list[int]] = []
    for i, unit in enumerate(units):
        if unit.kind == "embed":
            continue
        before = units[blocks[-1][-1]].module if blocks else None
        if before and unit.module and _nested(before, unit.module):
            blocks[-1].append(i)
        else:
            blocks.append([i])
    return blocks


def _nested(a: str, b: str) -> bool:
    return a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.")


def _as_branches(sums: Sequence[ResidualAdd], size: tuple[int, int], grid: TokenGrid | None) -> list[ResidualBranch]:
    found = []
    for i, s in enumerate(sums, 1):
        layout = _layout(s.shape, size, grid, s.convolves)
        name = f"{s.module} {s.kind}".strip()
        found.append(
            ResidualBranch(name, s.kind, i / len(sums), s.module, s.shape[1:], layout, s.call, s.function, s.skip)
        )
    start = sums[0].start
    if start is None or len(start[2]) not in (3, 4) or start[2][0] != sums[0].shape[0]:
        return found
    call, function, shape = start
    layout = _layout(shape, size, grid, sums[0].convolves)
    return [ResidualBranch("embedding", "embed", 0.0, "", shape[1:], layout, call, function, None), *found]


_MOST_PREFIX_TOKENS = 5
"""Of a model whose own grid is not known: a class token and four registers."""


def _layout(shape: Sequence[int], size: tuple[int, int], grid: TokenGrid | None, convolves: bool) -> Layout | None:
    """How the positions of a map of `_PROBED` images lie. Grids have the image's proportions; tokens are those of the
    model's own grid, if it has one, or the largest grid of just those proportions, after at most 5 prefix tokens.
    """
    height, width = size
    if shape[0] != _PROBED:
        return None
    if len(shape) == 4:
        off = [min(abs(h - w * height / width), abs(w - h * width / height)) for h, w in (shape[2:], shape[1:3])]
        if min(off) > 1:  # a side is rounded to a whole number
            return None
        if off[0] < off[1] or (off[0] == off[1] and convolves):
            return Layout("first", shape[2], shape[3])
        return Layout("last", shape[1], shape[2])
    tokens = shape[1]
    if grid is not None and tokens == grid.prefix + grid.height * grid.width:
        return Layout("last", grid.height, grid.width, grid.prefix)
    step = math.gcd(height, width)
    h, w = height // step, width // step
    times = math.isqrt(tokens // (h * w))
    prefix = tokens - times * times * h * w
    if times and prefix <= _MOST_PREFIX_TOKENS:
        return Layout("last", times * h, times * w, prefix)
    return None


def _refuse_compiled(model: Classifier) -> None:
    for module in model.module.modules():
        in_place = module._compiled_call_impl is not None
        if in_place or hasattr(module, "_orig_mod") or isinstance(module, torch.jit.ScriptModule):
            raise LayersError(
                f"{model.name}: the model was compiled by torch.compile or torch.jit, which hides its layers; give it "
                "as it was before (after torch.compile(model) that is model._orig_mod)"
            )


_REPEATABLE: ContextVar[tuple[nn.Module, ...]] = ContextVar("_REPEATABLE", default=())


@contextmanager
def repeatable_forward(model: Classifier) -> Iterator[None]:
    """A block in which a model is in eval mode and all forward passes do the same, after which it is as it was.

    Some models make at their first pass what they keep until they are told their mode again: here they are told once,
    then run once on noise. A block within another one of the same model does nothing. Raises LayersError for a
    compiled model.
    """
    if model.module in _REPEATABLE.get():
        yield
        return
    _refuse_compiled(model)
    with evaluation_mode(model.module):
        token = _REPEATABLE.set((*_REPEATABLE.get(), model.module))
        try:
            with _plain():
                model(_noise(model, _PROBED))
            yield
        finally:
            _REPEATABLE.reset(token)


@contextmanager
def _plain() -> Iterator[None]:
    """Without gradients and without torch's fused encoder layer, which hides its sums. Attention stays fused."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _noise(model: Classifier, count: int) -> Tensor:
    like = next(model.module.parameters(), torch.zeros(1))
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, *model.preprocess.size, generator=generator).to(like)


def _inconsistent_forward(model: Classifier, unit: ResidualBranch) -> LayersError:
    return LayersError(
        f"{model.name}: '{unit.name}' was not where it was at an earlier forward pass: the model does not do the same "
        "at every call (layers skipped at random or by input?), so its units cannot be told apart"
    )
