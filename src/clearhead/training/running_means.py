"""Means over the images of an epoch, collected batch by batch on the device, over all processes."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from clearhead.distributed import mean_over_processes
from clearhead.training.losses import Batch


class RunningMeans:
    """Means of the parts of a loss and of the accuracy, and with `groups` those of the worst group."""

    def __init__(self, accelerator: Accelerator, groups: Sequence[str] = ()) -> None:
        self._accelerator = accelerator
        self._index = {name: i for i, name in enumerate(groups)}
        self._by_group = torch.zeros(3, len(groups), device=accelerator.device)  # images, losses, correct predictions
        self._images = torch.zeros((), device=accelerator.device)
        self._sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))

    def add(self, parts: Mapping[str, Tensor], batch: Batch) -> None:
        """Add one batch with the parts of its loss."""
        counts = batch["counts"].float()
        # each part is this process's share of a mean over the images of all processes
        images_everywhere = mean_over_processes(counts.sum())
        for name, value in parts.items():
            if name != "logits":
                self._sums[name] += value.detach().float() * images_everywhere
        logits = parts["logits"].detach()
        correct = (logits.argmax(-1) == batch["label"]) * counts
        self._sums["accuracy"] += correct.sum()
        self._images += counts.sum()
        if self._index:
            group = torch.tensor([self._index[name] for name in batch["group"]], device=logits.device)
            losses = F.cross_entropy(logits.float(), batch["label"], reduction="none")
            values = torch.stack([counts, losses * counts, correct])
            # a matrix product, because index_add_ has no fixed order of summation
            self._by_group += values @ F.one_hot(group, len(self._index)).float()

    def loss(self) -> float:
        """Return this process's mean loss so far; it waits for the device."""
        return (self._sums["loss"] / self._images.clamp(min=1)).item()

    def means(self) -> dict[str, float]:
        """Return the means over all processes; every process has to call it."""
        images = self._accelerator.reduce(self._images, "sum").item()
        means = {name: self._accelerator.reduce(total, "sum").item() / images for name, total in self._sums.items()}
        if self._index:
            counts, losses, correct = self._accelerator.reduce(self._by_group, "sum")
            present = counts > 0
            means["worst_group_loss"] = (losses / counts)[present].max().item()
            means["worst_group_accuracy"] = (correct / counts)[present].min().item()
        return means
