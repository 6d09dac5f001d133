"""Train the demo's model: a small ViT that relies on the background.

    python scripts/train_demo.py --out src/clearhead/assets/demo

About two minutes on 2 cores. As with most models that ship, a backbone that knows objects and scenes is fine-tuned on
data with a shortcut: first it learns animals and backgrounds, each from one half of its outputs, from images in which
the two are independent; then it gets a new head for the animals only and is trained on the demo's training images of
another seed, in which the background nearly always matches the animal. The images of `clearhead demo` are not used.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

import clearhead  # noqa: F401  (before timm)

# isort: split
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clearhead.demo.data import USUAL_BACKGROUND, plan, render
from clearhead.models import load_model

CLASSES, BACKGROUNDS = sorted(USUAL_BACKGROUND), sorted(USUAL_BACKGROUND.values())
ARCHITECTURE = {"img_size": 64, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 4, "mlp_ratio": 2.0}
HALF = (0.5, 0.5, 0.5)


def draw(pairs: list[tuple[str, str]], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return normalised images of (class, background) pairs, their classes and backgrounds as indices."""
    drawn = [render(label, name, np.random.default_rng([seed, i]))[0] for i, (label, name) in enumerate(pairs)]
    images = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2) / 127.5 - 1
    classes = torch.tensor([CLASSES.index(label) for label, _ in pairs])
    return images, classes, torch.tensor([BACKGROUNDS.index(name) for _, name in pairs])


def augmented(images: Tensor) -> Tensor:
    """Return images flipped horizontally half of the time and shifted by up to 4 pixels."""
    flip = torch.rand(len(images)) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    top, left = torch.randint(0, 9, (2,)).tolist()
    return F.pad(images, (4, 4, 4, 4), mode="replicate")[..., top : top + 64, left : left + 64]


def train(module: nn.Module, images: Tensor, loss: Callable[[Tensor, Tensor], Tensor], epochs: int, lr: float) -> None:
    """Minimise loss(logits, indices) by AdamW with one cycle of the learning rate, in batches of 32."""
    steps = len(images) // 32
    optimizer = torch.optim.AdamW(module.parameters(), lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps, pct_start=0.1)
    for epoch in range(epochs):
        total = 0.0
        for index in torch.randperm(len(images)).split(32)[:steps]:
            value = loss(module(augmented(images[index])), index)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            total += value.item()
        print(f"epoch {epoch + 1}/{epochs}: loss {total / steps:.4f}", flush=True)


def main(out: Path) -> None:
    """Train, and write a folder that timm itself loads."""
    torch.manual_seed(0)
    module = timm.create_model("vit_tiny_patch16_224", num_classes=8, **ARCHITECTURE)
    images, labels, backgrounds = draw([(c, b) for _ in range(200) for c in CLASSES for b in BACKGROUNDS], seed=100)
    train(
        module,
        images,
        lambda z, i: F.cross_entropy(z[:, :4], labels[i]) + 0.5 * F.cross_entropy(z[:, 4:], backgrounds[i]),
        10,
        1e-3,
    )

    module.reset_classifier(4)
    shortcut = [(p.label, p.background) for p in plan(seed=101) if p.split == "train"]
    images, labels, _ = draw(shortcut, seed=101)
    train(module, images, lambda z, i: F.cross_entropy(z, labels[i]), 2, 5e-4)

    module.pretrained_cfg |= {
        "tag": "clearhead_demo",
        "input_size": (3, 64, 64),
        "mean": HALF,
        "std": HALF,
        "crop_pct": 1.0,
        "num_classes": 4,
    }
    config = {"model_args": ARCHITECTURE, "label_names": CLASSES}
    timm.models.save_for_hf(module.eval(), out, model_config=config, safe_serialization=True)
    weights = out / "model.safetensors"
    save_file({name: value.half().contiguous() for name, value in load_file(weights).items()}, weights)
    print(load_model(str(out)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    main(parser.parse_args().out)
