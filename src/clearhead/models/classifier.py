"""An image classifier: its module and all that is needed to use it."""

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clearhead.errors import ClearheadError
from clearhead.models.preprocessing import Preprocessing

Library = Literal["timm", "hf", "torchvision", "module"]


@dataclass(frozen=True)
class TokenGrid:
    """How the N = prefix + height * width tokens of a vision transformer cover the image, row by row.

    `prefix` tokens (CLS, distillation, registers) come before the patches. `pooling` is what the head reads: ``cls``,
    the first token, or ``mean``, the average of the patches. A head that reads the first token and others besides it
    counts as ``cls``: DeiT's distilled heads (first and second token), DINOv2's (first token, and the average of the
    patches). A head that averages all tokens, the first like any other, counts as ``mean``.
    """

    height: int
    width: int
    prefix: int
    pooling: Literal["cls", "mean"]


@dataclass(frozen=True)
class Classifier:
    """An image classifier: pixels in 0..1 (B x 3 x H x W) in, logits (B x classes) out.

    It normalises inside. `module` takes normalised input: ``module(normalize(pixels))``.

    Attributes:
        module: the network itself; in eval mode when it was loaded.
        name: the name it was loaded by.
        library: the library it belongs to, which decides the format that `save_model` writes.
        preprocess: converts an image to pixels, and normalises them.
        classes: names of the outputs, in order.
        grid: how its tokens cover the image; None where they form no single grid in which all attend to all: windowed
            or hierarchical attention, tokens not made by a convolution, no attention at all. Where you know better,
            set it by ``dataclasses.replace``.
        rebuild: the architecture and its arguments, for `save_model`.
        weights: the entry of a checkpoint file that was read, such as ``state_dict_ema``; empty for other sources.
    """

    module: nn.Module
    name: str
    library: Library
    preprocess: Preprocessing
    classes: tuple[str, ...]
    grid: TokenGrid | None = None
    rebuild: Mapping[str, Any] = field(default_factory=dict, repr=False)
    weights: str = field(default="", repr=False, compare=False)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the logits (B x classes) of pixels in 0..1 (B x 3 x H x W)."""
        return self.from_normalized(self.normalize(pixels))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return pixels in 0..1 as `module` takes them: (pixels - mean) / std of each channel."""
        return self.preprocess.normalize(pixels)

    def from_normalized(self, inputs: Tensor) -> Tensor:
        """Return the logits (B x classes) of normalised input, for gradients with respect to that input."""
        return logits(self.module(inputs))

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the module to a device or dtype, as ``nn.Module.to`` does; return the classifier."""
        self.module.to(*args, **kwargs)
        return self

    def eval(self) -> Self:
        """Put the module into eval mode; return the classifier."""
        self.module.eval()
        return self

    def train(self, mode: bool = True) -> Self:
        """Put the module into train mode (or eval mode); return the classifier."""
        self.module.train(mode)
        return self

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the parameters of the module."""
        return self.module.parameters()


def logits(output: Any) -> Tensor:
    """Return the logits (B x classes) in the output of a module: the tensor itself, or its ``.logits``."""
    return output if isinstance(output, Tensor) else output.logits


def chosen_logit(logits: Tensor, target: Tensor | int | None) -> Tensor:
    """Return the logit of the class to explain for each image, B: the predicted class where ``target`` is None."""
    classes = logits.shape[-1]
    if target is None:
        target = logits.detach().argmax(-1)
    target = torch.as_tensor(target, device=logits.device).expand(len(logits))
    if target.is_inference():  # autograd cannot save it
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
    """Return the gradients of the logit to explain (``chosen_logit``) at some tensors; zero at unused ones."""
    with torch.inference_mode(False), torch.enable_grad():
        gradients = torch.autograd.grad(
            chosen_logit(logits, target).sum(),
            at,
            retain_graph=retain_graph,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    return list(gradients)


def require_device(device: str | None) -> None:
    """Raise ClearheadError for a device that is unavailable."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ClearheadError(f"device: {device!r} is unavailable: {error}") from error


def on_device(model: Classifier, device: str | None) -> Classifier:
    """Return the model on a device, by default a GPU if there is one. Raises ClearheadError if it is unavailable."""
    require_device(device)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


class SubstitutedParameters(TorchFunctionMode):
    """A block in which torch functions receive another tensor for each parameter; the model itself is unchanged."""

    def __init__(self, substitute: Callable[[nn.Parameter], Tensor]) -> None:
        super().__init__()
        self.substitute = substitute

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*map(self._of, args), **{name: self._of(value) for name, value in (kwargs or {}).items()})

    def _of(self, value: Any) -> Any:
        if isinstance(value, list | tuple):  # the argument of torch.cat, for example
            return type(value)(map(self._of, value)) if any(isinstance(v, nn.Parameter) for v in value) else value
        return self.substitute(value) if isinstance(value, nn.Parameter) else value


def require_not_nan(logits: Tensor) -> Tensor:
    """Return the logits (... x classes), none of them NaN, of which argmax would pick one. Raises ClearheadError."""
    if broken := int(logits.isnan().any(-1).sum()):
        raise ClearheadError(f"model: {broken} of {logits[..., 0].numel()} answers are NaN")
    return logits


def fingerprint(module: nn.Module) -> str:
    """Return a hash of all parameters and buffers, which identifies the weights wherever they were loaded from."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """A block in which a module is in eval mode; afterwards each of its submodules has its own mode again."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        module.train(modes[0][1])  # some modules hold what they made in eval mode until train() is called
        for m, training in modes:
            m.training = training


def copied(module: nn.Module) -> nn.Module:
    """Return a deep copy. What some modules cache in eval mode, perhaps part of a graph, is dropped from both."""
    modes = [m.training for m in module.modules()]
    with evaluation_mode(module):
        duplicate = copy.deepcopy(module)
    for m, training in zip(duplicate.modules(), modes, strict=True):
        m.training = training
    return duplicate


@dataclass(frozen=True)
class LoadOptions:
    """What `load_model` was asked for besides the name."""

    num_classes: int | None
    size: tuple[int, int] | None
    pretrained: bool

    def new_head(self, outputs: int) -> int | None:
        """Return the outputs of the new head that has to replace one of so many outputs; None where that one stays."""
        return None if self.num_classes == outputs else self.num_classes
