"""ExMap: groups by clusters of relevance maps, then the classifier head is retrained as with group labels.

Chakraborty, Sletten and Kampffmeyer, arXiv 2403.13870, the variant with clusters within each class. Images that a model
classifies by a shortcut have other relevance maps than those that it classifies by the object. The maps of the label's
class, divided by their maximum, are clustered by spectral clustering on their nearest neighbours, with as many clusters
as the largest gap between the first eigenvalues of the graph's Laplacian suggests. The clusters take the place of the
groups in ``clearhead.repairs.dfr``. The paper uses LRP; by default the maps here are LibraGrad's.

Clusters found without labels need not be those of the shortcut, and depend on the seed: compare several seeds.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from clearhead.attribution import METHODS, require_method
from clearhead.data.dataset import ImageIndex
from clearhead.data.loading import ImageDataset, loader
from clearhead.models import Classifier
from clearhead.models.classifier import evaluation_mode
from clearhead.progress import Progress, track
from clearhead.repairs.dfr import RetrainedHead, require_classes, retrain_head
from clearhead.training.linear_head import Features

Array = npt.NDArray[Any]

COLUMN = "cluster"
"""The metadata column that holds the clusters."""

_MOST_CLUSTERS = 10
_SMALLEST_CLASS = 10
"""A class with fewer images is not divided."""
_SIDE = 14
"""Larger maps are averaged to this side."""


def cluster_and_retrain(
    model: Classifier,
    train: ImageIndex,
    validation: ImageIndex,
    *,
    group_columns: Sequence[str] | None = None,
    features: Features | None = None,
    seed: int = 0,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
    attribution: str | None = None,
) -> tuple[Classifier, RetrainedHead]:
    """Return a copy of the model with its head retrained on cluster-balanced images, and the penalties tried.

    The validation images choose the penalty by the accuracy of the worst cluster; `group_columns` is not used, since no
    step needs groups; the seed is that of the clusters too. The other arguments are those of
    ``clearhead.repairs.retrain_head``.

    Args:
        attribution: method of the maps; by default ``libragrad``, or ``input-x-gradient`` for models without tokens.

    Raises:
        DataError: for a file that can no longer be read.
        ClearheadError: for an unknown attribution method or one that the model does not support, and as
            ``clearhead.repairs.retrain_head``.
    """
    require_classes(model, train)
    attribution = require_method(attribution or ("libragrad" if model.grid else "input-x-gradient"))
    both = replace(train, samples=train.samples + validation.samples)
    maps = _maps(model, both, attribution, batch_size, workers, progress)
    clusters = _clusters(maps, np.array([sample.label for sample in both.samples]), seed)
    samples = tuple(
        replace(sample, groups={COLUMN: str(number)}) for sample, number in zip(both.samples, clusters, strict=True)
    )
    count = len(train.samples)
    return retrain_head(
        model,
        replace(train, samples=samples[:count]),
        replace(validation, samples=samples[count:]),
        group_columns=[COLUMN],
        features=features,
        seed=seed,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )


def _maps(
    model: Classifier, index: ImageIndex, attribution: str, batch_size: int, workers: int, progress: Progress | None
) -> Array:
    """Return the maps of the labels' classes, N x pixels, each divided by its maximum."""
    rows: list[Tensor] = []
    with evaluation_mode(model.module):
        for batch in track(loader(ImageDataset(index, model.preprocess), batch_size, workers), progress, "maps"):
            label = batch["label"].to(model.device)
            maps = METHODS[attribution](model, batch["image"].to(model.device), label)[0].float()
            if max(maps.shape[-2:]) > _SIDE:
                maps = F.adaptive_avg_pool2d(maps[:, None], _SIDE)[:, 0]
            rows.append((maps / maps.amax((-2, -1), keepdim=True).clamp(min=1e-12)).flatten(1).cpu())
    values: Array = torch.cat(rows).double().numpy()
    return values


def _clusters(maps: Array, labels: Array, seed: int) -> Array:
    """Return the number of each map's cluster within its class, N."""
    clusters = np.zeros(len(labels), dtype=int)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) >= _SMALLEST_CLASS:
            clusters[members] = _spectral_clusters(maps[members], seed)
    return clusters


def _spectral_clusters(maps: Array, seed: int) -> Array:
    from scipy.sparse.csgraph import connected_components, laplacian
    from sklearn.cluster import SpectralClustering  # takes seconds to import
    from sklearn.neighbors import kneighbors_graph

    neighbours = max(2, int(np.log(len(maps))))
    while True:  # spectral clustering needs a connected graph
        graph = kneighbors_graph(maps, min(neighbours, len(maps) - 1))
        affinity = (graph + graph.T) / 2
        if connected_components(affinity)[0] == 1 or neighbours >= len(maps) - 1:
            break
        neighbours *= 2
    eigenvalues = np.linalg.eigvalsh(np.asarray(laplacian(affinity.toarray(), normed=True)))[: _MOST_CLUSTERS + 1]
    count = 2 + int(np.diff(eigenvalues)[1:].argmax())
    clustering = SpectralClustering(count, affinity="precomputed", assign_labels="cluster_qr", random_state=seed)
    labels: Array = clustering.fit_predict(affinity)
    return labels
