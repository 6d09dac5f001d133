"""The logits of a model under many head scalings of one layer, from one pass through the layers before it.

At the block that holds the layer, the B images become S x B rows, one set for each scaling, and only what comes after
is run S times. For the last layer of a model that reads a CLS token this is nearly nothing: all that is read of the
block's output is the prefix tokens, so each row is one token long, and the 4,095 subsets of 12 heads cost less than two
more passes of the model. That a model can be run so is not assumed but tried, on the first images; where it cannot (a
windowed model, for one), the whole model is run for each scaling.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from clearhead.errors import ClearheadError
from clearhead.models import Classifier
from clearhead.tap import HeadIntervention, tap

_ROWS = 2**15
"""Tokens that go through the branched part at once."""


@dataclass(frozen=True)
class Layer:
    """An attention layer as the seam names it: position in call order, module, number of heads, channels a head."""

    index: int
    name: str
    num_heads: int
    head_dim: int


@dataclass(frozen=True)
class HeadMask:
    """Head scalings of one layer.

    Attributes:
        scales: S x H; 1 leaves a head as it is, 0 removes it.
        fill: H x d or None: what takes the place of a head's output, times 1 - scale (mean ablation).
    """

    scales: Tensor
    fill: Tensor | None = None

    def __call__(self, output: Tensor) -> Tensor:
        """The heads' output (B x H x N x d) under each scaling, S x B x H x N x d."""
        scales = self.scales.to(output)[:, None, :, None, None]
        scaled = scales * output
        return scaled if self.fill is None else scaled + (1 - scales) * self.fill.to(output)[:, None, :]

    def __getitem__(self, chosen: slice) -> "HeadMask":
        return HeadMask(self.scales[chosen], self.fill)


def attention_layers(model: Classifier, images: Tensor) -> list[Layer]:
    """The attention layers of a model, found by a pass over the first image.

    Raises NoAttentionError, and ValueError for a model that calls one module twice: its heads have no name of their
    own.
    """
    with torch.no_grad(), tap(model.module) as record:
        model(images[:1])
    layers = [Layer(i, a.name, a.num_heads, a.v.shape[-1]) for i, a in enumerate(record)]
    if len({layer.name for layer in layers}) < len(layers):
        raise ClearheadError(f"{model.name} calls an attention module more than once; its heads cannot be told apart")
    return layers


@dataclass(frozen=True)
class HeadMaskRunner:
    """A layer of a model, ready to be run under many scalings: made by `head_mask_runner`.

    Attributes:
        model: the classifier.
        layer: the layer.
        others: scalings that hold in other layers, by name, each with S = 1.
        block: name of the module at which images are multiplied; None runs the whole model for each scaling.
        tokens: how many tokens of each image go on from there, the first ones; None for all.
    """

    model: Classifier
    layer: Layer
    others: Mapping[str, HeadMask] = field(default_factory=dict)
    block: str | None = None
    tokens: int | None = None

    @torch.no_grad()
    def logits(self, images: Tensor, heads: HeadMask) -> Tensor:
        """Logits of B images under each of S scalings, S x B x classes."""
        if self.block is None:
            return torch.cat([self._full_pass(images, heads[i : i + 1]) for i in range(len(heads.scales))])
        grid = self.model.grid
        tokens = self.tokens or (grid.prefix + grid.height * grid.width if grid else 256)
        count = len(heads.scales)
        width = min(len(images), max(1, _ROWS // (tokens * count)))
        depth = max(1, _ROWS // (tokens * width))
        parts = [
            torch.cat([self._expanded(part, heads[i : i + depth]) for i in range(0, count, depth)])
            for part in images.split(width)
        ]
        return torch.cat(parts, 1)

    def _fixed(self) -> dict[str | int, HeadIntervention]:
        return {name: _one(heads) for name, heads in self.others.items()}

    def _full_pass(self, images: Tensor, heads: HeadMask) -> Tensor:
        with tap(self.model.module, heads=self._fixed() | {self.layer.name: _one(heads)}):
            return self.model(images)[None]

    def _expanded(self, images: Tensor, heads: HeadMask) -> Tensor:
        """One pass in which the images become S x B rows where the block begins."""
        block, rows = self.model.module.get_submodule(str(self.block)), slice(0, self.tokens)
        outputs: list[Tensor] = []
        measuring = False

        def widen(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            """Run the block as it is for the heads' outputs, then give it S times the rows that go on."""
            nonlocal measuring
            if measuring:
                return None
            measuring = True
            try:
                with tap(block) as record:
                    block(*args, **kwargs)
            finally:
                measuring = False
            outputs.extend(a.output for a in record if _joined(str(self.block), a.name) == self.layer.name)
            return _first_changed(args, kwargs, lambda x: x[:, rows].repeat(len(heads.scales), 1, 1))

        def edit(output: Tensor) -> Tensor:
            return output if measuring else heads(outputs[0][..., rows, :]).flatten(0, 1)

        handle = block.register_forward_pre_hook(widen, with_kwargs=True)
        try:
            with tap(self.model.module, heads=self._fixed() | {self.layer.name: edit}):
                return self.model(images).unflatten(0, (len(heads.scales), len(images)))
        finally:
            handle.remove()


def head_mask_runner(model: Classifier, layer: Layer, images: Tensor) -> HeadMaskRunner:
    """A layer ready to be run under many scalings, in the cheapest way that gives this model's logits on two images."""
    slow = HeadMaskRunner(model, layer)
    images = images[:2]
    generator = torch.Generator().manual_seed(0)
    heads = HeadMask(torch.rand(2, layer.num_heads, generator=generator).to(images))
    truth = slow.logits(images, heads)
    for block in _blocks(model.module, layer.name):
        for tokens in _tokens(model):
            fast = replace(slow, block=block, tokens=tokens)
            try:
                found = fast.logits(images, heads)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # whatever a model raises on a shape it was not made for
                continue
            if found.shape == truth.shape and torch.allclose(found, truth, rtol=1e-3, atol=1e-4):
                return fast
    return slow


def _one(heads: HeadMask) -> HeadIntervention:
    """A single scaling as the seam takes it."""
    return lambda output: heads(output)[0]


def _tokens(model: Classifier) -> list[int | None]:
    """How many tokens to try to go on with: those before the patches, where the head reads the first, or all."""
    reads_first = model.grid is not None and model.grid.pooling == "cls"
    return [model.grid.prefix, None] if reads_first and model.grid else [None]


def _blocks(module: nn.Module, name: str) -> Iterator[str]:
    """The modules around an attention layer, from the outside in, that hold no other."""
    inner = [n for n, _ in module.get_submodule(name).named_modules(prefix=name)]
    kind = type(module.get_submodule(name))
    others = [n for n, m in module.named_modules() if isinstance(m, kind) and n not in inner]
    parts = name.split(".")
    for end in range(1, len(parts)):
        outer = ".".join(parts[:end])
        if not any(other.startswith(f"{outer}.") for other in others):
            yield outer


def _joined(outer: str, inner: str) -> str:
    return f"{outer}.{inner}" if inner else outer


def _first_changed(
    args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a call with the first tensor among them changed."""
    for i, value in enumerate(args):
        if isinstance(value, Tensor):
            return (*args[:i], change(value), *args[i + 1 :]), kwargs
    for key, value in kwargs.items():
        if isinstance(value, Tensor):
            return args, kwargs | {key: change(value)}
    return args, kwargs
