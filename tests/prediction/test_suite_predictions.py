"""Predictions on shifted sets: class mappings against plain sums, resumable parts, two processes as one."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clearhead.data.folder import read_folder
from clearhead.data.image_io import DataError
from clearhead.errors import ClearheadError
from clearhead.models import Preprocessing, from_module
from clearhead.prediction import suite_predictions as module
from clearhead.prediction.suite_predictions import predict_suite, read_suite_predictions, score_logits
from clearhead.shifts.sets import ClassMapping, ShiftedDataset, file_name, generators, identity_mapping

CLASSES = ("red", "green", "blue")


def brightest() -> torch.nn.Module:
    """Classifies an image by its strongest colour channel."""
    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3, bias=False))
    module[2].weight.data = 10 * torch.eye(3)
    return module


@pytest.fixture
def model():
    size = (8, 8)
    return from_module(brightest(), preprocess=Preprocessing(size, size, (0.5,) * 3, (0.25,) * 3), classes=CLASSES)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i, name in enumerate(CLASSES):
        (tmp_path / "data" / name).mkdir(parents=True)
        for j in range(7):
            pixels = rng.integers(0, 200, (9, 10, 3))
            pixels[..., i] += 20
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / name / f"{j}.png")
    return read_folder(tmp_path / "data", classes=CLASSES, check=False)


def noisy(images: torch.Tensor, draws: list[torch.Generator]) -> torch.Tensor:
    noise = torch.stack([torch.randn(image.shape, generator=g) for image, g in zip(images, draws, strict=True)])
    return (images + 0.5 * noise).clamp(0, 1)


def sets_of(folder) -> list[ShiftedDataset]:
    class_mappings = {"3 classes": identity_mapping(3), "all": replace(identity_mapping(3), among="all")}
    return [
        ShiftedDataset("clean", folder, class_mappings),
        ShiftedDataset("noise 1", folder, class_mappings, shift=noisy),
    ]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from(["own", "all"]), st.sampled_from(["max", "mean"]))
def test_class_mappings_follow_their_definition(seed, among, pool):
    rng = np.random.default_rng(seed)
    outputs = rng.permutation(12)
    ends = np.sort(rng.choice(np.arange(1, 12), 7, replace=False))
    means = [tuple(part.tolist()) for part in np.split(outputs, ends)][:-1]  # 7 classes; the last outputs mean none
    logits, label = rng.normal(size=(5, 12)) * 3, rng.integers(0, 7, 5)
    result = score_logits(torch.tensor(logits), torch.tensor(label), ClassMapping(tuple(means), 12, among, pool))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for i in range(5):
        if among == "all":
            first = [next((c for c, own in enumerate(means) if o in own), -1) for o in np.argsort(-p[i])[:5]]
            expected, best, sure = first[0], label[i] in first, p[i].max()
            loss = -np.log(p[i][list(means[label[i]])].sum())
        else:
            each = [p[i][list(own)].max() if pool == "max" else p[i][list(own)].mean() for own in means]
            q = np.array(each) / np.sum(each)
            expected, best, sure, loss = q.argmax(), label[i] in np.argsort(-q)[:5], q.max(), -np.log(q[label[i]])
        assert result["predicted"][i] == expected
        assert result["correct"][i] == (expected == label[i])
        assert result["top5"][i] == best
        assert result["confidence"][i].item() == pytest.approx(sure)
        assert result["loss"][i].item() == pytest.approx(loss)


def test_a_mapping_for_another_number_of_outputs_raises_an_error():
    with pytest.raises(ValueError, match="models of 12 classes, in their usual order; this one has 3"):
        score_logits(torch.zeros(1, 3), torch.tensor([0]), identity_mapping(12))


def test_predictions_are_those_of_the_model(model, folder, tmp_path):
    predict_suite(model, sets_of(folder), tmp_path / "out", batch_size=4)
    by_mapping = read_suite_predictions(tmp_path / "out" / file_name("clean"))
    assert list(by_mapping) == ["3 classes", "all"]
    from clearhead.data.image_io import load_image

    images = torch.stack([model.preprocess.image(load_image(sample.path)) for sample in folder.samples])
    with torch.no_grad():
        p = model(images).softmax(-1)
    for result in by_mapping.values():
        assert result.file.tolist() == [sample.file for sample in folder.samples]
        assert result.label.tolist() == [CLASSES[sample.label] for sample in folder.samples]
        assert result.predicted.tolist() == [CLASSES[i] for i in p.argmax(-1)]
        np.testing.assert_allclose(result.confidence, p.amax(-1), rtol=1e-5)
    noise = read_suite_predictions(tmp_path / "out" / file_name("noise 1"))["all"]
    changed = noisy(images, generators(0, range(len(images))))
    with torch.no_grad():
        assert noise.predicted.tolist() == [CLASSES[i] for i in model(changed).argmax(-1)]
    assert noise.predicted.tolist() != by_mapping["all"].predicted.tolist()


def stopped(model, at):
    """The model, interrupted the n-th time it is asked, and how many images it is asked about each time."""
    asked = []

    def counted(x):
        asked.append(len(x))
        if len(asked) == at:
            raise KeyboardInterrupt
        return x

    return replace(model, module=torch.nn.Sequential(_Call(counted), model.module)), asked


def test_an_interrupted_run_resumes_and_predicts_nothing_twice(model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 8)
    broken, asked = stopped(model, at=7)
    with pytest.raises(KeyboardInterrupt):
        predict_suite(broken, sets_of(folder), tmp_path / "out", batch_size=4)
    before = sum(asked[:6])
    predict_suite(broken, sets_of(folder), tmp_path / "out", batch_size=4)
    assert before + sum(asked[7:]) == 2 * 21
    predict_suite(broken, sets_of(folder), tmp_path / "whole", batch_size=4)
    for name in ("clean", "noise 1"):
        assert (tmp_path / "out" / file_name(name)).read_bytes() == (tmp_path / "whole" / file_name(name)).read_bytes()
    assert not (tmp_path / "out" / ".parts").exists()


@pytest.mark.parametrize("change", ["weights", "labels", "scoring"])
def test_predictions_of_another_model_or_other_images_are_not_mixed_in(change, model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 8)
    sets, (first, asked) = sets_of(folder)[:1], stopped(model, at=5)
    with pytest.raises(KeyboardInterrupt):
        predict_suite(first, sets, tmp_path / "out", batch_size=4)
    turned = ((1,), (2,), (0,))
    if change == "weights":
        model.module[2].weight.data = -model.module[2].weight.data
    elif change == "labels":
        samples = tuple(replace(sample, label=(sample.label + 1) % 3) for sample in folder.samples)
        sets = [replace(sets[0], folder=replace(folder, samples=samples))]
    else:
        sets = [replace(sets[0], class_mappings={"turned": replace(identity_mapping(3), outputs=turned)})]
    predict_suite(first, sets, tmp_path / "out", batch_size=4)
    assert sum(asked[5:]) == 21  # everything again
    predict_suite(first, sets, tmp_path / "whole", batch_size=4)
    name = file_name("clean")
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    predict_suite(first, sets, tmp_path / "out", batch_size=4)  # finished: nothing to do
    assert sum(asked[5:]) == 42
    model.module[2].weight.data *= 2
    with pytest.raises(ClearheadError, match="predictions of another model of that name"):
        predict_suite(first, sets, tmp_path / "out", batch_size=4)


def test_a_model_in_train_mode_predicts_as_in_eval_mode_and_is_left_unchanged(model, folder, tmp_path):
    normed = replace(model, module=torch.nn.Sequential(torch.nn.BatchNorm2d(3), model.module, torch.nn.Dropout(0.5)))
    normed.module.eval()
    predict_suite(normed, sets_of(folder), tmp_path / "eval", batch_size=4)
    normed.module.train()
    predict_suite(normed, sets_of(folder), tmp_path / "train", batch_size=7)
    for name in ("clean", "noise 1"):
        one, other = (read_suite_predictions(tmp_path / mode / file_name(name))["all"] for mode in ("eval", "train"))
        np.testing.assert_allclose(one.loss, other.loss, rtol=1e-5)
    assert not normed.module[0].running_mean.any()
    assert normed.module[0].training


class _Call(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_broken_images_are_listed_and_too_many_stop_the_run(model, folder, tmp_path):
    broken = folder.samples[3].path
    broken.write_bytes(broken.read_bytes()[:60])
    predict_suite(model, sets_of(folder), tmp_path / "out", batch_size=4, most_unreadable=0.1)
    result = read_suite_predictions(tmp_path / "out" / file_name("clean"))["all"]
    assert len(result.file) == 20
    assert list(result.unreadable) == [folder.samples[3].file]
    for _ in range(2):  # starting again does not get past the limit
        with pytest.raises(DataError, match=r"1 of 21 images cannot be read, more than 1%.*3\.png"):
            predict_suite(model, sets_of(folder), tmp_path / "strict", batch_size=4)


def test_the_limit_counts_what_earlier_runs_could_not_read(model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 8)
    for i in (1, 9, 17):
        folder.samples[i].path.write_bytes(b"no image")
    for _ in range(3):
        with pytest.raises(DataError, match="3 of 21 images cannot be read, more than 10%"):
            predict_suite(model, sets_of(folder), tmp_path / "out", batch_size=4, most_unreadable=0.1)
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_parts_of_other_sets_or_sizes_are_not_mixed_in(model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 8)
    one, two = sets_of(folder)
    three = replace(two, name="noise 2")

    def stopped(batches, count, description):
        for i, batch in enumerate(batches):
            if i == 3:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        predict_suite(model, [one, two], tmp_path / "out", batch_size=4, progress=stopped)
    predict_suite(model, [one, two, three], tmp_path / "out", batch_size=4)
    for name in ("clean", "noise 1", "noise 2"):
        for result in read_suite_predictions(tmp_path / "out" / file_name(name)).values():
            assert result.file.tolist() == [sample.file for sample in folder.samples]
    assert not (tmp_path / "out" / ".parts").exists()


def test_sets_that_would_share_a_file_raise_an_error(model, folder, tmp_path):
    one, two = sets_of(folder)
    with pytest.raises(DataError, match="'noise 1', 'noise-1' share a file name"):
        predict_suite(model, [one, two, replace(two, name="noise-1")], tmp_path / "out")


PROCESS = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
import torch
from clearhead.data.folder import read_folder
from clearhead.prediction import suite_predictions
from clearhead.models import Preprocessing, from_module
from tests.prediction.test_suite_predictions import CLASSES, brightest, sets_of
suite_predictions.PART = 8
model = from_module(brightest(), preprocess=Preprocessing((8, 8), (8, 8), (0.5,) * 3, (0.25,) * 3), classes=CLASSES)
folder = read_folder({data!r}, classes=CLASSES, check=False)
suite_predictions.predict_suite(model, sets_of(folder), Path({out!r}), batch_size=4)
"""


@pytest.mark.slow
def test_two_processes_predict_as_one(model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 8)
    predict_suite(model, sets_of(folder), tmp_path / "one", batch_size=4)
    script = tmp_path / "run.py"
    here = str(module.Path(__file__).parents[2])
    script.write_text(PROCESS.format(here=here, data=str(folder.root), out=str(tmp_path / "two")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)
    for name in ("clean", "noise 1"):
        assert (tmp_path / "one" / file_name(name)).read_bytes() == (tmp_path / "two" / file_name(name)).read_bytes()
