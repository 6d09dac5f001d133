"""CKA against the estimator written out with four indices, and what it is by its nature."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.analyses.cka import centred, cka
from clearhead.layers import LayersError, find_branches, hooked_forward
from tests.layers.conftest import images_of, small


def hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741  (as in the paper)
    """Its unbiased estimator as a mean over all tuples of different images (Song et al. 2012, equation 2)."""
    n = len(k)
    pairs = np.mean([k[i, j] * l[i, j] for i, j in itertools.permutations(range(n), 2)])
    fours = np.mean([k[i, j] * l[q, r] for i, j, q, r in itertools.permutations(range(n), 4)])
    threes = np.mean([k[i, j] * l[i, q] for i, j, q in itertools.permutations(range(n), 3)])
    return pairs + fours - 2 * threes


@settings(deadline=None, max_examples=20)
@given(st.integers(4, 7), st.integers(0, 10**6))
def test_products_of_centred_matrices_are_the_unbiased_hsic(n, seed):
    rng = np.random.default_rng(seed)
    k, l = (x @ x.T for x in (rng.normal(size=(n, 3)), rng.normal(size=(n, 5))))  # noqa: E741
    found = (centred(torch.from_numpy(k)) * centred(torch.from_numpy(l))).sum().item() / (n * (n - 3))
    assert found == pytest.approx(hsic(k, l), rel=1e-6, abs=1e-9)


def test_similarity_of_one_batch_is_that_of_its_features(folder):
    model, other = small("vit"), small("resnet")
    found = cka(model, folder, other, batch_size=6)
    assert (found.images, found.batch_size) == (12, 6)
    whole = cka(model, folder, other)
    assert (whole.images, whole.batch_size) == (12, 12)
    assert np.shape(whole.cka) == (5, 6)
    features = []
    for one in (model, other):
        features.append([])
        hooked_forward(
            one,
            images_of(one, folder)[0],
            find_branches(one),
            lambda _i, value, _s: features[-1].append(value().clone()) or features[-1][-1],
        )
    for i, j in ((0, 0), (2, 3), (4, 1)):
        x, y = (f.flatten(1).double().numpy() for f in (features[0][i], features[1][j]))
        k, l = x @ x.T, y @ y.T  # noqa: E741
        expected = hsic_fast(k, l) / math.sqrt(hsic_fast(k, k) * hsic_fast(l, l))
        assert whole.cka[i][j] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def hsic_fast(k, l):  # noqa: E741
    """The closed form of Nguyen et al. 2021, equation 3."""
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    ones = np.ones(n)
    middle = (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
    return (np.trace(k @ l) + middle - 2 / (n - 2) * (ones @ k @ l @ ones)) / (n * (n - 3))


def test_a_model_is_like_itself(folder):
    found = cka(small("vit"), folder)
    matrix = np.array(found.cka)
    assert found.rows == found.columns
    np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-9)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-9)
    np.testing.assert_allclose(cka(small("vit"), folder, small("vit")).cka, matrix, atol=1e-6)


def test_fewer_than_four_images_a_batch_are_refused(folder):
    with pytest.raises(LayersError, match="3 images a batch; the unbiased estimator needs at least 4"):
        cka(small("vit"), folder, batch_size=3)
