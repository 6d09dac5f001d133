"""CKA against the estimator written out with four indices, its properties, the command and its page."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clearhead.analyses.cka import CkaResult, Similarity, centred, cka, measure, page
from clearhead.analyses.subject import Subject
from clearhead.layers import LayersError, find_branches, hooked_forward
from tests.command import clearhead, error, result
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
    measured = (centred(torch.from_numpy(k)) * centred(torch.from_numpy(l))).sum().item() / (n * (n - 3))
    assert measured == pytest.approx(hsic(k, l), rel=1e-6, abs=1e-9)


def test_similarity_of_one_batch_is_that_of_its_features(folder):
    model, other = small("vit"), small("resnet")
    measured = cka(model, folder, other, batch_size=6)
    assert (measured.images, measured.batch_size) == (12, 6)
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


def test_a_model_is_similar_to_itself(folder):
    measured = cka(small("vit"), folder)
    matrix = np.array(measured.cka)
    assert measured.rows == measured.columns
    np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-9)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-9)
    np.testing.assert_allclose(cka(small("vit"), folder, small("vit")).cka, matrix, atol=1e-6)


def test_fewer_than_four_images_per_batch_raise_an_error(folder):
    with pytest.raises(LayersError, match="3 images per batch; the unbiased estimator needs at least 4"):
        cka(small("vit"), folder, batch_size=3)


def most_similar(matrix: list[list[float]]) -> list[list[str]]:
    names = [f"branch {i}" for i in range(len(matrix))]
    _, table = page(CkaResult(Subject(["model"]), Similarity(names, names, matrix, 8, 8))).sections
    return [row.cells for row in table.rows]


def test_a_branch_is_most_similar_to_another_one():
    assert most_similar([[1, 0.2, 0.7], [0.2, 1, 0.3], [0.7, 0.3, 1]]) == [
        ["2  branch 2", "0.700"],
        ["2  branch 2", "0.300"],
        ["0  branch 0", "0.700"],
    ]


@pytest.mark.parametrize("dead", [[[1.0]], [[1.0, math.nan], [math.nan, math.nan]]])
def test_a_branch_without_a_similar_one_has_no_entry(dead):
    assert most_similar(dead) == [["–", "–"]] * len(dead)


def test_what_is_not_a_number_is_skipped():
    matrix = [[1, math.nan, 0.4], [math.nan, math.nan, math.nan], [0.4, math.nan, 1]]
    assert most_similar(matrix) == [["2  branch 2", "0.400"], ["–", "–"], ["0  branch 0", "0.400"]]


def test_measure_takes_one_classifier_or_two(folder):
    one, two = measure([small("vit")], folder), measure([small("vit"), small("resnet")], folder, limit=8)
    assert one.similarity == cka(small("vit"), folder)
    assert np.shape(two.similarity.cka) == (5, 6)
    assert (two.subject.images, len(two.subject.models)) == (8, 2)
    assert "and" in page(two).sections[0].svg


def test_the_command_leaves_a_whole_run(workspace):
    command = ("layers", "cka", "model", "model", "data", "--out", "cka", "--batch-size")
    run = clearhead(*command, 12, cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert "Most similar branches" in run.stdout
    np.testing.assert_allclose(np.diag(result(workspace / "cka")["similarity"]["cka"]), 1, atol=1e-6)
    assert "Similarity of representations" in (workspace / "cka" / "report.html").read_text()
    # the mini-batches decide the estimate
    assert "batch_size was 12, now 6" in error(clearhead(*command, 6, cwd=workspace))


def test_bad_input_is_reported(workspace):
    assert "models: got 3" in error(clearhead("layers", "cka", "model", "model", "model", "data", cwd=workspace))
    (workspace / "few-images" / "cat").mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (32, 32)).save(workspace / "few-images" / "cat" / f"{i}.png")
    assert "needs at least 4" in error(clearhead("layers", "cka", "model", "few-images", cwd=workspace))
    assert "--batch-size" in error(clearhead("layers", "cka", "model", "data", "--batch-size", 3, cwd=workspace))
    assert "model: nowhere is not a folder" in error(clearhead("layers", "cka", "nowhere", "data", cwd=workspace))
