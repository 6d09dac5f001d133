"""Record one forward pass: which tensors are computed from which, and which additions are residual connections.

A residual connection adds to a tensor, the shortcut, what was computed from it, the branch. The provenance of the two
operands shows that by itself, whatever the module is called: since their common ancestor, the branch has been through
layers (linear, convolution, attention, ...), and the shortcut through none, or fewer. By this test, the sums in GELU's
formula, in rotary position embeddings, in position biases and in masks are no residual connections; of nested ones the
outer counts.
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

BranchType = Literal["attention", "mlp", "conv"]

CallHook = Callable[[int, str, Callable[[], Any], tuple[Any, ...]], Any]
"""A hook on calls of torch functions: from the call's number and name, a function that computes its result, and its
arguments, it returns what the model continues with."""

_ADD = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})
_ATTENTION = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward"})
_CONVOLUTION = frozenset({"conv1d", "conv2d", "conv3d"})
_POOLING = frozenset({"avg_pool2d", "max_pool2d"})
_LAYER = (
    frozenset({"linear", "bilinear", "matmul", "__matmul__", "__rmatmul__", "bmm", "baddbmm", "addmm", "mm", "einsum"})
    | frozenset({"layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm", "fft2", "rfft2"})
    | (_ATTENTION | _CONVOLUTION | _POOLING)
)


@dataclass(frozen=True)
class ResidualAdd:
    """The addition of a residual connection. Calls of torch functions are numbered from 0 in a forward pass.

    Attributes:
        call: number of the call that adds.
        function: name of that function.
        skip: which of its two operands is the shortcut.
        shape: of the sum.
        module: dotted name of the innermost module that was running.
        type: what the branch is.
        convolves: whether the branch has a convolution.
        start: number and name of the call that made the newest common ancestor of both operands, and its shape;
            ``None`` where that is the model's input.
    """

    call: int
    function: str
    skip: int
    shape: tuple[int, ...]
    module: str
    type: BranchType
    convolves: bool
    start: tuple[int, str, tuple[int, ...]] | None


@dataclass(frozen=True)
class _Candidate:
    """An addition, the node of its sum, and the nodes of its branch."""

    addition: ResidualAdd
    node: int
    branch: int


class CallCounter(TorchFunctionMode):
    """Numbers the calls of torch functions in a block, and passes each to a hook."""

    def __init__(self, hook: CallHook) -> None:
        super().__init__()
        self.hook = hook
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
        if name == "__get__":  # an attribute: x.mT is a call that matters, x.shape is not
            value = func(*args, **kwargs)
            if not isinstance(value, Tensor):
                return value
            func = lambda *_args, **_kwargs: value  # noqa: E731
        call, self.count = self.count, self.count + 1
        return self.hook(call, name, lambda: func(*args, **kwargs), (*args, *kwargs.values()))


class Provenance:
    """Which tensors are computed from which, in a forward pass.

    A node is a tensor computed from the input; a set of nodes is the bits of an integer.
    """

    def __init__(self, module: nn.Module, images: Tensor) -> None:
        self.module, self.batch = module, len(images)
        self.ancestors: list[int] = []  # of each node, itself included
        self.made_by: list[tuple[int, str, tuple[int, ...]] | None] = []
        self.layers = self.attentions = self.spatial_convolutions = self.convolutions = 0
        self.nodes = WeakTensorKeyDictionary()
        self.running: list[str] = []
        self.candidates: list[_Candidate] = []
        self._add_node(images, 0, None)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the calls of the model that are made in this block."""

        def enter(name: str) -> Callable[..., None]:
            return lambda *_: self.running.append(name)

        with ExitStack() as stack:
            for name, module in self.module.named_modules():
                stack.callback(module.register_forward_pre_hook(enter(name)).remove)
                stack.callback(module.register_forward_hook(self._leave, with_kwargs=True).remove)
            stack.enter_context(CallCounter(self._record))
            yield

    def residual_adds(self, output: Tensor) -> list[ResidualAdd]:
        """Return the residual additions that the output depends on and that lie on no other's branch, in call order."""
        used = self.ancestors[self.nodes[output]] if output in self.nodes else 0
        candidates = [c for c in self.candidates if used >> c.node & 1]
        return [c.addition for c in candidates if not any(other.branch >> c.node & 1 for other in candidates)]

    def _record(self, call: int, name: str, compute: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        parents = self._ancestors_of(args)
        candidate = self._residual_add(call, name, args) if name in _ADD else None
        output = compute()
        if parents:
            for tensor in [args[0]] if name == "__setitem__" else tensors(output):
                node = self._add_node(tensor, parents, (call, name))
                self._classify(name, node, args)
                if candidate:
                    self.candidates.append(_Candidate(candidate[0], node, candidate[1]))
        return output

    def _ancestors_of(self, arguments: Any) -> int:
        nodes = 0
        for tensor in tensors(arguments):
            if tensor in self.nodes:
                nodes |= self.ancestors[self.nodes[tensor]]
        return nodes

    def _add_node(self, tensor: Tensor, parents: int, made_by: tuple[int, str] | None) -> int:
        node = len(self.ancestors)
        self.ancestors.append(parents | 1 << node)
        self.made_by.append((*made_by, tuple(tensor.shape)) if made_by else None)
        self.nodes[tensor] = node
        return node

    def _classify(self, name: str, node: int, args: tuple[Any, ...]) -> None:
        bit = 1 << node
        if name in _LAYER:
            self.layers |= bit
        if name in _ATTENTION or (name == "softmax" and _is_over_last_dim(args)):  # attention in separate steps
            self.attentions |= bit
        if name in _CONVOLUTION:
            self.convolutions |= bit
        if name in _POOLING or (name in _CONVOLUTION and math.prod(args[1].shape[2:]) > 1):
            self.spatial_convolutions |= bit

    def _residual_add(self, call: int, name: str, args: tuple[Any, ...]) -> tuple[ResidualAdd, int] | None:
        """Return the addition and the nodes of its branch, if it is a residual connection of activations."""
        a, b = args[:2]
        if not (isinstance(b, Tensor) and a in self.nodes and b in self.nodes and a.shape == b.shape):
            return None
        if a.ndim not in (3, 4) or a.shape[0] % self.batch:
            return None
        nodes = [self.nodes[a], self.nodes[b]]
        ancestors_a, ancestors_b = (self.ancestors[node] for node in nodes)
        own = [ancestors_a & ~ancestors_b, ancestors_b & ~ancestors_a]
        layers = [0 if self._is_shortcut(nodes_of_one) else nodes_of_one & self.layers for nodes_of_one in own]
        if ancestors_b >> nodes[0] & 1:
            layers = [0, own[1] & self.layers]
        elif ancestors_a >> nodes[1] & 1:
            layers = [own[0] & self.layers, 0]
        if layers[0].bit_count() == layers[1].bit_count():
            return None
        skip = int(layers[1].bit_count() < layers[0].bit_count())
        branch = own[1 - skip]
        branch_type: BranchType = "mlp"
        if branch & self.attentions:
            branch_type = "attention"
        elif branch & self.spatial_convolutions:
            branch_type = "conv"
        start = self.made_by[(ancestors_a & ancestors_b).bit_length() - 1]
        module = self.running[-1] if self.running else ""
        convolves = bool(branch & self.convolutions)
        return ResidualAdd(call, name, skip, tuple(a.shape), module, branch_type, convolves, start), branch

    def _is_shortcut(self, nodes: int) -> bool:
        """Return whether no layer comes after the last residual addition among the nodes: then they are a shortcut."""
        last = next((c.node for c in reversed(self.candidates) if nodes >> c.node & 1), None)
        return last is not None and not nodes & ~self.ancestors[last] & self.layers

    def _leave(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Derive a module's output from its input, where no call was seen to make it (scripted code, for example)."""
        self.running.pop()
        parents = self._ancestors_of((args, kwargs))
        for tensor in tensors(output):
            if parents and tensor not in self.nodes:
                self.layers |= 1 << self._add_node(tensor, parents, None)


def _is_over_last_dim(args: tuple[Any, ...]) -> bool:
    """Return whether a softmax is taken over the last of three dimensions or more, as attention's is."""
    last = args[0].ndim - 1
    return last > 1 and next((value for value in args[1:] if isinstance(value, int)), None) in (-1, last)


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors(item)
