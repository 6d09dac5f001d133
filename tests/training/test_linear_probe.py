"""The linear probe compared with scikit-learn's logistic regression."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from clearhead.data.dataset import ImageIndex
from clearhead.data.folder import read_folder
from clearhead.data.loading import ImageDataset, loader
from clearhead.models.features import features
from clearhead.training.linear_probe import fit_linear_probe
from tests import cases


@pytest.fixture
def folder(tmp_path) -> ImageIndex:
    rng = np.random.default_rng(0)
    for label, name in enumerate("abcde"):
        (tmp_path / name).mkdir()
        for i in range(12):
            pixels = rng.integers(0, 120, (32, 32, 3))
            pixels[..., label % 3] += 25 * (1 + label // 3)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name / f"{i}.png")
    return read_folder(tmp_path)


@pytest.mark.parametrize("name", ["timm-vit", "hf-vit"])
def test_only_the_head_changes_and_it_is_the_minimum(name: str, folder: ImageIndex) -> None:
    model = cases.classifier(name)
    before = {n: p.clone() for n, p in model.module.state_dict().items()}
    trained, probe = fit_linear_probe(model, folder, folder)
    batches = loader(ImageDataset(folder, model.preprocess), 32, 0)
    x = features(model, batches).double().numpy()
    labels = np.array([sample.label for sample in folder.samples])
    z = (x - x.mean(0)) / x.std(0)
    reference = LogisticRegression(C=1 / (probe.chosen * len(labels)), tol=1e-8, max_iter=5000).fit(z, labels)
    with torch.no_grad():
        logits = torch.cat([trained(batch["image"]) for batch in batches])
    np.testing.assert_allclose(logits.softmax(-1).numpy(), reference.predict_proba(z), atol=5e-3)
    assert probe.accuracy[probe.chosen] == pytest.approx((logits.argmax(-1).numpy() == labels).mean())
    assert probe.loss[probe.chosen] == min(probe.loss.values())
    after = trained.module.state_dict()
    changed = [n for n in before if not torch.equal(before[n], after[n])]
    assert len(changed) == 2  # weight and bias
    assert all(torch.equal(before[n], p) for n, p in model.module.state_dict().items())


def test_a_model_without_a_linear_head_raises_an_error(folder: ImageIndex) -> None:
    with pytest.raises(ValueError, match="no linear layer's output is its logits"):
        fit_linear_probe(cases.classifier("timm-deit-distilled"), folder, folder)
