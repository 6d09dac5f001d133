"""Optimizers by name: torch's, those of timm's registry, schedule-free ones, and sharpness-aware forms of them.

    adamw, adam, sgd                        torch's; SGD with momentum 0.9, not Nesterov's
    lion, muon, lamb, adopt, ...            ``timm.optim.list_optimizers()``
    schedulefree-adamw, schedulefree-sgd    Defazio et al., arXiv 2405.15682
    sam-BASE                                Foret et al., arXiv 2010.01412, rho 0.05
    asam-BASE                               Kwon et al., arXiv 2102.11600, rho 0.5

The last three come from pytorch_optimizer, which is imported when one of them is asked for.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cache
from importlib.util import find_spec
from typing import Any, cast

import timm.optim
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clearhead.errors import ClearheadError
from clearhead.models.errors import cause, close_matches

RADIUS = {"sam": 0.05, "asam": 0.5}
"""rho, the distance at which the gradient is taken, as the papers set it for CIFAR."""

_SCHEDULE_FREE = "schedulefree"


def make(name: str, module: nn.Module, lr: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    """The optimizer of the parameters of a module that require a gradient, all with the same weight decay.

    Muon's (``muon``, ``adamuon``, ...) take matrices and convolutions; embeddings, the last matrix (the classifier) and
    whatever has one dimension go to their AdamW. Raises ClearheadError for a name that is unknown or cannot be had
    here.
    """
    require(name)
    kind, base = _parts(name)
    groups = _groups(module, base)
    try:
        if kind in RADIUS:
            from pytorch_optimizer import SAM

            def inner(groups: Any, **_: Any) -> torch.optim.Optimizer:
                return _plain(base, groups, lr, weight_decay)

            return SAM(groups, cast(Any, inner), rho=RADIUS[kind], adaptive=kind == "asam")
        if kind == _SCHEDULE_FREE:
            import pytorch_optimizer

            free = {"adamw": pytorch_optimizer.ScheduleFreeAdamW, "sgd": pytorch_optimizer.ScheduleFreeSGD}
            return free[base](groups, lr=lr, weight_decay=weight_decay)
        return _plain(base, groups, lr, weight_decay)
    except (AssertionError, ImportError, RuntimeError) as error:  # bitsandbytes, Apex
        raise ClearheadError(f"optimizer: {name} cannot be had here: {cause(error)}") from error


def require(name: str) -> None:
    """Raise ValueError for a name that `make` does not know, or whose package is not installed."""
    kind, base = _parts(name)
    known = ("adamw", "sgd") if kind == _SCHEDULE_FREE else _names()
    if kind not in ("", _SCHEDULE_FREE, *RADIUS) or base not in known:
        every = [*_names(), *(f"{_SCHEDULE_FREE}-{b}" for b in ("adamw", "sgd"))]
        every += [f"{k}-{b}" for k in RADIUS for b in _names()]
        raise ClearheadError(
            f"optimizer: {name!r} is unknown{close_matches(name, every)}; there is adamw, adam, sgd, a name of "
            "timm.optim.list_optimizers(), schedulefree-adamw, schedulefree-sgd, sam-BASE and asam-BASE"
        )
    if kind and find_spec("pytorch_optimizer") is None:
        raise ClearheadError(f"optimizer: {name} needs pytorch-optimizer: pip install 'clearhead[optimizers]'")


def is_sharpness_aware(name: str) -> bool:
    """Whether its step takes a closure that computes the gradients again, at other weights."""
    return _parts(name)[0] in RADIUS


def is_schedule_free(name: str) -> bool:
    """Whether it has ``train()`` and ``eval()``, to be called before training and before the weights are used."""
    return _parts(name)[0] == _SCHEDULE_FREE


@contextmanager
def same_draws(device: torch.device) -> Iterator[None]:
    """A block after which the random numbers are those drawn in it once more: one dropout for two passes."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """A block in which batch norm keeps its running statistics, in training mode too."""
    momenta = {m: m.momentum for m in module.modules() if isinstance(m, _BatchNorm)}
    try:
        for norm in momenta:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum


def _parts(name: str) -> tuple[str, str]:
    kind, dash, base = name.partition("-")
    return (kind, base) if dash else ("", name)


@cache
def _names() -> list[str]:
    """timm's, but for those that need the graph of the gradient."""
    return [n for n in timm.optim.list_optimizers() if not timm.optim.get_optimizer_info(n).second_order]


def _plain(name: str, groups: Any, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    options: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "sgd": _sgd}
    if name in options:
        return options[name](groups, lr=lr, weight_decay=weight_decay)
    return timm.optim.create_optimizer_v2(groups, name, lr=lr, weight_decay=weight_decay)


def _sgd(groups: Any, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, momentum=0.9, **options)


def _groups(module: nn.Module, base: str) -> list[Any]:
    """The parameters; for Muon in two groups, those that are no hidden layer's in the second."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if "muon" not in base:
        return list(named.values())
    embeddings: Any = getattr(module, "no_weight_decay", set)()  # timm's models name theirs
    last = [name for name, p in named.items() if p.ndim == 2][-1:]
    other = {name for name in named if name in last or any(fnmatch(name, pattern) for pattern in embeddings)}
    hidden = [p for name, p in named.items() if name not in other]
    rest = [p for name, p in named.items() if name in other]
    groups: list[dict[str, Any]] = [{"params": hidden}, {"params": rest, "use_fallback": True}]
    return [group for group in groups if group["params"]]
