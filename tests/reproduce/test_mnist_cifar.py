"""The MNIST-CIFAR reproduction on a few made-up images: what is measured, chosen, kept and shown."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from clearhead.attention_tap import tap
from clearhead.data.image_io import DataError
from clearhead.data.mnist_cifar import Part
from clearhead.heads import head_gradients
from clearhead.models import Preprocessing, from_module
from clearhead.reproduce import mnist_cifar as module
from clearhead.reproduce.mnist_cifar import (
    PARTS,
    PROTOCOLS,
    SUBSETS,
    Protocol,
    Run,
    apply_protocol,
    reproduce,
    train_run,
)
from clearhead.study.plan_files import StudyError
from clearhead.zoo import mnist_cifar_vit


def parts() -> dict[str, Part]:
    rng = np.random.default_rng(0)

    def part(count: int) -> Part:
        label = np.arange(count) % 2
        images = rng.integers(0, 60, (count, 3, 64, 32), dtype=np.uint8)
        images[:, 0, 40:50, 5:25] += (190 * label[:, None, None]).astype(np.uint8)
        return Part(images, label, label, label, label)

    return {"train": part(120)} | {name: part(12) for name in PARTS}


def test_the_model_has_the_papers_number_of_parameters() -> None:
    assert sum(p.numel() for p in mnist_cifar_vit().parameters()) == 506_306


@pytest.mark.parametrize("last_residual", [False, True])
def test_without_the_last_residual_the_output_depends_on_the_last_heads_alone(last_residual: bool) -> None:
    vit, x = mnist_cifar_vit(last_residual).eval(), torch.rand(2, 3, 64, 32)
    with torch.no_grad(), tap(vit, heads={5: torch.zeros(4)}):
        silent = vit(x)
    assert torch.allclose(silent[0], silent[1]) != last_residual
    model = from_module(vit, preprocess=Preprocessing((64, 32), (64, 32), (0, 0, 0), (1, 1, 1)), classes=("a", "b"))
    assert (model.grid.height, model.grid.width, model.grid.prefix, model.grid.pooling) == (16, 8, 1, "cls")  # type: ignore[union-attr]
    assert head_gradients(model, x)[0][0].shape == (2, 4, 129, 64)


def test_every_subset_is_measured_after_every_epoch_and_the_seed_decides_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 8)
    data = parts()
    run = Run("Div, lr 1e-3", True, 6, 3)
    accuracy = train_run(run, data)
    assert accuracy.shape == (6, 15, 4)
    assert accuracy[-1, 0].min() > 0.9  # a bright bar is easily learnt
    short = Run("Div, lr 1e-3", False, 1, 3)
    assert (train_run(short, data) == train_run(short, data)).all()
    assert SUBSETS[0] == (1, 1, 1, 1)
    assert [sum(subset) for subset in SUBSETS[-4:]] == [1, 1, 1, 1]


def test_protocols_choose_by_validation_alone() -> None:
    rng = np.random.default_rng(0)
    accuracy = rng.random((6, 15, 4))
    id_val, id_test, ood_val, ood_test = np.moveaxis(accuracy, -1, 0)
    actual = {p.name: apply_protocol(accuracy, p) for p in PROTOCOLS}
    assert actual["all heads, last epoch"] == (id_test[-1, 0], ood_test[-1, 0])
    epoch = id_val[:, 0].argmax()
    assert actual["all heads, epoch by ID validation"] == (id_test[epoch, 0], ood_test[epoch, 0])
    best = max(itertools.product(range(6), range(15)), key=lambda at: ood_val[at])
    assert actual["best epoch and subset by OOD validation"] == (id_test[best], ood_test[best])
    single = 11 + ood_val[-1, 11:].argmax()
    name = "best single head by OOD validation, last epoch"
    assert actual[name] == (id_test[-1, single], ood_test[-1, single])
    subset = ood_val[-1].argmax()
    assert actual["best subset by OOD validation, last epoch"] == (id_test[-1, subset], ood_test[-1, subset])
    both = apply_protocol(accuracy, Protocol("", "id-val", "ood-val"))
    assert both == (id_test[epoch, ood_val[epoch].argmax()], ood_test[epoch, ood_val[epoch].argmax()])


@pytest.mark.slow
def test_a_finished_run_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "mnist_cifar", lambda mnist, cifar, seed: parts())
    options = {"seeds": 2, "epochs": 1, "residuals": (False,)}
    reported = reproduce(tmp_path, Path("a"), Path("b"), **options)  # type: ignore[arg-type]
    assert reported.count("| no |") == 4 * len(PROTOCOLS)
    assert reported.splitlines()[2].count("±") == 2
    assert len(list(tmp_path.glob("*.json"))) == 6

    (tmp_path / "div-1e-3-plain-1-1.json").unlink()
    trained = []
    monkeypatch.setattr(module, "train_run", lambda run, data, device: trained.append(run.name) or np.zeros((1, 15, 4)))
    reproduce(tmp_path, Path("a"), Path("b"), **options)  # type: ignore[arg-type]
    assert trained == ["div-1e-3-plain-1-1"]
    with pytest.raises(StudyError, match=r"holds results for other inputs: mnist"):
        reproduce(tmp_path, Path("other"), Path("b"), **options)  # type: ignore[arg-type]


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        reproduce(tmp_path, tmp_path / "mnist", tmp_path / "cifar", seeds=1, epochs=1)
    assert not list(tmp_path.glob("*.json"))
