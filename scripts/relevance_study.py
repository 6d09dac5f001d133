"""Make the table "Masks by the model itself" of docs/results.md: repairs with TokenCut masks on shifted photographs.

    python scripts/relevance_study.py --data CLEARHEAD_DATA --out study

Makes masks for imagenet-samples (to train on) and nips17 (to measure by), shifted copies of nips17, a plan, and runs it
(``clearhead study repairs``). DeiT-Tiny; 500 classes train, the others choose the epoch; three class seeds.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from PIL import Image

from clearhead.data.folder import read_folder
from clearhead.data.image_io import load_image

WEIGHTS = "models/deit_tiny_patch16_224.safetensors"
METHODS = {
    "relevance": {"method": "relevance"},
    # weights that make the penalty as large as the cross-entropy on 16 of the training images
    "GradMask": {"method": "gradmask", "background": 0.7},
    "RRR": {"method": "rrr", "background": 0.07},
    "fine-tuning": {"method": "train"},
}
SHIFTS = ("noise", "blur", "JPEG", "occlusion")


def shifted(source: Path, out: Path, name: str) -> None:
    """A copy of a folder of images with one shift; the same every time."""
    from torchvision.transforms import v2

    if out.exists():
        return
    shift = {
        "noise": v2.GaussianNoise(sigma=0.2),
        "blur": v2.GaussianBlur(15, sigma=3.0),
        "JPEG": v2.JPEG(8),
        "occlusion": v2.RandomErasing(p=1.0, scale=(0.2, 0.2), ratio=(1.0, 1.0), value=0),
    }[name]
    torch.manual_seed(0)
    for sample in read_folder(source, check=False).samples:
        pixels = v2.functional.to_image(load_image(sample.path))
        if name != "JPEG":
            pixels = v2.functional.to_dtype(pixels, torch.float32, scale=True)
        changed = v2.functional.to_dtype(shift(pixels), torch.uint8, scale=True)
        file = (out / sample.file).with_suffix(".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(changed.permute(1, 2, 0).numpy()).save(file, compress_level=1)


def main(data: Path, out: Path, epochs: int, lr: float, shifts: list[str], seeds: int) -> None:
    """Masks, shifted sets, the plan, the study."""
    model = f"timm:deit_tiny_patch16_224@{(data / WEIGHTS).resolve()}"
    clearhead = [sys.executable, "-c", "from clearhead.cli import main; main()"]
    for name in ("imagenet-samples", "nips17"):
        if not (out / name).exists():
            subprocess.run(
                [*clearhead, "data", "masks", data / name, "--model", model, "--out", out / name], check=True
            )
    for name in shifts:
        shifted(data / "nips17", out / f"nips17-{name}", name)
    tests = {"nips17": "nips17"} | {name: f"nips17-{name}" for name in shifts}
    plan = {"model": model, "data": "imagenet-samples", "tests": tests, "methods": METHODS, "samples": 1}
    plan |= {"classes": 500, "seeds": list(range(seeds)), "validation": 200, "epochs": epochs, "lr": lr}
    (out / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
    subprocess.run(
        [*clearhead, "study", "repairs", out / "plan.yaml", "--out", out / "runs", "--jobs", "2"], check=True
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("relevance-study"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--shifts", nargs="*", default=list(SHIFTS), choices=SHIFTS)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    main(options.data, options.out, options.epochs, options.lr, options.shifts, options.seeds)
