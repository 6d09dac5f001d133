"""One forward pass, watched: which tensors stem from which, and which additions are residual sums.

A residual sum adds to a tensor, the shortcut, what was computed from it, the branch. That shows in the provenance of
the two operands alone, whatever the module is called: the branch has been worked on (by a linear layer, a convolution,
attention, ...) since their common ancestor, and the shortcut has not, or less. The sums of GELU's formula, of rotary
position embeddings, of position biases and masks are no residual sums by this test; of nested sums the outer counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

Kind = Literal["attention", "mlp", "conv"]

_ADD = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})
_ATTEND = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward"})
_CONVOLVE = frozenset({"conv1d", "conv2d", "conv3d"})
_POOL = frozenset({"avg_pool2d", "max_pool2d"})
_WORK = (
    frozenset({"linear", "bilinear", "matmul", "__matmul__", "__rmatmul__", "bmm", "baddbmm", "addmm", "mm", "einsum"})
    | frozenset({"layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm", "fft2", "rfft2"})
    | (_ATTEND | _CONVOLVE | _POOL)
)


@dataclass(frozen=True)
class ResidualAdd:
    """A residual sum. Calls of torch functions are counted from 0 in a forward pass.

    Attributes:
        call: which call makes it.
        function: name of that function.
        skip: which of its two operands is the shortcut.
        shape: of the sum.
        module: dotted name of the innermost module that was running.
        kind: what the branch does.
        convolves: whether a convolution is part of it.
        start: call and name of the function that made the newest common ancestor of both operands, and its shape;
            ``None`` where that is the model's input.
    """

    call: int
    function: str
    skip: int
    shape: tuple[int, ...]
    module: str
    kind: Kind
    convolves: bool
    start: tuple[int, str, tuple[int, ...]] | None


@dataclass(frozen=True)
class _Candidate:
    sum: ResidualAdd
    node: int
    branch: int


class Calls(TorchFunctionMode):
    """Counts the calls of torch functions in a block, and lets ``act`` stand in for some of them."""

    def __init__(self, act: Callable[[int, str, Callable[[], Any], tuple[Any, ...]], Any]) -> None:
        super().__init__()
        self.act = act
        self.count = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":  # an attribute: x.shape is none of our business, x.mT is
            value = func(*args, **kwargs)
            if not isinstance(value, Tensor):
                return value
            func = lambda *_args, **_kwargs: value  # noqa: E731
        call, self.count = self.count, self.count + 1
        return self.act(call, name, lambda: func(*args, **kwargs), (*args, *kwargs.values()))


class Provenance:
    """What stems from what. A node is a tensor that stems from the input; sets of nodes are the bits of an integer."""

    def __init__(self, module: nn.Module, images: Tensor) -> None:
        self.module, self.batch = module, len(images)
        self.ancestors: list[int] = []  # of each node, itself included
        self.made: list[tuple[int, str, tuple[int, ...]] | None] = []
        self.work = self.attends = self.convolves = self.any_convolution = 0
        self.nodes = WeakTensorKeyDictionary()
        self.running: list[str] = []
        self.found: list[_Candidate] = []
        self._node(images, 0, None)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """The block in which the model runs."""

        def enter(name: str) -> Callable[..., None]:
            return lambda *_: self.running.append(name)

        with ExitStack() as stack:
            for name, module in self.module.named_modules():
                stack.callback(module.register_forward_pre_hook(enter(name)).remove)
                stack.callback(module.register_forward_hook(self._leave, with_kwargs=True).remove)
            stack.enter_context(Calls(self._act))
            yield

    def sums(self, output: Tensor) -> list[ResidualAdd]:
        """The residual sums that the output depends on and that lie on no other one's branch, in call order."""
        reaching = self.ancestors[self.nodes[output]] if output in self.nodes else 0
        found = [c for c in self.found if reaching >> c.node & 1]
        return [c.sum for c in found if not any(other.branch >> c.node & 1 for other in found)]

    def _act(self, call: int, name: str, compute: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        given = list(tensors(args))
        parents = 0
        for tensor in given:
            if tensor in self.nodes:
                parents |= self.ancestors[self.nodes[tensor]]
        candidate = self._residual(call, name, args) if name in _ADD else None
        output = compute()
        if parents:
            made = (call, name)
            for tensor in [args[0]] if name == "__setitem__" else tensors(output):
                node = self._node(tensor, parents, made)
                self._note(name, node, args)
                if candidate:
                    self.found.append(_Candidate(candidate[0], node, candidate[1]))
        return output

    def _node(self, tensor: Tensor, parents: int, made: tuple[int, str] | None) -> int:
        node = len(self.ancestors)
        self.ancestors.append(parents | 1 << node)
        self.made.append((*made, tuple(tensor.shape)) if made else None)
        self.nodes[tensor] = node
        return node

    def _note(self, name: str, node: int, args: tuple[Any, ...]) -> None:
        bit = 1 << node
        if name in _WORK:
            self.work |= bit
        if name in _ATTEND or (name == "softmax" and _over_the_last(args)):  # attention written out
            self.attends |= bit
        if name in _CONVOLVE:
            self.any_convolution |= bit
        if name in _POOL or (name in _CONVOLVE and math.prod(args[1].shape[2:]) > 1):
            self.convolves |= bit

    def _residual(self, call: int, name: str, args: tuple[Any, ...]) -> tuple[ResidualAdd, int] | None:
        """The sum and the nodes of its branch, if an addition is a residual sum of activations."""
        a, b = args[:2]
        if not (isinstance(b, Tensor) and a in self.nodes and b in self.nodes and a.shape == b.shape):
            return None
        if a.ndim not in (3, 4) or a.shape[0] % self.batch:
            return None
        nodes = [self.nodes[a], self.nodes[b]]
        of_a, of_b = (self.ancestors[node] for node in nodes)
        alone = [of_a & ~of_b, of_b & ~of_a]
        work = [0 if self._is_sum(nodes_alone) else nodes_alone & self.work for nodes_alone in alone]
        if of_b >> nodes[0] & 1:
            work = [0, alone[1] & self.work]
        elif of_a >> nodes[1] & 1:
            work = [alone[0] & self.work, 0]
        if work[0].bit_count() == work[1].bit_count():
            return None
        skip = int(work[1].bit_count() < work[0].bit_count())
        branch = alone[1 - skip]
        kind: Kind = "attention" if branch & self.attends else "conv" if branch & self.convolves else "mlp"
        start = self.made[(of_a & of_b).bit_length() - 1]
        module = self.running[-1] if self.running else ""
        convolves = bool(branch & self.any_convolution)
        return ResidualAdd(call, name, skip, tuple(a.shape), module, kind, convolves, start), branch

    def _is_sum(self, nodes: int) -> bool:
        """Whether nothing was worked on since the last residual sum among the nodes: that is the stream, no branch."""
        last = next((c.node for c in reversed(self.found) if nodes >> c.node & 1), None)
        return last is not None and not nodes & ~self.ancestors[last] & self.work

    def _leave(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """A module's output that no call was seen to make (by scripted code, for one) stems from its input."""
        self.running.pop()
        parents = 0
        for tensor in tensors((args, kwargs)):
            if tensor in self.nodes:
                parents |= self.ancestors[self.nodes[tensor]]
        for tensor in tensors(output):
            if parents and tensor not in self.nodes:
                self.work |= 1 << self._node(tensor, parents, None)


def _over_the_last(args: tuple[Any, ...]) -> bool:
    """Whether a softmax is taken over the last of three dimensions or more, as attention's is."""
    last = args[0].ndim - 1
    return last > 1 and next((value for value in args[1:] if isinstance(value, int)), None) in (-1, last)


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors(item)
