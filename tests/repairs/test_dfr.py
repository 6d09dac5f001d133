"""The retrained head compared with scikit-learn's decision function, and the worst-group accuracy it reaches."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn

from clearhead.data.dataset import ImageIndex
from clearhead.data.folder import read_folder
from clearhead.data.loading import ImageDataset
from clearhead.models import Classifier, Preprocessing, from_module
from clearhead.repairs import dfr
from clearhead.repairs.dfr import PENALTIES, retrain_head
from tests.attribution.test_explain import classifier
from tests.cases import CLASSES

HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def five(tmp_path_factory) -> ImageIndex:
    """Noise images of five classes with 6 images each; each class has its own brightness."""
    root, rng = tmp_path_factory.mktemp("five"), np.random.default_rng(0)
    for label in range(CLASSES):
        (root / f"c{label}").mkdir()
        for i in range(6):
            pixels = rng.integers(0, 120, (32, 32, 3)) + 25 * label
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"c{label}" / f"{i}.png")
    return read_folder(root)


def stack(model: Classifier, folder: ImageIndex) -> tuple[torch.Tensor, np.ndarray]:
    items = [ImageDataset(folder, model.preprocess)[i] for i in range(len(folder.samples))]
    return torch.stack([item["image"] for item in items]), np.array([item["label"] for item in items])


def timm_features(module, x):
    return module.forward_head(module.forward_features(x), pre_logits=True)


def torchvision_features(module, x):
    tokens = torch.cat([module.class_token.expand(len(x), -1, -1), module._process_input(x)], 1)
    return module.encoder(tokens)[:, 0]


FEATURES = {
    "timm-vit": timm_features,
    "timm-swin": timm_features,
    "torchvision-vit": torchvision_features,
    "hf-vit": lambda module, x: module.vit(x).last_hidden_state[:, 0],
    "hf-clip": lambda module, x: module.vision_model(x).last_hidden_state[:, 1:].mean(1),
}


@pytest.mark.parametrize("name", FEATURES)
def test_the_head_matches_scikit_learn(name, five):
    model = classifier(name)
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    new, report = retrain_head(model, five, five, group_columns=None, batch_size=7)
    images, labels = stack(model, five)
    with torch.no_grad():
        x = StandardScaler().fit_transform(FEATURES[name](model.module, model.normalize(images)).double().numpy())
        logits = new(images).double().numpy()
    # all groups have the same size, so each subset is the whole training set
    regression = LogisticRegression(l1_ratio=1, C=report.chosen, solver="liblinear", random_state=0)
    expected = OneVsRestClassifier(regression).fit(x, labels).decision_function(x)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    after = new.module.state_dict()
    changed = {key for key in before if not torch.equal(after[key], before[key])}
    assert {key.rsplit(".", 1)[1] for key in changed} == {"weight", "bias"}
    assert len(changed) == 2
    assert all(torch.equal(value, before[key]) for key, value in model.module.state_dict().items())
    assert report.groups == {f"class=c{i}": 6 for i in range(CLASSES)}
    assert report.chosen == max(PENALTIES, key=lambda c: report.worst_group_accuracy[c])


class Means(nn.Module):
    """Features: mean red (the class), mean green (the background), and a constant."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, images):
        x = images.mean((2, 3))
        return self.head(torch.cat([x[:, :2], torch.ones_like(x[:, :1])], 1))


def shades(root: Path, counts: dict[tuple[int, int], int], seed: int) -> ImageIndex:
    """Images with the class as a weak red and the background as a strong green; `counts` images per pair."""
    rng, rows = np.random.default_rng(seed), ["file,background"]
    for (label, background), count in counts.items():
        (root / "ab"[label]).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            red = 128 + (15 if label else -15) + rng.normal(0, 8)
            green = 128 + (60 if background else -60) + rng.normal(0, 8)
            file = f"{'ab'[label]}/{background}{i}.png"
            Image.new("RGB", (4, 4), (round(red), round(green), 0)).save(root / file)
            rows.append(f"{file},{background}")
    (root / "metadata.csv").write_text("\n".join(rows))
    return read_folder(root)


def two(head: nn.Module) -> Classifier:
    preprocess = Preprocessing((4, 4), (4, 4), HALF, HALF)
    return from_module(Means(head), preprocess=preprocess, classes=["a", "b"], name="means")


def by_background() -> nn.Linear:
    """A head that relies on the background and on little else."""
    head = nn.Linear(3, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[-0.5, -5.0, 0.0], [0.5, 5.0, 0.0]]))
        head.bias.zero_()
    return head


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> tuple[ImageIndex, ImageIndex, ImageIndex]:
    root = tmp_path_factory.mktemp("shades")
    even = {(label, background): 20 for label in (0, 1) for background in (0, 1)}
    counts = {(0, 0): 60, (0, 1): 12, (1, 0): 9, (1, 1): 60}
    return shades(root / "train", counts, 0), shades(root / "val", even, 1), shades(root / "test", even, 2)


def worst(model: Classifier, folder: ImageIndex) -> float:
    images, labels = stack(model, folder)
    correct = model(images).argmax(1).numpy() == labels
    background = np.array([sample.groups["background"] for sample in folder.samples])
    return min(correct[(labels == c) & (background == g)].mean() for c in (0, 1) for g in "01")


def test_worst_group_accuracy_improves(uneven):
    train, validation, test = uneven
    model = two(by_background())
    new, report = retrain_head(model, train, validation, group_columns=["background"], seed=1)
    assert worst(model, test) < 0.2
    assert worst(new, test) > 0.85
    assert worst(new, validation) == pytest.approx(report.worst_group_accuracy[report.chosen])
    assert list(report.worst_group_accuracy) == list(PENALTIES)
    assert report.worst_group_accuracy[report.chosen] == max(report.worst_group_accuracy.values())
    assert list(report.groups.values()) == [60, 12, 9, 60]


def test_two_classes_share_one_regression_and_the_seed_matters(uneven):
    train, validation, _ = uneven
    results = [
        retrain_head(two(by_background()), train, validation, group_columns=None, seed=seed)[0].module.head
        for seed in (0, 0, 1)
    ]
    torch.testing.assert_close(results[0].weight[0], -results[0].weight[1])
    assert torch.equal(results[0].weight, results[1].weight)
    assert not torch.equal(results[0].weight, results[2].weight)


def test_two_balanced_classes_match_scikit_learn(uneven):
    _, even, _ = uneven
    model = two(by_background())
    new, report = retrain_head(model, even, even, group_columns=["background"])
    images, labels = stack(model, even)
    x = StandardScaler().fit_transform(images.mean((2, 3))[:, :2].double().numpy())
    x = np.concatenate([x, np.zeros_like(x[:, :1])], 1)
    regression = LogisticRegression(l1_ratio=1, C=report.chosen, solver="liblinear", random_state=0)
    logits = new(images).detach().double()
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], regression.fit(x, labels).decision_function(x), atol=1e-5)


def test_features_are_computed_in_eval_mode(uneven):
    train, validation, _ = uneven
    model = two(nn.Sequential(nn.Dropout(0.5), by_background()))
    model.module.train()
    new, _ = retrain_head(model, train, validation, group_columns=None)
    still, _ = retrain_head(two(by_background()), train, validation, group_columns=None)
    assert torch.equal(new.module.head[1].weight, still.module.head.weight)
    assert model.module.training
    assert not new.module.training


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (nn.Sequential(nn.Linear(3, 2), nn.Softmax(-1)), "no linear layer's output is its logits"),
        (nn.Linear(3, 2, bias=False), "the classifier head has no bias"),
    ],
)
def test_unsuitable_heads_raise_an_error(head, message, uneven):
    with pytest.raises(ValueError, match=f"classifier head of means cannot be fitted: {message}"):
        retrain_head(two(head), *uneven[:2], group_columns=None)


def test_two_averaged_heads_raise_an_error(five):
    with pytest.raises(ValueError, match=r"timm-deit-distilled cannot be fitted.*Distilled DeiTs average two heads"):
        retrain_head(classifier("timm-deit-distilled"), five, five, group_columns=None)


def test_classes_without_images_raise_an_error(uneven):
    with pytest.raises(ValueError, match=r"train: no image of c2, c3, c4 \(3 of the model's 5 classes\)"):
        retrain_head(classifier("timm-vit"), *uneven[:2], group_columns=None)
    preprocess = Preprocessing((4, 4), (4, 4), HALF, HALF)
    single = from_module(Means(nn.Linear(3, 1)), preprocess=preprocess, classes=["a"], name="one")
    with pytest.raises(ValueError, match="model: two or more classes are needed, one has 1"):
        retrain_head(single, *uneven[:2], group_columns=None)


def test_columns_with_values_missing_from_validation_are_ignored(uneven):
    train, validation, _ = uneven
    named = []
    for folder, step in ((train, 1), (validation, 8)):
        scenes = enumerate(folder.samples[::step])
        samples = [replace(sample, groups=sample.groups | {"scene": f"{i}"}) for i, sample in scenes]
        samples[0] = replace(samples[0], label=1 - samples[0].label)  # misclassified whatever C is chosen
        named.append(replace(folder, samples=tuple(samples)))
    _, report = retrain_head(two(by_background()), *named, group_columns=None)
    _, expected = retrain_head(two(by_background()), *named, group_columns=["background"])
    assert report == expected


def test_a_group_of_one_image_warns(uneven, tmp_path):
    train = shades(tmp_path, {(0, 0): 6, (0, 1): 1, (1, 0): 4, (1, 1): 6}, 0)
    with pytest.warns(UserWarning, match="class=a, background=1: one training image"):
        retrain_head(two(by_background()), train, uneven[1], group_columns=None)


def test_few_images_choose_the_penalty_by_cross_validation(uneven, tmp_path, monkeypatch):
    monkeypatch.setattr(dfr, "PENALTIES", (1.0, 0.3, 0.01))
    few = shades(tmp_path / "few", {(0, 0): 12, (0, 1): 5, (1, 0): 5, (1, 1): 12}, 3)
    new, report = retrain_head(two(by_background()), few, None, group_columns=["background"])
    assert report.cross_validated
    assert worst(two(by_background()), uneven[2]) < 0.2
    assert worst(new, uneven[2]) > 0.8
    assert report.chosen == max(dfr.PENALTIES, key=lambda c: report.worst_group_accuracy[c])
    # out of fold: a penalty that removes every feature predicts one class everywhere, and so fails whole groups
    assert report.worst_group_accuracy[0.01] == 0
    again, same = retrain_head(two(by_background()), few, None, group_columns=["background"])
    assert same == report
    assert torch.equal(again.module.head.weight, new.module.head.weight)


def test_cross_validation_judges_images_by_fits_without_them(uneven, monkeypatch):
    train = uneven[1]
    seen: list[np.ndarray] = []
    regression = dfr._regression

    def recorded(x: np.ndarray, labels: np.ndarray, c: float) -> tuple[np.ndarray, np.ndarray]:
        seen.append(x)
        return regression(x, labels, c)

    monkeypatch.setattr(dfr, "_regression", recorded)
    monkeypatch.setattr(dfr, "PENALTIES", (1.0,))
    retrain_head(two(by_background()), train, None, group_columns=["background"])
    rows = [Counter(row.tobytes() for row in x) for x in (seen[0], *seen[dfr.SUBSETS :: dfr.FOLD_SUBSETS])]
    assert len(rows) == 1 + dfr.FOLDS  # groups are equal, so that subsets have all images
    held_out = [rows[0] - rest for rest in rows[1:]]
    assert sum(held_out, Counter()) == rows[0]  # each image is in one fold
    assert [part.total() for part in held_out] == [16] * 5


def test_a_group_of_one_image_selects_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(dfr, "PENALTIES", (1.0,))
    train = shades(tmp_path, {(0, 0): 8, (0, 1): 1, (1, 0): 8, (1, 1): 8}, 0)
    with pytest.warns(UserWarning, match="one training image"):
        _, report = retrain_head(two(by_background()), train, None, group_columns=["background"])
    assert report.worst_group_accuracy[1.0] > 0  # the single image is never in the fit that judges it
