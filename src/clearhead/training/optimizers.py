"""Optimizers by name: torch's, those of timm's registry, schedule-free ones, and sharpness-aware forms of them.

    adamw, adam, sgd                        torch's; SGD with momentum 0.9, not Nesterov's
    lion, muon, lamb, adopt, ...            ``timm.optim.list_optimizers()``
    schedulefree-adamw, schedulefree-sgd    Defazio et al., arXiv 2405.15682
    sam-BASE                                Foret et al., arXiv 2010.01412, rho 0.05
    asam-BASE                               Kwon et al., arXiv 2102.11600, rho 0.5

The last three come from pytorch_optimizer, which is imported when one of them is used.
"""

from collections.abc import Iterator
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


def make_optimizer(name: str, module: nn.Module, lr: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    """Return the optimizer of a module's parameters that require a gradient, with one weight decay for all.

    Those of Muon's family (``muon``, ``adamuon``, ...) update matrices and convolutions; their AdamW updates
    embeddings, the last matrix (the classifier head) and everything with one dimension.

    Raises ClearheadError for a name that is unknown, or an optimizer that is unavailable on this machine.
    """
    require_optimizer(name)
    family, base = _split_name(name)
    groups = _parameter_groups(module, base)
    try:
        if family in RADIUS:
            from pytorch_optimizer import SAM

            def inner(groups: Any, **_: Any) -> torch.optim.Optimizer:
                return _plain_optimizer(base, groups, lr, weight_decay)

            optimizer: torch.optim.Optimizer = cast(Any, SAM)(
                groups, inner, rho=RADIUS[family], adaptive=family == "asam"
            )
            return optimizer
        if family == _SCHEDULE_FREE:
            import pytorch_optimizer

            schedule_free = {"adamw": pytorch_optimizer.ScheduleFreeAdamW, "sgd": pytorch_optimizer.ScheduleFreeSGD}
            optimizer = schedule_free[base](groups, lr=lr, weight_decay=weight_decay)
            return optimizer
        return _plain_optimizer(base, groups, lr, weight_decay)
    except (AssertionError, ImportError, RuntimeError) as error:  # bitsandbytes, Apex
        raise ClearheadError(f"optimizer: {name} is unavailable here: {cause(error)}") from error


def require_optimizer(name: str) -> None:
    """Raise ClearheadError for a name that `make_optimizer` does not know, or whose package is not installed."""
    family, base = _split_name(name)
    known = ("adamw", "sgd") if family == _SCHEDULE_FREE else _plain_names()
    if family not in ("", _SCHEDULE_FREE, *RADIUS) or base not in known:
        every = [*_plain_names(), *(f"{_SCHEDULE_FREE}-{base}" for base in ("adamw", "sgd"))]
        every += [f"{family}-{base}" for family in RADIUS for base in _plain_names()]
        raise ClearheadError(
            f"optimizer: {name!r} is unknown{close_matches(name, every)}; choose from adamw, adam, sgd, the names of "
            "timm.optim.list_optimizers(), schedulefree-adamw, schedulefree-sgd, sam-BASE and asam-BASE"
        )
    if family and find_spec("pytorch_optimizer") is None:
        raise ClearheadError(f"optimizer: {name} needs pytorch-optimizer: pip install 'clearhead[optimizers]'")


def is_sharpness_aware(name: str) -> bool:
    """Return whether its step takes a closure that computes the gradients again, at other weights."""
    return _split_name(name)[0] in RADIUS


def is_schedule_free(name: str) -> bool:
    """Return whether it has ``train()`` and ``eval()``, to be called before training and before using the weights."""
    return _split_name(name)[0] == _SCHEDULE_FREE


@contextmanager
def repeat_random_numbers(device: torch.device) -> Iterator[None]:
    """Rewind torch's random generators after the block, so that two passes share one dropout mask."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


@contextmanager
def fixed_batch_norm_statistics(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norm unchanged during the block, also in training mode."""
    momenta = {m: m.momentum for m in module.modules() if isinstance(m, _BatchNorm)}
    try:
        for norm in momenta:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum


def _split_name(name: str) -> tuple[str, str]:
    """Split ``sam-adamw`` into the family and the base; the family of a plain optimizer is empty."""
    family, dash, base = name.partition("-")
    return (family, base) if dash else ("", name)


@cache
def _plain_names() -> list[str]:
    """Return timm's names, except optimizers that need the graph of the gradient."""
    return [n for n in timm.optim.list_optimizers() if not timm.optim.get_optimizer_info(n).second_order]


def _plain_optimizer(name: str, groups: Any, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, weight_decay=weight_decay)
    optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(groups, name, lr=lr, weight_decay=weight_decay)
    return optimizer


def _parameter_groups(module: nn.Module, base: str) -> list[Any]:
    """Return the parameters; for Muon in two groups, of hidden layers and of all others."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if "muon" not in base:
        return list(named.values())
    embeddings: Any = getattr(module, "no_weight_decay", set)()  # timm's models list theirs
    last = [name for name, p in named.items() if p.ndim == 2][-1:]
    others = {name for name in named if name in last or any(fnmatch(name, pattern) for pattern in embeddings)}
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in named.items() if name not in others]},
        {"params": [p for name, p in named.items() if name in others], "use_fallback": True},
    ]
    return [group for group in groups if group["params"]]
