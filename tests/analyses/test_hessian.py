"""Spectra of mini-batches against Fisher matrices, with what is added to the loss; the command and its page."""

import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from clearhead.analyses import hessian
from clearhead.analyses.hessian import HessianResult, measure, page, spectra
from clearhead.analyses.subject import Subject
from clearhead.data.augment import mix_batch
from clearhead.data.loading import ImageDataset, loader
from clearhead.landscape import LandscapeError
from clearhead.models import Preprocessing, from_module
from clearhead.runs import run
from tests.command import clearhead, error, result


@pytest.fixture
def model():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2, bias=False))
    return from_module(module, preprocess=Preprocessing((4, 4), (4, 4), (0.5,) * 3, (0.2,) * 3), classes=["a", "b"])


def test_a_linear_models_spectrum_is_that_of_its_fisher_matrix(model, ten_images):
    measured = spectra(model, ten_images, top=2, batches=9, batch_size=10, tolerance=1e-4)
    assert len(measured.batches) == 1  # a pass over the images
    images = torch.stack([model.preprocess.image(Image.open(sample.path)) for sample in ten_images.samples])
    x, p = model.normalize(images).mean((2, 3)), model(images).softmax(-1).detach()
    logits = torch.diag_embed(p) - p[:, :, None] * p[:, None]  # of the logits, N x 2 x 2
    true = torch.linalg.eigvalsh(torch.einsum("ncd,ni,nj->cidj", logits, x, x).reshape(6, 6) / 10)
    assert measured.batches[0].values == pytest.approx(true.flip(0)[:2].tolist(), rel=1e-3)
    assert measured.largest.value == pytest.approx(true[-1].item(), rel=1e-3)
    assert measured.negative.value == 0


def test_weight_decay_moves_every_eigenvalue(model, ten_images):
    plain, decayed = (
        spectra(model, ten_images, top=2, batch_size=5, weight_decay=w, tolerance=1e-4) for w in (0.0, 0.3)
    )
    assert len(plain.batches) == 2
    for one, other in zip(plain.batches, decayed.batches, strict=True):
        assert other.values == pytest.approx([value + 0.3 for value in one.values], rel=1e-3)


def test_random_crops_change_the_batches_and_the_seed_decides_them(model, ten_images):
    same = [
        spectra(model, ten_images, top=1, batch_size=5, augment="crop", seed=seed).largest.value for seed in (0, 0, 1)
    ]
    assert same[0] == same[1]
    assert same[0] != same[2]
    assert same[0] != spectra(model, ten_images, top=1, batch_size=5).largest.value


def test_mixing_images_mixes_their_labels(model, ten_images):
    measured = spectra(model, ten_images, top=2, batch_size=4, mixup=1.0, label_smoothing=0.1, seed=3, tolerance=1e-4)
    drawn = loader(ImageDataset(ten_images, model.preprocess), 4, 0, shuffle=True, seed=3)
    for number, (batch, one) in enumerate(zip(drawn, measured.batches, strict=False)):
        image, target = mix_batch(batch["image"], batch["label"], 2, mixup=1.0, seed=(3, number))
        assert (target.amax(1) < 1).any()
        target = 0.9 * target + 0.1 / 2
        assert one.loss == pytest.approx(-(target * model(image).log_softmax(-1)).sum(1).mean().item(), rel=1e-5)
        x, p = model.normalize(image).mean((2, 3)), model(image).softmax(-1).detach()
        logits = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        true = torch.linalg.eigvalsh(torch.einsum("ncd,ni,nj->cidj", logits, x, x).reshape(6, 6) / 4)
        assert one.values == pytest.approx(true.flip(0)[:2].tolist(), rel=1e-3)


def test_fewer_images_than_a_batch_raise_an_error(model, ten_images):
    with pytest.raises(LandscapeError, match="10 images are fewer than a batch of 16"):
        spectra(model, ten_images)


def test_the_whole_spectrum_of_each_batch(model, ten_images):
    measured = spectra(model, ten_images, top=2, batch_size=5, tolerance=1e-4, density=True)
    for batch in measured.batches:
        (nodes,), (weights,) = batch.density.nodes, batch.density.weights
        assert sum(weights) == pytest.approx(1)
        assert max(nodes) == pytest.approx(batch.highest, rel=1e-3)  # 6 steps in 6 dimensions: the eigenvalues
        assert batch.trace.value == pytest.approx(sum(nodes), abs=1e-4)
    assert measured.trace.value == pytest.approx(sum(b.trace.value for b in measured.batches) / 2)
    assert spectra(model, ten_images, top=2, batch_size=5).trace is None
    *_, figure, table = page(HessianResult(Subject(["m"], "d"), 2, {"m": measured})).sections
    assert figure.title == "Whole spectrum"
    assert table.columns[-1] == "trace"


def test_figures_of_many_models_draw_the_first_and_the_table_has_all(model, ten_images):
    measured = spectra(model, ten_images, top=2, batch_size=5, tolerance=1e-4)
    names = [f"model {i}" for i in range(9)]
    figure, table = page(HessianResult(Subject(names, "d"), 2, dict.fromkeys(names, measured))).sections
    assert figure.text.endswith("The first 8 of 9 models.")
    assert "model 7" in figure.svg
    assert "model 8" not in figure.svg
    assert [row.name for row in table.rows] == names
    assert len(page(HessianResult(Subject(names, "d"), 2, {"epoch 3": measured})).sections) == 2


@pytest.mark.parametrize("sign", [1, -1])
def test_models_whose_eigenvalues_are_far_apart_are_drawn_by_power_of_ten(model, ten_images, sign):
    measured = spectra(model, ten_images, top=2, batch_size=5, tolerance=1e-4)
    for factor, far in ((2.0, False), (1e4, True)):
        both = {
            name: replace(measured, batches=[replace(b, values=[by * v for v in b.values]) for b in measured.batches])
            for name, by in (("near", sign), ("far", sign * factor))
        }
        figure, _ = page(HessianResult(Subject(list(both), "d"), 2, both)).sections
        assert ("by power of ten" in figure.text) is far
        assert ("magnitude of the eigenvalue" in figure.svg) is (far and sign < 0)


OPTIONS = ("--split", "train", "--batch-size", 2, "--batches", 2, "--tolerance", 0.1)
FAST = {"split": "train", "top": 1, "batches": 2, "batch_size": 2, "tolerance": 0.1}


def test_the_command_takes_a_run_for_the_epochs_it_saved(workspace, trained):
    finished = clearhead(
        "landscape", "hessian", trained, "data", *OPTIONS, "--top", 2, "--out", "epochs", cwd=workspace
    )
    assert finished.returncode == 0, finished.stderr
    measured = result(workspace / "epochs")["spectra"]
    assert list(measured) == ["epoch 1", "epoch 3", "epoch 10", "checkpoint"]
    assert measured["epoch 10"]["largest"] == measured["checkpoint"]["largest"]
    text = (workspace / "epochs" / "report.html").read_text()
    assert "trained: Hessian spectra" in text
    assert "Highest eigenvalue by epoch" in text


@pytest.fixture
def stopped_at(monkeypatch):
    """Has the user interrupt the n-th spectrum; gives the list that grows with each."""

    def interrupt(n):
        compute, calls = hessian.spectra, []

        def counted(*args, **kwargs):
            calls.append(1)
            if len(calls) == n:
                raise KeyboardInterrupt
            return compute(*args, **kwargs)

        monkeypatch.setattr(hessian, "spectra", counted)
        return calls

    return interrupt


def test_a_stopped_run_goes_on_with_the_model_it_stopped_at(workspace, trained, tmp_path, stopped_at):
    arguments = {
        "models": [str(workspace / "model"), str(trained / "epochs" / "3")],
        "data": str(workspace / "data"),
        **FAST,
    }
    calls = stopped_at(2)
    with pytest.raises(KeyboardInterrupt, match="state"):
        run("landscape hessian", arguments, out=tmp_path / "out", device="cpu")
    measured = run("landscape hessian", arguments, out=tmp_path / "out", device="cpu").result
    assert len(calls) == 3
    assert list(measured.spectra) == measured.subject.models == ["model", "trained, epoch 3"]
    assert not (tmp_path / "out" / "state").exists()


def test_another_model_under_the_same_name_is_another_run(workspace, trained, tmp_path, stopped_at, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(workspace / "model", tmp_path / "model")
    models = ["model", str(trained / "epochs" / "3")]
    arguments = {"models": models, "data": str(workspace / "data"), **FAST}
    calls = stopped_at(2)
    with pytest.raises(KeyboardInterrupt):
        run("landscape hessian", arguments, device="cpu")
    shutil.rmtree(tmp_path / "model")
    shutil.copytree(trained / "checkpoint", tmp_path / "model")
    measured = run("landscape hessian", arguments, device="cpu").result.spectra
    assert len(calls) == 4
    fresh = measure(["model"], str(workspace / "data"), **FAST).spectra
    assert measured["model"].largest == fresh["model"].largest


def test_a_run_that_has_saved_more_epochs_is_another_run(workspace, trained, tmp_path, stopped_at, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grown = tmp_path / "grown"
    shutil.copytree(trained / "epochs" / "1", grown / "epochs" / "1")
    shutil.copytree(trained / "checkpoint", grown / "checkpoint")
    arguments = {"models": ["grown", str(workspace / "model")], "data": str(workspace / "data"), **FAST}
    stopped_at(3)
    with pytest.raises(KeyboardInterrupt):
        run("landscape hessian", arguments, device="cpu")
    shutil.copytree(trained / "epochs" / "3", grown / "epochs" / "3")
    measured = run("landscape hessian", arguments, device="cpu").result.spectra
    fresh = measure(arguments["models"], str(workspace / "data"), **FAST).spectra
    assert list(measured) == list(fresh) == ["grown, epoch 1", "grown, epoch 3", "grown, checkpoint", "model"]
    assert all(measured[name].largest == fresh[name].largest for name in measured)
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_epochs_have_the_name_of_their_run_where_there_are_two(workspace, trained, tmp_path):
    for parent in ("a", "b"):
        shutil.copytree(trained / "epochs", tmp_path / parent / "vit" / "epochs")
        shutil.copytree(trained / "checkpoint", tmp_path / parent / "vit" / "checkpoint")
    one, other = tmp_path / "a" / "vit", tmp_path / "b" / "vit"
    models = [str(one), str(other / "epochs" / "1"), str(other / "epochs" / "3"), str(other / "checkpoint")]
    measured = measure(models, str(workspace / "data"), **FAST)
    parts = [*(f"epoch {n}" for n in (1, 3, 10)), "checkpoint"]
    expected = [*(f"vit (1), {part}" for part in parts), "vit (2), epoch 1", "vit (2), epoch 3", "vit (2)"]
    assert list(measured.spectra) == expected
    assert page(measured).sections[0].title == "Highest eigenvalue by epoch"


@pytest.mark.slow
def test_the_command_measures_the_whole_spectrum(workspace):
    options = (*OPTIONS[:-2], "--density")
    finished = clearhead("landscape", "hessian", "model", "data", *options, "--out", "whole-spectrum", cwd=workspace)
    assert finished.returncode == 0, finished.stderr
    assert "trace" in finished.stdout
    (spectrum,) = result(workspace / "whole-spectrum")["spectra"].values()
    assert len(spectrum["batches"][0]["density"]["nodes"][0]) == 80
    assert "Whole spectrum" in (workspace / "whole-spectrum" / "report.html").read_text()


def test_bad_input_is_reported(workspace):
    for arguments, message in (
        (("model", "nowhere", "data"), "model: nowhere is not a folder"),
        (("model", "nothing"), "data: nothing: no such folder or file"),
        (("model", "data", "--split", "nowhere"), "nowhere"),
        (("model", "data", "--split", "test", "--batch-size", 16), "12 images are fewer than a batch of 16"),
        (("model", "data", "--out", "data"), "holds other files"),
        (("model", "data", "--augment", "much"), "--augment"),
    ):
        assert message in error(clearhead("landscape", "hessian", *arguments, cwd=workspace))
