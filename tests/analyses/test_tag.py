"""Images to tag: which are proposed, and the page, the table and the terminal in which they are tagged."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare

from clearhead.analyses.tag import measure, propose
from clearhead.cli.tagging import tag_in_terminal
from clearhead.data.folder import read_folder
from clearhead.data.tags import read_tags
from clearhead.errors import ClearheadError
from clearhead.models import load_model
from clearhead.prediction.predict import predict
from clearhead.runs import read_run
from tests.command import clearhead, error, result
from tests.conftest import CLASSES


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def test_half_are_of_highest_loss_and_half_random_in_each_class():
    rng = np.random.default_rng(0)
    labels, losses = rng.permutation(np.repeat(np.arange(4), 50)), rng.exponential(size=200)
    highest, others = propose(losses, labels, 40, seed=0)
    assert len({*highest, *others}) == 40
    for label in range(4):
        members = np.flatnonzero(labels == label)
        assert {i for i in highest if labels[i] == label} == set(members[np.argsort(-losses[members])[:5]])
        assert sum(labels[i] == label for i in others) == 5
        assert {int(labels[i]) for i in highest[:4]} == {0, 1, 2, 3}  # the first ones are spread too
    assert propose(losses, labels, 40, seed=0) == (highest, others)
    assert propose(losses, labels, 40, seed=1)[0] == highest
    assert propose(losses, labels, 40, seed=1)[1] != others
    drawn = Counter(i for seed in range(300) for i in propose(losses, labels, 40, seed)[1])
    assert set(drawn) == set(range(200)) - set(highest)
    assert chisquare(list(drawn.values())).pvalue > 1e-4


def test_more_classes_or_images_than_the_count():
    losses = np.arange(30.0)
    highest, others = propose(losses, np.arange(30), 7, seed=0)  # one image per class
    assert (highest, len(others)) == ([29, 28, 27], 4)
    highest, others = propose(losses, np.zeros(30, int), 100, seed=0)
    assert sorted([*highest, *others]) == list(range(30))


@pytest.fixture(scope="module")
def tagging(workspace) -> Path:
    """A run of the command."""
    run = clearhead("tag", "model", "data", "--count", 9, "--values", "light,dark", "--out", "tag", cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert "tag in a browser: tag/tagging.html" in run.stdout
    assert "or in a spreadsheet: tag/tags.csv" in run.stdout
    assert "9 images are 3 per class; --count 30 would be 10" in run.stderr
    return workspace / "tag"


def test_the_command_proposes_training_images(workspace, tagging):
    proposals = result(tagging)["proposals"]
    index = read_folder(workspace / "data", split="train", classes=load_model(str(workspace / "model")).classes)
    predictions = predict(load_model(str(workspace / "model")), index)
    loss = dict(zip(predictions.file.tolist(), predictions.loss.tolist(), strict=True))
    assert len({one["file"] for one in proposals}) == 9
    for one in proposals:
        assert one["loss"] == pytest.approx(loss[one["file"]], rel=1e-4)
        assert Path(one["path"]).name == Path(one["file"]).name
    for name in CLASSES:
        own = {file for file in loss if file.startswith(name)}
        highest = {one["file"] for one in proposals if one["reason"] == "highest loss" and one["label"] == name}
        assert highest == set(sorted(own, key=loss.__getitem__)[len(own) - len(highest) :])
    assert Counter(one["reason"] for one in proposals) == {"highest loss": 4, "random": 5}
    table = rows(tagging / "tags.csv")
    assert [row["file"] for row in table] == [one["file"] for one in proposals]
    assert {row["tag"] for row in table} == {""}
    assert [row["label"] for row in table] == [one["label"] for one in proposals]
    page = (tagging / "report.html").read_text()
    assert "clearhead repair model data --method dfr --tags tags.csv" in page


def test_the_terminal_saves_each_answer_and_goes_on(workspace, tagging, monkeypatch, capsys):
    def answer(*keys: str) -> None:
        waiting = iter(keys)

        def read(prompt: str) -> str:
            try:
                return next(waiting)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)
        tag_in_terminal(read_run(tagging))

    def tags() -> list[str]:
        return [row["tag"] for row in rows(tagging / "tags.csv")]

    answer("1", "7", "x", "2", "u", "1", "q")
    assert tags() == ["light", "light", *[""] * 7]
    assert "2 of 9 images are tagged" in capsys.readouterr().out
    answer("s", "2")  # and the input ends
    assert tags() == ["light", "light", "", "dark", *[""] * 5]
    answer(*"2" * 6)
    assert tags() == ["light", "light", *["dark"] * 7]
    assert len(read_tags(tagging / "tags.csv")) == 9

    again = clearhead(
        "tag", "model", "data", "--count", 6, "--values", "light,dark", "--out", "tag", "--overwrite", cwd=workspace
    )
    assert again.returncode == 0, again.stderr
    table = {row["file"]: row["tag"] for row in rows(tagging / "tags.csv")}
    assert list(table.values()).count("dark") == 7  # another proposal: nothing is lost
    assert [row["file"] for row in rows(tagging / "tags.csv")][:6] == [
        one["file"] for one in result(tagging)["proposals"]
    ]
    answer()
    assert "of 6 images are tagged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--values", "one"], "values: got 'one'; give two to 9 different tags"),
        (["--values", ",".join(map(str, range(10)))], "give two to 9 different tags"),
        (["--values", "a,A"], "give two to 9 different tags"),
        (["--split", "dev"], "split: 'dev' is not in"),
        (["--count", "1"], "2"),
    ],
)
def test_bad_input_ends_with_one_message(workspace, arguments, message):
    assert message in error(clearhead("tag", "model", "data", *arguments, cwd=workspace))


def test_an_index_and_a_loaded_model_are_taken(workspace):
    model = load_model(str(workspace / "model"))
    index = read_folder(workspace / "data", classes=model.classes)
    proposed = measure(model, index, count=4)
    assert len(proposed.proposals) == 4
    assert proposed.values == ["with shortcut", "without"]
    assert "MODEL" in proposed.command
    with pytest.raises(ClearheadError, match="values"):
        measure(model, index, values=["same", "same"])
