"""What is measured of the setting that a cell keeps: on test images, and of the loss on training images."""

from dataclasses import dataclass
from itertools import islice

import numpy as np

from clearhead.analyses.hessian import spectra
from clearhead.data.dataset import ImageIndex
from clearhead.data.loading import ImageDataset, loader
from clearhead.data.splits import sample_n
from clearhead.landscape.hessian import loss_closure
from clearhead.landscape.sharpness import sharpness
from clearhead.metrics.calibration import expected_calibration_error
from clearhead.metrics.statistics import Estimate, mean, proportion
from clearhead.models import Classifier
from clearhead.prediction.predict import predict

MOST_TRAIN = 2000
"""Training images whose loss is taken."""


@dataclass(frozen=True)
class Measures:
    """Of one training: of its kept epoch on test images, of its last epoch on training images.

    Attributes:
        accuracy: on the test images.
        loss: mean negative log-likelihood on them.
        ece: expected calibration error on them.
        train_loss: mean negative log-likelihood on training images as they are, without augmentation (NLL_train).
        eigenvalue: mean largest eigenvalue of the Hessian of the cross-entropy on mini-batches of training images.
        negative: share of negative ones among the five eigenvalues of largest magnitude.
        sharpness: rise of the cross-entropy one step of 0.05 up the gradient (``landscape.sharpness``), mini-batches.
        parameters: how many.
    """

    accuracy: Estimate
    loss: Estimate
    ece: Estimate
    train_loss: Estimate
    eigenvalue: Estimate
    negative: Estimate
    sharpness: Estimate
    parameters: int


def measure(
    kept: Classifier, last: Classifier, train: ImageIndex, test: ImageIndex, *, batches: int = 8, seed: int = 0
) -> Measures:
    """All of them, of the epoch that was kept on test images, of the last epoch on training images.

    The epoch that was kept was chosen not to overfit: how well training fits, and where it ends, the last one tells.
    """
    said = predict(kept, test, batch_size=128, seed=seed)
    part = sample_n(train, MOST_TRAIN, seed)
    fitted = predict(last, part, batch_size=128, seed=seed)
    size = min(16, len(part.samples) // 2)
    spectrum = spectra(last, part, batches=batches, batch_size=size, seed=seed)
    return Measures(
        accuracy=proportion(said.correct),
        loss=mean(said.loss, "nats", seed),
        ece=expected_calibration_error(said.confidence, said.correct, seed=seed),
        train_loss=mean(fitted.loss, "nats", seed),
        eigenvalue=spectrum.largest,
        negative=spectrum.negative,
        sharpness=mean(_sharpness(last, part, batches, seed), "nats", seed),
        parameters=sum(p.numel() for p in kept.module.parameters()),
    )


def _sharpness(model: Classifier, folder: ImageIndex, batches: int, seed: int, batch_size: int = 128) -> np.ndarray:
    device = next(model.module.parameters()).device
    drawn = islice(loader(ImageDataset(folder, model.preprocess), batch_size, 0, shuffle=True, seed=seed), batches)
    found: list[float] = []
    for batch in drawn:
        if found and len(batch["label"]) < batch_size:  # a smaller batch is sharper
            break
        found.append(sharpness(model.module, loss_closure(model, batch["image"].to(device), batch["label"].to(device))))
    return np.array(found)
