"""Find duplicates among images: equal pixels, and nearly equal ones (another size, compression or brightness).

Two images are near duplicates if their grey thumbnails of 32 x 32 pixels have a correlation of ``NEAR`` or more, and of
``NEAR_DETAIL`` without what all images have in common, such as the scene of a fixed camera. On photographs, X-rays,
CIFAR-10 and drawn images, copies with half the size, JPEG quality 30 or 15% more brightness mostly have a correlation
of 0.98 and more, different images at most 0.96. Crops and mirrored copies are not found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

NEAR, NEAR_DETAIL = 0.98, 0.9
"""Correlations of thumbnails from which two images are near duplicates."""

MOST_PAIRS = 10**6
"""Beyond so many pairs of duplicates, only equal pixels count: the images differ too little for thumbnails."""

_CHUNK = 1024
_LEAST_SPREAD = 1.0  # standard deviation of the grey values; plain images are compared by their pixels only
_LEAST_IMAGES = 50  # to know what all images have in common

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class DuplicatePairs:
    """Pairs of images that are the same, P of them, by their positions in the list.

    Attributes:
        first: positions of the first images.
        second: positions of the others, each after its first.
        correlation: of their thumbnails; 1 if their pixels are equal.
        exact: whether all pixels are equal.
        complete: whether near duplicates are included.
    """

    first: Array
    second: Array
    correlation: Array
    exact: Array
    complete: bool = True


def find_duplicates(thumbnails: npt.NDArray[np.float32], digests: Sequence[str]) -> DuplicatePairs:
    """Return all pairs of duplicates; beyond ``MOST_PAIRS``, those of each image with the first of equal pixels.

    Args:
        thumbnails: grey values, N x D. All N x N pairs are compared, in chunks.
        digests: of the pixels, one per image.
    """
    _, first_equal, same = np.unique(np.asarray(digests), return_index=True, return_inverse=True)
    plain = thumbnails.std(1) < _LEAST_SPREAD
    x = _normalized(thumbnails - thumbnails.mean(1, keepdims=True), plain)
    detail = _normalized(x - x.mean(0), plain) if len(x) >= _LEAST_IMAGES else x
    parts, total = [], 0
    for start in range(0, len(x), _CHUNK):
        rows = slice(start, start + _CHUNK)
        similarity = x[rows] @ x[start:].T
        is_pair = (similarity >= NEAR) & (detail[rows] @ detail[start:].T >= NEAR_DETAIL)
        is_pair |= same[rows, None] == same[None, start:]
        is_pair = np.triu(is_pair, 1)
        total += int(is_pair.sum())
        if total > MOST_PAIRS:
            others = np.setdiff1d(np.arange(len(x)), first_equal)
            ones = np.ones(len(others))
            return DuplicatePairs(first_equal[same[others]], others, ones, ones > 0, complete=False)
        row, column = np.nonzero(is_pair)
        parts.append((start + row, start + column, similarity[row, column]))
    first, second, correlation = (np.concatenate(part) for part in zip(*parts, strict=True))
    exact = same[first] == same[second]
    return DuplicatePairs(first, second, np.where(exact, 1.0, correlation.clip(max=1)), exact)


def _normalized(x: npt.NDArray[np.float32], plain: Array) -> npt.NDArray[np.float32]:
    """Return rows of unit length; 0 for plain images."""
    unit: npt.NDArray[np.float32] = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)
    unit[plain] = 0
    return unit


def duplicate_groups(pairs: DuplicatePairs, count: int) -> npt.NDArray[np.int32]:
    """Return for each of `count` images the number of its group: duplicates share one, other images have their own."""
    graph = coo_array((np.ones(len(pairs.first)), (pairs.first, pairs.second)), shape=(count, count))
    groups: npt.NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return groups
