"""The advisor: what it tries, what selects, and that budget, failures and interruptions lose nothing."""

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clearhead.data.folder import read_folder
from clearhead.errors import ClearheadError
from clearhead.models import load_model
from clearhead.prediction.predict import predict
from clearhead.repairs import REPAIRS, Repair, advisor, reweight_head
from clearhead.repairs.advisor import advise
from clearhead.repairs.estimates import Speed, estimate
from clearhead.training.config import TrainConfig
from clearhead.training.loop import DivergedError
from clearhead.training.losses import cross_entropy
from tests.repairs.test_dfr import by_background, shades, two, worst

CONFIG = TrainConfig(epochs=2, lr=0.1, batch_size=16, augment="none")
ALL = defaultdict(lambda: CONFIG)
SECONDS = Speed(forward=0.01, step=0.1, head_gradient=0.0, heads=())


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """Training images with a shortcut; validation images with 20 of each class and background, and with few."""
    root = tmp_path_factory.mktemp("advisor")
    counts = {(0, 0): 60, (0, 1): 12, (1, 0): 9, (1, 1): 60}
    few = {(0, 0): 30, (0, 1): 6, (1, 0): 6, (1, 1): 30}
    even = {(label, background): 20 for label in (0, 1) for background in (0, 1)}
    names = {"train": counts, "val": even, "few": few, "test": even}
    return {name: shades(root / name, count, i) for i, (name, count) in enumerate(names.items())}


@pytest.fixture
def only(monkeypatch):
    """Replace all repairs by others."""

    def replace_all(**repairs):
        for name in list(REPAIRS):
            monkeypatch.delitem(REPAIRS, name)
        for name, one in repairs.items():
            monkeypatch.setitem(REPAIRS, name, one)

    return replace_all


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still, and a measured speed of 10 ms per forward pass and 100 ms per step and image."""
    one = SimpleNamespace(now=0.0)
    monkeypatch.setattr(advisor, "time", SimpleNamespace(perf_counter=lambda: one.now))
    monkeypatch.setattr(advisor, "measure_speed", lambda *_: SECONDS)
    return one


def by_function(function, needs="nothing"):
    def run(model, train, validation, *, group_columns, seed, batch_size, workers, progress):
        return function(model, train, validation), None

    return Repair("test", needs, "nothing", function=run)


def without_groups(index):
    return replace(index, samples=tuple(replace(sample, groups={}) for sample in index.samples))


def test_the_repair_that_is_best_on_the_worst_validation_group_is_selected(splits, only):
    only(**{name: REPAIRS[name] for name in ("afr", "heads", "jtt", "reweight", "rrr")})
    train, validation, test = splits["train"], splits["val"], splits["test"]
    model = two(by_background())
    repaired, advice = advise(model, train, validation, budget=3600, configs=ALL, device="cpu")
    assert advice.objective.measure == "worst-group accuracy"
    assert set(advice.objective.groups.values()) == {20}
    tried = {one.method: one for one in advice.candidates if one.status == "tried"}
    assert tried.keys() == {"afr", "jtt", "reweight"}
    assert advice.original.objective.value == pytest.approx(worst(model, validation))
    assert advice.candidate(advice.selected).objective.value == pytest.approx(worst(repaired, validation))
    assert advice.candidate(advice.selected).objective.value == max(one.objective.value for one in tried.values())
    assert worst(repaired, test) > worst(model, test) + 0.5
    assert advice.candidate("heads").status == "failed"
    assert "attention" in advice.candidate("heads").reason
    assert advice.candidate("rrr").status == "unavailable"
    assert "clearhead data masks" in advice.candidate("rrr").reason
    assert all(one.seconds > 0 and one.estimate > 0 for one in tried.values())


def test_without_groups_the_mean_under_changes_selects_and_the_average_is_guarded(splits, only):
    train, validation = without_groups(splits["train"]), without_groups(splits["few"])
    model = two(by_background())
    only(afr=REPAIRS["afr"], worse=by_function(lambda model, *_: two(torch.nn.Linear(3, 2))))
    _, advice = advise(model, train, validation, budget=3600, configs=ALL, device="cpu")
    assert advice.objective.measure == "mean accuracy under changes"
    assert advice.objective.groups == {}
    assert set(advice.objective.shortcuts) <= {"watermark", "sticker", "date-stamp"}
    assert advice.selected in ("afr", None)
    worse = advice.candidate("worse")
    predictions = predict(model, validation, shortcuts=advice.objective.shortcuts, maps=False)
    versions = [predictions.correct, *(one == predictions.label for one in predictions.interventions.values())]
    assert advice.original.objective.value == pytest.approx(np.mean(versions))
    assert worse.difference.value == pytest.approx(worse.average.value - advice.original.average.value)
    high = replace(worse.objective, value=1.0)
    lost = replace(worse, objective=high, difference=replace(worse.difference, low=-0.5, high=-0.03))
    rest = advice.original, advice.objective
    assert not advisor.is_eligible(lost, *rest, margin=0.02)
    assert advisor.is_eligible(lost, *rest, margin=0.04)


def test_groups_that_are_too_small_do_not_select(splits):
    columns = ["background"]
    assert advisor.group_objective(splits["few"], columns) is None
    objective = advisor.group_objective(splits["train"], columns)
    assert (sorted(objective.groups.values()), objective.small_groups) == ([12, 60, 60], 1)


def test_a_repair_that_would_exceed_the_budget_is_not_started(splits, only, clock, caplog):
    def slow(model, *_):
        clock.now += 100
        return model

    loss = Repair("test", "nothing", "steps", loss=lambda: cross_entropy)
    only(slow=by_function(slow), second=by_function(slow), fine=loss)
    caplog.set_level("INFO", logger="clearhead")
    model, images = two(by_background()), (splits["train"], splits["val"])
    _, advice = advise(model, *images, budget=101, configs=ALL, device="cpu")
    statuses = {one.method: one.status for one in advice.candidates}
    assert statuses == {"slow": "tried", "second": "over budget", "fine": "over budget"}
    second = advice.candidate("second")
    assert second.estimate == pytest.approx(0.01 * (141 + 80) + 0.01 * 80)
    assert second.reason == "estimated 3 s, 1 s of the budget left"
    assert (advice.candidate("slow").seconds, advice.seconds, advice.selected) == (100, 100, None)
    assert "slow: estimated 3 s, 1 min 41 s of the budget left" in caplog.messages
    clock.now = 0.0
    only(slow=by_function(slow), fine=loss)
    _, advice = advise(model, *images, budget=117, configs=ALL, device="cpu")
    assert advice.candidate("fine").reason == "estimated 31 s, 17 s of the budget left; --epochs 1 would fit"


def test_a_measured_fine_tuning_corrects_the_estimates_of_the_next(splits, only, clock):
    def slow(model, batch):
        clock.now += 0.5
        return cross_entropy(model, batch)

    loss = Repair("test", "nothing", "steps", loss=lambda: slow)
    only(one=loss, two=loss)
    config = replace(CONFIG, epochs=1)
    _, advice = advise(
        two(by_background()),
        splits["train"],
        splits["val"],
        budget=1e4,
        configs={"one": config, "two": config},
        device="cpu",
    )
    first, second = advice.candidates
    assert first.estimate == pytest.approx(estimate("one", SECONDS, config, 141, 80) + 0.8)
    assert second.estimate == pytest.approx(first.seconds)


def test_a_budget_that_is_too_small_for_anything_raises(splits, clock):
    with pytest.raises(ClearheadError, match=r"budget: got 1 s; the cheapest repair .* about 2 s; give at least 5 sec"):
        advise(two(by_background()), splits["train"], splits["val"], budget=1, configs=ALL, device="cpu")


def test_data_that_allows_no_repair_raises(splits, only):
    only(rrr=REPAIRS["rrr"], dfr=REPAIRS["dfr"])
    images = [without_groups(splits[name]) for name in ("train", "val")]
    with pytest.raises(ClearheadError, match=r"no repair for this data: .* no groups of .*clearhead data mas"):
        advise(two(by_background()), *images, budget=100, configs=ALL, device="cpu")


def test_a_repair_that_fails_is_listed_and_the_others_go_on(splits, only, caplog):
    def diverge(*_):
        raise DivergedError("the loss is nan in epoch 1", [])

    def fail(*_):
        raise ValueError("shapes")

    only(
        diverged=by_function(diverge),
        broken=by_function(fail),
        good=by_function(lambda *images: reweight_head(*images)[0]),
    )
    repaired, advice = advise(two(by_background()), splits["train"], splits["val"], budget=900, configs=ALL)
    assert {one.method: one.status for one in advice.candidates} == {
        "diverged": "failed",
        "broken": "failed",
        "good": "tried",
    }
    assert advice.candidate("diverged").reason == "the loss is nan in epoch 1"
    assert advice.candidate("broken").reason == "ValueError: shapes"
    assert advice.selected == "good"
    assert worst(repaired, splits["test"]) > 0.7
    assert [bool(record.exc_info) for record in caplog.records if "failed" in record.message] == [False, True]


def test_an_interrupted_call_continues(workspace, only, tmp_path):
    calls = []

    def first(model, *images):
        calls.append("first")
        return reweight_head(model, *images)[0]

    def second(model, *_):
        calls.append("second")
        if len(calls) == 2:
            raise KeyboardInterrupt
        return model

    only(first=by_function(first), second=by_function(second))
    model = load_model(workspace / "model")
    images = [read_folder(workspace / "data", split=split, classes=model.classes) for split in ("train", "val")]
    options = {"budget": 3600, "configs": ALL, "device": "cpu", "state": tmp_path / "state"}
    with pytest.raises(KeyboardInterrupt):
        advise(model, *images, **options)
    repaired, advice = advise(model, *images, **options)
    assert calls == ["first", "second", "second"]
    assert [one.method for one in advice.candidates] == ["first", "second"]
    assert advice.selected == "first"
    expected, _ = reweight_head(model, *images)
    pixels = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(repaired(pixels), expected(pixels))


def test_tagged_validation_images_do_not_select(splits, only, tmp_path):
    samples = splits["train"].samples
    train, validation = (replace(splits["train"], samples=samples[i::2]) for i in (0, 1))
    tagged = [*train.samples[::3], *validation.samples[::3]]
    rows = ["file,tag", *(f"{sample.file},{sample.groups['background']}" for sample in tagged)]
    (tmp_path / "tags.csv").write_text("\n".join(rows))
    only(dfr=REPAIRS["dfr"])
    images, model = (without_groups(train), without_groups(validation)), two(by_background())
    repaired, advice = advise(model, *images, budget=900, configs=ALL, tags=tmp_path / "tags.csv", device="cpu")
    assert advice.objective.images == len(validation.samples) - len(validation.samples[::3])
    assert sum(advice.candidate("dfr").outcome.tagged.values()) == len(tagged)
    assert advice.objective.measure == "mean accuracy under changes"
    assert (repaired is None) == (advice.selected is None)
    (tmp_path / "all.csv").write_text("\n".join(["file,tag", *(f"{s.file},{s.groups['background']}" for s in samples)]))
    with pytest.raises(ClearheadError, match="tags: all 70 validation images are tagged"):
        advise(model, *images, budget=900, configs=ALL, tags=tmp_path / "all.csv", device="cpu")
