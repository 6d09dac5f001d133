"""Running repairs by name, and adding one."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clearhead.data.dataset import ImageIndex, group_labels
from clearhead.data.folder import read_folder
from clearhead.data.image_io import DataError
from clearhead.errors import ClearheadError
from clearhead.models import Classifier, Preprocessing, from_module
from clearhead.repairs import (
    REPAIRS,
    Repair,
    RetrainedHead,
    ReweightedHead,
    Selection,
    default_config,
    registry,
    repair,
    run,
)
from clearhead.training.config import TrainConfig
from clearhead.training.losses import cross_entropy
from tests.repairs.test_own_loop import vit

CONFIG = TrainConfig(epochs=1, lr=1e-4, batch_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of different brightness, with masks and two unevenly frequent backgrounds."""
    root, rng = tmp_path_factory.mktemp("repairs"), np.random.default_rng(0)
    rows = ["file,background"]
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    for label, name in enumerate("ab"):
        (root / name).mkdir()
        (root / "masks" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 150, (32, 32, 3)) + 60 * label
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
            Image.fromarray(mask).save(root / "masks" / name / f"{i}.png")
            rows.append(f"{name}/{i}.png,{'land' if (i < 4) ^ label else 'water'}")
    (root / "metadata.csv").write_text("\n".join(rows))
    return root


@pytest.fixture
def images(folder: Path) -> tuple[ImageIndex, ImageIndex]:
    """Training and validation images that do not overlap."""
    index = read_folder(folder)
    return replace(index, samples=index.samples[::2]), replace(index, samples=index.samples[1::2])


def classifier() -> Classifier:
    half = (0.5, 0.5, 0.5)
    return from_module(vit().eval(), preprocess=Preprocessing((32, 32), (32, 32), half, half), classes=["a", "b"])


@pytest.mark.filterwarnings("ignore:.*one training image")
@pytest.mark.parametrize("method", REPAIRS)
def test_every_repair_runs(method: str, images: tuple[ImageIndex, ImageIndex]) -> None:
    model = classifier()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    repaired, outcome = repair(model, *images, method=method, config=CONFIG, device="cpu")
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert isinstance(repaired, Classifier)
    assert outcome.method == method
    assert REPAIRS[method].cost
    assert REPAIRS[method].summary
    assert (outcome.interpolation is not None) == REPAIRS[method].interpolate
    if REPAIRS[method].loss:
        assert [epoch.number for epoch in outcome.history] == [0, 1]
        assert outcome.monitor == ("worst_group_loss" if REPAIRS[method].needs == "groups" else "loss")
    else:
        reports = {"afr": ReweightedHead, "heads": Selection}
        assert isinstance(outcome.report, reports.get(method, RetrainedHead))


def tag_file(folder: Path, *rows: str) -> Path:
    """A tags file of all images but one, whose tag is the background; `rows` replace it."""
    lines = rows or [f"{s.file},{s.groups['background']}" for s in read_folder(folder).samples if s.file != "a/0.png"]
    (folder / "tags.csv").write_text("\n".join(["file,tag", *lines]))
    return folder / "tags.csv"


@pytest.mark.filterwarnings("ignore:.*one training image")
@pytest.mark.parametrize("method", [name for name, chosen in REPAIRS.items() if chosen.tags != "none"])
def test_repairs_by_tags_see_the_tags_of_both_splits(
    method: str, folder: Path, images: tuple[ImageIndex, ImageIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: dict[str, Any] = {}
    name = "fit" if REPAIRS[method].loss else "function"
    target = run.fit if REPAIRS[method].loss else REPAIRS[method].function

    def recorded(model: Classifier, *arguments: Any, **options: Any) -> Any:
        first = 1 if REPAIRS[method].loss else 0
        used["images"] = arguments[first : first + 2]
        return target(model, *arguments, **options)

    if name == "fit":
        monkeypatch.setattr(run, "fit", recorded)
    else:
        monkeypatch.setitem(REPAIRS, method, replace(REPAIRS[method], function=recorded))
        monkeypatch.setattr(Repair, "_parameters", lambda self: [])
    _, outcome = repair(classifier(), *images, method=method, config=CONFIG, tags=tag_file(folder), device="cpu")
    sizes = {"class=a, tag=land": 3, "class=a, tag=water": 2, "class=b, tag=land": 2, "class=b, tag=water": 4}
    assert outcome.tagged == sizes
    train, validation = used["images"]
    if method == "dfr":
        assert validation is None
        assert isinstance(outcome.report, RetrainedHead)
        assert outcome.report.cross_validated
        assert outcome.report.groups == sizes
    elif method == "heads":
        assert train is None
        assert isinstance(outcome.report, Selection)
        assert (outcome.report.objective, outcome.report.images, outcome.report.smallest) == ("worst-group", 11, 2)
    else:
        assert len(train.samples) + len(validation.samples) == 12
        assert {f"class={n}, tag={t}" for n in "ab" for t in ("land", "water")} <= {*group_labels(validation, ["tag"])}
        assert "class=a, tag=unknown" in group_labels(train, ["tag"])


@pytest.mark.parametrize(
    ("method", "rows", "message"),
    [
        ("relevance", (), "the method relevance does not use tags; choose from dfr, heads, reweight, groupdro"),
        ("dfr", ["a/0.png,x", "a/1.png,x", "a/2.png,y", "a/3.png,y"], "no tagged image of b"),
        ("dfr", ["a/0.png,x", "a/1.png,y", "b/0.png,x", "b/1.png,y"], "no class has 2 or more images of each of two"),
        ("dfr", ["a/0.png,x", "a/1.png,x"], "have the tag 'x'; two or more tags are needed"),
        ("groupdro", ["c/0.png,x", "c/1.png,y"], "none of the 2 tagged images"),
    ],
)
def test_unusable_tags_raise_an_error(
    method: str, rows: Sequence[str], message: str, folder: Path, images: tuple[ImageIndex, ImageIndex]
) -> None:
    with pytest.raises(ClearheadError, match=message):
        repair(classifier(), *images, method=method, config=CONFIG, tags=tag_file(folder, *rows), device="cpu")


def test_options_reach_the_repair(images: tuple[ImageIndex, ImageIndex]) -> None:
    relevance = repair(classifier(), *images, config=CONFIG, device="cpu", background=0, foreground=0, target="truth")
    parts = relevance[1].history[0].validation
    assert parts["loss"] == pytest.approx(0.2 * parts["classification"])
    _, outcome = repair(classifier(), None, images[1], method="heads", search="greedy", device="cpu")
    assert isinstance(outcome.report, Selection)
    assert outcome.report.search == "greedy"


def test_a_path_is_read_and_validation_images_are_held_out(folder: Path) -> None:
    _, outcome = repair(classifier(), folder, method="reweight", config=CONFIG, device="cpu")
    assert outcome.history[1].images == 10
    _, outcome = repair(classifier(), read_folder(folder), method="reweight", config=CONFIG, device="cpu")
    assert outcome.history[1].images == 10


def test_adding_a_repair_takes_one_line(images: tuple[ImageIndex, ImageIndex], monkeypatch: pytest.MonkeyPatch) -> None:
    def scaled_loss(images, scale=1.0):  # type: ignore[no-untyped-def]
        return lambda model, batch: {**cross_entropy(model, batch), "images": torch.tensor(scale * len(images.samples))}

    monkeypatch.setitem(REPAIRS, "scaled", Repair("scale the loss", "nothing", "plain fine-tuning", scaled_loss))
    assert REPAIRS["scaled"].options == ("scale",)
    _, outcome = repair(classifier(), *images, method="scaled", config=CONFIG, device="cpu", scale=2.0)
    assert outcome.history[1].train["images"] == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "gea"}, "method: 'gea' is unknown; choose from afr, dfr, exmap, heads"),
        ({"sky": 1}, "sky: not an option of the method relevance; choose from background, foreground"),
        ({"method": "dfr", "background": 1}, "background: not an option of the method dfr; it has none"),
        ({"config": replace(CONFIG, mixup=1.0)}, "label_smoothing, mixup, cutmix: unsupported by the method relevance"),
        ({"method": "reweight", "config": replace(CONFIG, label_smoothing=0.1)}, "unsupported by the method reweight"),
        ({"config": replace(CONFIG, augment="strong")}, "augment: strong changes images without their masks"),
        ({"method": "rrr", "config": replace(CONFIG, augment="strong")}, "masks, which the method rrr needs"),
        ({"attribution": "lime"}, "attribution: 'lime' is unknown; choose from gae"),
    ],
)
def test_invalid_options_raise_an_error(
    images: tuple[ImageIndex, ImageIndex], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ClearheadError, match=message):
        repair(classifier(), *images, **options)  # type: ignore[arg-type]


def test_missing_images_and_masks_raise_an_error(
    images: tuple[ImageIndex, ImageIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, validation = images
    unmasked = replace(train, samples=tuple(replace(sample, mask=None) for sample in train.samples))
    with pytest.raises(DataError, match=r"rrr needs foreground masks, and none of its 6 .*: afr, dfr, exmap, heads"):
        repair(classifier(), unmasked, validation, method="rrr", config=CONFIG, device="cpu")
    with pytest.raises(DataError, match="the method dfr needs training images"):
        repair(classifier(), None, validation, method="dfr")
    with pytest.raises(DataError, match="the method heads needs validation images"):
        repair(classifier(), None, method="heads")
    with pytest.raises(DataError, match="6 images are for training and for validation"):
        repair(classifier(), train, train, method="dfr")
    monkeypatch.setattr(registry, "rank_and_size", lambda: (0, 2))
    with pytest.raises(ClearheadError, match="dfr runs in one process"):
        repair(classifier(), *images, method="dfr")


def test_the_default_config_is_that_of_the_paper_or_shorter() -> None:
    default, preset = default_config(), default_config("DeiT-S")
    assert (default.epochs, default.lr, default.batch_size, default.schedule) == (10, 1e-5, 8, "decay")
    assert (preset.epochs, preset.lr, preset.batch_size, preset.weight_decay) == (50, 1e-6, 8, 1e-4)
    with pytest.raises(ClearheadError, match="preset: 'ViT-H' is unknown; choose from ViT-B"):
        default_config("ViT-H")


def test_the_documentation_lists_every_repair_as_the_registry_does() -> None:
    page = (Path(__file__).parents[2] / "docs" / "repairs.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w[\w-]*)` \| (.*?) \| (.*?) \| (.*?) \|(.*)\|$", page, re.MULTILINE)
    assert [row[:4] for row in rows] == [(name, r.summary, r.needs, r.cost) for name, r in REPAIRS.items()]
    assert [row[4].strip() for row in rows] == [
        f"[{r.source}](https://arxiv.org/abs/{r.source})" if r.source else "" for r in REPAIRS.values()
    ]


def test_a_repair_trains_by_its_own_preset(images: tuple[ImageIndex, ImageIndex]) -> None:
    _, outcome = repair(classifier(), *images, method="counterfactual", device="cpu")
    assert len(outcome.history) == 1 + default_config("counterfactual").epochs == 4
