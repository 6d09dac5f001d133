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
from clearhead.layers.prefix_caching import is_placeholder
from clearhead.layers.provenance import CallCounter, CallHook, Provenance, ResidualAdd
from clearhead.models import Classifier, TokenGrid
from clearhead.models.classifier import evaluation_mode


class LayersError(ClearheadError):
    """A model whose residual branches cannot be found, or a feature map without a grid of positions."""


@dataclass(frozen=True)
class Layout:
    """The layout of a feature map's positions.

    ``channels`` first: B x C x height x width. Last: B x height x width x C or B x (prefix + height * width) x C.
    """

    channels: Literal["first", "last"]
    height: int
    width: int
    prefix: int = 0


@dataclass(frozen=True)
class ResidualBranch:
    """A residual branch, or the embedding.

    Attributes:
        name: ``embedding``, or the module that adds and the type.
        type: ``attention``, ``conv`` (convolution over positions) or else ``mlp``; ``embed`` for the embedding.
        depth: 0 for the embedding, 1 for the last branch, evenly spaced between.
        module: dotted name of the module that adds.
        shape: of the feature map of one image.
        layout: of its positions; None where they form no grid.
        call: number of the call of a torch function, in a forward pass, that makes the feature map.
        function: name of that function.
        skip: which of its two operands is the shortcut; None for the embedding.
    """

    name: str
    type: Literal["embed", "attention", "mlp", "conv"]
    depth: float
    module: str
    shape: tuple[int, ...]
    layout: Layout | None
    call: int
    function: str
    skip: int | None


BranchHook = Callable[[int, Callable[[], Tensor], Tensor | None], Tensor]
"""A hook on branches: from the branch's position, a function that computes its feature map, and the shortcut (None for
the embedding), it returns the feature map that the model continues with."""

_TRACED = 2
"""Images that branches are found on."""


def find_branches(model: Classifier) -> list[ResidualBranch]:
    """Return the embedding, where there is one, and the residual branches, in call order.

    They are found on images of noise in eval mode, by three small forward passes.

    Raises:
        LayersError: for a model without residual connections, a compiled one, or one whose forward passes differ.
    """
    with repeatable_forward(model):
        inputs = model.normalize(_noise(model, _TRACED))
        provenance = Provenance(model.module, inputs)
        with _inference(), provenance.recording():
            output = model.from_normalized(inputs)
        additions = provenance.residual_adds(output)
        if not additions:
            raise LayersError(
                f"{model.name}: no residual connection was found in {type(model.module).__name__}, which adds to an "
                "activation (B x N x D, B x H x W x D or B x C x H x W) what was computed from it"
            )
        branches = _as_branches(additions, model.preprocess.size, model.grid)
        hooked_forward(  # raises if this pass differs from the recorded one
            model, _noise(model, _TRACED + 1), branches, lambda _branch, compute, _shortcut: compute()
        )
    return branches


def hooked_forward(
    model: Classifier,
    images: Tensor,
    branches: Sequence[ResidualBranch],
    on_branch: BranchHook,
    on_call: CallHook | None = None,
) -> Tensor:
    """Return the logits (B x classes) of a forward pass with a hook at each branch and, optionally, at every call.

    In eval mode and without gradients; outside ``repeatable_forward`` a small pass comes first. Raises LayersError if
    the pass does not reach all branches as they were found.
    """
    by_call = {branch.call: (i, branch) for i, branch in enumerate(branches)}
    reached = 0

    def hook(call: int, name: str, compute: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        nonlocal reached
        compute = compute if on_call is None else partial(on_call, call, name, compute, args)
        if call not in by_call:
            return compute()
        i, branch = by_call[call]
        if name != branch.function:
            raise _passes_differ(model, branch)
        reached += 1
        if branch.skip is None:
            return on_branch(i, compute, None)
        value = on_branch(i, compute, args[branch.skip])
        if tuple(value.shape[1:]) != branch.shape:
            raise _passes_differ(model, branch)
        if name in ("add_", "__iadd__") and value is not args[0] and not is_placeholder(args[0]):
            return args[0].copy_(value)  # for other references to the tensor that is added to
        return value

    inputs = images if is_placeholder(images) else model.normalize(images)
    with repeatable_forward(model), _inference(), CallCounter(hook):
        output = model.from_normalized(inputs)
    if reached != len(branches):
        raise _passes_differ(model, next(branch for branch in branches if branch.call == sorted(by_call)[reached]))
    return output


def flatten_positions(values: Tensor, layout: Layout) -> Tensor:
    """Return a feature map as B x positions x C, without prefix tokens; a view where possible."""
    if layout.channels == "first":
        return values.flatten(2).mT
    return (values.flatten(1, 2) if values.ndim == 4 else values)[:, layout.prefix :]


def group_blocks(branches: Sequence[ResidualBranch]) -> list[list[int]]:
    """Return the positions of the branches of each block: neighbours whose modules are the same or nested."""
    blocks: list[list[int]] = []
    for i, branch in enumerate(branches):
        if branch.type == "embed":
            continue
        before = branches[blocks[-1][-1]].module if blocks else None
        if before and branch.module and _nested(before, branch.module):
            blocks[-1].append(i)
        else:
            blocks.append([i])
    return blocks


def _nested(a: str, b: str) -> bool:
    return a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.")


def _as_branches(
    additions: Sequence[ResidualAdd], size: tuple[int, int], grid: TokenGrid | None
) -> list[ResidualBranch]:
    branches = []
    for i, addition in enumerate(additions, 1):
        branches.append(
            ResidualBranch(
                name=f"{addition.module} {addition.type}".strip(),
                type=addition.type,
                depth=i / len(additions),
                module=addition.module,
                shape=addition.shape[1:],
                layout=_layout(addition.shape, size, grid, addition.convolves),
                call=addition.call,
                function=addition.function,
                skip=addition.skip,
            )
        )
    start = additions[0].start
    if start is None or len(start[2]) not in (3, 4) or start[2][0] != additions[0].shape[0]:
        return branches
    call, function, shape = start
    layout = _layout(shape, size, grid, additions[0].convolves)
    return [ResidualBranch("embedding", "embed", 0.0, "", shape[1:], layout, call, function, None), *branches]


_MAX_PREFIX_TOKENS = 5
"""For a model whose own grid is unknown: a class token and four registers."""


def _layout(shape: Sequence[int], size: tuple[int, int], grid: TokenGrid | None, convolves: bool) -> Layout | None:
    """Return the layout of a feature map of `_TRACED` images, or None.

    Grids have the image's proportions. Tokens are those of the model's own grid, if it has one, or else of the largest
    grid of exactly those proportions, after at most 5 prefix tokens.
    """
    height, width = size
    if shape[0] != _TRACED:
        return None
    if len(shape) == 4:
        first, last = (
            min(abs(h - w * height / width), abs(w - h * width / height)) for h, w in (shape[2:], shape[1:3])
        )
        if min(first, last) > 1:  # a side is rounded to a whole number
            return None
        if first < last or (first == last and convolves):
            return Layout("first", shape[2], shape[3])
        return Layout("last", shape[1], shape[2])
    tokens = shape[1]
    if grid is not None and tokens == grid.prefix + grid.height * grid.width:
        return Layout("last", grid.height, grid.width, grid.prefix)
    step = math.gcd(height, width)
    h, w = height // step, width // step
    factor = math.isqrt(tokens // (h * w))
    prefix = tokens - factor * factor * h * w
    if factor and prefix <= _MAX_PREFIX_TOKENS:
        return Layout("last", factor * h, factor * w, prefix)
    return None


def _require_not_compiled(model: Classifier) -> None:
    for module in model.module.modules():
        in_place = module._compiled_call_impl is not None
        if in_place or hasattr(module, "_orig_mod") or isinstance(module, torch.jit.ScriptModule):
            raise LayersError(
                f"{model.name}: the model was compiled by torch.compile or torch.jit, which hides its layers; pass the "
                "model before compilation (after torch.compile(model) that is model._orig_mod)"
            )


_REPEATABLE: ContextVar[tuple[nn.Module, ...]] = ContextVar("_REPEATABLE", default=())


@contextmanager
def repeatable_forward(model: Classifier) -> Iterator[None]:
    """Put a model in eval mode so that all forward passes in this block make the same calls; restore it afterwards.

    Some models cache values in the first pass after their mode was set: the mode is set once here, and one pass on
    noise follows. A nested block of the same model does nothing. Raises LayersError for a compiled model.
    """
    if model.module in _REPEATABLE.get():
        yield
        return
    _require_not_compiled(model)
    with evaluation_mode(model.module):
        token = _REPEATABLE.set((*_REPEATABLE.get(), model.module))
        try:
            with _inference():
                model(_noise(model, _TRACED))
            yield
        finally:
            _REPEATABLE.reset(token)


@contextmanager
def _inference() -> Iterator[None]:
    """Disable gradients, and torch's fused encoder layer, which hides its additions. Attention stays fused."""
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


def _passes_differ(model: Classifier, branch: ResidualBranch) -> LayersError:
    return LayersError(
        f"{model.name}: '{branch.name}' is not where an earlier forward pass had it: the model's forward passes differ "
        "(are layers skipped at random or by input?), so its residual branches cannot be found"
    )
