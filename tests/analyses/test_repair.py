"""Repairs, as commands and as the function behind them."""

import inspect
from typing import get_args

import pytest
import timm
import torch
import yaml

from clearhead.analyses.faithfulness import measure as faithfulness
from clearhead.analyses.map_check import MapCheck, check_table, warning
from clearhead.analyses.repair import measure
from clearhead.errors import ClearheadError
from clearhead.metrics.statistics import Estimate
from clearhead.models import load_model
from clearhead.options import parse_budget
from clearhead.repairs import REPAIRS
from clearhead.shifts.shortcuts import SHORTCUTS
from tests.command import clearhead, error, result
from tests.conftest import CLASSES


def test_a_repair_leaves_an_ordinary_checkpoint_and_the_battery(workspace, repaired):
    assert repaired.returncode == 0, repaired.stderr
    assert "checkpoint: repair/checkpoint" in repaired.stdout
    assert "epoch 2/2: loss" in repaired.stderr
    assert not (workspace / "repair" / "state").exists()
    module = timm.create_model(f"local-dir:{workspace / 'repair' / 'checkpoint'}", pretrained=True).eval()
    image = torch.rand(1, 3, 32, 32)
    model = load_model(str(workspace / "repair" / "checkpoint"))
    torch.testing.assert_close(module(model.normalize(image)), model(image))
    assert model.classes == tuple(CLASSES)
    assert result(workspace / "repair")["validation"]["before"]["accuracy"]["count"] == 12
    assert result(workspace / "repair")["test"] is None
    changes = result(workspace / "repair")["battery"]["changes"]
    assert [changes[0]["shortcut"], *sorted(one["shortcut"] for one in changes[1:])] == ["clean", *sorted(SHORTCUTS)]
    for one in changes:
        assert one["difference"]["value"] == pytest.approx(one["after"]["value"] - one["before"]["value"])
    validation = result(workspace / "repair")["validation"]
    assert changes[0]["after"]["value"] == pytest.approx(validation["after"]["accuracy"]["value"])
    assert "Shortcut battery, before and after" in (workspace / "repair" / "report.html").read_text()


def test_compare_judges_the_checkpoint(workspace, repaired):
    run = clearhead("compare", "model", "repair", "data", "--split", "test", "--out", "compare", cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert any(word in run.stdout for word in ("improved", "regressed", "inconclusive"))
    comparison = result(workspace / "compare")["comparison"]
    change = comparison["after"]["accuracy"]["value"] - comparison["before"]["accuracy"]["value"]
    assert comparison["differences"]["average accuracy"]["value"] == pytest.approx(change)
    flips = comparison["mcnemar"]
    assert (flips["positive_flips"] - flips["negative_flips"]) / 12 == pytest.approx(change)
    changed = any(difference["value"] for difference in comparison["classes"].values())
    page = (workspace / "compare" / "report.html").read_text()
    assert ("Most improved classes" in page or "Most regressed classes" in page) == changed


def test_a_map_is_tested_before_it_is_optimised(workspace, repaired):
    check = result(workspace / "repair")["map_check"]
    assert (check["attribution"], check["images"]) == ("gae", 12)
    model = load_model(str(workspace / "model"))
    (measured,) = faithfulness([model], workspace / "data", split="val", methods=["gae"]).models.values()
    assert check["gaps"]["gae"]["value"] == pytest.approx(measured.methods["gae"].gap.value)
    unfaithful = not check["gaps"]["gae"]["low"] > 0
    assert ("libragrad" in check["gaps"]) == unfaithful
    assert ("the map of gae is not shown to rank pixels better than chance" in repaired.stderr) == unfaithful
    assert "Is the map faithful?" in (workspace / "repair" / "report.html").read_text()


@pytest.mark.parametrize(("low", "advice"), [(0.1, "Use --attribution libragrad"), (-0.1, "such as background-swap")])
def test_another_map_is_proposed_where_one_is_faithful(low, advice):
    gaps = {"gae": Estimate(-0.02, -0.06, 0.01, 100, "pp"), "libragrad": Estimate(0.3, low, 0.5, 100, "pp")}
    check = MapCheck("gae", gaps, 100)
    assert not check.is_faithful
    assert advice in warning(check)
    assert advice in check_table(check).text
    assert check_table(MapCheck("libragrad", gaps, 100)).text.endswith("has 0.") == (low > 0)


def test_auto_tries_what_the_data_allows_and_compares_the_best_on_test_images(workspace, maskless):
    options = ["--method", "auto", "--epochs", 1, "--lr", 1e-3, "--budget", "1h", "--groups", "class"]
    run = clearhead("repair", "model", "maskless", *options, "--test-split", "test", "--out", "auto", cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert "afr: estimated" in run.stderr
    numbers, page = result(workspace / "auto"), (workspace / "auto" / "report.html").read_text()
    statuses = {one["method"]: one["status"] for one in numbers["advice"]["candidates"]}
    assert statuses.keys() == REPAIRS.keys()
    assert {statuses[name] for name in ("afr", "heads", "counterfactual")} == {"tried"}
    assert {statuses[name] for name, one in REPAIRS.items() if one.needs != "nothing"} == {"unavailable"}
    selected = numbers["advice"]["selected"]
    assert selected
    assert numbers["outcome"]["method"] == selected
    assert numbers["test"]["before"]["accuracy"]["count"] == 12
    assert f"{selected} on test images" in run.stdout or f"{selected} is proven" in run.stdout
    assert "No class has two groups of 10 or more validation images" in page
    assert "next: clearhead data masks maskless --model model" in run.stdout or "is proven" in run.stdout
    assert timm.create_model(f"local-dir:{workspace / 'auto' / 'checkpoint'}", pretrained=True)


@pytest.mark.slow
def test_auto_without_a_test_split_proves_nothing_and_says_what_would(workspace):
    options = ["--method", "auto", "--epochs", 1, "--budget", "1h", "--lr", 1e-3, "--search", "greedy"]
    run = clearhead("repair", "model", "data", *options, "--out", "unproven", cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert "inconclusive: No repair is proven" in run.stdout
    advice = result(workspace / "unproven")["advice"]
    assert all(one["status"] == "tried" for one in advice["candidates"]), advice
    assert "next: clearhead repair model data --method auto --test-split test" in run.stdout


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1.5m", 90)])
def test_budgets_have_a_unit(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "-5m", "0s", "5 minutes", "30s2m"])
def test_a_budget_without_a_unit_raises(text):
    with pytest.raises(ClearheadError, match="give a time with its unit, such as 90s, 30m, 2h or 1h30m"):
        parse_budget(text)


def test_the_command_offers_every_repair():
    method = inspect.signature(measure).parameters["method"].annotation
    assert sorted(get_args(get_args(method)[0])) == sorted([*REPAIRS, "auto"])


@pytest.mark.parametrize("method", [name for name in REPAIRS if name != "relevance"])
def test_every_repair_leaves_a_checkpoint_and_both_comparisons(workspace, method):
    options = ["--method", method, "--epochs", 1, "--test-split", "test", "--out", f"by-{method}"]
    if method == "heads":
        options += ["--search", "greedy", "--objective", "accuracy"]
    run = clearhead("repair", "model", "data", *options, cwd=workspace)
    assert run.returncode == 0, run.stderr
    numbers = result(workspace / f"by-{method}")
    assert (numbers["outcome"]["method"], numbers["test"]["before"]["accuracy"]["count"]) == (method, 12)
    page = (workspace / f"by-{method}" / "report.html").read_text()
    assert "data, test images" in page  # the verdict
    assert "Validation images" in page
    model = timm.create_model(f"local-dir:{workspace / f'by-{method}' / 'checkpoint'}", pretrained=True).eval()
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    if method == "afr":
        assert "Reweighted classifier head" in page
    if method == "heads":
        selection = numbers["outcome"]["report"]
        assert selection["after"] >= selection["before"]
        assert numbers["validation"]["after"]["accuracy"]["value"] == pytest.approx(selection["after"])


def test_counterfactuals_of_the_chosen_shortcuts_train_low_rank_updates(workspace):
    pytest.importorskip("peft")
    options = ["--method", "counterfactual", "--shortcuts", "sticker,background-swapped", "--clean", 2]
    options += ["--train", "lora", "--lr", 1e-3, "--epochs", 1, "--out", "lora"]
    run = clearhead("repair", "model", "data", *options, cwd=workspace)
    assert run.returncode == 0, run.stderr
    outcome = result(workspace / "lora")["outcome"]
    epochs = [epoch["validation"] for epoch in outcome["history"]]
    assert epochs[1]["loss"] == pytest.approx(epochs[1]["consistency"] + 2 * epochs[1]["clean"])
    assert outcome["interpolation"]["1.0"] == pytest.approx(min(epoch["loss"] for epoch in epochs), rel=1e-4)
    assert "Average of the weights" in (workspace / "lora" / "report.html").read_text()
    module = timm.create_model(f"local-dir:{workspace / 'lora' / 'checkpoint'}", pretrained=True)
    assert not any("lora" in name for name in module.state_dict())


def test_terms_are_switched_and_recorded(workspace):
    options = ["--preset", "DeiT-S", "--epochs", 1, "--background", 0, "--target", "truth", "--attribution", "rollout"]
    run = clearhead("repair", "model", "data", *options, "--out", "terms", cwd=workspace)
    assert run.returncode == 0, run.stderr
    arguments = yaml.safe_load((workspace / "terms" / "config.yaml").read_text())["arguments"]
    chosen = {"preset": "DeiT-S", "epochs": 1, "background": 0.0, "target": "truth", "attribution": "rollout"}
    assert chosen.items() <= arguments.items()
    parts = result(workspace / "terms")["outcome"]["history"][1]["validation"]
    assert parts["loss"] == pytest.approx(0.8 * 0.3 * parts["foreground"] + 0.2 * parts["classification"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["maskless"], "foreground masks"),
        (["data", "--method", "heads", "--test-split", "val"], "trains or selects"),
        (["data", "--validation-split", "train"], "selection needs other images"),
        (["data", "--method", "dfr", "--background", "1"], "not an option of the method dfr"),
        (["data", "--method", "lrp"], "relevance"),
        (["data", "--method", "jtt", "--upweight", "0"], "upweight: got 0.0; a positive number is needed"),
        (["data", "--method", "counterfactual", "--shortcuts", "fog"], "shortcuts: 'fog' is unknown; choose from"),
        (["data", "--method", "dfr", "--train", "head"], "the method dfr does not fine-tune"),
        (
            ["data", "--method", "auto", "--budget", "soon"],
            "budget: got 'soon'; give a time with its unit, such as 90s",
        ),
        (["data", "--method", "auto", "--budget", "0.001s"], "the cheapest repair of this model and data"),
        (["data", "--budget", "5m"], "budget: not an option of the method relevance"),
        (["data", "--upweight", "3"], "upweight: not an option of the method relevance"),
        (["data", "--preset", "ViT-Z"], "choose from ViT-B"),
        (["data", "--device", "cuda:7"], "device: 'cuda:7' is unavailable"),
        (["data", "--tags", "data/metadata.csv"], "the method relevance does not use tags"),
        (["data", "--method", "dfr", "--tags", "data/metadata.csv"], "must name the columns file and tag"),
        (["data", "--method", "dfr", "--tags", "data/meta.csv"], "did you mean data/metadata.csv?"),
    ],
)
def test_bad_input_ends_with_one_message(workspace, maskless, arguments, message):
    assert message in error(clearhead("repair", "model", *arguments, cwd=workspace))


def write_tags(workspace, name, *, tag=lambda i: ["with", "without"][i % 2], count=8):
    """A tags file of the first images of each class, which are those of the splits train and val."""
    rows = [f"{c}/{i:02d}.png,{tag(i)}" for c in CLASSES for i in range(count)]
    (workspace / name).write_text("\n".join(["file,tag", *rows]) + "\n")
    return name


def test_tags_are_the_groups_of_a_repair_and_changed_tags_are_another_run(workspace):
    options = ["--method", "dfr", "--test-split", "test", "--groups", "ground"]
    runs = []
    for count in (9, 9, 7):  # the ninth image of each class is a test image
        tags = write_tags(workspace, "tags.csv", count=count)
        runs.append(clearhead("repair", "model", "data", *options, "--tags", tags, cwd=workspace))
        assert runs[-1].returncode == 0, runs[-1].stderr
    assert "tags: 24 tagged images in 6 groups of 4 to 4" in runs[0].stderr
    assert "3 tag-without-image (row ignored)" in runs[0].stderr
    assert "finished earlier" in runs[1].stderr
    assert "inputs changed since" in runs[2].stderr
    assert "tags.csv of tags changed" in runs[2].stderr
    folders = [run.stdout.split("page: ")[1].strip().removesuffix("/report.html") for run in runs]
    assert folders[0] == folders[1] != folders[2]
    numbers = result(workspace / folders[2])
    assert numbers["outcome"]["report"]["cross_validated"]
    assert numbers["outcome"]["tagged"]["class=cat, tag=without"] == 3
    groups = list(numbers["outcome"]["tagged"])
    assert groups == [f"class={c}, tag={tag}" for c in CLASSES for tag in ("with", "without")]
    page = (workspace / folders[2] / "report.html").read_text()
    assert "Tagged images" in page
    assert "cross-validated accuracy of the worst group of 2 or more" in page
