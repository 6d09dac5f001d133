"""Make the table "Real shortcuts of a real model" of docs/results.md: repairs of a DeiT-Tiny, on other photographs.

    python scripts/real_shortcuts.py --data CLEARHEAD_DATA --out study

Repairs with imagenet-samples (800 photographs train, 200 select), measures every model on nips17 under each change of
the shortcut battery, and writes table.md and table.csv. nips17 is used for nothing else. Run again, it goes on.
"""

import argparse
import csv
import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from clearhead.data.folder import read_folder
from clearhead.data.writing import write_metadata
from clearhead.metrics.statistics import mean, proportion
from clearhead.models import load_model, save_model
from clearhead.prediction.predict import predict
from clearhead.repairs import default_config, repair
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
    """A repair: a key of ``REPAIRS``, how it trains, its options, and how many seeds."""

    method: str
    config: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    seeds: int = 1


SHORTLY = {"epochs": 3, "lr": 2e-5, "batch_size": 16, "schedule": "cosine", "min_crop_area": 0.5}
AS_PUBLISHED = {"epochs": 3, "lr": 1e-5}
"""The paper's product of steps and learning rate: 500 images, 50 epochs at 1e-6, 8 images per step."""

ROWS = {
    "counterfactual": Row(
        "counterfactual", SHORTLY, {"shortcuts": ["watermark", "background-swapped", "background-removed"]}, seeds=3
    ),
    "counterfactual, every change": Row("counterfactual", SHORTLY),
    "background swap": Row("background-swap", SHORTLY),
    "relevance": Row("relevance", AS_PUBLISHED),
    "GradMask": Row("gradmask", AS_PUBLISHED, {"background": 0.7}),
    "RRR": Row("rrr", AS_PUBLISHED, {"background": 0.07}),
    "heads": Row("heads", options={"search": "importance"}),
    "AFR": Row("afr"),
    "JTT": Row("jtt", AS_PUBLISHED),
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


def repaired(model: str, images: Path, row: Row, seed: int, folder: Path) -> None:
    """Repair the model and save the checkpoint."""
    original, started = load_model(model), time.monotonic()
    train, validation = (read_folder(images, split=split, classes=original.classes) for split in ("train", "val"))
    config = replace(default_config(), seed=seed, **row.config)
    changed, outcome = repair(
        original, train, validation, method=row.method, config=config, state=folder / "state", **row.options
    )
    save_model(changed, folder / "checkpoint")
    print(f"{folder.name}: {time.monotonic() - started:.0f} s, interpolation {outcome.interpolation}", flush=True)


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
            if not (folder / "checkpoint").exists():
                repaired(model, out / "imagenet-samples", ROWS[row], seed, folder)
            after.append(correct(folder / "checkpoint", out / "nips17", folder.with_suffix(".npz")))
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
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main(options.data, options.out, options.rows, options.seeds)
