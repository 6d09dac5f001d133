"""The one module of clearhead that knows about attention calls; everything else works on what it records.

Vision transformers of every library call ``torch.nn.functional.scaled_dot_product_attention(q, k, v, ...)``. While a
``with tap(model)`` block is open, that function is replaced: each call of a module of ``model`` is forwarded to the
real (fused) kernel and recorded with its q, k, v, mask, scale and output, named after the innermost module that was
running. No model is copied or changed. From (q, k, v, o) and one backward pass to o everything else follows exactly:
the attention A = softmax(scale q kᵀ + mask), and its gradient dA = dO vᵀ.

Taps nest (each sees the calls of its own model) and are private to the thread that opened them; the original function
is restored when the last tap of the process closes, also after an exception.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from clearhead.errors import ClearheadError

__all__ = ["AttentionCall", "AttentionRecord", "HeadIntervention", "NoAttentionError", "tap"]

HeadIntervention = Tensor | Callable[[Tensor], Tensor]
"""How to change the heads of a layer: a scale for each (H, or B x H), or a function of o, B x H x N x d."""


class NoAttentionError(ClearheadError, RuntimeError):
    """No call of ``scaled_dot_product_attention`` was seen, or attention bypassed it; the message says what to do."""


class CompiledModelError(ClearheadError, RuntimeError):
    """A model compiled by ``torch.compile`` or ``torch.jit``, whose attention calls are hidden."""


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One attention call. B images (or windows), H heads, N queries, M keys, d channels per head.

    Attributes:
        name: dotted name of the module that called (``blocks.0.attn``).
        module: that module.
        input: the first tensor passed to the module, usually B x N x D after the layer's norm; ``None`` if there was
            none, or if it has the tokens first (``nn.MultiheadAttention`` without ``batch_first``).
        q: queries, B x H x N x d, as passed to the kernel (after q/k norm and rotary embedding).
        k: keys, B x H x M x d.
        v: values, B x H x M x d.
        mask: additive (float) mask, or true where to attend (bool), broadcastable to B x H x N x M, or ``None``.
        scale: factor of q kᵀ.
        output: the heads' output o = A v, B x H x N x d, before the ``heads`` of the tap change it, so that the
            gradient at it includes the change; part of the autograd graph.
        dropout: dropout probability of the attention in this call.
    """

    name: str
    module: nn.Module
    input: Tensor | None
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    scale: float
    output: Tensor
    dropout: float = 0.0

    @property
    def num_heads(self) -> int:
        """Return the number of heads H."""
        return self.q.shape[-3]

    def attn(self, rows: slice = slice(None)) -> Tensor:
        """Return the attention A of some query rows, B x H x rows x M, before dropout; recomputed, rows sum to 1.

        In float32 or wider: where attention is nearly uniform, half precision leaves little but rounding errors.
        """
        wide = torch.promote_types(self.q.dtype, torch.float32)
        with torch.autocast(self.q.device.type, enabled=False):
            scores = (self.q[..., rows, :].to(wide) * self.scale) @ self.k.to(wide).transpose(-2, -1)
        if self.mask is not None:
            mask = self.mask if self.mask.shape[-2] == 1 else self.mask[..., rows, :]
            scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        return scores.softmax(-1)

    def attn_grad(self, grad_output: Tensor, rows: slice = slice(None)) -> Tensor:
        """Return dA = dO vᵀ, B x H x rows x M, from ``grad_output`` = dO, B x H x N x d, the gradient at o."""
        return grad_output[..., rows, :] @ self.v.transpose(-2, -1)


@dataclass
class AttentionRecord:
    """What a ``tap`` block has recorded so far: ``attention`` has one entry per call, in call order."""

    attention: list[AttentionCall] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.attention)

    def __iter__(self) -> Iterator[AttentionCall]:
        return iter(self.attention)

    def __getitem__(self, index: int) -> AttentionCall:
        return self.attention[index]

    @property
    def outputs(self) -> list[Tensor]:
        """Return the heads' outputs, one B x H x N x d tensor per layer: what to differentiate with respect to."""
        return [a.output for a in self.attention]


@dataclass(eq=False)  # of nested taps this one must be removed, not one that compares equal
class _OpenTap:
    """An open tap: its record, its head interventions, and the modules of its model that are in their forward pass.

    ``finished`` has, for each module that has run, how many calls had been recorded when it last returned.
    """

    record: AttentionRecord
    heads: Mapping[str | int, HeadIntervention]
    needs_grad: bool
    modules: list[tuple[str, nn.Module, Tensor | None]] = field(default_factory=list)
    finished: dict[str, int] = field(default_factory=dict)


class _Local(threading.local):
    def __init__(self) -> None:
        self.open: list[_OpenTap] = []


_ATTENTION = re.compile("attention|attn", re.IGNORECASE)
_local = _Local()
_lock = threading.Lock()
_open_taps = 0
_kernel = F.scaled_dot_product_attention
_fastpath = True


def _recording_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Call the real kernel, and record the call in each open tap of this thread whose model is running."""
    listening = [t for t in _local.open if t.modules]
    again = torch._C._current_graph_task_id() != -1  # a checkpointed layer that is recomputed in the backward pass
    if listening and enable_gqa:  # each group of query heads shares one key and value head
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
        enable_gqa = False  # record what the kernel receives
    output = _kernel(
        query,
        key,
        value,
        attn_mask=attn_mask,
        dropout_p=dropout_p,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
    )
    if not listening:
        return output
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if any(t.needs_grad for t in listening) and not output.requires_grad and torch.is_grad_enabled():
        output = output.requires_grad_()
    edited = output
    for open_tap in listening:
        name, module, first = open_tap.modules[-1]
        position = next((i for i, a in enumerate(open_tap.record) if a.name == name), None) if again else None
        edit = open_tap.heads.get(name, open_tap.heads.get(len(open_tap.record) if position is None else position))
        if edit is not None:
            edited = edited * _per_head(edit, edited, name) if isinstance(edit, Tensor) else edit(edited)
        if not again:
            call = AttentionCall(name, module, first, query, key, value, attn_mask, scale, output, dropout_p)
            open_tap.record.attention.append(call)
    return edited


def _per_head(scales: Tensor, output: Tensor, name: str) -> Tensor:
    """Return scales (H, or B x H) in a shape that multiplies the heads of ``output``, B x H x N x d."""
    batch, heads = output.shape[0], output.shape[-3]
    if scales.shape not in {(heads,), (batch, heads)}:
        raise ClearheadError(
            f"heads: the scales for '{name}' have shape {tuple(scales.shape)}; expected ({heads},) for {heads} heads, "
            f"or ({batch}, {heads}) for one scale per image"
        )
    return scales.to(output)[..., :, None, None]


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    return next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)


@contextmanager
def tap(
    model: nn.Module, *, heads: Mapping[str | int, HeadIntervention] | None = None, needs_grad: bool = False
) -> Iterator[AttentionRecord]:
    """Record every attention call ``model`` makes while the block is open.

    Args:
        model: any module whose attention ends in ``scaled_dot_product_attention``: timm, torchvision, Hugging Face
            (``attn_implementation="sdpa"``, the default), or your own.
        heads: how to change the heads of some layers, by module name or position in call order: a tensor of scales,
            H or B x H, where 0 removes a head, or a function that takes o and returns its replacement (without changing
            o itself). Recorded is o before the change, so that maps are those of the model without the head.
        needs_grad: let the first output require a gradient, even if neither parameters nor images do (a frozen model).

    Yields:
        The `AttentionRecord`, filled as the model runs.

    Raises:
        NoAttentionError: at the end of the block, if the model ran and no call was seen, or if a module that looks
            like attention ran unseen before the last call (one that pools tokens after it belongs to the head).
        ClearheadError: if the model was compiled by ``torch.compile`` or ``torch.jit``, which hides the calls.
        ClearheadError: if head scales have the wrong shape; at the end of the block, if one belongs to no call.

    Example:
        >>> with tap(model) as record:
        ...     logits = model(images)
        >>> record[-1].attn()  # B x H x N x N
    """
    if any(_compiled(m) for m in model.modules()):
        raise CompiledModelError(
            "model: it was compiled by torch.compile or torch.jit, which hides its attention calls; pass the model "
            "before compilation (after torch.compile(model) that is model._orig_mod)"
        )
    open_tap = _OpenTap(AttentionRecord(), heads or {}, needs_grad)
    thread = threading.get_ident()

    def enter(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
            if threading.get_ident() == thread:
                tokens_first = isinstance(module, nn.MultiheadAttention) and not module.batch_first
                first = None if tokens_first else _first_tensor(args, kwargs or {})
                open_tap.modules.append((name, module, first))

        return hook

    def leave(module: nn.Module, _args: object, _output: object) -> None:
        # Called also after an exception in a pre-hook that came before ours: then the module was never entered.
        if threading.get_ident() == thread and open_tap.modules and open_tap.modules[-1][1] is module:
            name = open_tap.modules.pop()[0]
            open_tap.finished[name] = len(open_tap.record)

    handles: list[RemovableHandle] = []
    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(enter(name), with_kwargs=True))
            handles.append(module.register_forward_hook(leave, always_call=True))
        _local.open.append(open_tap)
        _install()
        try:
            yield open_tap.record
        finally:
            _remove()
            _local.open.remove(open_tap)
    finally:
        for handle in handles:
            handle.remove()
    if open_tap.finished:
        _require_all_seen(model, open_tap)


def _compiled(module: nn.Module) -> bool:
    in_place = module._compiled_call_impl is not None  # module.compile(); torch.compile(module) wraps instead
    return in_place or hasattr(module, "_orig_mod") or isinstance(module, torch.jit.ScriptModule)


def _install() -> None:
    """Replace the function (first tap of the process) and switch off torch's fused encoder layer, which bypasses it."""
    global _open_taps, _fastpath, _kernel
    with _lock:
        if _open_taps == 0:
            _kernel = F.scaled_dot_product_attention
            F.scaled_dot_product_attention = _recording_sdpa
            _fastpath = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
        _open_taps += 1


def _remove() -> None:
    global _open_taps
    with _lock:
        _open_taps -= 1
        if _open_taps == 0:
            F.scaled_dot_product_attention = _kernel
            torch.backends.mha.set_fastpath_enabled(_fastpath)


def _require_all_seen(model: nn.Module, open_tap: _OpenTap) -> None:
    """Raise if attention was hidden from the tap, or if a head intervention belongs to no call."""
    record = open_tap.record
    names = list(dict.fromkeys(a.name for a in record))
    similar = attention_like(model)
    if not record.attention:
        raise NoAttentionError(f"no attention call was seen in {type(model).__name__}" + _advice(similar))
    hidden = {
        n: class_name
        for n, class_name in similar.items()
        if _ATTENTION.search(class_name)
        and open_tap.finished.get(n, len(record)) < len(record)
        and not any(_within(n, a) or _within(a, n) for a in names)
    }
    if hidden:
        raise NoAttentionError(
            f"some attention calls of {type(model).__name__} were not seen, only those of {_listed(names)}"
            + _advice(hidden)
        )
    unknown = [key for key in open_tap.heads if key not in names and key not in range(len(record))]
    if unknown:
        raise ClearheadError(
            f"heads: no attention call belongs to {_listed([repr(key) for key in unknown])}; pass positions from 0 to "
            f"{len(record) - 1}, or the names of modules that call: {_listed(names)}"
        )


def attention_like(model: nn.Module) -> dict[str, str]:
    """Return modules (name to class) that look like attention: by their class, or where none does by their name."""
    classes = {n: type(m).__name__ for n, m in model.named_modules()}
    names = ("attn", "self_attn", "attention")
    return {n: class_name for n, class_name in classes.items() if _ATTENTION.search(class_name)} or {
        n: class_name for n, class_name in classes.items() if n.split(".")[-1] in names
    }


def _within(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _advice(similar: Mapping[str, str]) -> str:
    """Return what to do about modules (name to class) that look like attention but made no call that was seen."""
    if not similar:
        return (
            ", and no module looks like attention: is it a CNN? Methods that need no attention (input-gradient, "
            "input-x-gradient) work on it"
        )
    modules = _listed([f"{name} ({class_name})" for name, class_name in similar.items()])
    return (
        f". These modules look like attention: {modules}. They do not "
        "call torch.nn.functional.scaled_dot_product_attention. For timm, call timm.layers.set_fused_attn(True, "
        "experimental=True) before the model is created; for Hugging Face, load with attn_implementation='sdpa'; for "
        "nn.MultiheadAttention, call it with need_weights=False; for attention written by hand, let its forward call "
        "F.scaled_dot_product_attention(q, k, v)"
    )
