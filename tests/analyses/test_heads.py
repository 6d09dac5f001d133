"""Scores of heads through the Python API and the command."""

import timm

from clearhead.analyses import heads
from clearhead.analyses.head_scores import implied_classes, score_heads
from clearhead.data.images import read_images
from clearhead.models import load_model
from clearhead.report.page import Table
from tests.command import clearhead, error, result


def test_heads_are_scored_and_shown(workspace):
    run = clearhead("heads", "model", "data", "--split", "test", "--layers", "0,1", "--out", "heads", cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert "Accuracy, all heads" in run.stdout
    assert "layer.head" in run.stdout
    assert "follows ground" not in run.stdout  # in training no ground goes with a class
    results = result(workspace / "heads")["scores"]
    assert [(head["layer"], head["head"]) for head in results["heads"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(head["alone"]["count"] == 12 for head in results["heads"])
    assert "Accuracy without each head" in (workspace / "heads" / "report.html").read_text()


def test_attributes_are_followed_by_the_classes_they_go_with_in_training(workspace, tmp_path):
    for name in ("bird", "cat", "fish"):
        (tmp_path / name).symlink_to(workspace / "data" / name)
    rows = ["file,split,ground"]
    for name, ground in (("bird", "dark"), ("cat", "light"), ("fish", "light")):
        for i in range(12):
            other = {"dark": "light", "light": "dark"}[ground]
            rows.append(f"{name}/{i:02d}.png,{'train' if i < 6 else 'test'},{ground if i < 6 else other}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows) + "\n")
    model = load_model(str(workspace / "model"))
    measured = heads.measure(model, tmp_path, split="test", layers="last")
    test = read_images(tmp_path, split="test", classes=model.classes)
    train = read_images(tmp_path, split="train", classes=model.classes)
    assert implied_classes(train, "ground") == {"dark": 0, "light": 1}
    expected = score_heads(model, test, layers="last", attributes={"ground": {"dark": 0, "light": 1}})
    assert measured.scores == expected
    assert measured.scores.attributes == {"ground": {"dark": "bird", "light": "cat"}}
    assert (measured.subject.model, measured.subject.images) == ("model", 18)
    page = heads.page(measured)
    assert [section.title for section in page.sections][:2] == ["Accuracy without each head", "Class or ground"]
    table = next(section for section in page.sections if isinstance(section, Table))
    assert "follows ground" in table.columns
    # an index is used as it is: what goes with what is then read from the images scored
    assert heads.measure(model, test, layers="last").scores.attributes == {"ground": {"dark": "cat", "light": "bird"}}


def test_what_heads_cannot_be_scored_on(workspace, tmp_path):
    def message(*arguments):
        return error(clearhead("heads", *arguments, cwd=workspace))

    assert "layers: 7 does not exist" in message("model", "data", "--layers", "7")
    assert "--layers: got 'first'" in message("model", "data", "--layers", "first")
    assert "no column sky" in message("model", "data", "--attributes", "sky")
    assert "nowhere: no such folder" in message("model", "nowhere")
    assert "model: modle" in message("modle", "data")
    assert "out: data holds other files" in message("model", "data", "--out", "data")
    timm.models.save_for_hf(timm.create_model("resnet10t", num_classes=0), tmp_path / "headless")
    assert "no classification head" in message(tmp_path / "headless", "data")
    assert not list(workspace.glob("runs/heads-*"))
