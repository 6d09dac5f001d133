"""Spectra of mini-batches: those of the very batches, with what is added to the loss."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from clearhead.analyses.hessian import spectra
from clearhead.data.augment import mixed
from clearhead.data.loading import ImageDataset, loader
from clearhead.landscape import LandscapeError
from clearhead.models import Preprocessing, from_module
from clearhead.report.landscape import spectrum_sections
from clearhead.results import SpectrumResults


@pytest.fixture
def model():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2, bias=False))
    return from_module(module, preprocess=Preprocessing((4, 4), (4, 4), (0.5,) * 3, (0.2,) * 3), classes=["a", "b"])


def test_a_linear_models_spectrum_is_that_of_its_fisher_matrix(model, folder):
    found = spectra(model, folder, k=2, batches=9, batch_size=10, tolerance=1e-4)
    assert len(found.batches) == 1  # a pass over the images
    images = torch.stack([model.preprocess.image(Image.open(sample.path)) for sample in folder.samples])
    x, p = model.normalize(images).mean((2, 3)), model(images).softmax(-1).detach()
    logits = torch.diag_embed(p) - p[:, :, None] * p[:, None]  # of the logits, N x 2 x 2
    true = torch.linalg.eigvalsh(torch.einsum("ncd,ni,nj->cidj", logits, x, x).reshape(6, 6) / 10)
    assert found.batches[0].values == pytest.approx(true.flip(0)[:2].tolist(), rel=1e-3)
    assert found.largest.value == pytest.approx(true[-1].item(), rel=1e-3)
    assert found.negative.value == 0


def test_weight_decay_moves_every_eigenvalue(model, folder):
    plain, decayed = (spectra(model, folder, k=2, batch_size=5, weight_decay=w, tolerance=1e-4) for w in (0.0, 0.3))
    assert len(plain.batches) == 2
    for one, other in zip(plain.batches, decayed.batches, strict=True):
        assert other.values == pytest.approx([value + 0.3 for value in one.values], rel=1e-3)


def test_windows_change_the_batches_and_the_seed_decides_them(model, folder):
    same = [spectra(model, folder, k=1, batch_size=5, augment="crop", seed=seed).largest.value for seed in (0, 0, 1)]
    assert same[0] == same[1]
    assert same[0] != same[2]
    assert same[0] != spectra(model, folder, k=1, batch_size=5).largest.value


def test_mixing_images_mixes_their_labels(model, folder):
    found = spectra(model, folder, k=2, batch_size=4, mixup=1.0, label_smoothing=0.1, seed=3, tolerance=1e-4)
    drawn = loader(ImageDataset(folder, model.preprocess), 4, 0, shuffle=True, seed=3)
    for number, (batch, one) in enumerate(zip(drawn, found.batches, strict=False)):
        image, target = mixed(batch["image"], batch["label"], 2, mixup=1.0, seed=(3, number))
        assert (target.amax(1) < 1).any()
        target = 0.9 * target + 0.1 / 2
        assert one.loss == pytest.approx(-(target * model(image).log_softmax(-1)).sum(1).mean().item(), rel=1e-5)
        x, p = model.normalize(image).mean((2, 3)), model(image).softmax(-1).detach()
        logits = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        true = torch.linalg.eigvalsh(torch.einsum("ncd,ni,nj->cidj", logits, x, x).reshape(6, 6) / 4)
        assert one.values == pytest.approx(true.flip(0)[:2].tolist(), rel=1e-3)


def test_fewer_images_than_a_batch_are_refused(model, folder):
    with pytest.raises(LandscapeError, match="10 images are fewer than a batch of 16"):
        spectra(model, folder)


def test_the_whole_spectrum_of_each_batch(model, folder):
    found = spectra(model, folder, k=2, batch_size=5, tolerance=1e-4, whole=True)
    for batch in found.batches:
        (nodes,), (weights,) = batch.density.nodes, batch.density.weights
        assert sum(weights) == pytest.approx(1)
        assert max(nodes) == pytest.approx(batch.highest, rel=1e-3)  # 6 steps in 6 dimensions: the eigenvalues
        assert batch.trace.value == pytest.approx(sum(nodes), abs=1e-4)
    assert found.trace.value == pytest.approx(sum(b.trace.value for b in found.batches) / 2)
    assert spectra(model, folder, k=2, batch_size=5).trace is None
    *_, figure, table = spectrum_sections(SpectrumResults("spectrum", ["m"], "d", 2, {"m": found}, [], {}))
    assert figure.title == "Whole spectrum"
    assert table.columns[-1] == "trace"


def test_figures_of_many_models_draw_the_first_and_the_table_has_all(model, folder):
    found = spectra(model, folder, k=2, batch_size=5, tolerance=1e-4)
    names = [f"model {i}" for i in range(9)]
    figure, table = spectrum_sections(SpectrumResults("spectrum", names, "d", 2, dict.fromkeys(names, found), [], {}))
    assert figure.text.endswith("The first 8 of 9 models.")
    assert "model 7" in figure.svg
    assert "model 8" not in figure.svg
    assert [row.name for row in table.rows] == names
    assert len(spectrum_sections(SpectrumResults("spectrum", names, "d", 2, {"epoch 3": found}, [], {}))) == 2


@pytest.mark.parametrize("sign", [1, -1])
def test_models_whose_eigenvalues_are_far_apart_are_drawn_by_power_of_ten(model, folder, sign):
    found = spectra(model, folder, k=2, batch_size=5, tolerance=1e-4)
    for factor, told in ((2.0, False), (1e4, True)):
        both = {
            name: replace(found, batches=[replace(b, values=[by * v for v in b.values]) for b in found.batches])
            for name, by in (("near", sign), ("far", sign * factor))
        }
        figure, _ = spectrum_sections(SpectrumResults("spectrum", list(both), "d", 2, both, [], {}))
        assert ("by power of ten" in figure.text) is told
        assert ("magnitude of the eigenvalue" in figure.svg) is (told and sign < 0)
