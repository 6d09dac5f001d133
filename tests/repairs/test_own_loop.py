"""Every loss in a bare PyTorch loop: a plain module, and batches that are plain dictionaries."""

import pytest
import timm
import torch
from torch import nn

from clearhead.heads import DiversityLoss
from clearhead.models import Preprocessing, from_module
from clearhead.repairs import GradMaskLoss, GroupDRO, RelevanceLoss, Reweight, RRRLoss
from clearhead.training.loop import cross_entropy

GROUPS = ("day", "night")
MASK_LOSSES = {
    "relevance": lambda: RelevanceLoss(),
    "relevance-swap": lambda: RelevanceLoss(target="truth", background_swap=0.5),
    "relevance-rollout": lambda: RelevanceLoss(attribution="rollout"),
    "relevance-input-gradient": lambda: RelevanceLoss(attribution="input-gradient"),
    "gradmask": lambda: GradMaskLoss(),
    "rrr": lambda: RRRLoss(),
}
LOSSES = MASK_LOSSES | {
    "groupdro": lambda: GroupDRO(GROUPS),
    "reweight": lambda: Reweight({"day": 0.5, "night": 2.0}),
    "diversity": lambda: DiversityLoss(),
    "cross-entropy": lambda: cross_entropy,
}


def vit() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 2}
    return timm.create_model("vit_tiny_patch16_224", **sizes)


def data() -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    label = torch.tensor([0, 1, 0, 1])
    mask = torch.zeros(4, 32, 32)
    mask[:, 8:24, 8:24] = 1
    image = torch.randn(4, 3, 32, 32, generator=generator) + label[:, None, None, None] * mask[:, None]
    return {"image": image, "label": label, "mask": mask, "group": ["day", "day", "night", "day"]}


@pytest.mark.parametrize("name", LOSSES)
def test_a_bare_loop_reduces_the_loss(name: str) -> None:
    model, loss, batch = vit().train(), LOSSES[name](), data()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    values = []
    for _ in range(8):
        optimizer.zero_grad()
        parts = loss(model, batch)
        parts["loss"].backward()
        optimizer.step()
        values.append(parts["loss"].item())
    assert parts["logits"].shape == (4, 2)
    assert min(values[1:]) < values[0]


@pytest.mark.parametrize("name", LOSSES)
def test_a_module_and_a_classifier_without_normalisation_have_the_same_loss(name: str) -> None:
    module, batch = vit().eval(), data()
    preprocess = Preprocessing((32, 32), (32, 32), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    classifier = from_module(module, preprocess=preprocess, classes=["a", "b"])
    complete = {**batch, "mask": batch["mask"][:, None], "has_mask": torch.ones(4, dtype=torch.bool)}
    complete["counts"] = torch.ones(4, dtype=torch.bool)
    torch.testing.assert_close(LOSSES[name]()(module, batch)["loss"], LOSSES[name]()(classifier, complete)["loss"])


@pytest.mark.parametrize("name", MASK_LOSSES)
def test_missing_or_misshapen_masks_raise_an_error(name: str) -> None:
    model, loss, batch = vit(), LOSSES[name](), data()
    with pytest.raises(ValueError, match="batch: 'mask' is missing; it has image, label, group"):
        loss(model, {key: value for key, value in batch.items() if key != "mask"})
    with pytest.raises(ValueError, match=r"batch: 'mask' is \(4, 16, 16\) for images of \(4, 3, 32, 32\)"):
        loss(model, {**batch, "mask": batch["mask"][:, :16, :16]})
