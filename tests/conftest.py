"""clearhead comes before any test's imports: it makes torchvision importable beside a torch it was not built for.

Before torch, in turn, comes the number of its threads: of several test processes each has its share of the cores.
"""

import os

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

# isort: split
import clearhead  # noqa: F401

# isort: split
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from clearhead.models import load_model, save_model
from tests import command

CLASSES = ["bird", "cat", "fish"]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Path:
    """A folder with a model (a timm checkpoint) and data: bright squares on grounds, with masks, splits and groups."""
    root = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    module = timm.create_model("vit_tiny_patch16_224", num_classes=3, **size)
    timm.models.save_for_hf(module, root / "hub", model_config={"model_args": size, "label_names": CLASSES})
    save_model(load_model(str(root / "hub")), root / "model")
    rng, rows = np.random.default_rng(0), ["file,split,ground"]
    for label, name in enumerate(CLASSES):
        for folder in (root / "data" / name, root / "data" / "masks" / name):
            folder.mkdir(parents=True)
        for i in range(12):
            ground = ["dark", "light"][i % 2]
            pixels = rng.integers(0, 60, (32, 32, 3)) + (120 if ground == "light" else 0)
            pixels[8:24, 8:24, label] = 255
            mask = np.zeros((32, 32), np.uint8)
            mask[8:24, 8:24] = 255
            Image.fromarray(pixels.astype(np.uint8)).save(root / "data" / name / f"{i:02d}.png")
            Image.fromarray(mask).save(root / "data" / "masks" / name / f"{i:02d}.png")
            rows.append(f"{name}/{i:02d}.png,{['train', 'val', 'test'][i // 4]},{ground}")
    (root / "data" / "metadata.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="session")
def maskless(workspace) -> Path:
    """The data without masks."""
    return Path(shutil.copytree(workspace / "data", workspace / "maskless", ignore=shutil.ignore_patterns("masks")))


@pytest.fixture(scope="session")
def repaired(workspace) -> subprocess.CompletedProcess:
    """The command that has repaired the model, in the folder repair."""
    return command.clearhead("repair", "model", "data", "--out", "repair", "--epochs", 2, "--lr", 1e-3, cwd=workspace)
