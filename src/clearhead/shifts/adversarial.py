"""Adversarial pixels: the worst of the images within eps of each, as far as an attack finds them.

The attacks are those of the Adversarial Robustness Toolbox (``pip install clearhead[adversarial]``), of the packaged
libraries the one that is still released and installs beside current ones. It expects to own the module it attacks and
NumPy's global random numbers; here it is given neither.
"""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from clearhead.errors import ClearheadError
from clearhead.models.classifier import evaluation_mode

Attack = Literal["pgd", "apgd-ce"]


def require_toolbox() -> None:
    """Raise ValueError where the toolbox is not installed."""
    if importlib.util.find_spec("art") is None:
        raise ClearheadError("attacks need the Adversarial Robustness Toolbox: pip install 'clearhead[adversarial]'")


def attack(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    eps: float = 1 / 255,
    steps: int = 10,
    name: Attack = "pgd",
    seed: int = 0,
) -> Tensor:
    """Images at most `eps` from the given ones in every pixel, on which the model is wrong where such can be found.

    An image that the model gets wrong is returned as it is, and so is one for which nothing worse was found: the loss
    does not fall and the accuracy does not rise. Parameters, their ``grad`` and the global random states are left as
    they are.

    ``pgd``: projected gradient ascent (Madry et al. 2018, arXiv 1706.06083) from the image itself, by steps of
    2.5 eps / steps; nothing is drawn, so an image's result does not depend on its batch. One step is FGSM (Goodfellow
    et al. 2015, arXiv 1412.6572). ``apgd-ce``: Auto-PGD on the cross-entropy (Croce & Hein 2020, arXiv 2003.01690),
    from a random start that depends on `seed` and on the image's place in the batch. It aims at the answer alone: an
    image whose answer it cannot change comes back all but harmless, where ``pgd`` still raises the loss.

    Args:
        model: logits, B x classes, of pixels in 0..1: what it normalises, it normalises inside. A module is put into
            eval mode for the time; any other callable is called as it is.
        images: B x 3 x H x W in 0..1.
        labels: the right output of each image, B.
        eps: in the units of the pixels.
        steps: gradients taken.
        name: which attack.
        seed: of the random start.

    Raises:
        ClearheadError: where the toolbox is not installed; for images outside 0..1, labels that are no outputs, eps <=
        0,
            steps < 1, an unknown name.
    """
    if name not in get_args(Attack):
        raise ClearheadError(f"name: there is no attack {name!r}; there is {', '.join(get_args(Attack))}")
    if eps <= 0 or steps < 1:
        raise ClearheadError(f"eps {eps:g} must be above 0, steps {steps} at least 1")
    if images.min() < 0 or images.max() > 1:
        raise ClearheadError(
            f"images: pixels in 0..1 are attacked, these are in {images.min():.3g}..{images.max():.3g}; "
            "give them before they are normalised"
        )
    ours = evaluation_mode(model) if isinstance(model, nn.Module) else nullcontext()
    with ours, torch.inference_mode(False), torch.enable_grad():
        with torch.no_grad():
            logits = model(images)
        if labels.min() < 0 or labels.max() >= logits.shape[1]:
            raise ClearheadError(
                f"labels: {labels.min()}..{labels.max()}, but the model has outputs 0..{logits.shape[1] - 1}"
            )
        right = (logits.argmax(1) == labels).nonzero()[:, 0]
        result = images.clone()
        if len(right):
            start = images[right]
            found = _attacked(model, start, labels[right], logits.shape[1], eps, steps, name, seed)
            found = torch.minimum(torch.maximum(found, start - eps), start + eps).clamp(0, 1)
            worse = _losses(model, found, labels[right]) > nn.functional.cross_entropy(
                logits[right], labels[right], reduction="none"
            )
            result[right] = torch.where(worse[:, None, None, None], found, start)
    return result


def _losses(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return nn.functional.cross_entropy(model(images), labels, reduction="none")


def _attacked(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    classes: int,
    eps: float,
    steps: int,
    name: Attack,
    seed: int,
) -> Tensor:
    """What the toolbox makes of the images."""
    require_toolbox()
    from art.attacks.evasion import AutoProjectedGradientDescent, ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    with torch.cuda.device(images.device) if images.is_cuda else nullcontext(), _drawing_from(seed):
        classifier = PyTorchClassifier(
            _Alone(model, images.device),
            nn.CrossEntropyLoss(),
            input_shape=tuple(images.shape[1:]),
            nb_classes=classes,
            clip_values=(0.0, 1.0),
            device_type="gpu" if images.is_cuda else "cpu",
        )
        ours = {"norm": np.inf, "eps": eps, "max_iter": steps, "batch_size": len(images), "verbose": False}
        if name == "pgd":
            made = ProjectedGradientDescentPyTorch(classifier, eps_step=2.5 * eps / steps, num_random_init=0, **ours)
        else:
            made = AutoProjectedGradientDescent(
                classifier, eps_step=2 * eps, nb_random_init=1, loss_type="cross_entropy", **ours
            )
        found = made.generate(images.cpu().numpy(), labels.cpu().numpy())
    return torch.from_numpy(found).to(images)


class _Alone(nn.Module):
    """A model without its parameters: a module that calls it, whose backward pass reaches the images alone."""

    def __init__(self, model: Callable[[Tensor], Tensor], device: torch.device) -> None:
        super().__init__()
        self.call = lambda images: model(images.to(device))  # no submodule, so its mode and place stay

    def forward(self, images: Tensor) -> Tensor:
        return _ImageGradient.apply(images, self.call)


class _ImageGradient(torch.autograd.Function):
    """A call whose backward pass takes the gradient of the images and adds to no parameter's."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, call: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.set_grad_enabled(ctx.needs_input_grad[0]):
            ctx.images = images.detach().requires_grad_(ctx.needs_input_grad[0])
            ctx.logits = call(ctx.images).to(images.device)
        return ctx.logits.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return torch.autograd.grad(ctx.logits, ctx.images, gradients)[0], None


@contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """A block with NumPy's global random numbers from a seed, after which they and torch's go on as before."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        with torch.random.fork_rng(devices=[]):  # the toolbox's data loaders draw a number
            yield
    finally:
        np.random.set_state(state)
