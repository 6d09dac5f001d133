"""ExMap on images in which the place of the evidence is the hidden group."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import homogeneity_score
from torch import nn

from clearhead.data.dataset import ImageIndex
from clearhead.data.folder import read_folder
from clearhead.errors import ClearheadError
from clearhead.models import Classifier, Preprocessing, from_module
from clearhead.repairs import exmap, repair

COUNTS = {("a", 0): 30, ("a", 1): 8, ("b", 0): 8, ("b", 1): 30, ("c", 0): 3, ("c", 1): 3}
"""Images per class and hidden group; too few of c to be divided."""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    """A bright square in the upper left corner (hidden group 0) or the lower right one (1)."""
    root, rng = tmp_path_factory.mktemp("exmap"), np.random.default_rng(0)
    for (name, group), count in COUNTS.items():
        (root / name).mkdir(exist_ok=True)
        for i in range(count):
            pixels = rng.integers(0, 30, (32, 32, 3))
            corner = slice(4, 12) if group == 0 else slice(20, 28)
            pixels[corner, corner] = rng.integers(200, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{group}-{i}.png")
    return read_folder(root)


def linear() -> Classifier:
    """Logits are the brightness, so input x gradient is high where the image is bright."""
    head = nn.Linear(64, 3)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([1.0, 0.9, 0.8])[:, None].expand(-1, 64) / 64)
    module = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(2), _MeanOfChannels(), head)
    preprocess = Preprocessing((32, 32), (32, 32), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return from_module(module.eval(), preprocess=preprocess, classes=["a", "b", "c"], name="linear")


class _MeanOfChannels(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1)


def test_no_cluster_mixes_hidden_groups(index: ImageIndex) -> None:
    labels = np.array([sample.label for sample in index.samples])
    hidden = np.array([Path(sample.file).name[0] for sample in index.samples])
    maps = exmap._maps(linear(), index, "input-x-gradient", 16, 0, None)
    assert maps.shape == (len(labels), 14 * 14)
    np.testing.assert_allclose(maps.max(1), 1)
    clusters = exmap._clusters(maps, labels, seed=0)
    for label in (0, 1):
        assert homogeneity_score(hidden[labels == label], clusters[labels == label]) == pytest.approx(1)
        assert 2 <= len(set(clusters[labels == label])) <= 10
    assert set(clusters[labels == 2]) == {0}


def test_the_head_is_retrained_on_balanced_clusters(index: ImageIndex) -> None:
    model = linear()
    repaired, outcome = repair(model, index, method="exmap", device="cpu")
    groups = outcome.report.groups
    assert {name.partition(",")[0] for name in groups} == {"class=a", "class=b", "class=c"}
    assert all(", cluster=" in name for name in groups)
    assert sum(groups.values()) == pytest.approx(0.8 * sum(COUNTS.values()), abs=1)
    assert sum(name.startswith("class=a") for name in groups) >= 2
    assert not torch.equal(repaired.module[3].weight, model.module[3].weight)


def test_unsuitable_data_and_maps_raise_an_error(index: ImageIndex) -> None:
    with pytest.raises(ClearheadError, match="method: 'lime' is unknown"):
        repair(linear(), index, method="exmap", attribution="lime", device="cpu")
    with pytest.raises(ClearheadError, match="needs a model whose tokens form one grid"):
        repair(linear(), index, method="exmap", attribution="libragrad", device="cpu")
