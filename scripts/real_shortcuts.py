"""Make the table "Real shortcuts of a real model" of docs/results.md: repairs of a DeiT-Tiny, on other photographs.

    python scripts/real_shortcuts.py --data CLEARHEAD_DATA --out study

Repairs with imagenet-samples (800 photographs train, 200 select), measures every model on nips17 under each change of
the shortcut battery, and writes table.md and table.csv. nips17 is used for nothing else. Run again, it goes on.
"""

import argparse
import csv
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from clearhead.data.folder import read_folder
from clearhead.data.writing import write_metadata
from clearhead.metrics.statistics import mean, proportion
from clearhead.models import load_model
from clearhead.prediction.predict import predict
from clearhead.shifts.shortcuts import SHORTCUTS, Shortcut

WEIGHTS = "models/deit_tiny_patch16_224.safetensors"
REPAIRED = "watermark,background-swapped,background-removed"


def another_watermark(images: torch.Tensor, *_: object) -> torch.Tensor:
    """Draw a Latin text in another font at another position: no repair was trained with it."""
    height, width = images.shape[-2:]
    layer = Image.new("L", (width, height))
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
    font = ImageFont.truetype(file, round(height / 7.5))
    ImageDraw.Draw(layer).text((0.03 * width, 0.7 * height), "PHOTO STOCK", fill=255, font=font)
    opacity = torch.from_numpy(np.asarray(layer, dtype=np.float32) / 255)
    return torch.lerp(images, torch.ones_like(images), 0.6 * opacity)


SHORTCUTS["another-watermark"] = Shortcut(another_watermark, "the absence of text over the image")


@dataclass(frozen=True)
class Row:
    """A repair: the options of ``clearhead repair``, and how many seeds."""

    options: str
    seeds: int = 3


# the seeds' methods have the paper's product of steps and learning rate: 500 images x 50 epochs / 8 x 1e-6
ROWS = {
    "counterfactual": Row(f"--method counterfactual --shortcuts {REPAIRED} --epochs 3 --lr 2e-5 --batch-size 16"),
    "counterfactual, every change": Row("--method counterfactual --epochs 3 --lr 2e-5 --batch-size 16"),
    "background swap": Row("--method background-swap --epochs 3 --lr 2e-5 --batch-size 16", seeds=1),
    "relevance": Row("--method relevance --epochs 3 --lr 1e-5"),
    "GradMask": Row("--method gradmask --background 0.7 --epochs 3 --lr 1e-5", seeds=1),
    "RRR": Row("--method rrr --background 0.07 --epochs 3 --lr 1e-5", seeds=1),
    "heads": Row("--method heads --search importance", seeds=1),
    "AFR": Row("--method afr", seeds=1),
    "JTT": Row("--method jtt --epochs 3 --lr 1e-5", seeds=1),
}


def prepare(data: Path, out: Path, model: str) -> None:
    """Make masks with the model itself (TokenCut), and the split of the training photographs."""
    for name in ("imagenet-samples", "nips17"):
        if not (out / name).exists():
            clearhead("data", "masks", data / name, "--model", model, "--out", out / name)
    if not (out / "imagenet-samples" / "metadata.csv").exists():
        samples = read_folder(out / "imagenet-samples", check=False).samples
        selecting = set(np.random.default_rng(0).choice(len(samples), 200, replace=False).tolist())
        rows = [(sample.file, "val" if i in selecting else "train") for i, sample in enumerate(samples)]
        write_metadata(out / "imagenet-samples", ("file", "split"), rows)


def clearhead(*arguments: object) -> None:
    """Run a command."""
    program = [sys.executable, "-c", "from clearhead.cli import main; main()"]
    subprocess.run([*program, *map(str, arguments)], check=True)


def correct(model: str | Path, images: Path, saved: Path) -> dict[str, NDArray[np.float64]]:
    """Return for each change whether each photograph is predicted correctly: 1, 0, or NaN without a mask."""
    if not saved.exists():
        classifier = load_model(model)
        predictions = predict(classifier, images, shortcuts=list(SHORTCUTS), maps=False)
        values = {"clean": predictions.correct.astype(float)}
        for name, predicted in predictions.interventions.items():
            values[name] = np.where(predicted < 0, np.nan, predicted == predictions.label)
        np.savez(saved, **values)  # type: ignore[arg-type]
    with np.load(saved) as values:
        return {name: values[name] for name in values.files}


def main(data: Path, out: Path, rows: Sequence[str], most_seeds: int) -> None:
    """Masks, repairs, predictions, table."""
    out.mkdir(parents=True, exist_ok=True)
    model = f"timm:deit_tiny_patch16_224@{(data / WEIGHTS).resolve()}"
    prepare(data, out, model)
    before = correct(model, out / "nips17", out / "original.npz")
    names = list(before)
    table = [["", "seeds", *(name.replace("-", " ") for name in names)]]
    table.append(["original model", "", *(_percent(before[name]) for name in names)])
    for row in rows:
        after = []
        for seed in range(min(ROWS[row].seeds, most_seeds)):
            folder = out / f"{row.replace(', ', '-').replace(' ', '-')}-{seed}"
            options = ROWS[row].options.split()
            clearhead("repair", model, out / "imagenet-samples", *options, "--seed", seed, "--out", folder)
            after.append(correct(folder, out / "nips17", folder.with_suffix(".npz")))
        table.append([row, str(len(after)), *(_difference(before[n], [one[n] for one in after]) for n in names)])
        with (out / "table.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(table)
        lines = ["| " + " | ".join(cells) + " |" for cells in table]
        lines.insert(1, "|---" * len(table[0]) + "|")
        (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print("\n".join(lines), flush=True)


def _percent(values: NDArray[np.float64]) -> str:
    seen = values[~np.isnan(values)]
    estimate = proportion(seen == 1)
    return f"{estimate.value:.1%} [{estimate.low:.1%}, {estimate.high:.1%}] n = {len(seen)}"


def _difference(before: NDArray[np.float64], after: list[NDArray[np.float64]]) -> str:
    """Return the difference of accuracy in points, with its interval over photographs and the range over seeds."""
    differences = np.array([one - before for one in after])
    differences = differences[:, ~np.isnan(differences).any(0)]
    estimate, seeds = mean(differences.mean(0)), 100 * differences.mean(1)
    spread = f" ({seeds.min():+.1f} to {seeds.max():+.1f})" if len(after) > 1 else ""
    return f"{100 * estimate.value:+.1f} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]{spread}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("real-shortcuts"))
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3, help="at most this many")
    options = parser.parse_args()
    main(options.data, options.out, options.rows, options.seeds)
