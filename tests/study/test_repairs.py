"""Plans: what they draw, what they refuse, what the table says of runs whose predictions are known."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clearhead.data.dataset import ImageIndex
from clearhead.data.folder import read_folder
from clearhead.data.interventions import INTERVENTIONS
from clearhead.demo.run import MODEL
from clearhead.repairs import RelevanceLoss, RRRLoss
from clearhead.storage import write_table
from clearhead.study.cells import write_result
from clearhead.study.plan_files import StudyError
from clearhead.study.repairs import Plan, Variant, read_plan, run_study
from clearhead.study.repairs.plan import Method
from clearhead.study.repairs.run import BEFORE, Trained, draw, gather
from tests.command import clearhead, error, result

PLAN = """
model: timm:vit_tiny_patch16_224
data: images
tests: {shifted: elsewhere}
samples: [1, 2]
classes: 3
seeds: [0, 1]
methods:
  relevance: {method: relevance, foreground: 0}
  RRR: {method: rrr, background: 0.5, lr: 1.0e-3, epochs: 2}
  fine-tuning: {method: train}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "plan.yaml").write_text(PLAN)
    return read_plan(tmp_path / "plan.yaml")


@pytest.fixture
def data(tmp_path: Path) -> ImageIndex:
    for label in range(6):
        folder = tmp_path / "images" / f"c{label}"
        masks = tmp_path / "images" / "masks" / f"c{label}"
        folder.mkdir(parents=True)
        masks.mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((8, 8, 3), 40 * label, np.uint8)).save(folder / f"{i}.png")
            if i < 1 + label % 3:  # the classes have 1, 2, 3, 1, 2, 3 masks
                Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(masks / f"{i}.png")
    return read_folder(tmp_path / "images")


def test_the_plan_is_a_grid_with_losses_and_settings(plan: Plan, tmp_path: Path) -> None:
    assert len(plan.variants()) == 2 * 1 * 2 * 3
    assert len({variant.folder for variant in plan.variants()}) == 12
    assert plan.loss("relevance") == RelevanceLoss(foreground=0)
    assert plan.loss("RRR") == RRRLoss(background=0.5)
    settings = plan.settings(Variant("RRR", 1, 3, 1))
    assert (settings.lr, settings.epochs, settings.batch_size, settings.seed) == (1e-3, 2, 8, 1)
    text = plan.model_copy(update={"methods": {"x": Method(method="rrr", background="1e-1", lr="1e-4")}})
    assert text.loss("x") == RRRLoss(background=0.1)  # what YAML reads as text
    assert text.settings(Variant("x", 1, 3, 1)).lr == 1e-4
    assert plan.data == tmp_path / "images"


def test_classes_and_images_are_drawn_by_the_seed_and_validation_is_of_the_others(plan: Plan, data: ImageIndex):
    train, validation = draw(plan, data, Variant("", 2, 3, 0))
    again, _ = draw(plan, data, Variant("", 2, 3, 0))
    assert train.samples == again.samples
    labels = [sample.label for sample in train.samples]
    assert len(set(labels)) == 3
    assert all(labels.count(label) == min(2, 1 + label % 3) for label in labels)  # those there are, where fewer
    assert all(sample.mask for sample in (*train.samples, *validation.samples))
    assert not {sample.label for sample in validation.samples} & set(labels)
    few = plan.model_copy(update={"validation": 3})
    assert len({sample.label for sample in draw(few, data, Variant("", 2, 3, 0))[1].samples}) == 3  # one of each first
    draws = {tuple(s.file for s in draw(plan, data, Variant("", 2, 3, seed))[0].samples) for seed in range(5)}
    assert len(draws) > 1


@pytest.mark.parametrize(
    ("classes", "reported"), [(7, "got 7; .* has 6 with masks"), (6, "leave none to select the epoch on")]
)
def test_too_many_classes(plan: Plan, data: ImageIndex, classes: int, reported: str) -> None:
    with pytest.raises(StudyError, match=reported):
        draw(plan, data, Variant("", 1, classes, 0))


@pytest.mark.parametrize(
    ("old", "new", "reported"),
    [
        ("{method: train}", "{method: lime}", r"methods\.fine-tuning\.method"),
        ("foreground: 0", "sky: 0", "sky: not an option of the method relevance"),
        ("foreground: 0", "target: true", "target: True is unknown"),
        ("lr: 1.0e-3", "lr: -1", r"methods\.RRR\.lr"),
        ("{shifted: elsewhere}", "{a/b: elsewhere}", r"tests\.a/b"),
        ("samples: [1, 2]", "samples: [0]", "samples.0"),
        ("seeds: [0, 1]", "seeds: []", "seeds"),
        ("tests: {shifted: elsewhere}", "test: x", "tests"),
        ("fine-tuning:", "rrr:", "same folder"),
        ("\nmodel:", "- model", "cannot be read as YAML"),
    ],
)
def test_a_plan_that_cannot_be_run(tmp_path: Path, old: str, new: str, reported: str) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN.replace(old, new))
    with pytest.raises(StudyError, match=reported):
        read_plan(tmp_path / "plan.yaml")


def test_the_table_is_paired_by_image_and_over_seeds(plan: Plan, tmp_path: Path) -> None:
    def table(predicted: str, folder: Path) -> None:
        columns = {"file": np.arange(4), "label": np.array(list("aabb")), "predicted": np.array(list(predicted))}
        columns |= {f"predicted, {name}": np.array([None] * 4, dtype=object) for name in INTERVENTIONS}
        columns["relevance_mass"] = np.array([np.nan, np.nan, 0.5, 0.5])
        write_table(folder / "shifted.parquet", columns)

    table("abab", tmp_path / BEFORE)  # right: 1, 0, 0, 1
    for variant in plan.variants():
        folder = tmp_path / variant.folder
        table("aabb" if variant.seed else "aaab", folder)  # all right, or 1, 1, 0, 1
        write_result(folder, Trained(["a"], 4, 2, 1, 2))
    rows = gather(plan, tmp_path)
    actual = {(row.name, row.samples, row.measure): row for row in rows}
    assert len(rows) == 3 * 2 * 4
    row = actual["RRR", 2, "accuracy"]
    assert (row.before, row.after, row.seeds) == (0.5, 0.875, 2)
    assert row.spread == pytest.approx(np.std([0.75, 1.0], ddof=1))
    assert row.change.value == pytest.approx(np.mean([0, 1, 0.5, 0]))
    assert (actual["RRR", 2, "accuracy, trained classes"].after, row.change.count) == (1.0, 4)
    assert actual["RRR", 2, "accuracy, other classes"].before == 0.5
    assert actual["RRR", 2, "foreground relevance"].change.count == 2


def test_images_that_are_trained_on_are_no_test(plan: Plan, data: ImageIndex, tmp_path: Path) -> None:
    plan = plan.model_copy(update={"model": str(MODEL), "tests": {"same": plan.data}})
    for old, new in zip(sorted(p for p in plan.data.glob("c*")), ("beetle", "bird", "butterfly", "fish"), strict=False):
        old.rename(plan.data / new)
        (plan.data / "masks" / old.name).rename(plan.data / "masks" / new)
    with pytest.raises(StudyError, match=r"same has .*, which is trained on"):
        run_study(plan, tmp_path / "out")


@pytest.mark.slow
def test_a_study_is_run_once_and_grows(workspace):
    methods = "{relevance: {method: relevance}, GradMask: {method: gradmask}, fine-tuning: {method: train}}"
    plan = "{model: MODEL, data: data, tests: {all: data}, samples: 2, classes: [1, 2], epochs: 1, lr: 1.0e-3}"
    plan = plan.replace("}, samples", f"}}, methods: {methods}, seeds: SEEDS, samples")
    (workspace / "plan.yaml").write_text(plan.replace("MODEL", str(workspace / "model")).replace("SEEDS", "0"))
    run = clearhead("study", "repairs", "plan.yaml", "--out", "study", cwd=workspace)
    assert run.returncode == 0, run.stderr
    page = (workspace / "study" / "report.html").read_text()
    assert "Accuracy on all by classes" in page
    first = workspace / "study" / "gradmask-2x1-0" / "results.json"
    written = first.stat().st_mtime_ns
    grown = plan.replace("MODEL", str(workspace / "model")).replace("SEEDS", "[0, 1]")
    (workspace / "plan.yaml").write_text(grown.replace("{all: data}", "{all: data, again: data}"))
    run = clearhead("study", "repairs", "plan.yaml", "--out", "study", "--jobs", 2, cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert first.stat().st_mtime_ns == written
    rows = result(workspace / "study")["rows"]
    assert {row["seeds"] for row in rows} == {2}
    assert {row["test"] for row in rows} == {"all", "again"}
    assert {row["name"] for row in rows} == {"relevance", "GradMask", "fine-tuning"}


def test_a_study_does_not_take_the_folder_of_something_else(workspace, tmp_path: Path) -> None:
    data = workspace / "data"
    rest = "methods: {a: {method: train}}, samples: 2, classes: 2, seeds: 0, epochs: 1}"
    (tmp_path / "plan.yaml").write_text(f"{{model: {workspace / 'model'}, data: {data}, tests: {{all: {data}}}, {rest}")
    (tmp_path / "mine" / "state").mkdir(parents=True)
    assert "holds other files" in error(clearhead("study", "repairs", "plan.yaml", "--out", "mine", cwd=tmp_path))
    assert (tmp_path / "mine" / "state").is_dir()
    run = clearhead("layers", "fourier", workspace / "model", data, "--limit", 4, "--out", "run", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    actual = error(clearhead("study", "repairs", "plan.yaml", "--out", "run", cwd=tmp_path))
    assert "it is a run of layers fourier" in actual
