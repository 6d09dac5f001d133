"""Models to compare with the first, and images of the tests of layers and of the loss landscape."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clearhead.models import load_model, save_model
from tests.layers.conftest import folder  # noqa: F401


@pytest.fixture(scope="session")
def other(place: Path) -> Path:
    """The model of `place` with other weights."""
    model = load_model(str(place / "model"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    save_model(model, place / "other")
    return place / "other"


@pytest.fixture(scope="session")
def two(place: Path) -> Path:
    """A model of two other classes."""
    model = load_model(str(place / "model"), num_classes=2)
    save_model(replace(model, classes=("a", "b")), place / "two")
    return place / "two"
