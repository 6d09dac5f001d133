"""What a training records for each epoch, the epoch it selects, and the line it logs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from clearhead.progress import duration

Monitor = Literal["loss", "worst_group_loss"]
"""A mean over the validation images; the epoch where it is lowest is selected."""


@dataclass(frozen=True)
class Epoch:
    """Means over the images of an epoch: the parts of the loss, and the accuracy. Epoch 0 is before training.

    Attributes:
        number: 0 before training, then from 1.
        train: over the training images, while the weights changed; empty in epoch 0.
        validation: over the validation images, with two more entries: ``worst_group_loss``, the mean negative
            log-likelihood (nats) of the group where it is highest, whatever loss is trained, and
            ``worst_group_accuracy``, that of the group where it is lowest.
        seconds: duration of the training, without the validation.
        images: number of training images.
    """

    number: int
    train: dict[str, float]
    validation: dict[str, float]
    seconds: float = field(default=0.0, compare=False)
    images: int = 0


def best_epoch(history: Sequence[Epoch], monitor: Monitor = "loss") -> Epoch:
    """Return the selected epoch: the lowest monitored value, of equals the first."""
    return min(history, key=lambda epoch: epoch.validation[monitor])


def epoch_line(epoch: Epoch, epochs: int, monitor: Monitor, lr: float, seconds: float, remaining: float) -> str:
    """Describe an epoch in one line: losses, accuracy, learning rate, duration and remaining time (both in seconds)."""
    validation = epoch.validation
    parts = [f"validation loss {validation['loss']:.3f}"]
    if monitor == "worst_group_loss":
        parts.append(f"worst-group loss {validation['worst_group_loss']:.3f}")
        parts.append(f"worst-group accuracy {validation['worst_group_accuracy']:.1%}")
    parts.append(f"accuracy {validation['accuracy']:.1%}")
    if epoch.number:
        parts = [f"loss {epoch.train['loss']:.3f}", *parts, f"lr {lr:.3g}", duration(seconds)]
    if 0 < epoch.number < epochs:
        parts.append(f"{duration(remaining)} remaining")
    return f"epoch {epoch.number}/{epochs}: {', '.join(parts)}"
