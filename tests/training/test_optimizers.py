"""Optimizers by name: steps against hand-written ones, schedules against torch's, names that do not exist."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from clearhead.training import optimizers
from clearhead.training.config import TrainConfig


class Quadratic(nn.Module):
    """Half of w^T A w, in float64."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
        self.a = torch.diag(torch.tensor([1.0, 3.0, 10.0], dtype=torch.float64)) + 0.2

    def forward(self):
        return self.w @ self.a @ self.w / 2


def gradients(module, optimizer):
    def again():
        optimizer.zero_grad()
        module().backward()

    return again


@pytest.mark.parametrize(("name", "rho"), [("sam-sgd", 0.05), ("asam-sgd", 0.5)])
def test_a_sharpness_aware_step_by_hand(name, rho):
    module = Quadratic()
    optimizer = optimizers.make_optimizer(name, module, 0.1)
    w, velocity = module.w.detach().clone(), 0
    for _ in range(3):
        again = gradients(module, optimizer)
        again()
        optimizer.step(again)
        g = module.a @ w
        scale = w.abs() if name == "asam-sgd" else torch.ones_like(w)
        above = w + rho * scale**2 * g / (scale * g).norm()
        velocity = 0.9 * velocity + module.a @ above
        w = w - 0.1 * velocity
        torch.testing.assert_close(module.w.detach(), w, rtol=1e-6, atol=1e-8)  # it takes the norm in float32


def test_a_schedule_free_average_by_hand():
    module = Quadratic()
    optimizer = optimizers.make_optimizer("schedulefree-sgd", module, 0.05)
    x = z = module.w.detach().clone()
    for t in range(1, 6):
        gradients(module, optimizer)()
        optimizer.step()
        z = z - 0.05 * module.a @ (0.1 * z + 0.9 * x)
        x = x + (z - x) / t
    torch.testing.assert_close(module.w.detach(), 0.1 * z + 0.9 * x)
    optimizer.eval()
    torch.testing.assert_close(module.w.detach(), x)


def test_muon_turns_hidden_matrices_alone():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 8)).double()
    before = [p.detach().clone() for p in module.parameters()]
    optimizer = optimizers.make_optimizer("muon", module, 0.01)
    module(torch.randn(32, 8, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    change = [(p - b).detach() for p, b in zip(module.parameters(), before, strict=True)]
    for hidden in (change[0], change[2]):
        values = torch.linalg.svdvals(hidden)
        assert values.max() / values.min() < 3  # Newton and Schulz bring them near to one another
    for other in (change[1], change[3], change[4], change[5]):  # AdamW's first step is the sign of the gradient
        torch.testing.assert_close(other.abs(), torch.full_like(other, 0.01), rtol=1e-3, atol=0)


def test_muon_leaves_the_embeddings_a_model_names():
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.hidden, self.head = (nn.Parameter(torch.randn(8, 8)) for _ in range(3))

        def no_weight_decay(self):
            return {"table"}

    module = Embedded()
    hidden, other = optimizers.make_optimizer("muon", module, 0.01).param_groups
    assert hidden["params"] == [module.hidden]
    assert {id(p) for p in other["params"]} == {id(module.table), id(module.head)}


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lion", "lamb", "muon", "adopt", "schedulefree-adamw"])
@pytest.mark.parametrize("family", ["", "sam-", "asam-"])
def test_the_loss_falls(name, family):
    if family and name.startswith("schedulefree"):
        with pytest.raises(ValueError, match="unknown"):
            optimizers.make_optimizer(family + name, Quadratic(), 0.01)
        return
    module = Quadratic()
    first, optimizer = module().item(), optimizers.make_optimizer(family + name, module, 0.02)
    for _ in range(20):
        again = gradients(module, optimizer)
        again()
        optimizer.step(again if family else None)
    assert module().item() < 0.9 * first


def test_frozen_parameters_are_excluded():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[0].requires_grad_(False)
    for name in ("adamw", "lion", "muon", "sam-sgd"):
        held = [p for group in optimizers.make_optimizer(name, module, 0.1).param_groups for p in group["params"]]
        assert {id(p) for p in held} == {id(p) for p in module[1].parameters()}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("admw", "did you mean adamw"),
        ("sam-adm", "did you mean sam-adam"),
        ("sam-schedulefree-adamw", "is unknown"),
        ("schedulefree-lion", "schedulefree-sgd"),
        ("adahessian", "is unknown"),
        ("", "is unknown"),
    ],
)
def test_unknown_names_raise_an_error_with_similar_names(name, message):
    with pytest.raises(ValueError, match=message):
        optimizers.make_optimizer(name, Quadratic(), 0.1)
    with pytest.raises(ValueError, match=message):
        TrainConfig(epochs=1, lr=0.1, optimizer=name)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'clearhead\[optimizers\]'"):
        optimizers.make_optimizer("sam-adamw", Quadratic(), 0.1)
    optimizers.make_optimizer("lion", Quadratic(), 0.1)


def test_running_statistics_are_fixed_inside_the_block_only():
    norm, images = nn.BatchNorm1d(3), torch.randn(8, 3) + 5
    with optimizers.fixed_batch_norm_statistics(norm):
        norm(images)
    assert torch.equal(norm.running_mean, torch.zeros(3))
    norm(images)
    torch.testing.assert_close(norm.running_mean, 0.1 * images.mean(0))


@given(st.integers(1, 12), st.integers(1, 7), st.data())
def test_every_schedule_stays_between_nothing_and_the_learning_rate(epochs, steps, data):
    schedule = data.draw(st.sampled_from(["cosine", "steps", "decay", "constant"]))
    warmup = data.draw(st.none() | st.integers(0, epochs))
    factor = TrainConfig(epochs=epochs, lr=1, schedule=schedule, warmup=warmup).lr_lambda(steps)
    values = [factor(step) for step in range(epochs * steps)]
    assert all(0 <= value <= 1 for value in values)
    warm = (warmup or 0) * steps
    if schedule in ("cosine", "constant"):
        assert values[:warm] == pytest.approx([(i + 1) / warm for i in range(warm)])
    if warmup is not None:
        assert values[warm:] == sorted(values[warm:], reverse=True)


@hypothesis_settings(max_examples=20, deadline=None)
@given(st.sampled_from([10, 20, 200]), st.integers(1, 3))
def test_steps_are_those_of_torch(epochs, steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    milestones = [steps * epochs * tenths // 10 for tenths in (3, 6, 8)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.2)
    factor = TrainConfig(epochs=epochs, lr=1, schedule="steps").lr_lambda(steps)
    for step in range(epochs * steps):
        assert factor(step) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


def test_cosine_after_five_epochs_of_warm_up():
    factor = TrainConfig(epochs=305, lr=1, warmup=5).lr_lambda(10)
    assert [factor(step) for step in (0, 24, 49, 50)] == pytest.approx([0.02, 0.5, 1, 1])
    assert factor(50 + 1500) == pytest.approx(0.5)
    assert factor(50 + 1000) == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 3))
    assert factor(3050) == pytest.approx(0)


def test_schedule_free_is_constant_after_the_warm_up():
    factor = TrainConfig(epochs=10, lr=1, optimizer="schedulefree-adamw").lr_lambda(10)
    assert [factor(step) for step in range(100)] == pytest.approx([(i + 1) / 10 for i in range(10)] + [1] * 90)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"schedule": "linear"}, "schedule: 'linear'"),
        ({"warmup": 11}, "warmup: got 11"),
        ({"augment": "heavy"}, "augment: 'heavy'"),
        ({"label_smoothing": 1.0}, "label_smoothing: got 1.0"),
        ({"mixup": -1.0}, "mixup: got -1.0"),
        ({"cutmix": math.nan}, "cutmix: got nan"),
        ({"max_grad_norm": 0.0}, "max_grad_norm: got 0.0"),
        ({"optimizer": "sam-sgd", "mixed_precision": "fp16"}, "use bf16 or no"),
    ],
)
def test_invalid_settings_raise_an_error(config, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(epochs=10, lr=0.1, **config)
