"""An image classifier and what is known of it."""

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clearhead.errors import ClearheadError
from clearhead.models.preprocessing import Preprocessing

Library = Literal["timm", "hf", "torchvision", "module"]


@dataclass(frozen=True)
class TokenGrid:
    """How a vision transformer's N = prefix + height * width tokens lie on the image, row by row.

    `prefix` tokens (CLS, distillation, registers) come before the patches. `readout` is what the head reads: ``cls``,
    the first token, or ``mean``, the patches' average. A head that reads the first token and others besides it counts
    as ``cls``: DeiT's distilled heads (first and second token), DINOv2's (first token, and the average of the patches).
    One that averages all tokens, the first like any other, counts as ``mean``.
    """

    height: int
    width: int
    prefix: int
    pooling: Literal["cls", "mean"]


@dataclass(frozen=True)
class Classifier:
    """An image classifier and what is needed to use it: pixels in 0..1 (B x 3 x H x W) in, logits (B x classes) out.

    It normalises inside. `module` takes normalised input: ``module(normalize(pixels))``.

    Attributes:
        module: the model itself, in eval mode when loaded.
        name: what it was loaded as.
        library: whose it is, and so how `save_model` writes it.
        preprocess: from a picture to its input.
        classes: the names of its outputs, in order.
        grid: how its tokens lie on the image; None where they form no one grid in which all attend to all: windowed
            or hierarchical attention, tokens not made by a convolution, no attention at all. ``dataclasses.replace``
            gives a grid that is known better.
        rebuild: the architecture and its arguments, for `save_model`.
    """

    module: nn.Module
    name: str
    library: Library
    preprocess: Preprocessing
    classes: tuple[str, ...]
    grid: TokenGrid | None = None
    rebuild: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the logits (B x classes) of pixels in 0..1 (B x 3 x H x W)."""
        return self.from_normalized(self.normalize(pixels))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return pixels in 0..1 as `module` takes them: (pixels - mean) / std of each channel."""
        return self.preprocess.normalize(pixels)

    def from_normalized(self, inputs: Tensor) -> Tensor:
        """Return the logits (B x classes) of normalised input, for gradients with respect to that input."""
        return logits(self.module(inputs))


def logits(output: Any) -> Tensor:
    """The logits, B x classes, in whatever a model returns: a tensor, or an output of Hugging Face's."""
    return output if isinstance(output, Tensor) else output.logits


def chosen_logit(logits: Tensor, target: Tensor | int | None) -> Tensor:
    """The logit of the class to explain for each image, B: the predicted one where ``target`` is None."""
    classes = logits.shape[-1]
    if target is None:
        target = logits.detach().argmax(-1)
    target = torch.as_tensor(target, device=logits.device).expand(len(logits))
    if target.is_inference():  # autograd cannot keep it
        target = target.clone()
    if target.min() < 0 or target.max() >= classes:
        raise ClearheadError(
            f"target: class {target.min()}..{target.max()}, but the model has classes 0..{classes - 1}"
        )
    return logits.gather(1, target[:, None])[:, 0]


def logit_gradients(
    at: Sequence[Tensor],
    logits: Tensor,
    target: Tensor | int | None,
    *,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> list[Tensor]:
    """The gradient of the logit to explain (``chosen_logit``) at some tensors, zero where nothing comes of one."""
    with torch.inference_mode(False), torch.enable_grad():
        found = torch.autograd.grad(
            chosen_logit(logits, target).sum(),
            at,
            retain_graph=retain_graph,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    return list(found)


def require_device(device: str | None) -> None:
    """Raise ValueError for a device that is not there."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ClearheadError(f"device: {device!r} cannot be used here: {error}") from error


def on_device(model: Classifier, device: str | None) -> Classifier:
    """The model on a device, by default a GPU where there is one. Raises ClearheadError for one that is not there."""
    require_device(device)
    return replace(model, module=model.module.to(device or ("cuda" if torch.cuda.is_available() else "cpu")))


class Instead(TorchFunctionMode):
    """A block in which torch's functions are given another tensor for each parameter; the model stays as it is."""

    def __init__(self, instead: Callable[[nn.Parameter], Tensor]) -> None:
        super().__init__()
        self.instead = instead

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*map(self._of, args), **{name: self._of(value) for name, value in (kwargs or {}).items()})

    def _of(self, value: Any) -> Any:
        if isinstance(value, list | tuple):  # what torch.cat is given, for one
            return type(value)(map(self._of, value)) if any(isinstance(v, nn.Parameter) for v in value) else value
        return self.instead(value) if isinstance(value, nn.Parameter) else value


def require_not_nan(logits: Tensor) -> Tensor:
    """The logits (... x classes), none of them NaN, which argmax would take for an answer. Raises ClearheadError."""
    if broken := int(logits.isnan().any(-1).sum()):
        raise ClearheadError(f"model: {broken} of {logits[..., 0].numel()} answers are NaN")
    return logits


def fingerprint(module: nn.Module) -> str:
    """A hash of all parameters and buffers: of the model itself, wherever it was loaded from."""
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """A block in which a model is in eval mode, and after which each of its modules is as it was."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        module.train(modes[0][1])  # some modules keep what they make in eval mode until they are told again
        for m, training in modes:
            m.training = training


def copied(module: nn.Module) -> nn.Module:
    """A deep copy. What some modules keep in eval mode, which may be part of a graph, is gone from both."""
    modes = [m.training for m in module.modules()]
    with evaluation_mode(module):
        made = copy.deepcopy(module)
    for m, training in zip(made.modules(), modes, strict=True):
        m.training = training
    return made


@dataclass(frozen=True)
class Wanted:
    """What `load_model` was asked for besides the name."""

    num_classes: int | None
    size: tuple[int, int] | None
    pretrained: bool

    def fresh_head(self, outputs: int) -> int | None:
        """The outputs of the fresh head that has to replace one of so many; None where that one stays."""
        return None if self.num_classes == outputs else self.num_classes
