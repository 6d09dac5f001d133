"""The landscape commands as a user runs them, on a model and on a training run that kept some of its epochs."""

import json
import shutil

import pytest
import torch

from clearhead.models import ModelError, load_model, save_model
from clearhead.workflows import landscape, run_hessian
from tests.command import clearhead, error


@pytest.fixture(scope="module")
def run(place):
    """What ``train --save-epochs 1,3,10`` leaves behind: checkpoints of weights that move on."""
    model = load_model(str(place / "model"))
    torch.manual_seed(1)
    for epoch in (1, 3, 10):
        with torch.no_grad():
            for p in model.module.parameters():
                p.add_(0.02 * torch.randn_like(p))
        save_model(model, place / "kept" / "epochs" / str(epoch))
    save_model(model, place / "kept" / "checkpoint")
    return "kept"


def results_of(place, out):
    return json.loads((place / out / "results.json").read_text())


@pytest.mark.slow
def test_hessian_of_the_epochs_a_run_kept(place, run):
    options = ("--split", "train", "--batch-size", 2, "--batches", 2, "--top", 2, "--tolerance", 0.1)
    found = clearhead("landscape", "hessian", run, "data", *options, "--out", "epochs", cwd=place)
    assert found.returncode == 0, found.stderr
    spectra = results_of(place, "epochs")["spectra"]
    assert list(spectra) == ["epoch 1", "epoch 3", "epoch 10", "checkpoint"]
    assert spectra["epoch 10"]["largest"] == spectra["checkpoint"]["largest"]
    page = (place / "epochs" / "report.html").read_text()
    assert "kept: Hessian spectra" in page
    assert "Highest eigenvalue by epoch" in page


@pytest.fixture
def stopped_at(monkeypatch):
    """Has the user interrupt the n-th spectrum that is taken; gives the list that grows with each."""

    def interrupt(n):
        spectra, calls = landscape.spectra, []

        def counted(*args, **kwargs):
            calls.append(1)
            if len(calls) == n:
                raise KeyboardInterrupt
            return spectra(*args, **kwargs)

        monkeypatch.setattr(landscape, "spectra", counted)
        return calls

    return interrupt


def test_a_stopped_run_keeps_what_it_found_of_each_model(place, run, tmp_path, stopped_at):
    models = [str(place / "model"), str(place / run / "epochs" / "3")]
    options = {"split": "train", "k": 1, "batches": 2, "batch_size": 2, "tolerance": 0.1, "device": "cpu"}
    calls = stopped_at(2)
    with pytest.raises(KeyboardInterrupt):
        run_hessian(models, place / "data", tmp_path / "out", **options)
    found = run_hessian(models, place / "data", tmp_path / "out", **options)
    assert len(calls) == 3
    assert list(found.spectra) == found.models == ["model", "kept, epoch 3"]
    assert not (tmp_path / "out" / "state").exists()


def test_what_was_found_of_a_model_is_not_told_of_the_one_in_its_place(place, run, tmp_path, stopped_at):
    shutil.copytree(place / "model", tmp_path / "model")
    models = [str(tmp_path / "model"), str(place / run / "epochs" / "3")]
    options = {"split": "train", "k": 1, "batches": 2, "batch_size": 2, "tolerance": 0.1, "device": "cpu"}
    calls = stopped_at(2)
    with pytest.raises(KeyboardInterrupt):
        run_hessian(models, place / "data", tmp_path / "out", **options)
    shutil.rmtree(tmp_path / "model")
    shutil.copytree(place / run / "checkpoint", tmp_path / "model")
    found = run_hessian(models, place / "data", tmp_path / "out", **options).spectra
    assert len(calls) == 4
    anew = run_hessian([str(tmp_path / "model")], place / "data", tmp_path / "anew", **options).spectra
    assert found["model"].largest == anew["model"].largest


def test_epochs_are_told_by_their_run_where_two_have_one_name(place, run, tmp_path):
    for of in ("a", "b"):
        shutil.copytree(place / run / "epochs", tmp_path / of / "vit" / "epochs")
        shutil.copytree(place / run / "checkpoint", tmp_path / of / "vit" / "checkpoint")
    one, other = tmp_path / "a" / "vit", tmp_path / "b" / "vit"
    options = {"split": "train", "k": 1, "batches": 2, "batch_size": 2, "tolerance": 0.1, "device": "cpu"}
    models = [str(one), str(other / "epochs" / "1"), str(other / "epochs" / "3"), str(other / "checkpoint")]
    found = run_hessian(models, place / "data", tmp_path / "out", **options).spectra
    kept = [*(f"epoch {n}" for n in (1, 3, 10)), "checkpoint"]
    assert list(found) == [*(f"vit (1), {what}" for what in kept), "vit (2), epoch 1", "vit (2), epoch 3", "vit (2)"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Highest eigenvalue by epoch" in page


def test_what_was_found_stays_with_its_model_when_a_run_has_been_trained_further(place, run, tmp_path, stopped_at):
    grown = tmp_path / "grown"
    shutil.copytree(place / run / "epochs" / "1", grown / "epochs" / "1")
    shutil.copytree(place / run / "checkpoint", grown / "checkpoint")
    models = [str(grown), str(place / "model")]
    options = {"split": "train", "k": 1, "batches": 2, "batch_size": 2, "tolerance": 0.1, "device": "cpu"}
    calls = stopped_at(3)
    with pytest.raises(KeyboardInterrupt):
        run_hessian(models, place / "data", tmp_path / "out", **options)
    shutil.copytree(place / run / "epochs" / "3", grown / "epochs" / "3")
    found = run_hessian(models, place / "data", tmp_path / "out", **options).spectra
    assert len(calls) == 5
    anew = run_hessian(models, place / "data", tmp_path / "anew", **options).spectra
    assert list(found) == list(anew) == ["grown, epoch 1", "grown, epoch 3", "grown, checkpoint", "model"]
    assert all(found[name].largest == anew[name].largest for name in found)


def test_a_model_that_is_not_there_is_told_before_any_is_measured(place, tmp_path, monkeypatch):
    monkeypatch.setattr(landscape, "spectra", lambda *_args, **_kwargs: pytest.fail("it was measured"))
    with pytest.raises(ModelError, match="nowhere"):
        run_hessian([str(place / "model"), "nowhere"], place / "data", tmp_path / "out")


@pytest.mark.slow
def test_hessian_with_the_whole_spectrum(place):
    options = ("--split", "train", "--batch-size", 2, "--batches", 2, "--density")
    found = clearhead("landscape", "hessian", "model", "data", *options, "--out", "whole-spectrum", cwd=place)
    assert found.returncode == 0, found.stderr
    assert "trace" in found.stdout
    (spectrum,) = results_of(place, "whole-spectrum")["spectra"].values()
    assert len(spectrum["batches"][0]["density"]["nodes"][0]) == 80
    assert "Whole spectrum" in (place / "whole-spectrum" / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (("--dims", 2, "--weight-decay", 0.1), ["Cross-entropy on a line", "Cross-entropy: kept", "L2 term: kept"]),
        (("--dims", 3), ["Accuracy, direction 3 at −1: kept", "Cross-entropy, direction 3 at 0: model"]),
        (("--along", "eigenvectors", "--span", 0.05), ["eigenvectors of the Hessian", "eigenvalues"]),
    ],
)
def test_surfaces_of_models_side_by_side(place, run, options, shown):
    out = "-".join(map(str, ("surface", *options)))
    command = ("landscape", "surface", "model", "kept/checkpoint", "data", "--points", 3, "--images", 6)
    found = clearhead(*command, *options, "--out", out, cwd=place)
    assert found.returncode == 0, found.stderr
    assert "mean rise" in found.stdout
    results = results_of(place, out)
    assert results["models"] == ["model", "kept"]
    for surface in results["surfaces"].values():
        assert len(surface["nll"]) == len(surface["accuracy"]) == len(surface["l2"]) == 3 ** surface["dims"]
    page = (place / out / "report.html").read_text()
    assert all(text in page for text in shown)


def test_the_way_of_the_weights(place, run):
    found = clearhead("landscape", "trajectory", run, "--out", "way", cwd=place)
    assert found.returncode == 0, found.stderr
    assert "epoch 10" in found.stdout
    results = results_of(place, "way")
    assert results["epochs"] == [1, 3, 10]
    assert len(results["trajectory"]["step"]) == 2
    assert results["trajectory"]["angle"][0] == pytest.approx(90, abs=3)  # steps drawn at random in many dimensions
    assert "kept: the way of the weights" in (place / "way" / "report.html").read_text()
    assert "0 saved epochs, at least 2 are needed" in error(clearhead("landscape", "trajectory", "model", cwd=place))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--points", 4), "an odd number from 3 is needed"),
        (("--span", 0), "span: a positive number"),
        (("--dims", 4), "Invalid value for '--dims'"),
        (("--split", "nowhere"), "nowhere"),
    ],
)
def test_surfaces_that_cannot_be_are_refused(place, options, message):
    found = clearhead("landscape", "surface", "model", "data", *options, "--out", "no-surface", cwd=place)
    assert message in error(found)
