"""Head scores against the same numbers computed one head at a time from the explicit attention."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clearhead.analyses.head_scores import implied_classes, score_heads
from clearhead.attention_tap import NoAttentionError, tap
from clearhead.data.dataset import ImageIndex
from clearhead.data.image_io import DataError
from clearhead.data.loading import ImageDataset, loader
from clearhead.models import Preprocessing, from_module
from tests import cases
from tests.masked_images import folder

__all__ = ["folder"]

SIDE = (cases.SIZE, cases.SIZE)
HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize("name", ["timm-vit", "torchvision-vit", "hf-dinov2", "timm-swin"])
def test_scores_equal_one_head_at_a_time(name: str, folder: ImageIndex) -> None:
    model = cases.classifier(name)
    batch = next(iter(loader(ImageDataset(folder, model.preprocess), 20, 0)))
    images, labels = batch["image"], batch["label"]
    implied = implied_classes(folder, "colour")
    scores = score_heads(model, folder, layers=[-1], attributes={"colour": implied}, batch_size=7)
    with tap(model.module, needs_grad=True) as record:
        logits = model(images.clone().requires_grad_())
    layer, number = record[-1], len(record) - 1
    assert scores.accuracy.value == (logits.argmax(-1) == labels).float().mean()
    assert [s.layer for s in scores.heads] == [number] * layer.num_heads
    (slope,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), layer.output, retain_graph=True)
    (raises,) = torch.autograd.grad(logits.max(-1).values.sum(), layer.output)
    attn = layer.attn().detach()
    colours = torch.tensor([implied[s.groups["colour"]] for s in folder.samples])
    for head, score in enumerate(scores.heads):
        scale = torch.zeros(layer.num_heads)
        scale[head] = layer.num_heads
        other = (1 - scale / layer.num_heads) * layer.num_heads / (layer.num_heads - 1)
        with torch.no_grad():
            with tap(model.module, heads={number: scale}):
                alone = model(images).argmax(-1)
            with tap(model.module, heads={number: other}):
                without = model(images).argmax(-1)
        assert score.alone.value == pytest.approx((alone == labels).float().mean().item())
        assert score.without.value == pytest.approx((without == labels).float().mean().item())
        assert score.agreement["colour"].value == pytest.approx((alone == colours).float().mean().item())
        by_image = (layer.output * slope)[:, head].unflatten(0, (20, -1)).sum((1, 2, 3))
        assert score.importance == pytest.approx(by_image.abs().mean().item(), rel=1e-4)
        rows = attn[:, head]
        assert score.entropy == pytest.approx(-(rows * rows.log()).sum(-1).mean().item(), rel=1e-4)
        if model.grid is None:
            assert (score.attention, score.contribution, score.distance) == (None, None, None)
            continue
        grid = model.grid
        inside = batch["mask"].unfold(2, 8, 8).unfold(3, 8, 8).mean((-2, -1)).flatten(1)[batch["has_mask"]]
        masked = batch["has_mask"]
        read = rows[masked, 0, grid.prefix :]
        share = (read * inside).sum(1) / read.sum(1)
        assert score.attention == pytest.approx(share.mean().item(), rel=1e-4)
        gain = (
            (rows * (raises @ layer.v.transpose(-2, -1)).detach()[:, head]).clamp(min=0).sum(1)[masked, grid.prefix :]
        )
        assert score.contribution == pytest.approx(((gain * inside).sum(1) / gain.sum(1)).nanmean().item(), rel=1e-3)
        spots = [(8 * (i // 4) + 4.0, 8 * (i % 4) + 4.0) for i in range(16)]
        among = rows[:, grid.prefix :, grid.prefix :]
        far = torch.tensor([[((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) ** 0.5 for b in spots] for a in spots])
        assert score.distance == pytest.approx(((among * far).sum(-1) / among.sum(-1)).mean().item(), rel=1e-4)
    similarities = np.array(scores.similarity[str(number)])
    assert similarities.shape == (layer.num_heads, layer.num_heads)
    np.testing.assert_allclose(similarities, similarities.T, rtol=1e-5)
    np.testing.assert_allclose(np.diag(similarities), 1, rtol=1e-4)


def test_scores_do_not_depend_on_the_batch_size(folder: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cases.classifier("timm-vit")
    whole = score_heads(model, folder, batch_size=20)
    monkeypatch.setattr("clearhead.analyses.head_scores._ENTRIES", 1)
    parts = score_heads(model, folder, batch_size=3)
    for a, b in zip(whole.heads, parts.heads, strict=True):
        assert (a.alone, a.without) == (b.alone, b.without)
        for key in ("importance", "attention", "contribution", "entropy", "distance"):
            assert getattr(a, key) == pytest.approx(getattr(b, key), rel=1e-4)


def test_implied_classes(folder: ImageIndex) -> None:
    assert implied_classes(folder, "colour") == {"blue": 1, "grey": 2, "red": 0}
    with pytest.raises(DataError, match=r"no column place.*choose from colour, constant"):
        implied_classes(folder, "place")
    with pytest.raises(DataError, match="every value of constant implies the class a"):
        implied_classes(folder, "constant")


def test_cnn_and_unknown_layer_raise(folder: ImageIndex) -> None:
    cnn = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model = from_module(cnn, preprocess=Preprocessing(SIDE, SIDE, HALF, HALF), classes=tuple("abcde"))
    with pytest.raises(NoAttentionError):
        score_heads(model, folder)
    with pytest.raises(ValueError, match="layers: 7 does not exist"):
        score_heads(cases.classifier("timm-vit"), folder, layers=[7])


def test_scores_use_eval_mode_and_restore_train_mode(folder: ImageIndex) -> None:
    model = cases.classifier("timm-vit")
    plain = score_heads(model, folder)
    for module in model.module.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.module.train()
    assert score_heads(model, folder).heads == plain.heads
    assert model.module.blocks[0].mlp.drop1.training
