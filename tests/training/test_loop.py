"""The training loop: it learns, keeps the best epoch, resumes to the same weights, and stops on a broken loss."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from clearhead.data.folder import read_folder
from clearhead.data.loading import ImageDataset, loader
from clearhead.models import Preprocessing, from_module, load_model
from clearhead.training import loop as train
from clearhead.training.loop import DivergedError, Epoch, TrainConfig, TrainingError, best_epoch, cross_entropy, fit
from clearhead.workflows import run_repair, run_train
from tests.command import clearhead, error


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for label, name in enumerate(("a", "b")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 100, (16, 16, 3)) + 100 * label
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / name / f"{i}.png")
    return read_folder(tmp_path / "data")


def model():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(768, 16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 2))
    half = (0.5, 0.5, 0.5)
    return from_module(module, preprocess=Preprocessing((16, 16), (16, 16), half, half), classes=["a", "b"])


SETTINGS = TrainConfig(epochs=4, lr=1e-3, batch_size=4, seed=3)


def weights(found):
    return torch.cat([p.detach().flatten() for p in found.module.parameters()])


def test_it_learns_and_leaves_the_model_it_was_given_alone(folder):
    start = model()
    before = weights(start).clone()
    trained, history = fit(start, cross_entropy, folder, folder, SETTINGS)
    assert torch.equal(weights(start), before)
    assert history[0].train == {}
    assert history[-1].validation["accuracy"] == 1
    assert [epoch.number for epoch in history] == [0, 1, 2, 3, 4]
    images = torch.stack([trained.preprocess.image(Image.open(sample.path)) for sample in folder.samples])
    labels = torch.tensor([sample.label for sample in folder.samples])
    loss = torch.nn.functional.cross_entropy(trained(images), labels).item()
    assert loss == pytest.approx(best_epoch(history).validation["loss"], rel=1e-4)


RECIPES = {
    "plain": {},
    "strong": {"augment": "strong", "mixup": 1.0, "cutmix": 0.8, "label_smoothing": 0.1, "max_grad_norm": 5.0}
    | {"warmup": 1},
    "weak": {"optimizer": "sgd", "schedule": "steps", "augment": "weak"},
    "workers": {"workers": 1},
    **{name: {"optimizer": name} for name in ("lion", "muon", "schedulefree-adamw", "sam-sgd", "asam-adamw")},
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_stopped_run_ends_with_the_same_weights(folder, tmp_path, monkeypatch, recipe):
    config = replace(SETTINGS, **recipe)
    whole, history = fit(model(), cross_entropy, folder, folder, config)
    keep, calls = train._keep, []

    def stop_after_two(*arguments):
        keep(*arguments)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "_keep", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        fit(model(), cross_entropy, folder, folder, config, tmp_path / "state")
    monkeypatch.setattr(train, "_keep", keep)
    resumed, again = fit(model(), cross_entropy, folder, folder, config, tmp_path / "state")
    assert torch.equal(weights(resumed), weights(whole))
    assert again == history
    assert len(history) == 5


def normed():
    """A model with batch norm and without dropout."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(768, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    return replace(model(), module=module.eval())


def by_hand(start, folder, config, step):
    """Train by a loop of PyTorch's alone, over the same batches."""
    found = replace(start, module=start.module.train())
    batches = loader(ImageDataset(folder, start.preprocess), config.batch_size, 0, shuffle=True, seed=config.seed)
    optimizer = torch.optim.SGD(found.module.parameters(), config.lr, momentum=0.9, weight_decay=1e-4)
    for _ in range(config.epochs):
        for batch in batches:
            step(found.module, found.normalize(batch["image"]), batch["label"], optimizer)


def assert_trained_to(true, config, folder):
    """That the last epoch, kept or not, ends with these weights and statistics."""
    seen = []
    on_epoch_end = lambda _, trained: seen.append({k: v.clone() for k, v in trained.module.state_dict().items()})  # noqa: E731
    fit(normed(), cross_entropy, folder, folder, config, device="cpu", on_epoch_end=on_epoch_end)
    assert len(seen) == config.epochs + 1
    for name in ("1.weight", "2.running_mean", "2.running_var", "4.bias"):
        torch.testing.assert_close(seen[-1][name], true.module.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_smoothed_labels_and_a_short_gradient_by_hand(folder):
    config = replace(SETTINGS, optimizer="sgd", schedule="constant", augment="none", lr=0.1)
    config = replace(config, label_smoothing=0.1, max_grad_norm=0.5)

    def step(module, images, labels, optimizer):
        optimizer.zero_grad()
        F.cross_entropy(module(images), labels, label_smoothing=0.1).backward()
        lengths.append(torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5))
        optimizer.step()

    lengths, hand = [], normed()
    by_hand(hand, folder, config, step)
    assert min(lengths) < 0.5 < max(lengths)
    assert_trained_to(hand, config, folder)


def test_a_sharpness_aware_step_counts_a_batch_once(folder):
    config = replace(SETTINGS, optimizer="sam-sgd", schedule="constant", augment="none", lr=0.01, epochs=2)

    def step(module, images, labels, optimizer):
        norm, parameters = module[2], list(module.parameters())
        gradients = torch.autograd.grad(F.cross_entropy(module(images), labels), parameters)
        kept = norm.running_mean.clone(), norm.running_var.clone()
        length = torch.cat([g.flatten() for g in gradients]).norm()
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p.add_(0.05 * g / length)
        optimizer.zero_grad()
        F.cross_entropy(module(images), labels).backward()
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p.sub_(0.05 * g / length)
            norm.running_mean.copy_(kept[0])
            norm.running_var.copy_(kept[1])
        optimizer.step()

    hand = normed()
    by_hand(hand, folder, config, step)
    assert_trained_to(hand, config, folder)


class Dropped(nn.Module):
    """Dropout that remembers what it drew."""

    drawn = ()

    def forward(self, x):
        if not self.training:
            return x
        mask = torch.rand_like(x) < 0.8
        Dropped.drawn = (*Dropped.drawn, mask)
        return x * mask


def test_both_passes_of_a_sharpness_aware_step_see_one_dropout(folder):
    layers, Dropped.drawn = model().module, ()
    start = replace(model(), module=nn.Sequential(layers[0], Dropped(), layers[1], layers[4]))
    fit(start, cross_entropy, folder, folder, replace(SETTINGS, optimizer="sam-sgd", epochs=1), device="cpu")
    one, again, next_one, next_again = Dropped.drawn[:4]
    assert torch.equal(one, again)
    assert torch.equal(next_one, next_again)
    assert not torch.equal(one, next_one)


class Counting:
    """Cross-entropy that counts the training steps, as group DRO moves its weights with each."""

    steps = 0

    def __call__(self, model, batch):
        self.steps += model.module.training
        return cross_entropy(model, batch)

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def test_both_passes_of_a_sharpness_aware_step_are_one_to_a_loss_with_state(folder):
    loss = Counting()
    fit(model(), loss, folder, folder, replace(SETTINGS, optimizer="sam-sgd", epochs=2), device="cpu")
    assert loss.steps == 2 * 4


def test_a_schedule_free_model_has_the_statistics_of_its_average(folder):
    config = replace(SETTINGS, optimizer="schedulefree-adamw", augment="none", lr=0.01)
    trained, history = fit(normed(), cross_entropy, folder, folder, config, device="cpu")
    assert best_epoch(history).number > 0
    images = torch.stack([trained.preprocess.image(Image.open(sample.path)) for sample in folder.samples])
    with torch.no_grad():
        torch.testing.assert_close(
            trained.module[2].running_mean, trained.module[:2](trained.normalize(images)).mean(0)
        )


@pytest.mark.parametrize("name", ["sgd", "lion", "muon", "schedulefree-sgd", "sam-adamw"])
def test_it_learns_with_every_family(folder, name):
    lr = {"sgd": 0.01, "schedulefree-sgd": 0.05, "muon": 5e-3}.get(name, 1e-3)
    config = replace(SETTINGS, optimizer=name, lr=lr, mixup=0.2, label_smoothing=0.1, augment="weak")
    _, history = fit(model(), cross_entropy, folder, folder, config, device="cpu")
    assert best_epoch(history).validation["loss"] < 0.7 * history[0].validation["loss"]


def test_after_every_epoch_the_model_as_it_is_then(folder):
    seen = []

    def on_epoch_end(history, found):
        assert not found.module.training
        seen.append((history[-1].number, weights(found).clone()))

    start = model()
    trained, history = fit(start, cross_entropy, folder, folder, SETTINGS, device="cpu", on_epoch_end=on_epoch_end)
    assert [number for number, _ in seen] == [0, 1, 2, 3, 4]
    assert torch.equal(seen[0][1], weights(start))
    assert torch.equal(seen[best_epoch(history).number][1], weights(trained))
    assert [epoch.images for epoch in history] == [0, 16, 16, 16, 16]
    assert history[0].seconds == 0
    assert all(epoch.seconds > 0 for epoch in history[1:])


def test_training_ends_where_it_is_told_to_and_stays_ended(folder, tmp_path):
    calls = []

    def on_epoch_end(history, _):
        calls.append(len(history))
        return len(history) == 3

    for _ in range(2):
        state = tmp_path / "state"
        _, history = fit(
            model(), cross_entropy, folder, folder, SETTINGS, state, device="cpu", on_epoch_end=on_epoch_end
        )
        assert [epoch.number for epoch in history] == [0, 1, 2]
    assert calls == [1, 2, 3]
    _, whole = fit(model(), cross_entropy, folder, folder, SETTINGS, device="cpu")
    assert whole[:3] == history


def test_a_state_of_an_earlier_version_can_be_gone_on_with(folder, tmp_path):
    state = tmp_path / "state"
    fit(model(), cross_entropy, folder, folder, SETTINGS, state, device="cpu", on_epoch_end=lambda h, _: len(h) == 3)
    (state / "ended").unlink()
    history = json.loads((state / "history.json").read_text())
    older = [{key: epoch[key] for key in ("number", "train", "validation")} for epoch in history]
    (state / "history.json").write_text(json.dumps(older))
    _, found = fit(model(), cross_entropy, folder, folder, SETTINGS, state, device="cpu")
    assert [epoch.images for epoch in found] == [0, 0, 0, 16, 16]


def test_kept_epochs_are_ordinary_checkpoints_and_outlive_a_stop(place, monkeypatch):
    config = TrainConfig(epochs=3, lr=1e-3, batch_size=4)
    data, out = place / "data", place / "snapshots"
    keep = train._keep

    def stop(*arguments):
        keep(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "_keep", stop)
    with pytest.raises(KeyboardInterrupt):
        run_train(str(place / "model"), data, out, config, save_epochs=(0, 1, 3), device="cpu")
    assert sorted(path.name for path in (out / "epochs").iterdir()) == ["0", "1"]
    monkeypatch.setattr(train, "_keep", keep)
    results = run_train(str(place / "model"), data, out, config, save_epochs=(0, 1, 3), device="cpu")
    assert sorted(path.name for path in (out / "epochs").iterdir()) == ["0", "1", "3"]
    assert torch.equal(weights(load_model(str(out / "epochs" / "0"))), weights(load_model(str(place / "model"))))
    best = best_epoch(results.history).number
    if best != 2:
        kept = load_model(str(out / "epochs" / str(best)))
        assert torch.equal(weights(kept), weights(load_model(str(out / "checkpoint"))))


def test_a_recipe_by_its_options(place):
    options = "--optimizer sam-sgd --lr 0.01 --max-grad-norm 5 --label-smoothing 0.1 --mixup 1 --cutmix 0.8"
    more = "--augment strong --epochs 2 --schedule steps --warmup 1 --batch-size 5"
    more += " --save-epochs 0,2 --out recipe --device cpu"
    run = clearhead("train", "model", "data", *options.split(), *more.split(), cwd=place)
    assert run.returncode == 0, run.stderr
    assert sorted(path.name for path in (place / "recipe" / "epochs").iterdir()) == ["0", "2"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--optimizer admw", "did you mean adamw"),
        ("--optimizer sam-sgd --mixed-precision fp16", "give bf16 or no"),
        ("--max-grad-norm 0", "max_grad_norm: got 0.0"),
        ("--epochs 3 --warmup 4", "warmup: got 4"),
        ("--epochs 3 --save-epochs 1,4", "there is no epoch 4 in 0..3"),
        ("--save-epochs first", "whole numbers with commas"),
        ("--mixup 1 --diversity 1", "for plain cross-entropy"),
        ("--linear --save-epochs 1", "not trained in epochs"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(place, arguments, said):
    assert said in error(clearhead("train", "model", "data", *arguments.split(), "--out", "not-trained", cwd=place))
    assert not (place / "not-trained").exists()


@pytest.mark.parametrize(
    ("config", "method", "said"),
    [
        ({"mixup": 0.8}, "reweight", "reweight takes images as they are"),
        ({"label_smoothing": 0.1}, "relevance", "for plain cross-entropy"),
        ({"augment": "strong"}, "rrr", "strong does not move the masks"),
    ],
)
def test_a_repair_whose_recipe_would_not_be_looked_at_is_refused(place, tmp_path, config, method, said):
    with pytest.raises(ValueError, match=said):
        run_repair(str(place / "model"), place / "data", tmp_path / "out", replace(SETTINGS, **config), method=method)
    assert not (tmp_path / "out").exists()


def test_training_that_only_harms_gives_back_the_model(folder):
    start = model()
    rising = lambda m, batch: {"loss": -cross_entropy(m, batch)["loss"], "logits": m(batch["image"])}  # noqa: E731
    worse = lambda m, batch: rising(m, batch) if m.module.training else cross_entropy(m, batch)  # noqa: E731
    trained, history = fit(start, worse, folder, folder, SETTINGS)
    assert best_epoch(history).number == 0
    assert torch.equal(weights(trained), weights(start))


def test_a_loss_that_is_no_number_stops_with_advice(folder):
    def broken(found, batch):
        parts = cross_entropy(found, batch)
        return parts | {"loss": parts["loss"] * (torch.nan if found.module.training else 1)}

    with pytest.raises(DivergedError, match=r"nan in epoch 1.*smaller learning rate than 0\.001"):
        fit(model(), broken, folder, folder, SETTINGS)


def test_a_frozen_model_is_refused(folder):
    frozen = model()
    frozen.module.requires_grad_(False)
    with pytest.raises(TrainingError, match="nothing to train"):
        fit(frozen, cross_entropy, folder, folder, SETTINGS)


@pytest.fixture
def lit(folder):
    """The images with a column of their own, unlike in train and validation; the validation is mostly of class a."""
    samples = [replace(s, groups={"light": "dim" if i % 4 == 0 else "bright"}) for i, s in enumerate(folder.samples)]
    return replace(folder, samples=tuple(samples)), replace(folder, samples=tuple(samples[:10]))


def test_items_know_their_group(lit):
    batches = loader(ImageDataset(lit[1], model().preprocess, group_columns=["light"]), 5, 0)
    first, second = (batch["group"] for batch in batches)
    assert first == ["class=a, light=dim", *["class=a, light=bright"] * 3, "class=a, light=dim"]
    assert second == [*["class=a, light=bright"] * 3, "class=b, light=dim", "class=b, light=bright"]
    assert ImageDataset(lit[1], model().preprocess, group_columns=["class"])[9, 5]["group"] == "class=b"


def by_group(found, folder):
    """Mean loss and accuracy of each class and light, over its images one by one."""
    values = {}
    for sample in folder.samples:
        row = found(found.preprocess.image(Image.open(sample.path))[None])[0].detach()
        value = (-row.log_softmax(0)[sample.label].item(), float(row.argmax() == sample.label))
        values.setdefault((sample.label, sample.groups["light"]), []).append(value)
    return np.array([np.mean(group, axis=0) for group in values.values()])


@pytest.mark.parametrize("batch_size", [3, 4])
def test_the_validation_knows_its_worst_group(lit, batch_size):
    start, config = model(), replace(SETTINGS, epochs=1, batch_size=batch_size)
    _, history = fit(start, cross_entropy, *lit, config, device="cpu", group_columns=["light"])
    start.module.eval()  # no dropout
    expected = by_group(start, lit[1])
    assert len(expected) == 4
    assert history[0].validation["worst_group_loss"] == pytest.approx(expected[:, 0].max(), rel=1e-5)
    assert history[0].validation["worst_group_accuracy"] == pytest.approx(expected[:, 1].min())
    assert set(history[1].train) == {"loss", "accuracy"}


def test_the_epoch_can_be_chosen_by_the_worst_group(lit):
    def only_a(found, batch):
        parts = cross_entropy(found, batch)
        logits = parts["logits"]
        return parts | {"loss": -logits.log_softmax(-1)[:, 0].mean()} if found.module.training else parts

    start = model()
    trained, history = fit(start, only_a, *lit, SETTINGS, device="cpu")
    assert best_epoch(history).number > 0
    assert not torch.equal(weights(trained), weights(start))
    kept, same = fit(start, only_a, *lit, SETTINGS, device="cpu", monitor="worst_group_loss")
    assert same == history
    assert best_epoch(history, "worst_group_loss").number == 0
    assert torch.equal(weights(kept), weights(start))


def test_the_first_of_equal_epochs_is_kept():
    means = [(3.0, 5.0), (2.0, 4.0), (1.0, 6.0), (1.0, 4.0)]
    history = [Epoch(i, {}, {"loss": a, "worst_group_loss": b}) for i, (a, b) in enumerate(means)]
    assert best_epoch(history).number == 2
    assert best_epoch(history, "worst_group_loss").number == 1


def test_choosing_by_anything_else_is_refused(folder):
    with pytest.raises(ValueError, match="monitor: got 'accuracy'; there is loss and worst_group_loss"):
        fit(model(), cross_entropy, folder, folder, SETTINGS, monitor="accuracy")
