"""Find how the tokens of a vision transformer cover the image, by one probe forward."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from clearhead.attention_tap import AttentionCall, AttentionRecord, NoAttentionError, tap
from clearhead.models.classifier import SubstitutedParameters, TokenGrid, evaluation_mode, logits

_MOST_PREFIX_TOKENS = 16


def probe(module: nn.Module, size: tuple[int, int]) -> tuple[int, TokenGrid | None]:
    """Return the number of outputs and the token grid, from one forward of a random image; it leaves no trace.

    Parameters that are all zero (those of a new head, for example) are substituted by random ones: zeros pass no
    gradient, which shows what the head reads.
    """
    like = next(module.parameters(), torch.zeros(1))
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(like)

    patches: list[tuple[int, int]] = []
    record = AttentionRecord()
    gradient, outputs = None, 0

    def record_patches(_module: nn.Module, _args: object, output: Tensor) -> None:
        if not len(record):
            patches.append((output.shape[-2], output.shape[-1]))

    handles = [m.register_forward_hook(record_patches) for m in module.modules() if isinstance(m, nn.Conv2d)]
    try:
        with _undisturbed(module, like.device), tap(module, needs_grad=True) as record:
            substitutes = {id(p): 0.02 * draw(*p.shape) for p in module.parameters() if not p.any()}
            with SubstitutedParameters(lambda parameter: substitutes.get(id(parameter), parameter)):
                out = logits(module(draw(1, 3, *size)))
            outputs = out.shape[-1]
            if len(record) and _chained(record.outputs):
                (gradient,) = torch.autograd.grad(out.sum(), record.outputs[-1], allow_unused=True)
    except NoAttentionError:
        return outputs, None
    finally:
        for handle in handles:
            handle.remove()
    if gradient is None or not patches:
        return outputs, None
    return outputs, _grid(list(record), gradient, patches[-1])


@contextmanager
def _undisturbed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """A block with gradients and in eval mode, after which mode and random state are as before."""
    cuda = [device] if device.type == "cuda" else []
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(cuda), evaluation_mode(module):
        yield


def _chained(outputs: Sequence[Tensor]) -> bool:
    """Whether the last attention depends on the first; it does not where images or models run side by side."""
    first, last = outputs[0], outputs[-1]
    if first is last or not last.requires_grad:
        return last.requires_grad
    return torch.autograd.grad(last.sum(), first, retain_graph=True, allow_unused=True)[0] is not None


def _grid(layers: Sequence[AttentionCall], gradient: Tensor, patches: tuple[int, int]) -> TokenGrid | None:
    """Return the grid, if all layers attend from all N tokens to all N, and the last convolution before them made N.

    What the head reads shows in the gradient (1 x H x N x d) at the last layer's output, after which tokens are not
    mixed: it is zero at tokens that are not read. A token read alone outweighs each of n averaged ones about n times.
    """
    tokens = layers[0].q.shape[-2]
    if any(a.q.ndim != 4 or len(a.q) != 1 or {a.q.shape[-2], a.k.shape[-2]} != {tokens} for a in layers):
        return None
    prefix = tokens - math.prod(patches)
    if not 0 <= prefix <= _MOST_PREFIX_TOKENS:
        return None
    weight = gradient.float().square().sum((0, 1, 3)).sqrt()
    if prefix and weight[-1] > weight[:-1].sum():  # a class token behind the patches
        return None
    alone = prefix > 0 and weight[0] > weight[prefix:].mean() * math.sqrt(math.prod(patches))
    return TokenGrid(*patches, prefix, "cls" if alone else "mean")
