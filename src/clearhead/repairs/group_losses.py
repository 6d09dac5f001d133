"""Losses over groups, without masks: reweighting, and group DRO (distributionally robust optimisation).

A group is a class crossed with columns of metadata.csv, named as by ``clearhead.data.dataset.group_labels``; without
columns the groups are the classes. A model relies on a shortcut that most images share, and fails in the small groups
without it; these losses give such groups more weight.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.data.dataset import ImageIndex, group_labels
from clearhead.data.loading import batch_mean
from clearhead.distributed import mean_over_processes
from clearhead.errors import ClearheadError
from clearhead.models import Classifier
from clearhead.models.classifier import logits as logits_of
from clearhead.repairs.loss_inputs import is_training
from clearhead.training.losses import Batch

T = TypeVar("T")


@dataclass(frozen=True)
class Reweight:
    """Cross-entropy in which each image has the weight of its group, as a loss ``(model, batch) -> parts``.

    Attributes:
        weights: by name of the group.
    """

    weights: Mapping[str, float]

    @classmethod
    def from_images(cls, images: ImageIndex, group_columns: Sequence[str] | None) -> Self:
        """Weight each group by the inverse of its number of images; the mean weight over all images is 1.

        `group_columns` None uses all columns. Raises DataError for a column that does not exist.
        """
        counts = Counter(group_labels(images, group_columns))
        mean_count = counts.total() / len(counts)
        return cls({name: mean_count / count for name, count in sorted(counts.items())})

    def __call__(self, model: Classifier | nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted mean cross-entropy under ``loss``, in nats, and the ``logits``.

        The sum of weight times loss is divided by the number of images, so that the mean over many batches is the mean
        over all images. Raises ClearheadError for a group without a weight.

        Args:
            model: a classifier, or a plain module that takes the images as they are.
            batch: image, label and group, as in ``clearhead.repairs.loss_inputs``.
        """
        weights = torch.tensor(_look_up(batch["group"], self.weights))
        logits = logits_of(model(batch["image"]))
        losses = F.cross_entropy(logits, batch["label"], reduction="none")
        return {"loss": batch_mean(losses * weights.to(losses), batch), "logits": logits}


@dataclass(eq=False)
class GroupDRO:
    """Group DRO as a loss ``(model, batch) -> parts``: Sagawa et al., arXiv 1911.08731, algorithm 1.

    The loss is sum_g q_g L_g, with L_g the mean cross-entropy of the batch's images of group g. Before each training
    step q_g <- q_g exp(step_size L_g), normalised to sum 1, for the groups in the batch. In eval mode q does not
    change, and the sum is over the groups in the batch: it depends on the batches, and on q from epoch to epoch, so
    choose the epoch by ``worst_group_loss``. A network that fits every training image has no worst group: the paper
    finds that the method also needs strong weight decay (up to 1) or early stopping.

    Attributes:
        groups: their names, in the order of q.
        step_size: η_q.
        q: weight of each group, uniform at first. It changes with training: use a new object for each training.

    Raises ClearheadError for fewer than two groups, or a step size that is not positive.
    """

    groups: tuple[str, ...]
    step_size: float = 0.01
    q: Tensor = field(init=False)

    def __post_init__(self) -> None:
        if len(self.groups) < 2:
            raise ClearheadError(
                f"groups: two or more groups are needed, got {len(self.groups)} ({', '.join(self.groups)}); add a "
                "metadata.csv with a column such as background to the data"
            )
        if not 0 < self.step_size < float("inf"):
            raise ClearheadError(f"step_size: got {self.step_size}; a positive number is needed, such as 0.01")
        self.q = torch.full((len(self.groups),), 1 / len(self.groups))

    @classmethod
    def from_images(cls, images: ImageIndex, group_columns: Sequence[str] | None, step_size: float = 0.01) -> Self:
        """Use the groups of some images; `group_columns` None uses all columns.

        Raises DataError for a column that does not exist.
        """
        return cls(tuple(sorted(set(group_labels(images, group_columns)))), step_size)

    def __call__(self, model: Classifier | nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted sum of the groups' losses under ``loss``, in nats, and the ``logits``.

        Raises ClearheadError for a group that is not in ``groups``.

        Args:
            model: a classifier, or a plain module that takes the images as they are. In training mode q is updated.
            batch: image, label and group, as in ``clearhead.repairs.loss_inputs``.
        """
        index = torch.tensor(_look_up(batch["group"], {name: i for i, name in enumerate(self.groups)}))
        logits = logits_of(model(batch["image"]))
        losses = F.cross_entropy(logits, batch["label"], reduction="none")
        member = F.one_hot(index.to(losses.device), len(self.groups)).to(losses)
        if "counts" in batch:
            member = member * batch["counts"][:, None].to(losses)
        # with counts averaged over processes, the mean of the processes' losses is the loss of the whole batch
        sums, counts = losses @ member, mean_over_processes(member.sum(0))
        counts = counts.where(counts > 0, 1)  # the sum of an empty group is 0
        self.q = self.q.to(losses)
        if is_training(model):
            self.q = (self.q.log() + self.step_size * mean_over_processes(sums.detach()) / counts).softmax(0)
        return {"loss": (self.q * sums / counts).sum(), "logits": logits}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state that a resumed training needs: q."""
        return {"q": self.q}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore q. Raises ClearheadError for the state of another number of groups."""
        if state["q"].shape != self.q.shape:
            raise ClearheadError(f"state: {len(state['q'])} groups, but this data has {len(self.groups)}")
        self.q = state["q"]


def _look_up(names: Iterable[str], table: Mapping[str, T]) -> list[T]:
    """Return the entry of each group; ClearheadError with the name of a group that has none."""
    try:
        return [table[name] for name in names]
    except KeyError as error:
        raise ClearheadError(
            f"group {error.args[0]!r} has no training image; groups with training images: {'; '.join(table)}. Add "
            "training images of it, or use fewer group columns"
        ) from None
