"""TokenCut: the eigenvector against SciPy's, planted objects, and features with nothing to cut."""

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from clearhead.attention_tap import tap
from clearhead.masks import tokencut
from clearhead.masks.tokencut import WEAK, affinity, cut, second_eigenvector, similarity
from clearhead.models import TokenGrid
from tests.cases import MODELS, SIZE, classifier

PLAIN = "timm-vit"


def cosines(features: Tensor) -> Tensor:
    directions = F.normalize(features, dim=-1)
    return directions @ directions.mT


def planted(
    grid: TokenGrid, boxes: list[tuple[slice, slice]], noise: float = 0.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return cosines of patches (1 x hw x hw) of one feature inside boxes, another outside, and the boxes' mask."""
    inside = torch.zeros(grid.height, grid.width, dtype=torch.bool)
    for box in boxes:
        inside[box] = True
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(16, 2, generator=generator)).Q.T
    features = directions[inside.flatten().long()] + noise * torch.randn(inside.numel(), 16, generator=generator)
    return cosines(features)[None], inside


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 3), st.integers(1, 8), st.floats(-0.5, 0.9), st.integers(0, 99))
def test_the_vector_is_the_second_smallest_generalised_eigenvector(
    size: int, batch: int, channels: int, tau: float, seed: int
) -> None:
    torch.manual_seed(seed)
    weights = affinity(cosines(torch.randn(batch, size, channels) + 0.5), tau)
    for w, y in zip(weights.numpy(), second_eigenvector(weights).numpy(), strict=True):
        d = np.diag(w.sum(1))
        values, vectors = scipy.linalg.eigh(d - w, d)
        assert y @ d @ y == pytest.approx(1)
        assert y @ (d - w) @ y == pytest.approx(values[1], abs=1e-9)
        if size > 2 and values[2] - values[1] > 1e-4:
            assert np.abs(y) == pytest.approx(np.abs(vectors[:, 1]), abs=1e-5)


@pytest.mark.parametrize("batch", [1, 5])
def test_the_vector_equals_scipys_at_196_tokens(batch: int) -> None:
    torch.manual_seed(0)
    blobs = torch.randn(batch, 4, 8).repeat_interleave(49, 1)
    weights = affinity(cosines(blobs + 0.7 * torch.randn(batch, 196, 8)), 0.2)
    vectors = second_eigenvector(weights).numpy()
    for w, y in zip(weights.numpy(), vectors, strict=True):
        d = np.diag(w.sum(1))
        expected = scipy.linalg.eigh(d - w, d, subset_by_index=[1, 1])[1][:, 0]
        assert y * np.sign(y @ d @ expected) == pytest.approx(expected, abs=1e-7)


def test_the_vector_is_exact_for_equal_eigenvalues() -> None:
    weights = torch.full((1, 90, 90), WEAK, dtype=torch.float64)
    for part in (slice(0, 30), slice(30, 60), slice(60, 90)):
        weights[0, part, part] = 1
    w, y = weights[0].numpy(), second_eigenvector(weights)[0].numpy()
    d = np.diag(w.sum(1))
    value = scipy.linalg.eigh(d - w, d, eigvals_only=True)[1]
    assert (d - w) @ y == pytest.approx(value * d @ y, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_planted_object_is_cut_out(data: st.DataObject) -> None:
    grid = TokenGrid(data.draw(st.integers(5, 14)), data.draw(st.integers(5, 14)), 1, "cls")
    top, left = data.draw(st.integers(1, grid.height - 3)), data.draw(st.integers(1, grid.width - 3))
    box = (
        slice(top, data.draw(st.integers(top + 1, grid.height - 2))),
        slice(left, data.draw(st.integers(left + 1, grid.width - 2))),
    )
    similarities, inside = planted(grid, [box], noise=0.03, seed=data.draw(st.integers(0, 99)))
    assume(2 * inside.sum() < inside.numel())
    for side in ("inside", "strongest"):  # the smaller of two uniform parts has the larger |y|
        (result,) = cut(similarities, grid, 0.3, side)
        np.testing.assert_array_equal(result.mask, inside)
        assert result.values[inside].min() > 0 > result.values[~inside].max()
        assert result.border == 0
        assert result.agreement == 1


def published(features: np.ndarray, grid: TokenGrid) -> np.ndarray:
    """TokenCut as in its public code (tau 0.2, eps 1e-5), for the keys of one image, hw x D."""
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    weights = np.where(features @ features.T > 0.2, 1, 1e-5)
    degrees = np.diag(weights.sum(1))
    vector = scipy.linalg.eigh(degrees - weights, degrees, subset_by_index=[1, 2])[1][:, 0]
    positive = vector > vector.sum() / len(vector)
    seed = np.argmax(np.abs(vector))
    if not positive[seed]:
        positive = ~positive
    objects = scipy.ndimage.label(positive.reshape(grid.height, grid.width))[0]
    return objects == objects.flat[seed]


@pytest.mark.parametrize("seed", range(5))
def test_the_papers_settings_give_the_papers_cut(seed: int) -> None:
    grid = TokenGrid(14, 12, 1, "cls")
    torch.manual_seed(seed)
    coarse = torch.randn(1, 24, 4, 4)
    features = F.interpolate(coarse, size=(14, 12), mode="bicubic")[0].flatten(1).T + 0.3 * torch.randn(168, 24)
    (result,) = cut(cosines(features)[None], grid, 0.2, "strongest")
    np.testing.assert_array_equal(result.mask, published(features.numpy(), grid))


def test_the_side_decides_for_a_large_object() -> None:
    grid = TokenGrid(10, 10, 1, "cls")
    similarities, inside = planted(grid, [(slice(1, 9), slice(1, 9))])
    np.testing.assert_array_equal(cut(similarities, grid, side="inside")[0].mask, inside)
    (other,) = cut(similarities, grid, side="strongest")
    np.testing.assert_array_equal(other.mask, ~inside)
    assert other.border == 1


def test_the_object_is_one_connected_component() -> None:
    grid = TokenGrid(12, 12, 1, "cls")
    boxes = [(slice(2, 5), slice(2, 5)), (slice(7, 10), slice(7, 10))]
    similarities, _ = planted(grid, boxes)
    (result,) = cut(similarities, grid)
    assert result.mask.sum() == 9
    assert any(result.mask[box].all() for box in boxes)
    assert all((result.values[box] > 0).all() for box in boxes)


def test_an_object_is_found_among_1369_patches() -> None:
    grid = TokenGrid(37, 37, 1, "cls")
    similarities, inside = planted(grid, [(slice(5, 20), slice(8, 25))], noise=0.03)
    np.testing.assert_array_equal(cut(similarities, grid)[0].mask, inside)


@pytest.mark.parametrize(
    "features",
    [torch.ones(16, 8), torch.zeros(16, 8), torch.eye(16), torch.full((16, 8), torch.nan)],
    ids=["all similar", "zero", "none similar", "nan"],
)
def test_features_with_nothing_to_cut_give_an_empty_mask(features: Tensor) -> None:
    similarities, inside = planted(TokenGrid(4, 4, 1, "cls"), [(slice(1, 3), slice(1, 3))])
    empty, planted_cut = cut(torch.stack([cosines(features), similarities[0]]), TokenGrid(4, 4, 1, "cls"))
    assert not empty.mask.any()
    assert not empty.values.any()
    assert (empty.border, empty.agreement) == (0, 0)
    assert not cut(cosines(features)[None], TokenGrid(4, 4, 1, "cls"))[0].mask.any()
    np.testing.assert_array_equal(planted_cut.mask, inside)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "timm-swin"])
def test_similarity_is_the_cosine_of_the_patches_keys(name: str) -> None:
    model, images = classifier(name), torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad(), tap(model.module) as record:
        model(images)
    expected = torch.zeros(())
    for layer in record:
        keys = torch.cat([layer.k[:, h, model.grid.prefix :] for h in range(layer.num_heads)], -1)
        one = F.cosine_similarity(keys[:, :, None], keys[:, None], dim=-1)
        torch.testing.assert_close(similarity(model, images, [record.attention.index(layer)]), one)
        expected = expected + one / len(record)
    torch.testing.assert_close(similarity(model, images), expected)


def test_errors_name_the_argument() -> None:
    model, images = classifier(PLAIN), torch.randn(1, 3, SIZE, SIZE)
    with pytest.raises(ValueError, match=r"layers: got \[2\].*layers 0 to 1"):
        tokencut(model, images, layers=[2])
    with pytest.raises(ValueError, match=r"layers: got \[\]"):
        tokencut(model, images, layers=[])
    with pytest.raises(ValueError, match=r"tau: got 1; .*0\.2 in the paper"):
        tokencut(model, images, tau=1)
    with pytest.raises(ValueError, match="side: 'left' is unknown; choose from inside, strongest"):
        tokencut(model, images, side="left")  # type: ignore[arg-type]
    windowed = classifier("timm-swin")
    with pytest.raises(ValueError, match=r"has none; a plain ViT works"):
        tokencut(windowed, images)
