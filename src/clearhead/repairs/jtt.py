"""Just train twice (JTT): give the images that the model misclassifies more weight, and fine-tune it.

Liu et al., arXiv 2107.09931. Where a model relies on a shortcut, its mistakes are mostly the images on which the
shortcut fails; no group labels are needed. The paper takes the mistakes of a first training that is stopped early,
draws them λ_up times as often, and trains again from the start. Here the mistakes are those of the model itself, they
have λ_up times the weight in the loss, which is the same on average, and training goes on from the model.
"""

from dataclasses import dataclass, field
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.data.dataset import ImageIndex
from clearhead.data.loading import batch_mean
from clearhead.errors import ClearheadError
from clearhead.models import Classifier
from clearhead.models.classifier import logits as logits_of
from clearhead.prediction.predict import predict
from clearhead.progress import Progress, prefixed
from clearhead.repairs.loss_inputs import is_training
from clearhead.training.losses import Batch


@dataclass(frozen=True)
class JTTLoss:
    """Cross-entropy in which some images have a higher weight, as a loss ``(model, batch) -> parts``.

    Attributes:
        train: weight of each training image, N, by its index; their mean is 1.
        validation: weight of each validation image, M, used in eval mode: the epoch is selected by this loss, so
            without group labels too.
    """

    train: Tensor = field(repr=False)
    validation: Tensor = field(repr=False)

    @classmethod
    def from_mistakes(
        cls,
        model: Classifier,
        images: ImageIndex,
        validation: ImageIndex,
        *,
        upweight: float | None = None,
        batch_size: int = 32,
        workers: int = 0,
        progress: Progress | None = None,
    ) -> Self:
        """Give the images that a model misclassifies `upweight` times the weight of the others (λ_up).

        By default the two sets have the same total weight. The paper's values are 20 to 100, selected with group labels
        on validation images.

        Raises:
            DataError: for a file that can no longer be read.
            ClearheadError: for a weight that is not positive, or a model that misclassifies no training image.
        """
        if upweight is not None and not 0 < upweight < float("inf"):
            raise ClearheadError(f"upweight: got {upweight}; a positive number is needed, such as 20")
        options: dict[str, Any] = {"shortcuts": (), "maps": False, "batch_size": batch_size, "workers": workers}
        wrong, wrong_validation = (
            torch.from_numpy(~predict(model, index, progress=prefixed(progress, title), **options).correct)
            for index, title in ((images, "mistakes"), (validation, "mistakes, validation"))
        )
        if not wrong.any():
            raise ClearheadError(
                f"train: {model.name} misclassifies none of the {len(wrong):,} training images, so none can have more "
                "weight. Use images that it was not trained on, or another method without groups, such as afr"
            )
        return cls(_weights(wrong, upweight), _weights(wrong_validation, upweight))

    def __call__(self, model: Classifier | nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted mean cross-entropy under ``loss``, in nats, and the ``logits``.

        Args:
            model: a classifier, or a plain module that takes the images as they are.
            batch: image, label and index, of the training images in training mode, else of the validation images.
        """
        logits = logits_of(model(batch["image"]))
        weights = (self.train if is_training(model) else self.validation).to(logits)[batch["index"]]
        return {
            "loss": batch_mean(F.cross_entropy(logits, batch["label"], reduction="none") * weights, batch),
            "logits": logits,
        }


def _weights(wrong: Tensor, upweight: float | None) -> Tensor:
    """Return a weight for each image, N, with mean 1."""
    mistakes = wrong.sum()
    if upweight is None:
        upweight = ((~wrong).sum() / mistakes).item() if mistakes and (~wrong).any() else 1.0
    weights = torch.where(wrong, upweight, 1.0)
    return weights / weights.mean()
