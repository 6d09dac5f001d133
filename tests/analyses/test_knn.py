"""Nearest neighbours against scikit-learn's, and against counting by hand."""

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch import nn

from clearhead.analyses import knn as module
from clearhead.analyses.knn import knn, measure, neighbours, vote
from clearhead.data.dataset import ImageIndex
from clearhead.data.folder import read_folder
from clearhead.data.image_io import DataError
from tests.attribution.test_explain import classifier
from tests.command import clearhead, error, result
from tests.repairs.test_dfr import stack, timm_features


def shades(root, classes: int, count: int, seed: int) -> ImageIndex:
    """Noise of so many classes, each of its own shade, none of them a class of the models."""
    rng = np.random.default_rng(seed)
    for label in range(classes):
        (root / f"shade {label}").mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 200, (32, 32, 3)) + 15 * label
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"shade {label}" / f"{i}.png")
    return read_folder(root)


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> ImageIndex:
    return shades(tmp_path_factory.mktemp("seen") / "data", classes=3, count=9, seed=0)


@pytest.fixture(scope="module")
def unseen(tmp_path_factory) -> ImageIndex:
    return shades(tmp_path_factory.mktemp("unseen") / "data", classes=3, count=4, seed=1)


def by_hand(nearest: np.ndarray, labels: np.ndarray) -> list[int]:
    """The most frequent label of each row of neighbours; of equals, the one that comes first."""
    votes = [Counter(labels[row].tolist()) for row in nearest]  # in order of first appearance, as most_common keeps it
    return [vote.most_common(1)[0][0] for vote in votes]


def test_leave_one_out_is_scikit_learns(seen):
    model = classifier("timm-vit")
    model.module.train()
    outcome = knn(model, seen, k=(1, 10), batch_size=7, progress=lambda batches, count, description: batches)
    assert model.module.training
    model.module.eval()
    images, labels = stack(model, seen)
    with torch.no_grad():
        x = timm_features(model.module, model.normalize(images)).numpy()
    one = KNeighborsClassifier(1, metric="cosine", algorithm="brute")
    expected = cross_val_predict(one, x, labels, cv=LeaveOneOut())
    np.testing.assert_array_equal(outcome.correct[1], expected == labels)
    nearest = NearestNeighbors(metric="cosine").fit(x).kneighbors(n_neighbors=10, return_distance=False)
    np.testing.assert_array_equal(outcome.correct[10], by_hand(nearest, labels) == labels)
    assert outcome.accuracy[1].value == np.mean(outcome.correct[1])
    assert outcome.accuracy[10].count == 27
    assert outcome.bank == 26
    assert outcome.file == [sample.file for sample in seen.samples]
    assert 0.34 < outcome.accuracy[10].value < 1  # neither chance nor a tie with everything


def test_against_a_bank_is_scikit_learns(seen, unseen):
    model = classifier("timm-vit")
    outcome = knn(model, unseen, k=(1, 4), bank=seen)
    (images, labels), (known, of_bank) = stack(model, unseen), stack(model, seen)
    with torch.no_grad():
        x, bank = (timm_features(model.module, model.normalize(i)).numpy() for i in (images, known))
    one = KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(bank, of_bank)
    np.testing.assert_array_equal(outcome.correct[1], one.predict(x) == labels)
    nearest = NearestNeighbors(metric="cosine").fit(bank).kneighbors(x, 4, return_distance=False)
    np.testing.assert_array_equal(outcome.correct[4], by_hand(nearest, of_bank) == labels)
    assert outcome.bank == 27
    assert len(outcome.file) == 12


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(2, 40),
    size=st.integers(1, 40),
    queries=st.integers(1, 12),
    chunk=st.integers(1, 12),
    data=st.data(),
)
def test_neighbours_do_not_depend_on_the_chunks(seed, count, size, queries, chunk, data):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 8, generator=generator, dtype=torch.float64)
    bank = torch.randn(size, 8, generator=generator, dtype=torch.float64) if data.draw(st.booleans()) else None
    k = data.draw(st.integers(1, count - 1 if bank is None else size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_QUERIES", queries)
        patch.setattr(module, "_REFERENCES", chunk)
        outcome = neighbours(x, k, bank)
    fitted = NearestNeighbors(n_neighbors=k, metric="cosine").fit(x if bank is None else bank)
    expected = fitted.kneighbors(None if bank is None else x, return_distance=False)
    np.testing.assert_array_equal(outcome.numpy(), expected)


@pytest.mark.parametrize(("size", "k"), [(None, 1), (None, 10), (None, 299), (40, 1), (40, 7), (40, 40)])
def test_neighbours_are_those_of_scikit_learn(size, k):
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(300, 192, generator=generator).requires_grad_()
    bank = torch.randn(size, 192, generator=generator) if size else None
    outcome = neighbours(x, k, bank)
    fitted = NearestNeighbors(n_neighbors=k, metric="cosine").fit((x if bank is None else bank).detach().double())
    expected = fitted.kneighbors(None if bank is None else x.detach().double(), return_distance=False)
    assert outcome.dtype == torch.long
    assert (outcome.numpy() == expected).mean() > 0.999  # float32 does not tell a few apart
    assert (outcome.numpy()[:, :7] == expected[:, :7]).all()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_a_vote_that_is_even_goes_to_the_nearest(labels):
    assert vote(torch.tensor([labels])).tolist() == by_hand(np.arange(len(labels))[None], np.array(labels))


def test_what_cannot_be_classified(seen, unseen, tmp_path):
    model = classifier("timm-vit")
    with pytest.raises(ValueError, match=r"k: got 27; give numbers of neighbours in 1\.\.26"):
        knn(model, seen, k=[27])
    with pytest.raises(ValueError, match=r"k: got 1, 13; give numbers of neighbours in 1\.\.12"):
        knn(model, seen, k=[1, 13], bank=unseen)
    for wrong in ([0], []):
        with pytest.raises(ValueError, match=r"k: got (0|none); give numbers of neighbours"):
            knn(model, seen, k=wrong)
    with pytest.raises(DataError, match="all images are of one class, shade 0"):
        knn(model, shades(tmp_path / "one", classes=1, count=3, seed=0), k=[1])
    with pytest.raises(DataError, match=r"other classes than .* \(2 and 3\)"):
        knn(model, seen, bank=shades(tmp_path / "two", classes=2, count=3, seed=0))
    with pytest.raises(ValueError, match="timm-deit-distilled has no penultimate features"):
        knn(classifier("timm-deit-distilled"), seen)
    broken = classifier("timm-vit")
    with torch.no_grad():
        nn.init.constant_(broken.module.blocks[0].norm1.weight, torch.nan)
    with pytest.raises(ValueError, match=r"features of 27 images are not finite; the first is .*shade 0"):
        knn(broken, seen)


def test_of_many_twins_none_is_its_own_neighbour():
    x = torch.eye(3).repeat_interleave(9, 0)
    outcome = neighbours(x, 4)
    assert outcome.shape == (27, 4)
    assert (outcome // 9 == torch.arange(27)[:, None] // 9).all()
    assert (outcome != torch.arange(27)[:, None]).all()
    assert all(len(set(row)) == 4 for row in outcome.tolist())


def test_twins_are_each_others_neighbours(seen):
    twins = replace(seen, samples=tuple(s for sample in seen.samples for s in (sample, replace(sample, file="twin"))))
    outcome = knn(classifier("timm-swin"), twins, k=[1])
    assert outcome.accuracy[1].value == 1


def test_models_are_compared_with_the_first(workspace, other):
    outcome = measure([str(workspace / "model"), str(other)], workspace / "data", split="test", k=[1, 3])
    assert list(outcome.accuracy) == ["model", "other"]
    for k, change in outcome.change["other"].items():
        assert change.value == pytest.approx(outcome.accuracy["other"][k].value - outcome.accuracy["model"][k].value)
        assert (change.count, change.unit) == (12, "pp")
    alone = knn(str(other), read_folder(workspace / "data", split="test"), k=[1, 3])
    assert alone.accuracy == outcome.accuracy["other"]


def test_the_command_compares_features(workspace, other):
    run = clearhead("knn", "model", "other", "data", "--k", "1,3", "--split", "test", "--out", "knn", cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert "other - model" in run.stdout
    assert result(workspace / "knn")["accuracy"]["model"].keys() == {"1", "3"}
    assert "k-NN accuracy" in (workspace / "knn" / "report.html").read_text()


def test_weights_without_a_head_have_features(workspace):
    backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    torch.save(backbone.state_dict(), workspace / "headless.pth")
    name = "timm:vit_tiny_patch16_224@headless.pth"
    run = clearhead("knn", name, "data", "--k", 1, "--out", "headless", cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert result(workspace / "headless")["accuracy"]["timm:vit_tiny_patch16_224"]["1"]["count"] == 36


def test_runs_of_many_models_have_folders_of_their_own(workspace, tmp_path):
    shutil.copytree(workspace / "data", tmp_path / "data")
    for last in "ab":
        models = [f"a model with a name of some length, {i}{last}" for i in range(7)]
        for model in models:
            shutil.copytree(workspace / "model", tmp_path / model)
        run = clearhead("knn", *models, "data", "--split", "test", cwd=tmp_path)
        assert run.returncode == 0, run.stderr
    folders = {folder.name for folder in (tmp_path / "runs").iterdir()}
    assert len(folders) == 2
    assert all(name.startswith("knn-a-model-with-a-name") for name in folders)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model", "nowhere"), "data: nowhere: no such folder or file"),
        (("model", "data", "--k", "x"), "--k: got 'x'; give comma-separated whole numbers"),
        (("model", "data", "--k", "99"), "k: got 99; give numbers of neighbours in 1..35"),
        (("model", "data", "--out", "data"), "out: data holds other files"),
    ],
)
def test_bad_input_of_the_command(workspace, arguments, message):
    assert message in error(clearhead("knn", *arguments, cwd=workspace))
    assert not list((workspace / "runs").glob("knn-*"))
