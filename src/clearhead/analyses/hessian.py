"""Hessian max-eigenvalue spectra: the largest eigenvalues of the loss on one mini-batch after the other.

After Park & Kim, "How Do Vision Transformers Work?" (arXiv 2202.06709), figures 1 and 4: a loss that is flat has small
eigenvalues, one that is not convex has negative ones. All batches' values make one density, its negative and its
positive end told apart.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from clearhead.data.augment import Augmentation, augmentation, mixed
from clearhead.data.dataset import ImageIndex
from clearhead.data.loading import ImageDataset, loader
from clearhead.landscape.hessian import LandscapeError, eigenvalues, hessian, loss_closure
from clearhead.landscape.spectrum import SpectralDensity, Trace, spectral_density, trace
from clearhead.metrics.statistics import Estimate, mean
from clearhead.models import Classifier


@dataclass(frozen=True)
class BatchSpectrum:
    """One mini-batch: its loss, its eigenvalues of largest magnitude, both ends of the spectrum, the products.

    Where they were asked for, the density of the whole spectrum (one probe) and the trace.
    """

    loss: float
    values: list[float]
    lowest: float
    highest: float
    products: int
    error: float
    density: SpectralDensity | None = None
    trace: Trace | None = None


@dataclass(frozen=True)
class Spectrum:
    """The spectra of one model on many mini-batches.

    The means are over batches, with bootstrap intervals over them.

    Attributes:
        batches: in order.
        largest: mean highest eigenvalue.
        lowest: mean lowest one.
        negative: share of the values that are negative, of those of largest magnitude.
        positive: mean of the positive ones.
        loss: mean loss.
        trace: mean trace, where it was asked for.
    """

    batches: list[BatchSpectrum]
    largest: Estimate
    lowest: Estimate
    negative: Estimate
    positive: Estimate
    loss: Estimate
    trace: Estimate | None = None


def spectra(
    model: Classifier,
    folder: ImageIndex,
    *,
    k: int = 5,
    batches: int = 20,
    batch_size: int = 16,
    weight_decay: float = 0.0,
    augment: Augmentation = "none",
    mixup: float = 0.0,
    cutmix: float = 0.0,
    label_smoothing: float = 0.0,
    tolerance: float = 1e-3,
    whole: bool = False,
    workers: int = 0,
    seed: int = 0,
    progress: Callable[[Iterable, int], Iterable] | None = None,
) -> Spectrum:
    """The spectrum of the mean cross-entropy on mini-batches drawn at random.

    Args:
        model: the classifier; it runs where its parameters are, in eval mode.
        folder: the images.
        k: eigenvalues a batch.
        batches: how many, at most a pass over the images.
        batch_size: images a batch.
        weight_decay: λ of λ/2 ||w||² in the loss: λ more on every eigenvalue.
        augment: the training augmentation, as in ``TrainConfig``; ``crop`` draws windows of at least half of the area.
        mixup, cutmix: as in ``TrainConfig``: images and their labels mixed, drawn once a batch.
        label_smoothing: as in ``TrainConfig``.
        tolerance: relative error of an eigenvalue.
        whole: the density and the trace of the whole spectrum too, at 110 products a batch.
        workers: processes that load images.
        seed: of the batches, the augmentation, and the first vectors.
        track: wraps the batches to show progress: ``track(batches, count)``.

    Raises:
        LandscapeError: for fewer images than a batch, or a loss without a spectrum.
    """
    if len(folder.samples) < batch_size:
        raise LandscapeError(f"{folder.root}: {len(folder.samples)} images are fewer than a batch of {batch_size}")
    images = ImageDataset(folder, model.preprocess, augmentation(augment, 0.5))
    count = min(batches, len(folder.samples) // batch_size)
    drawn = islice(loader(images, batch_size, workers, shuffle=True, seed=seed), count)
    device = next(model.module.parameters()).device

    def of_batch(number: int, batch: Mapping[str, Any]) -> BatchSpectrum:
        # a function, so that its graph is gone before the next one is made
        image, target = batch["image"], batch["label"]
        if mixup or cutmix or label_smoothing:
            soft = {"mixup": mixup, "cutmix": cutmix, "label_smoothing": label_smoothing}
            image, target = mixed(image, target, len(model.classes), **soft, seed=(seed, number))
        loss = loss_closure(model, image.to(device), target.to(device))
        with hessian(model.module, loss, weight_decay=weight_decay) as matrix:
            e = eigenvalues(matrix, k, tolerance=tolerance, seed=seed)
            probe = seed + number  # other random vectors for each batch: their errors do not add up
            bulk = (spectral_density(matrix, seed=probe), trace(matrix, seed=probe)) if whole else (None, None)
            return BatchSpectrum(matrix.loss, e.values, e.lowest, e.highest, e.products, e.error, *bulk)

    found = [of_batch(number, batch) for number, batch in enumerate(progress(drawn, count) if progress else drawn)]
    values = [np.array(one.values) for one in found]
    return Spectrum(
        found,
        largest=mean(np.array([one.highest for one in found]), seed=seed),
        lowest=mean(np.array([one.lowest for one in found]), seed=seed),
        negative=mean(np.array([(v < 0).mean() for v in values]), "%", seed),
        positive=mean(np.array([v[v > 0].mean() for v in values if (v > 0).any()]), seed=seed),
        loss=mean(np.array([one.loss for one in found]), "nats", seed),
        trace=mean(np.array([one.trace.value for one in found if one.trace]), seed=seed) if whole else None,
    )
