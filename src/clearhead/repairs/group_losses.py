"""Two losses that need no masks but group labels: each group counts alike, or the worst one counts most.

A group is a class crossed with the columns of metadata.csv, as ``clearhead.data.dataset.group_labels`` names it. Where
there is no such column the groups are the classes: balanced, or the worst class first. A model leans on a shortcut that
most images share; the groups in which it fails are small, and these losses give them weight. Both are for comparison
with the repairs that look at the relevance.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clearhead.data.dataset import ImageIndex, group_labels
from clearhead.data.loading import batch_mean
from clearhead.distributed import mean_over_processes
from clearhead.errors import ClearheadError
from clearhead.models import Classifier


@dataclass(frozen=True)
class Reweight:
    """Cross-entropy in which each image has the weight of its group; called as ``(model, batch) -> parts``.

    Attributes:
        weights: by name of the group.
    """

    weights: Mapping[str, float]

    @classmethod
    def of(cls, folder: ImageIndex, group_columns: Sequence[str] | None) -> "Reweight":
        """Weights inverse to the number of images of the group; their mean over the images of the folder is 1.

        `group_columns` None takes all columns. Raises DataError for a column that does not exist.
        """
        counts = Counter(group_labels(folder, group_columns))
        share = counts.total() / len(counts)
        return cls({name: share / count for name, count in sorted(counts.items())})

    def __call__(self, model: Classifier, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The weighted mean over the batch (image, label, group) under ``loss``, in nats, and ``logits``.

        The sum of weight times loss is divided by the number of images, so that a batch's mean over many batches is
        the mean over all images. Raises ClearheadError for a group that has no weight.
        """
        weights = _position(batch["group"], self.weights)
        logits = model(batch["image"])
        losses = F.cross_entropy(logits, batch["label"], reduction="none")
        return {"loss": batch_mean(losses * torch.tensor(weights).to(losses), batch), "logits": logits}


@dataclass(eq=False)
class GroupDRO:
    """Distributionally robust optimisation over groups: Sagawa et al., arXiv 1911.08731, algorithm 1.

    The loss is sum_g q_g L_g, L_g the mean cross-entropy of the batch's images of group g. Before each training step
    q_g <- q_g exp(step L_g), normalised to sum 1, for the groups in the batch. In evaluation q stays as it is, and the
    sum goes over the groups in the batch: it depends on how images are batched, and from epoch to epoch on q. Choose
    the epoch by ``worst_group_loss``. A network that fits every training image has no worst group: the paper finds that
    the method needs strong weight decay (up to 1) or early stopping besides.

    Attributes:
        groups: the names, in the order of q.
        step: η_q, the step size of q.
        q: weight of each group, uniform at first. It changes with training: use a new object for each.
    """

    groups: tuple[str, ...]
    step: float = 0.01
    q: Tensor = field(init=False)

    def __post_init__(self) -> None:
        if len(self.groups) < 2:
            raise ClearheadError(
                f"GroupDRO: two or more groups are needed, got {len(self.groups)} ({', '.join(self.groups)}); give the "
                "data a metadata.csv with a group column (such as background) besides file"
            )
        if not 0 < self.step < float("inf"):
            raise ClearheadError(f"step: a positive number is needed, such as 0.01, got {self.step}")
        self.q = torch.full((len(self.groups),), 1 / len(self.groups))

    @classmethod
    def of(cls, folder: ImageIndex, group_columns: Sequence[str] | None, step: float = 0.01) -> "GroupDRO":
        """For the groups of a folder; `group_columns` None takes all columns.

        Raises DataError for a column that does not exist; ClearheadError for a single group or a step that is not
        positive.
        """
        return cls(tuple(sorted(set(group_labels(folder, group_columns)))), step)

    def __call__(self, model: Classifier, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The weighted sum of the losses of the batch's groups under ``loss``, in nats, and ``logits``.

        Raises ClearheadError for a group that is not among ``groups``.
        """
        group = torch.tensor(_position(batch["group"], {name: i for i, name in enumerate(self.groups)}))
        logits = model(batch["image"])
        losses = F.cross_entropy(logits, batch["label"], reduction="none")
        member = F.one_hot(group.to(losses.device), len(self.groups)).to(losses)
        if "counts" in batch:
            member = member * batch["counts"][:, None].to(losses)
        # with the counts' mean over processes, the mean of the processes' losses is that of the whole batch
        sums, counts = losses @ member, mean_over_processes(member.sum(0))
        self.q = self.q.to(losses)
        if model.module.training:
            everywhere = mean_over_processes(sums.detach())
            self.q = (self.q.log() + self.step * everywhere / _divisor(counts)).softmax(0)
        return {"loss": (self.q * sums / _divisor(counts)).sum(), "logits": logits}

    def state_dict(self) -> dict[str, Tensor]:
        """What a stopped training needs to go on: q."""
        return {"q": self.q}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the q of a stopped training; ClearheadError if it had another number of groups."""
        if state["q"].shape != self.q.shape:
            raise ClearheadError(f"state: {len(state['q'])} groups, but this data has {len(self.groups)}")
        self.q = state["q"]


def _position(names: Iterable[str], table: Mapping[str, Any]) -> list[Any]:
    """The entry of each group; ClearheadError with the name of one that has none."""
    try:
        return [table[name] for name in names]
    except KeyError as error:
        raise ClearheadError(
            f"group {error.args[0]!r} has no training image; those that have: {'; '.join(table)}. Give the training "
            "images every group, or group by fewer columns"
        ) from None


def _divisor(counts: Tensor) -> Tensor:
    """The counts, 1 for a group without images: its sum is 0."""
    return counts.where(counts > 0, 1)
