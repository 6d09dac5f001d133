"""What a faithfulness evaluation takes above the forward passes it cannot do without.

    python benchmarks/faithfulness.py

100 JPEG files of 256 px, a DeiT-Ti/16 at 224 px (random weights: time does not depend on them), the CPU. The floor is
the model alone on 100 images x 9 shares x 2 directions = 1,800 images that are ready in memory, in the same batches:
1.26 GMAC per image, 4.5 TFLOP in all. The evaluation must do that, and besides it may read the files, rank and fill the
pixels (a write of 0.6 MB per image) and bootstrap the intervals. The maps are not in it: the method measured is one
whose maps cost nothing, and what those of GAE take, the model's and the randomised model's, stands by itself.

Quantus (``pip install quantus``, the row is left out without it) does the nearest thing with its PixelFlipping, once on
the maps and once on their negative: the target's probability alone, with steps that must divide the number of pixels,
so 8 of an eighth each, and images in memory. What counts is the time per image.

On a busy machine two runs of the same thing can differ by more than what is looked for. So one more number comes from
within a single run of the evaluation: all its seconds by those its model's passes took.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import clearhead  # noqa: F401  (before timm and torchvision)

# isort: split
import numpy as np
import timm
import torch
from PIL import Image
from timing import seconds
from torch import Tensor

from clearhead.analyses.faithfulness import faithfulness, randomised
from clearhead.attribution import METHODS, explain
from clearhead.data.dataset import ImageIndex
from clearhead.data.folder import read_folder
from clearhead.data.loading import ImageDataset, loader
from clearhead.models import Classifier, Preprocessing, TokenGrid

BATCH = 32
VERSIONS = 18
QUANTUS_STEPS = 8


def files(root: Path, count: int) -> ImageIndex:
    rng = np.random.default_rng(0)
    (root / "0").mkdir()
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        coarse.resize((256, 256), Image.Resampling.BICUBIC).save(root / "0" / f"{i}.jpg", quality=90)
    return read_folder(root, classes=tuple(str(i) for i in range(1000)))


def classifier(classes: tuple[str, ...]) -> Classifier:
    module = timm.create_model("deit_tiny_patch16_224", pretrained=False).eval()
    half = (0.5, 0.5, 0.5)
    preprocess = Preprocessing((224, 224), (248, 248), half, half, interpolation="bicubic")
    return Classifier(module, "deit_tiny", "timm", preprocess, classes, TokenGrid(14, 14, 1, "cls"))


def free(model: Classifier, images: Tensor, target: Tensor | int | None) -> tuple[Tensor, Tensor]:
    """A method that takes no pass of the model."""
    return images.detach().mean(1), images.new_zeros(len(images), len(model.classes))


@torch.inference_mode()
def floor(model: Classifier, inputs: list[Tensor]) -> None:
    """Pass normalised batches through the module."""
    for _ in range(VERSIONS):
        for batch in inputs:
            model.module(batch)


def by_its_passes(model: Classifier, evaluate: Callable[[], object]) -> float:
    """Seconds of a run by those spent inside the model."""
    marks: list[float] = []
    hooks = [
        model.module.register_forward_pre_hook(lambda module, inputs: marks.append(-time.perf_counter())),
        model.module.register_forward_hook(lambda module, inputs, output: marks.append(time.perf_counter())),
    ]
    start = time.perf_counter()
    evaluate()
    whole = time.perf_counter() - start
    for hook in hooks:
        hook.remove()
    return whole / sum(marks)


def quantus_pixel_flipping(model: Classifier, batches: list[Tensor]) -> Callable[[], object]:
    import quantus

    images = torch.cat(batches).numpy()
    maps = images.mean(1, keepdims=True)
    metric = quantus.PixelFlipping(
        features_in_step=224**2 // QUANTUS_STEPS, normalise=False, disable_warnings=True, display_progressbar=False
    )

    def both() -> None:
        for ranking in (maps, -maps):
            metric(model.module, images, np.zeros(len(images), int), a_batch=ranking, device="cpu", batch_size=BATCH)

    return both


def main(count: int, rounds: int) -> None:
    METHODS["free"] = free
    with tempfile.TemporaryDirectory() as root:
        folder = files(Path(root), count)
        model = classifier(folder.classes)
        batches = [batch["image"] for batch in loader(ImageDataset(folder, model.preprocess), BATCH, 0)]
        inputs = [model.normalize(batch) for batch in batches]
        candidates: dict[str, tuple[Callable[[], object], int]] = {
            "plain forward passes (floor)": (lambda: floor(model, inputs), VERSIONS)
        }
        for fill in ("black", "blur"):
            evaluate = lambda fill=fill: faithfulness(model, folder, ["free"], fill=fill, batch_size=BATCH)  # noqa: E731
            candidates[f"clearhead faithfulness, {fill}"] = evaluate, VERSIONS
        random = randomised(model)
        both = lambda: [explain(m, batch) for batch in batches for m in (model, random)]  # noqa: E731
        candidates["GAE maps of both models, apart"] = both, VERSIONS
        try:
            candidates["Quantus PixelFlipping, both ways"] = quantus_pixel_flipping(model, inputs), 2 * QUANTUS_STEPS
        except ImportError:
            print("Quantus is not installed: its row is left out\n")
        black = candidates["clearhead faithfulness, black"][0]
        within = by_its_passes(model, black)
        times = seconds({name: function for name, (function, _) in candidates.items()}, rounds)
    unit = times["plain forward passes (floor)"] / VERSIONS
    print(f"| {count} images | s | ms per changed image | ratio to the floor |\n|---|---|---|---|")
    for name, (_, versions) in candidates.items():
        each = times[name] / versions
        print(f"| {name} | {times[name]:.2f} | {1000 * each / count:.2f} | {each / unit:.3f} |")
    print(f"\nThe evaluation with black takes {within:.3f} times as long as its own passes of the model.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    main(options.images, options.rounds)
