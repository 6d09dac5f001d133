"""Compute a model's logits under many head masks of one layer, from one pass through the layers before it.

At the block that holds the layer, the B images become S x B rows, one set per mask, and only the rest of the model is
run S times. For the last layer of a model that pools the CLS token this costs almost nothing: only the prefix tokens of
the block's output are read, so each row is one token long, and the 4,095 subsets of 12 heads cost less than two more
passes of the model. Whether a model can be run this way is tested on the first images; where it cannot (a windowed
model, for example), the whole model is run for each mask.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from clearhead.attention_tap import HeadIntervention, tap
from clearhead.errors import ClearheadError
from clearhead.models import Classifier

_ROWS = 2**15
"""Tokens that go through the repeated part at once."""


@dataclass(frozen=True)
class Layer:
    """An attention layer: position in call order, name of its module, number of heads, channels per head."""

    index: int
    name: str
    num_heads: int
    head_dim: int


@dataclass(frozen=True)
class HeadMask:
    """Head masks of one layer.

    Attributes:
        scales: S masks, S x H; 1 keeps a head unchanged, 0 removes it.
        fill: H x d or None: added to a head's scaled output, times 1 - scale (mean ablation).
    """

    scales: Tensor
    fill: Tensor | None = None

    def __call__(self, output: Tensor) -> Tensor:
        """Return the heads' output (B x H x N x d) under each mask, S x B x H x N x d."""
        scales = self.scales.to(output)[:, None, :, None, None]
        scaled = scales * output
        return scaled if self.fill is None else scaled + (1 - scales) * self.fill.to(output)[:, None, :]

    def __getitem__(self, masks: slice) -> "HeadMask":
        return HeadMask(self.scales[masks], self.fill)


def attention_layers(model: Classifier, images: Tensor) -> list[Layer]:
    """Return the attention layers of a model, by a pass over the first image.

    Raises:
        NoAttentionError: if the model makes no attention call.
        ClearheadError: for a model that calls one attention module more than once, so that names are ambiguous.
    """
    with torch.no_grad(), tap(model.module) as record:
        model(images[:1])
    layers = [Layer(i, a.name, a.num_heads, a.v.shape[-1]) for i, a in enumerate(record)]
    if len({layer.name for layer in layers}) < len(layers):
        raise ClearheadError(
            f"model: {model.name} calls an attention module more than once, so its layers have no unique names"
        )
    return layers


@dataclass(frozen=True)
class HeadMaskRunner:
    """Runs a model under many head masks of one layer; ``head_mask_runner`` makes it.

    Attributes:
        model: the classifier.
        layer: the layer.
        others: masks of other layers, by name, each with S = 1.
        block: name of the module at which images are repeated; None runs the whole model for each mask.
        tokens: number of leading tokens per image that are repeated; None for all.
    """

    model: Classifier
    layer: Layer
    others: Mapping[str, HeadMask] = field(default_factory=dict)
    block: str | None = None
    tokens: int | None = None

    @torch.no_grad()
    def logits(self, images: Tensor, heads: HeadMask) -> Tensor:
        """Return the logits of B images under each of S masks, S x B x classes."""
        if self.block is None:
            return torch.cat([self._full_pass(images, heads[i : i + 1]) for i in range(len(heads.scales))])
        grid = self.model.grid
        tokens = self.tokens or (grid.prefix + grid.height * grid.width if grid else 256)
        count = len(heads.scales)
        batch = min(len(images), max(1, _ROWS // (tokens * count)))
        masks = max(1, _ROWS // (tokens * batch))
        parts = [
            torch.cat([self._repeated_pass(part, heads[i : i + masks]) for i in range(0, count, masks)])
            for part in torch.split(images, batch)
        ]
        return torch.cat(parts, 1)

    def _interventions(self) -> dict[str | int, HeadIntervention]:
        return {name: _intervention(heads) for name, heads in self.others.items()}

    def _full_pass(self, images: Tensor, heads: HeadMask) -> Tensor:
        with tap(self.model.module, heads=self._interventions() | {self.layer.name: _intervention(heads)}):
            return self.model(images)[None]

    def _repeated_pass(self, images: Tensor, heads: HeadMask) -> Tensor:
        """Run one pass in which the images become S x B rows where the block begins."""
        block, rows = self.model.module.get_submodule(str(self.block)), slice(0, self.tokens)
        outputs: list[Tensor] = []
        measuring = False

        def repeat(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            """Record the heads' outputs in a plain run of the block, then repeat its input S times."""
            nonlocal measuring
            if measuring:
                return None
            measuring = True
            try:
                with tap(block) as record:
                    block(*args, **kwargs)
            finally:
                measuring = False
            outputs.extend(
                a.output for a in record if self.layer.name == (f"{self.block}.{a.name}" if a.name else self.block)
            )
            return _with_first_tensor(args, kwargs, lambda x: x[:, rows].repeat(len(heads.scales), 1, 1))

        def edit(output: Tensor) -> Tensor:
            return output if measuring else heads(outputs[0][..., rows, :]).flatten(0, 1)

        handle = block.register_forward_pre_hook(repeat, with_kwargs=True)
        try:
            with tap(self.model.module, heads=self._interventions() | {self.layer.name: edit}):
                logits = self.model(images)
                return logits.reshape(len(heads.scales), len(images), -1)
        finally:
            handle.remove()


def head_mask_runner(model: Classifier, layer: Layer, images: Tensor) -> HeadMaskRunner:
    """Return a runner for a layer that works in the cheapest way that is exact for this model, tested on two images."""
    exact = HeadMaskRunner(model, layer)
    images = images[:2]
    generator = torch.Generator().manual_seed(0)
    heads = HeadMask(torch.rand(2, layer.num_heads, generator=generator).to(images))
    expected = exact.logits(images, heads)
    for block in _enclosing_blocks(model.module, layer.name):
        for tokens in _token_counts(model):
            fast = replace(exact, block=block, tokens=tokens)
            try:
                logits = fast.logits(images, heads)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # whatever a model raises for an unexpected shape
                continue
            if logits.shape == expected.shape and torch.allclose(logits, expected, rtol=1e-3, atol=1e-4):
                return fast
    return exact


def _intervention(heads: HeadMask) -> HeadIntervention:
    """Return a single mask (S = 1) as ``tap`` takes it."""
    return lambda output: heads(output)[0]


def _token_counts(model: Classifier) -> list[int | None]:
    """Return how many tokens to try to continue with: the prefix tokens, where the CLS token is pooled, or all."""
    return [model.grid.prefix, None] if model.grid is not None and model.grid.pooling == "cls" else [None]


def _enclosing_blocks(module: nn.Module, name: str) -> Iterator[str]:
    """Yield the modules around an attention layer, from the outside in, that contain no other attention layer."""
    attention = module.get_submodule(name)
    inner = [n for n, _ in attention.named_modules(prefix=name)]
    others = [n for n, m in module.named_modules() if isinstance(m, type(attention)) and n not in inner]
    parts = name.split(".")
    for end in range(1, len(parts)):
        outer = ".".join(parts[:end])
        if not any(other.startswith(f"{outer}.") for other in others):
            yield outer


def _with_first_tensor(
    args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with the first tensor among them changed."""
    for i, value in enumerate(args):
        if isinstance(value, Tensor):
            return (*args[:i], change(value), *args[i + 1 :]), kwargs
    for key, value in kwargs.items():
        if isinstance(value, Tensor):
            return args, kwargs | {key: change(value)}
    return args, kwargs
