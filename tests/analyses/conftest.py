"""Models to compare with the first, a training run with saved epochs, and images for layers and landscapes."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clearhead.models import load_model, save_model
from tests.landscape.conftest import folder as ten_images  # noqa: F401
from tests.layers.conftest import folder  # noqa: F401


@pytest.fixture(scope="session")
def other(workspace: Path) -> Path:
    """The model of `place` with other weights."""
    model = load_model(str(workspace / "model"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    save_model(model, workspace / "other")
    return workspace / "other"


@pytest.fixture(scope="session")
def two(workspace: Path) -> Path:
    """A model of two other classes."""
    model = load_model(str(workspace / "model"), num_classes=2)
    save_model(replace(model, classes=("a", "b")), workspace / "two")
    return workspace / "two"


@pytest.fixture(scope="session")
def trained(workspace: Path) -> Path:
    """What ``train --save-epochs 1,3,10`` leaves behind: checkpoints of weights that change."""
    model = load_model(str(workspace / "model"))
    torch.manual_seed(1)
    for epoch in (1, 3, 10):
        with torch.no_grad():
            for p in model.module.parameters():
                p.add_(0.02 * torch.randn_like(p))
        save_model(model, workspace / "trained" / "epochs" / str(epoch))
    shutil.copytree(workspace / "trained" / "epochs" / "10", workspace / "trained" / "checkpoint")
    return workspace / "trained"
