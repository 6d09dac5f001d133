"""The training loop learns, selects the best epoch, resumes to the same weights and stops on a broken loss."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from clearhead.analyses import train
from clearhead.data.folder import read_folder
from clearhead.data.loading import ImageDataset, loader
from clearhead.models import Preprocessing, from_module, load_model
from clearhead.training.loop import DivergedError, Epoch, TrainConfig, TrainingError, best_epoch, cross_entropy, fit
from tests.command import clearhead, error
from tests.training.interrupt import interrupted_after


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


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.module.parameters()])


def test_training_learns_and_does_not_change_the_original_model(folder):
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
def test_a_resumed_training_ends_with_the_same_weights(folder, tmp_path, recipe):
    config = replace(SETTINGS, **recipe)
    whole, history = fit(model(), cross_entropy, folder, folder, config)
    with interrupted_after(2):
        fit(model(), cross_entropy, folder, folder, config, tmp_path / "state")
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
    """Train in a bare PyTorch loop, on the same batches."""
    model = replace(start, module=start.module.train())
    batches = loader(ImageDataset(folder, start.preprocess), config.batch_size, 0, shuffle=True, seed=config.seed)
    optimizer = torch.optim.SGD(model.module.parameters(), config.lr, momentum=0.9, weight_decay=1e-4)
    for _ in range(config.epochs):
        for batch in batches:
            step(model.module, model.normalize(batch["image"]), batch["label"], optimizer)


def assert_trained_to(expected, config, folder):
    """Check that the last epoch, selected or not, ends with these weights and statistics."""
    seen = []
    on_epoch_end = lambda _, trained: seen.append({k: v.clone() for k, v in trained.module.state_dict().items()})  # noqa: E731
    fit(normed(), cross_entropy, folder, folder, config, device="cpu", on_epoch_end=on_epoch_end)
    assert len(seen) == config.epochs + 1
    for name in ("1.weight", "2.running_mean", "2.running_var", "4.bias"):
        torch.testing.assert_close(seen[-1][name], expected.module.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_label_smoothing_and_gradient_clipping_match_a_bare_loop(folder):
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


def test_a_sharpness_aware_step_matches_a_bare_loop(folder):
    config = replace(SETTINGS, optimizer="sam-sgd", schedule="constant", augment="none", lr=0.01, epochs=2)

    def step(module, images, labels, optimizer):
        norm, parameters = module[2], list(module.parameters())
        gradients = torch.autograd.grad(F.cross_entropy(module(images), labels), parameters)
        statistics = norm.running_mean.clone(), norm.running_var.clone()
        length = torch.cat([g.flatten() for g in gradients]).norm()
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p.add_(0.05 * g / length)
        optimizer.zero_grad()
        F.cross_entropy(module(images), labels).backward()
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p.sub_(0.05 * g / length)
            norm.running_mean.copy_(statistics[0])
            norm.running_var.copy_(statistics[1])
        optimizer.step()

    hand = normed()
    by_hand(hand, folder, config, step)
    assert_trained_to(hand, config, folder)


class Dropped(nn.Module):
    """Dropout that records its masks."""

    drawn = ()

    def forward(self, x):
        if not self.training:
            return x
        mask = torch.rand_like(x) < 0.8
        Dropped.drawn = (*Dropped.drawn, mask)
        return x * mask


def test_both_passes_of_a_sharpness_aware_step_use_one_dropout_mask(folder):
    layers, Dropped.drawn = model().module, ()
    start = replace(model(), module=nn.Sequential(layers[0], Dropped(), layers[1], layers[4]))
    fit(start, cross_entropy, folder, folder, replace(SETTINGS, optimizer="sam-sgd", epochs=1), device="cpu")
    one, again, next_one, next_again = Dropped.drawn[:4]
    assert torch.equal(one, again)
    assert torch.equal(next_one, next_again)
    assert not torch.equal(one, next_one)


class Counting:
    """Cross-entropy that counts its training steps; group DRO updates its weights with each."""

    steps = 0

    def __call__(self, model, batch):
        self.steps += model.module.training
        return cross_entropy(model, batch)

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def test_both_passes_of_a_sharpness_aware_step_update_the_loss_once(folder):
    loss = Counting()
    fit(model(), loss, folder, folder, replace(SETTINGS, optimizer="sam-sgd", epochs=2), device="cpu")
    assert loss.steps == 2 * 4


def test_batch_norm_statistics_belong_to_the_averaged_weights(folder):
    config = replace(SETTINGS, optimizer="schedulefree-adamw", augment="none", lr=0.01)
    trained, history = fit(normed(), cross_entropy, folder, folder, config, device="cpu")
    assert best_epoch(history).number > 0
    images = torch.stack([trained.preprocess.image(Image.open(sample.path)) for sample in folder.samples])
    with torch.no_grad():
        torch.testing.assert_close(
            trained.module[2].running_mean, trained.module[:2](trained.normalize(images)).mean(0)
        )


@pytest.mark.parametrize("name", ["sgd", "lion", "muon", "schedulefree-sgd", "sam-adamw"])
def test_every_optimizer_family_learns(folder, name):
    lr = {"sgd": 0.01, "schedulefree-sgd": 0.05, "muon": 5e-3}.get(name, 1e-3)
    config = replace(SETTINGS, optimizer=name, lr=lr, mixup=0.2, label_smoothing=0.1, augment="weak")
    _, history = fit(model(), cross_entropy, folder, folder, config, device="cpu")
    assert best_epoch(history).validation["loss"] < 0.7 * history[0].validation["loss"]


def test_on_epoch_end_gets_the_current_model(folder):
    seen = []

    def on_epoch_end(history, current):
        assert not current.module.training
        seen.append((history[-1].number, weights(current).clone()))

    start = model()
    trained, history = fit(start, cross_entropy, folder, folder, SETTINGS, device="cpu", on_epoch_end=on_epoch_end)
    assert [number for number, _ in seen] == [0, 1, 2, 3, 4]
    assert torch.equal(seen[0][1], weights(start))
    assert torch.equal(seen[best_epoch(history).number][1], weights(trained))
    assert [epoch.images for epoch in history] == [0, 16, 16, 16, 16]
    assert history[0].seconds == 0
    assert all(epoch.seconds > 0 for epoch in history[1:])


def test_on_epoch_end_stops_training_for_good(folder, tmp_path):
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


def test_a_state_of_an_earlier_version_resumes(folder, tmp_path):
    state = tmp_path / "state"
    fit(model(), cross_entropy, folder, folder, SETTINGS, state, device="cpu", on_epoch_end=lambda h, _: len(h) == 3)
    (state / "ended").unlink()
    history = json.loads((state / "history.json").read_text())
    older = [{key: epoch[key] for key in ("number", "train", "validation")} for epoch in history]
    (state / "history.json").write_text(json.dumps(older))
    _, resumed = fit(model(), cross_entropy, folder, folder, SETTINGS, state, device="cpu")
    assert [epoch.images for epoch in resumed] == [0, 0, 0, 16, 16]


def test_saved_epochs_are_ordinary_checkpoints_and_survive_an_interruption(workspace):
    out = workspace / "snapshots"
    options = {
        "epochs": 3,
        "lr": 1e-3,
        "batch_size": 4,
        "save_epochs": (0, 1, 3),
        "folder": out,
        "state": out / "state",
    }
    with interrupted_after(1):
        train.measure(str(workspace / "model"), workspace / "data", **options)
    assert sorted(path.name for path in (out / "epochs").iterdir()) == ["0", "1"]
    result = train.measure(str(workspace / "model"), workspace / "data", **options)
    assert sorted(path.name for path in (out / "epochs").iterdir()) == ["0", "1", "3"]
    assert torch.equal(weights(load_model(str(out / "epochs" / "0"))), weights(load_model(str(workspace / "model"))))
    best = best_epoch(result.history).number
    if best != 2:
        saved = load_model(str(out / "epochs" / str(best)))
        assert torch.equal(weights(saved), weights(result.model))


def test_training_options_of_the_command(workspace):
    options = "--optimizer sam-sgd --lr 0.01 --max-grad-norm 5 --label-smoothing 0.1 --mixup 1 --cutmix 0.8"
    more = "--augment strong --epochs 2 --schedule steps --warmup 1 --batch-size 5"
    more += " --save-epochs 0,2 --out run --device cpu"
    run = clearhead("train", "model", "data", *options.split(), *more.split(), cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert sorted(path.name for path in (workspace / "run" / "epochs").iterdir()) == ["0", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--optimizer admw", "did you mean adamw"),
        ("--optimizer sam-sgd --mixed-precision fp16", "use bf16 or no"),
        ("--max-grad-norm 0", "max_grad_norm: got 0.0"),
        ("--epochs 3 --warmup 4", "warmup: got 4"),
        ("--epochs 3 --save-epochs 1,4", "save_epochs: got 4; choose from 0..3"),
        ("--save-epochs first", "comma-separated whole numbers"),
        ("--mixup 1 --diversity 1", "for plain cross-entropy"),
        ("--linear --save-epochs 1", "a linear probe has no epochs"),
    ],
)
def test_invalid_training_options_exit_with_an_error(workspace, arguments, message):
    assert message in error(
        clearhead("train", "model", "data", *arguments.split(), "--out", "not-trained", cwd=workspace)
    )
    assert not (workspace / "not-trained").exists()


def test_training_that_never_improves_returns_the_original_model(folder):
    start = model()
    rising = lambda m, batch: {"loss": -cross_entropy(m, batch)["loss"], "logits": m(batch["image"])}  # noqa: E731
    worse = lambda m, batch: rising(m, batch) if m.module.training else cross_entropy(m, batch)  # noqa: E731
    trained, history = fit(start, worse, folder, folder, SETTINGS)
    assert best_epoch(history).number == 0
    assert torch.equal(weights(trained), weights(start))


def test_a_loss_that_is_not_finite_stops_with_advice(folder):
    def broken(model, batch):
        parts = cross_entropy(model, batch)
        return parts | {"loss": parts["loss"] * (torch.nan if model.module.training else 1)}

    with pytest.raises(DivergedError, match=r"nan in epoch 1.*smaller learning rate than 0\.001"):
        fit(model(), broken, folder, folder, SETTINGS)


def test_a_frozen_model_raises_an_error(folder):
    frozen = model()
    frozen.module.requires_grad_(False)
    with pytest.raises(TrainingError, match="cannot be trained"):
        fit(frozen, cross_entropy, folder, folder, SETTINGS)


@pytest.fixture
def lit(folder):
    """Training and validation images with a group column; the validation images are mostly of class a."""
    samples = [replace(s, groups={"light": "dim" if i % 4 == 0 else "bright"}) for i, s in enumerate(folder.samples)]
    return replace(folder, samples=tuple(samples)), replace(folder, samples=tuple(samples[:10]))


def test_items_have_the_name_of_their_group(lit):
    batches = loader(ImageDataset(lit[1], model().preprocess, group_columns=["light"]), 5, 0)
    first, second = (batch["group"] for batch in batches)
    assert first == ["class=a, light=dim", *["class=a, light=bright"] * 3, "class=a, light=dim"]
    assert second == [*["class=a, light=bright"] * 3, "class=b, light=dim", "class=b, light=bright"]
    assert ImageDataset(lit[1], model().preprocess, group_columns=["class"])[9, 5]["group"] == "class=b"


def by_group(model, folder):
    """Compute loss and accuracy of each class and light, image by image."""
    values = {}
    for sample in folder.samples:
        row = model(model.preprocess.image(Image.open(sample.path))[None])[0].detach()
        value = (-row.log_softmax(0)[sample.label].item(), float(row.argmax() == sample.label))
        values.setdefault((sample.label, sample.groups["light"]), []).append(value)
    return np.array([np.mean(group, axis=0) for group in values.values()])


@pytest.mark.parametrize("batch_size", [3, 4])
def test_validation_reports_the_worst_group(lit, batch_size):
    start, config = model(), replace(SETTINGS, epochs=1, batch_size=batch_size)
    _, history = fit(start, cross_entropy, *lit, config, device="cpu", group_columns=["light"])
    start.module.eval()  # no dropout
    expected = by_group(start, lit[1])
    assert len(expected) == 4
    assert history[0].validation["worst_group_loss"] == pytest.approx(expected[:, 0].max(), rel=1e-5)
    assert history[0].validation["worst_group_accuracy"] == pytest.approx(expected[:, 1].min())
    assert set(history[1].train) == {"loss", "accuracy"}


def test_the_worst_group_can_select_the_epoch(lit):
    def only_a(model, batch):
        parts = cross_entropy(model, batch)
        logits = parts["logits"]
        return parts | {"loss": -logits.log_softmax(-1)[:, 0].mean()} if model.module.training else parts

    start = model()
    trained, history = fit(start, only_a, *lit, SETTINGS, device="cpu")
    assert best_epoch(history).number > 0
    assert not torch.equal(weights(trained), weights(start))
    selected, same = fit(start, only_a, *lit, SETTINGS, device="cpu", monitor="worst_group_loss")
    assert same == history
    assert best_epoch(history, "worst_group_loss").number == 0
    assert torch.equal(weights(selected), weights(start))


def test_the_first_of_equal_epochs_is_selected():
    means = [(3.0, 5.0), (2.0, 4.0), (1.0, 6.0), (1.0, 4.0)]
    history = [Epoch(i, {}, {"loss": a, "worst_group_loss": b}) for i, (a, b) in enumerate(means)]
    assert best_epoch(history).number == 2
    assert best_epoch(history, "worst_group_loss").number == 1


def test_an_unknown_monitor_raises_an_error(folder):
    with pytest.raises(ValueError, match="monitor: 'accuracy' is unknown; choose from loss, worst_group_loss"):
        fit(model(), cross_entropy, folder, folder, SETTINGS, monitor="accuracy")


def test_one_line_is_logged_per_epoch(lit, tmp_path, caplog):
    caplog.set_level("INFO", logger="clearhead")
    state, config = tmp_path / "state", replace(SETTINGS, epochs=2)
    _, history = fit(model(), cross_entropy, *lit, config, state, device="cpu", on_epoch_end=lambda h, _: len(h) == 2)
    (state / "ended").unlink()
    before, first = (epoch.validation for epoch in history)
    loss = history[1].train["loss"]
    assert caplog.messages[0] == f"epoch 0/2: validation loss {before['loss']:.3f}, accuracy {before['accuracy']:.1%}"
    start = f"epoch 1/2: loss {loss:.3f}, validation loss {first['loss']:.3f}, accuracy {first['accuracy']:.1%}, lr 0."
    assert caplog.messages[1].startswith(start)
    assert caplog.messages[1].endswith(" s, 0 s remaining")
    fit(model(), cross_entropy, *lit, config, state, device="cpu", monitor="worst_group_loss")
    assert caplog.messages[2] == "resuming after epoch 1/2"
    assert ", worst-group loss " in caplog.messages[3]
    assert "remaining" not in caplog.messages[3]
    assert len(caplog.messages) == 4


def test_the_progress_shows_the_loss(folder):
    descriptions = []

    def progress(items, total, description):
        for item in items:
            yield item
            descriptions.append(description if isinstance(description, str) else description())

    fit(model(), cross_entropy, folder, folder, replace(SETTINGS, epochs=1), device="cpu", progress=progress)
    assert descriptions[0] == "before training, validation"
    assert any(text.startswith("epoch 1/1, loss 0.") for text in descriptions)
