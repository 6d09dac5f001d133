"""Runs are identified by what decides their numbers: weights, data, options."""

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import timm
import yaml

from clearhead import runs
from clearhead.analyses import fourier
from clearhead.models import load_model, save_model
from tests.command import clearhead, error


@pytest.fixture
def here(workspace, tmp_path, monkeypatch) -> Path:
    """A folder with a model and data of its own, as the working directory."""
    shutil.copytree(workspace / "model", tmp_path / "model")
    shutil.copytree(workspace / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def measure(model: str = "model", data: str = "data", out: Path | None = None, **options: object) -> runs.Run:
    return runs.run("layers fourier", {"models": [model], "data": data, **options}, out=out)


def test_a_finished_run_is_announced_and_not_run_again(here, monkeypatch):
    first = clearhead("layers", "fourier", "model", "data", cwd=here)
    assert first.returncode == 0, first.stderr
    again = clearhead("layers", "fourier", "model", "data", cwd=here)
    assert "finished earlier" in again.stderr
    assert "nothing run; --overwrite to run again" in again.stderr
    assert again.stdout == first.stdout
    (folder,) = (here / "runs").iterdir()
    before = (folder / "results.json").stat().st_mtime_ns
    forced = clearhead("layers", "fourier", "model", "data", "--overwrite", cwd=here)
    assert "finished earlier" not in forced.stderr
    assert (folder / "results.json").stat().st_mtime_ns > before
    assert list((here / "runs").iterdir()) == [folder]


def test_overwritten_weights_are_another_run(here, caplog):
    first = measure()
    model = load_model("model")
    for parameter in model.module.parameters():
        parameter.data.mul_(1.5)
    save_model(model, "model")
    with caplog.at_level("INFO", "clearhead"):
        second = measure()
    assert second.folder != first.folder
    assert not second.finished_earlier
    assert "weights of model model changed" in caplog.text
    assert first.result.maps["model"].branches[-1].high != second.result.maps["model"].branches[-1].high


def test_added_images_new_masks_and_metadata_are_another_run(here, caplog):
    first = measure()
    shutil.copy("data/bird/00.png", "data/bird/99.png")
    with caplog.at_level("INFO", "clearhead"):
        second = measure()
    assert "number of images: 36 -> 37" in caplog.text
    assert second.result.maps["model"].images == 37
    shutil.rmtree("data/masks")
    third = measure()
    assert "masks of data changed" in caplog.text or third.folder != second.folder
    Path("data/metadata.csv").unlink()
    assert len({first.folder, second.folder, third.folder, measure().folder}) == 4


def test_relative_and_absolute_paths_are_one_run(here):
    assert measure("model", "data").folder == measure(str(here / "model"), str(here / "data")).folder
    (here / "link").symlink_to(here / "data")
    assert measure("model", "link").finished_earlier


def test_options_make_default_folders_differ(here):
    assert measure(split="val").folder != measure(split="test").folder
    assert measure(batch_size=3).finished_earlier is False
    assert measure(batch_size=5).finished_earlier  # changes no number


def test_a_named_folder_of_other_inputs_is_kept_until_overwrite(here):
    measure(out=here / "mine")
    before = (here / "mine" / "results.json").read_bytes()
    shutil.copy("data/bird/00.png", "data/bird/99.png")
    with pytest.raises(runs.RunError, match=r"number of images: 36 -> 37.*--overwrite"):
        measure(out=here / "mine")
    with pytest.raises(runs.RunError, match="split was None, now 'val'"):
        measure(out=here / "mine", split="val")
    assert (here / "mine" / "results.json").read_bytes() == before
    run = runs.run("layers fourier", {"models": ["model"], "data": "data"}, out=here / "mine", overwrite=True)
    assert run.result.maps["model"].images == 37


def test_a_run_folder_is_taken_wherever_a_model_is(here):
    shutil.copytree("model", "trained/checkpoint")
    Path("trained/config.yaml").write_text("command: train\n")
    assert measure("trained").result.maps.keys() == {"trained"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "data"), "nowhere"),
        (("model", "dta"), "did you mean data?"),
        (("timm:vit_tinny_patch16_224", "data"), "did you mean"),
        (("model", "data", "--split", "tset"), "tset"),
        (("model", "data", "--limit", "x"), "limit"),
        (("model", "data", "--device", "gpu9"), "device"),
    ],
)
def test_a_mistake_leaves_no_folder(here, arguments, message):
    assert message in error(clearhead("layers", "fourier", *arguments, cwd=here))
    assert not list(here.glob("runs/*"))


def test_other_files_are_not_taken_for_a_run(here):
    Path("notes").mkdir()
    Path("notes/todo.txt").write_text("mine")
    assert "holds other files" in error(clearhead("layers", "fourier", "model", "data", "--out", "notes", cwd=here))
    assert [entry.name for entry in Path("notes").iterdir()] == ["todo.txt"]
    assert "is a file" in error(clearhead("layers", "fourier", "model", "data", "--out", "notes/todo.txt", cwd=here))


def test_a_folder_in_use_is_refused(here, monkeypatch):
    entered, leave = threading.Event(), threading.Event()
    original = fourier.feature_maps

    def slow(*arguments: object, **options: object) -> object:
        entered.set()
        leave.wait(60)
        return original(*arguments, **options)

    monkeypatch.setattr(fourier, "feature_maps", slow)
    worker = threading.Thread(target=measure, kwargs={"out": here / "mine"})
    worker.start()
    assert entered.wait(60)
    try:
        with pytest.raises(runs.RunError, match="in use by another process"):
            measure(out=here / "mine")
    finally:
        leave.set()
        worker.join()
    assert runs.read_run(here / "mine").result.maps


def test_an_interrupted_run_says_what_is_kept_and_goes_on(here, monkeypatch):
    original, calls = fourier.feature_maps, []

    def interrupted(model: object, *arguments: object, **options: object) -> object:
        calls.append(model)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(model, *arguments, **options)

    monkeypatch.setattr(fourier, "feature_maps", interrupted)
    arguments = {"models": ["model", "model"], "data": "data"}
    with pytest.raises(runs.Stopped, match="the same command goes on from there"):
        runs.run("layers fourier", arguments)
    run = runs.run("layers fourier", arguments)
    assert len(calls) == 3  # the first model was not measured again
    assert run.result.maps.keys() == {"model (1)", "model (2)"}
    assert not (run.folder / "state").exists()


def test_config_names_all_that_decides_the_numbers(here):
    config = yaml.safe_load((measure(seed=3).folder / "config.yaml").read_text())
    assert config["command"] == "layers fourier"
    assert config["arguments"]["seed"] == 3
    assert config["arguments"]["models"] == [str(here / "model")]
    assert len(config["inputs"]["model model"]["weights"]) == 64
    assert config["inputs"]["data"]["number of images"] == "36"
    assert {"python", "torch", "timm", "clearhead"} <= config["versions"].keys()


def test_log_lines_survive_redirection(here):
    run = clearhead("layers", "fourier", "model", "data", cwd=here)
    assert "feature maps: 2/2" in run.stderr
    assert all(line.strip() for line in run.stderr.splitlines())
    (folder,) = (here / "runs").iterdir()
    assert "feature maps: 2/2" in (folder / "log.txt").read_text()


def test_a_read_only_place_gives_one_message(here):
    if os.geteuid() == 0:
        pytest.skip("root can write everywhere")
    Path("runs").mkdir(mode=0o500)
    assert "runs" in error(clearhead("layers", "fourier", "model", "data", cwd=here))


def test_results_of_a_run_are_whole_json(here):
    saved = json.loads((measure().folder / "results.json").read_text())
    assert saved["command"] == "layers fourier"
    assert saved["provenance"]["images"] == "36, 36 with a mask"


def test_a_model_without_class_names_takes_those_of_the_class_folders(here, caplog):
    config = json.loads((here / "model" / "config.json").read_text())
    arguments = {**config["model_args"], "num_classes": 3}
    module = timm.create_model("vit_tiny_patch16_224", **arguments)
    timm.models.save_for_hf(module, here / "unnamed", model_config={"model_args": config["model_args"]})
    with caplog.at_level("INFO", "clearhead"):
        run = runs.run("audit", {"model": "unnamed", "data": "data"})
    assert "unnamed has no class names; using the data's, sorted: bird, cat, fish" in caplog.text
    assert run.result.audit.classes.keys() == {"bird", "cat", "fish"}
    Path("names.txt").write_text("fish\ncat\nbird\n")
    other = clearhead("audit", "unnamed", "data", "--classes", "names.txt", "--out", "named", cwd=here)
    assert other.returncode == 0, other.stderr
    assert "no class names" not in other.stderr
    Path("names.txt").write_text("fish\ncat\n")
    assert "3 outputs" in error(clearhead("audit", "unnamed", "data", "--classes", "names.txt", cwd=here))
