"""Compare the cost of a training step of clearhead with a bare PyTorch loop over the same batches.

    python benchmarks/training.py [--model zoo:vit_mini_patch4_32] [--batch-size 96] [--optimizer adamw]

Images of noise in a temporary folder. After each epoch of ``fit`` the bare loop does one, and the loader alone goes
through its batches once, so that a slow spell of the machine hits all alike; medians over the epochs. The loader's time
is in both loops and taken from both for the ratio of the steps. The floor is 1: the bare loop's forward, backward and
optimizer step.
"""

import argparse
import copy
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import clearhead  # noqa: F401  (before timm)

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from clearhead.data.dataset import ImageIndex
from clearhead.data.folder import read_folder
from clearhead.data.loading import ImageDataset, loader
from clearhead.models import Classifier, load_model
from clearhead.training import optimizers
from clearhead.training.loop import Epoch, TrainConfig, cross_entropy, fit


def noise(folder: Path, count: int, size: int) -> ImageIndex:
    rng = np.random.default_rng(0)
    for i in range(count):
        file = folder / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(file)
    return read_folder(folder)


def measure(model: Classifier, folder: ImageIndex, config: TrainConfig) -> dict[str, float]:
    """Median seconds of an epoch."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches = loader(ImageDataset(folder, model.preprocess), config.batch_size, config.workers, shuffle=True)
    module = copy.deepcopy(model.module).to(device).train()
    optimizer = optimizers.make_optimizer(config.optimizer, module, config.lr, config.weight_decay)
    spent: dict[str, list[float]] = {"bare loop": [], "fit": [], "loader alone": []}

    def bare() -> None:
        for batch in batches:
            images, labels = (batch[name].to(device, non_blocking=True) for name in ("image", "label"))
            optimizer.zero_grad()
            F.cross_entropy(module(model.normalize(images)), labels).backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    def alone() -> None:
        for _ in batches:
            pass

    def on_epoch_end(history: list[Epoch], _: Classifier) -> None:
        if len(history) > 2:  # the first epoch warms up
            spent["fit"].append(history[-1].seconds)
        for name, function in (("bare loop", bare), ("loader alone", alone)):
            start = time.perf_counter()
            function()
            if len(history) > 1:
                spent[name].append(time.perf_counter() - start)

    few = replace(folder, samples=folder.samples[:2])
    fit(model, cross_entropy, folder, few, config, on_epoch_end=on_epoch_end)
    return {name: statistics.median(values) for name, values in spent.items()}


def main(name: str, size: int, batch_size: int, optimizer: str, count: int, epochs: int) -> None:
    options = {} if name.startswith("zoo:") else {"image_size": size}
    model = load_model(name, num_classes=2, classes=["a", "b"], pretrained=False, **options)
    config = TrainConfig(epochs=epochs, lr=1e-4, batch_size=batch_size, optimizer=optimizer, augment="none")
    with tempfile.TemporaryDirectory() as folder:
        times = measure(model, noise(Path(folder), count, size), config)
    steps, load = -(-count // batch_size), times["loader alone"]
    print(f"{name}, {sum(p.numel() for p in model.module.parameters()):,} parameters, {optimizer}, {size} px\n")
    print(f"| | ms per batch of {batch_size} | images/s |\n|---|---|---|")
    for what, value in times.items():
        print(f"| {what} | {1000 * value / steps:.1f} | {count / value:.0f} |")
    print(
        f"\na step of fit without loading: {(times['fit'] - load) / (times['bare loop'] - load):.3f} of the bare loop's"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:vit_mini_patch4_32")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--images", type=int, default=960)
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args()
    main(
        arguments.model,
        arguments.image_size,
        arguments.batch_size,
        arguments.optimizer,
        arguments.images,
        arguments.epochs,
    )
