"""Attack images: search pixels within eps of each image on which the model is wrong.

The attacks are those of the Adversarial Robustness Toolbox (``pip install clearhead[adversarial]``), the packaged
library that is still maintained and compatible with current ones. It normally changes the module it attacks and NumPy's
global random state; here both are left unchanged.
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
    """Raise ClearheadError if the toolbox is not installed."""
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
    """Return adversarial images: each pixel differs by at most `eps`, and the loss never decreases.

    Images that the model already misclassifies, or for which nothing worse was found, are returned unchanged. The
    parameters, their ``grad`` and the global random states stay unchanged.

    ``pgd``: projected gradient ascent (Madry et al. 2018, arXiv 1706.06083) from the image itself, in steps of
    2.5 eps / steps; nothing is random, so the result does not depend on the batch. One step is FGSM (Goodfellow et al.
    2015, arXiv 1412.6572). ``apgd-ce``: Auto-PGD on the cross-entropy (Croce & Hein 2020, arXiv 2003.01690), from a
    random start that depends on `seed` and on the image's position in the batch. It only tries to change the
    prediction: if it fails, the image is almost unchanged, whereas ``pgd`` still increases the loss.

    Args:
        model: maps pixels in 0..1 to logits, B x classes; normalisation happens inside. A module is in eval mode during
            the attack; any other callable is called directly.
        images: B x 3 x H x W in 0..1.
        labels: the correct output of each image, B.
        eps: largest change of a pixel, in 0..1.
        steps: number of gradient steps.
        name: the attack.
        seed: decides the random start.

    Raises:
        ClearheadError: if the toolbox is not installed; for images outside 0..1, labels outside the outputs, eps <= 0,
            steps < 1, or an unknown name.
    """
    if name not in get_args(Attack):
        raise ClearheadError(f"name: {name!r} is unknown; choose from {', '.join(get_args(Attack))}")
    if eps <= 0 or steps < 1:
        raise ClearheadError(f"eps, steps: got {eps:g} and {steps}; eps must be above 0, steps at least 1")
    if images.min() < 0 or images.max() > 1:
        raise ClearheadError(
            f"images: got values in {images.min():.3g}..{images.max():.3g}; pixels in 0..1, not normalised, are needed"
        )
    mode = evaluation_mode(model) if isinstance(model, nn.Module) else nullcontext()
    with mode, torch.inference_mode(False), torch.enable_grad():
        with torch.no_grad():
            logits = model(images)
        if labels.min() < 0 or labels.max() >= logits.shape[1]:
            raise ClearheadError(
                f"labels: got {labels.min()}..{labels.max()}; the model has outputs 0..{logits.shape[1] - 1}"
            )
        correct = (logits.argmax(1) == labels).nonzero()[:, 0]
        result = images.clone()
        if len(correct):
            start, target = images[correct], labels[correct]
            attacked = _run_attack(model, start, target, logits.shape[1], eps, steps, name, seed)
            attacked = torch.minimum(torch.maximum(attacked, start - eps), start + eps).clamp(0, 1)
            before = nn.functional.cross_entropy(logits[correct], target, reduction="none")
            worse = _losses(model, attacked, target) > before
            result[correct] = torch.where(worse[:, None, None, None], attacked, start)
    return result


def _losses(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return nn.functional.cross_entropy(model(images), labels, reduction="none")


def _run_attack(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    classes: int,
    eps: float,
    steps: int,
    name: Attack,
    seed: int,
) -> Tensor:
    """Return the toolbox's adversarial images."""
    require_toolbox()
    from art.attacks.evasion import AutoProjectedGradientDescent, ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    with torch.cuda.device(images.device) if images.is_cuda else nullcontext(), _numpy_seed(seed):
        classifier = PyTorchClassifier(
            _ImagesOnly(model, images.device),
            nn.CrossEntropyLoss(),
            input_shape=tuple(images.shape[1:]),
            nb_classes=classes,
            clip_values=(0.0, 1.0),
            device_type="gpu" if images.is_cuda else "cpu",
        )
        common = {"norm": np.inf, "eps": eps, "max_iter": steps, "batch_size": len(images), "verbose": False}
        if name == "pgd":
            method = ProjectedGradientDescentPyTorch(
                classifier, eps_step=2.5 * eps / steps, num_random_init=0, **common
            )
        else:
            method = AutoProjectedGradientDescent(
                classifier, eps_step=2 * eps, nb_random_init=1, loss_type="cross_entropy", **common
            )
        attacked = method.generate(images.cpu().numpy(), labels.cpu().numpy())
    return torch.from_numpy(attacked).to(images)


class _ImagesOnly(nn.Module):
    """A module without parameters that calls a model; its backward pass reaches only the images."""

    def __init__(self, model: Callable[[Tensor], Tensor], device: torch.device) -> None:
        super().__init__()
        self.call = lambda images: model(images.to(device))  # not a submodule, so its mode and device stay

    def forward(self, images: Tensor) -> Tensor:
        apply: Callable[..., Tensor] = _ImageGradient.apply
        return apply(images, self.call)


class _ImageGradient(torch.autograd.Function):
    """Call a model; the backward pass computes the gradient of the images and of no parameter."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, call: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.set_grad_enabled(ctx.needs_input_grad[0]):
            ctx.images = images.detach().requires_grad_(ctx.needs_input_grad[0])
            logits = call(ctx.images).to(images.device)
        ctx.logits = logits
        return logits.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return torch.autograd.grad(ctx.logits, ctx.images, gradients)[0], None


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Seed NumPy's global random state for a block; restore it and torch's afterwards."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        with torch.random.fork_rng(devices=[]):  # the toolbox's data loaders draw a random number
            yield
    finally:
        np.random.set_state(state)
