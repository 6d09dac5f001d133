"""Relevance handed back layer by layer, written as a changed gradient: AttnLRP and LibraGrad.

A layer's rule says how the relevance of its outputs is shared among its inputs. With relevance = value x gradient (as
in the public code of arXiv 2402.05602) a rule is a change of that layer's derivative: one forward and one backward pass
do it all, and no value changes. The rules:

- linear layers, sums, residuals: the gradient as it is, which is the epsilon rule with epsilon = 0.
- element-wise y = f(x) (GELU, SiLU, ...): y counts as x times the constant y / x, the identity rule.
- LayerNorm, RMSNorm: the scale 1 / sigma is a constant, the identity rule; the mean is subtracted as always.
- a product of two things that both depend on the image (a gate, q kᵀ, A v): each gets half, the uniform rule.
- softmax: the gradient as it is, the Taylor rule. LibraGrad makes A a constant instead, and v gets all.

So for AttnLRP the gradients at v, q and k are scaled by 1/2, 1/4 and 1/4, for LibraGrad by 1, 0 and 0, which the
seam's records allow with the fused kernel in place. Norms, activations and gates are met as torch functions
(``F.layer_norm``, ``F.gelu``, ``silu(x) * y``), whatever library calls them; an activation that is written out as
0.5 x (1 + tanh ...) keeps its own gradient. While the model runs, its parameters are constants: what requires a
gradient then depends on the image.

Relevance is read off the tokens as they enter a layer, positional embedding included: token x gradient, summed over
channels. They are taken before the layer's norm if it is one of torch's functions, else as its attention is given them.
Biases keep the relevance that is theirs. Without biases LibraGrad's relevance of all tokens sums to the logit at every
layer; AttnLRP's need not, as the softmax's rule leaves some in a bias term of its own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from clearhead.attention_tap import AttentionCall, tap
from clearhead.attribution.gae import token_grid
from clearhead.errors import ClearheadError
from clearhead.models import Classifier
from clearhead.models.classifier import SubstitutedParameters, chosen_logit


def attnlrp(model: Classifier, images: Tensor, target: Tensor | int | None = None) -> tuple[Tensor, Tensor]:
    """AttnLRP (Achtibat et al., arXiv 2402.05602) of the tokens that enter the first layer, B x h x w, and the logits.

    The positive part: what speaks against the class counts as none. The paper reads language models off at the token
    embeddings, as is done here. Its public code for ViTs reads off the pixels, which is noisier; against that it has a
    gamma rule to be tuned in linear layers and patch embedding, at several times the cost, and holds A constant.

    Raises as ``gae``.
    """
    return _relevance(model, images, target, "attnlrp", value=1 / 2, query_key=1 / 4, layers=slice(1))


def libragrad(model: Classifier, images: Tensor, target: Tensor | int | None = None) -> tuple[Tensor, Tensor]:
    """LibraGrad (Mehri et al., arXiv 2411.16760) of the tokens that enter each layer, B x h x w, and the logits.

    The mean over layers of token x gradient, as the authors' notebook has Libra FullGrad+ for a model without biases;
    the terms of biases are left out here. Then its positive part, where they keep the sign. Raises as ``gae``.
    """
    return _relevance(model, images, target, "libragrad", value=1.0, query_key=0.0, layers=slice(None))


def _relevance(
    model: Classifier,
    images: Tensor,
    target: Tensor | int | None,
    method: str,
    value: float,
    query_key: float,
    layers: slice,
) -> tuple[Tensor, Tensor]:
    """The positive part of the mean relevance of the tokens that enter ``layers``.

    ``value`` and ``query_key`` are the shares of the gradient that pass at v, and at q and k.
    """
    grid = token_grid(model, method, images)
    with torch.inference_mode(False), torch.enable_grad():
        inputs = model.normalize(images.detach().clone()).requires_grad_()
        with tap(model.module) as record, _Rules() as rules, SubstitutedParameters(torch.Tensor.detach):
            found = model.from_normalized(inputs)
        for layer in record:
            for tensor, share in ((layer.q, query_key), (layer.k, query_key), (layer.v, value)):
                if tensor.requires_grad:
                    tensor.register_hook(lambda gradient, share=share: gradient * share)
        tokens = [rules.entering(layer, method) for layer in list(record)[layers]]
        gradients = torch.autograd.grad(chosen_logit(found, target).sum(), tokens)
    with torch.no_grad():
        parts = [(x.detach() * gradient).sum(-1) for x, gradient in zip(tokens, gradients, strict=True)]
        row = torch.stack(parts).mean(0).clamp(min=0)
    return row[:, grid.prefix :].unflatten(1, (grid.height, grid.width)), found.detach()


class _Rules(TorchFunctionMode):
    """While open, norms, element-wise functions and products of two activations differentiate by their rules."""

    def __init__(self) -> None:
        super().__init__()
        self.normed: list[tuple[Tensor, Tensor]] = []

    def entering(self, layer: AttentionCall, method: str) -> Tensor:
        """The tokens (B x N x D) that enter a layer: what its norm, or without one its attention, was given."""
        x = next((x for x, y in self.normed if y is layer.input), layer.input)
        if x is None or x.shape[:2] != (layer.q.shape[0], layer.q.shape[-2]):
            raise ClearheadError(
                f"method {method!r} needs attention modules that are given the tokens as B x N x D; {layer.name} "
                f"({type(layer.module).__name__}) was given {'none' if x is None else tuple(x.shape)}: use gae"
            )
        return x

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not (args and isinstance(args[0], Tensor) and args[0].requires_grad):
            return func(*args, **kwargs)
        x = args[0]
        if func in _ELEMENT_WISE:
            y = func(x.detach().clone(), *args[1:], **kwargs)  # a copy: it may work in place
            wide = _wide(x)
            return _Multiple.apply(x, (y / (wide + torch.full_like(wide, 1e-10).copysign(wide))).to(x), y)
        if func in _NORMS:
            y = _Multiple.apply(*_NORMS[func](*args, **kwargs), func(x.detach(), *args[1:], **kwargs))
            self.normed.append((x, y))
            return y
        if func in _SCALES:
            return func(x.detach())
        both = len(args) > 1 and isinstance(args[1], Tensor) and args[1].requires_grad
        if both and func in _QUOTIENTS:
            return func(x, args[1].detach(), *args[2:], **kwargs)
        result = func(*args, **kwargs)
        if both and func in _PRODUCTS:
            result.register_hook(lambda gradient: gradient / 2)
        return result


class _Multiple(torch.autograd.Function):
    """y, which counts as x times a constant when differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0] * ctx.saved_tensors[0], None, None


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> tuple[Tensor, Tensor]:
    """What LayerNorm multiplies, and by what."""
    dims = tuple(range(-len(shape), 0))
    scale = (_wide(x).var(dims, correction=0, keepdim=True) + eps).rsqrt()
    return x - x.mean(dims, keepdim=True), scale if weight is None else scale * weight


def _rms_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> tuple[Tensor, Tensor]:
    dims = tuple(range(-len(shape), 0))
    squares = _wide(x).square().mean(dims, keepdim=True)
    scale = (squares + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt()
    return x, scale if weight is None else scale * weight


def _wide(x: Tensor) -> Tensor:
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


_NORMS: dict[Callable[..., Any], Callable[..., tuple[Tensor, Tensor]]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
}
_SCALES = {torch.rsqrt, Tensor.rsqrt}  # of norms that are written out
_QUOTIENTS = {torch.div, Tensor.div, Tensor.div_, Tensor.__truediv__, Tensor.__itruediv__}
_PRODUCTS = {torch.mul, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__imul__}
_ELEMENT_WISE = {
    *(F.gelu, F.silu, F.mish, F.hardswish, F.elu, F.softplus),
    *(torch.sigmoid, Tensor.sigmoid, torch.tanh, Tensor.tanh),
}
