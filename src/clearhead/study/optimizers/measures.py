"""Measures of the best setting of a cell: accuracy on test images, and the loss on training images."""

from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

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
"""Training images on which the loss is measured."""


@dataclass(frozen=True)
class Measures:
    """Measures of one training: of its best epoch on test images, of its last epoch on training images.

    Attributes:
        accuracy: on the test images.
        loss: mean negative log-likelihood on them.
        ece: expected calibration error on them.
        train_loss: mean negative log-likelihood on training images without augmentation (NLL_train).
        eigenvalue: mean largest eigenvalue of the Hessian of the cross-entropy on mini-batches of training images.
        negative: share of negative values among the five eigenvalues of largest magnitude.
        sharpness: rise of the cross-entropy after a step of 0.05 along the gradient (``landscape.sharpness``).
        parameters: number of parameters.
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
    best: Classifier, last: Classifier, train: ImageIndex, test: ImageIndex, *, batches: int = 8, seed: int = 0
) -> Measures:
    """Measure the best epoch on test images and the last epoch on training images.

    The best epoch is selected not to overfit; how well training fits, and where it ends, the last epoch shows.
    """
    predictions = predict(best, test, batch_size=128, seed=seed)
    part = sample_n(train, MOST_TRAIN, seed)
    fitted = predict(last, part, batch_size=128, seed=seed)
    size = min(16, len(part.samples) // 2)
    spectrum = spectra(last, part, batches=batches, batch_size=size, seed=seed)
    return Measures(
        accuracy=proportion(predictions.correct),
        loss=mean(predictions.loss, "nats", seed),
        ece=expected_calibration_error(predictions.confidence, predictions.correct, seed=seed),
        train_loss=mean(fitted.loss, "nats", seed),
        eigenvalue=spectrum.largest,
        negative=spectrum.negative,
        sharpness=mean(_sharpness(last, part, batches, seed), "nats", seed),
        parameters=sum(p.numel() for p in best.module.parameters()),
    )


def _sharpness(
    model: Classifier, index: ImageIndex, batches: int, seed: int, batch_size: int = 128
) -> npt.NDArray[np.float64]:
    device = model.device
    drawn = islice(loader(ImageDataset(index, model.preprocess), batch_size, 0, shuffle=True, seed=seed), batches)
    values: list[float] = []
    for batch in drawn:
        if values and len(batch["label"]) < batch_size:  # a smaller batch is sharper
            break
        loss = loss_closure(model, batch["image"].to(device), batch["label"].to(device))
        values.append(sharpness(model.module, loss))
    return np.array(values)
