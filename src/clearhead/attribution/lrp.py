"""AttnLRP and LibraGrad: relevance propagated layer by layer, implemented as a modified gradient.

The rule of a layer distributes the relevance of its outputs among its inputs. With relevance = value x gradient (as in
the public code of arXiv 2402.05602) a rule is a modified derivative of that layer: one forward and one backward pass
suffice, and no value changes. The rules:

- linear layers, sums, residuals: the plain gradient, which is the epsilon rule with epsilon = 0.
- element-wise y = f(x) (GELU, SiLU, ...): y counts as x times the constant y / x, the identity rule.
- LayerNorm, RMSNorm: the scale 1 / sigma is a constant, the identity rule; the mean is subtracted as usual.
- a product of two factors that both depend on the image (a gate, q kᵀ, A v): each gets half, the uniform rule.
- softmax: the plain gradient, the Taylor rule. LibraGrad makes A a constant instead, and v gets all.

So for AttnLRP the gradients at v, q and k are scaled by 1/2, 1/4 and 1/4, for LibraGrad by 1, 0 and 0, which the
records of the tap allow with the fused kernel in use. Norms, activations and gates are intercepted as torch functions
(``F.layer_norm``, ``F.gelu``, ``silu(x) * y``), whatever library calls them; an activation that is written out as
0.5 x (1 + tanh ...) has its plain gradient. While the model runs, its parameters are constants: a tensor that requires
a gradient then depends on the image.

Relevance is measured at the tokens as they enter a layer, positional embedding included: token x gradient, summed over
channels. They are taken before the layer's norm if it is one of torch's functions, else as its attention receives them.
Biases absorb their part of the relevance. Without biases LibraGrad's relevance of all tokens sums to the logit at every
layer; AttnLRP's does not in general, as the rule of the softmax leaves some in a bias term of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from clearhead.attention_tap import AttentionCall, tap
from clearhead.attribution.gae import on_grid, token_grid
from clearhead.errors import ClearheadError
from clearhead.models import Classifier
from clearhead.models.classifier import SubstitutedParameters, chosen_logit, evaluation_mode

Method = Literal["attnlrp", "libragrad"]


@dataclass(frozen=True)
class Rule:
    """Fractions of the gradient that pass at v, and at q and k; and the layers where relevance is measured."""

    value: float
    query_key: float
    layers: slice


RULES: dict[Method, Rule] = {
    "attnlrp": Rule(1 / 2, 1 / 4, slice(1)),
    "libragrad": Rule(1.0, 0.0, slice(None)),
}


def attnlrp(model: Classifier, images: Tensor, target: Tensor | int | None = None) -> tuple[Tensor, Tensor]:
    """Return AttnLRP (Achtibat et al., arXiv 2402.05602) of the first layer's tokens, B x h x w, and the logits.

    The positive part: evidence against the class counts as none. The paper measures relevance of language models at the
    token embeddings, as is done here. Its public code for ViTs measures it at the pixels, which is noisier; to reduce
    the noise it has a gamma rule in linear layers and patch embedding, which must be tuned, costs several times as
    much, and holds A constant.

    Raises as ``gae``.
    """
    return _relevance(model, images, target, "attnlrp")


def libragrad(model: Classifier, images: Tensor, target: Tensor | int | None = None) -> tuple[Tensor, Tensor]:
    """Return LibraGrad (Mehri et al., arXiv 2411.16760) of the tokens of all layers, B x h x w, and the logits.

    The mean over layers of token x gradient, which is Libra FullGrad+ of the authors' notebook for a model without
    biases; the terms of biases are left out here. Then its positive part; the authors leave the sign. Raises as
    ``gae``.
    """
    return _relevance(model, images, target, "libragrad")


def differentiable_relevance(
    model: Classifier, images: Tensor, target: Tensor, method: Method
) -> tuple[Tensor, Tensor]:
    """Return the map of a method with a graph to the parameters, B x h x w, and the logits, as a loss needs them.

    Relevance is token x gradient. The modified gradient is a constant, as that of attention is in GAE's loss: the
    gradient of the loss flows through the tokens. It is computed in eval mode; tokens and logits are those of a second,
    ordinary forward pass in the model's own mode. Raises as ``gae``.
    """
    unwrapped = replace(model, module=getattr(model.module, "module", model.module))  # of several processes
    with evaluation_mode(unwrapped.module):
        _, gradients, _ = _tokens_and_gradients(unwrapped, images, target, method)
    grid = token_grid(model, method, images)
    with torch.enable_grad(), tap(model.module) as record, _Rules(modify=False) as rules:
        logits = model(images)
    tokens = [rules.entering(layer, method) for layer in list(record)[RULES[method].layers]]
    return on_grid(_row(tokens, gradients), grid), logits


def _relevance(model: Classifier, images: Tensor, target: Tensor | int | None, method: Method) -> tuple[Tensor, Tensor]:
    grid = token_grid(model, method, images)
    tokens, gradients, logits = _tokens_and_gradients(model, images, target, method)
    with torch.no_grad():
        return on_grid(_row([token.detach() for token in tokens], gradients), grid), logits


def _row(tokens: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Return the positive part of the mean over layers of token x gradient, B x N."""
    parts = [(x * gradient).sum(-1) for x, gradient in zip(tokens, gradients, strict=True)]
    return torch.stack(parts).mean(0).clamp(min=0)


def _tokens_and_gradients(
    model: Classifier, images: Tensor, target: Tensor | int | None, method: Method
) -> tuple[list[Tensor], Sequence[Tensor], Tensor]:
    """Return the tokens that enter the layers of a method, their modified gradients (B x N x D), and the logits."""
    rule = RULES[method]
    with torch.inference_mode(False), torch.enable_grad():
        inputs = model.normalize(images.detach().clone()).requires_grad_()
        with tap(model.module) as record, _Rules() as rules, SubstitutedParameters(torch.Tensor.detach):
            logits = model.from_normalized(inputs)
        for layer in record:
            for tensor, fraction in ((layer.q, rule.query_key), (layer.k, rule.query_key), (layer.v, rule.value)):
                if tensor.requires_grad:
                    _scale_gradient(tensor, fraction)
        tokens = [rules.entering(layer, method) for layer in list(record)[rule.layers]]
        gradients = torch.autograd.grad(chosen_logit(logits, target).sum(), tokens)
    return tokens, gradients, logits.detach()


def _scale_gradient(tensor: Tensor, fraction: float) -> None:
    """Let only a fraction of the gradient pass at a tensor."""
    hooked: Any = tensor  # torch has no types for it
    hooked.register_hook(lambda gradient: gradient * fraction)


class _Rules(TorchFunctionMode):
    """While open, norms, element-wise functions and products of two activations differentiate by their rules.

    With `modify` False the norms are only recorded.
    """

    def __init__(self, modify: bool = True) -> None:
        super().__init__()
        self.modify = modify
        self.normed: list[tuple[Tensor, Tensor]] = []

    def entering(self, layer: AttentionCall, method: str) -> Tensor:
        """Return the tokens (B x N x D) that enter a layer: the input of its norm, or without one of its attention."""
        x = next((x for x, y in self.normed if y is layer.input), layer.input)
        if x is None or x.shape[:2] != (layer.q.shape[0], layer.q.shape[-2]):
            raise ClearheadError(
                f"method {method!r} needs attention modules that take tokens as B x N x D; the input of {layer.name} "
                f"({type(layer.module).__name__}) is {'no tensor' if x is None else tuple(x.shape)}: use gae"
            )
        return x

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not (args and isinstance(args[0], Tensor) and args[0].requires_grad):
            return func(*args, **kwargs)
        x = args[0]
        if not self.modify:
            y = func(*args, **kwargs)
            if func in _NORMS:
                self.normed.append((x, y))
            return y
        if func in _ELEMENT_WISE:
            y = func(x.detach().clone(), *args[1:], **kwargs)  # a copy: it may work in place
            wide = _wide(x)
            return _multiple(x, (y / (wide + torch.full_like(wide, 1e-10).copysign(wide))).to(x), y)
        if func in _NORMS:
            y = _multiple(*_NORMS[func](*args, **kwargs), func(x.detach(), *args[1:], **kwargs))
            self.normed.append((x, y))
            return y
        if func in _SCALES:
            return func(x.detach())
        both = len(args) > 1 and isinstance(args[1], Tensor) and args[1].requires_grad
        if both and func in _QUOTIENTS:
            return func(x, args[1].detach(), *args[2:], **kwargs)
        result = func(*args, **kwargs)
        if both and func in _PRODUCTS:
            _scale_gradient(result, 1 / 2)
        return result


class _Multiple(torch.autograd.Function):
    """y, which is differentiated as x times a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0] * ctx.saved_tensors[0], None, None


_multiple: Callable[..., Tensor] = _Multiple.apply


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return what LayerNorm multiplies, and by what."""
    dims = tuple(range(-len(shape), 0))
    scale = (_wide(x).var(dims, correction=0, keepdim=True) + eps).rsqrt()
    return x - x.mean(dims, keepdim=True), scale if weight is None else scale * weight


def _rms_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return what RMSNorm multiplies, and by what."""
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
