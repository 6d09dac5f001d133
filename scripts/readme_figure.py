"""Draw README's figure: photographs with a watermark, before and after the repair of a DeiT-Tiny.

    python scripts/readme_figure.py --data CLEARHEAD_DATA --repaired study/counterfactual-0 --out docs/repair.jpg

The photographs are examples from nips17 that the original model classifies correctly without the watermark, and the
repaired one with it. How often the repair helps is in docs/results.md.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

import clearhead
from clearhead.attribution.visualize import overlay
from clearhead.data.folder import read_folder
from clearhead.data.image_io import load_image
from clearhead.models import Classifier, load_model
from clearhead.models.preprocessing import to_uint8
from clearhead.report.sheet import colour_bar
from clearhead.shifts.shortcuts import SHORTCUTS

METHOD = "gae"  # faithful to this model: docs/results.md


def watermarked(model: Classifier, file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a photograph as the model sees it, without and with the watermark, 1 x 3 x H x W each."""
    clean = model.preprocess.image(load_image(file))[None]
    return clean, SHORTCUTS["watermark"].change(clean, torch.zeros_like(clean[:, :1]), model.preprocess.mean)


def candidates(before: Classifier, after: Classifier, data: Path) -> list[tuple[str, int]]:
    """Return file and class of the photographs that the repair corrects under the watermark."""
    corrected = []
    for sample in read_folder(data, classes=before.classes, check=False).samples:
        with torch.inference_mode():
            clean, marked = watermarked(before, sample.image_file)
            guesses = [int(m(x).argmax()) for m, x in ((before, clean), (before, marked), (after, marked))]
        if guesses[0] == guesses[2] == sample.label != guesses[1]:
            corrected.append((sample.file, sample.label))
    return corrected


def draw(before: Classifier, after: Classifier, data: Path, files: list[str]) -> Figure:
    """Return the figure: a column per photograph; the image, the map before, the map after."""
    figure = Figure(figsize=(2.5 * len(files) + 0.7, 7.9), layout="constrained")
    axes = figure.subplots(3, len(files), squeeze=False)
    samples = {s.file: s for s in read_folder(data, classes=before.classes, check=False).samples}
    for column, file in enumerate(files):
        _, marked = watermarked(before, samples[file].image_file)
        label = samples[file].label
        photograph = to_uint8(marked[0])
        cells = [(photograph, before.classes[label], "black")]
        for model in (before, after):
            maps, logits = clearhead.attribution.explain_with_logits(model, marked, method=METHOD)
            share, guess = logits.softmax(-1).max(-1)
            mark, colour = ("✓", "#1a7f37") if guess == label else ("✗", "#c62828")
            text = f"{mark} {before.classes[int(guess)]} {share.item():.0%}"
            cells.append((overlay(photograph, maps[0]), text, colour))
        for row, (pixels, title, colour) in enumerate(cells):
            axis = axes[row, column]
            axis.imshow(pixels)
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            axis.set_title(title, fontsize=11, color=colour, pad=4)
    for axis, text in zip(axes[:, 0], ("photograph, watermarked", "original model", "repaired model"), strict=True):
        axis.set_ylabel(text, fontsize=11)
    colours = ListedColormap((colour_bar(256, 1)[::-1, 0] / 255).tolist())
    figure.colorbar(ScalarMappable(cmap=colours), ax=axes, label="relevance, scaled to 0..1 per map", shrink=0.5)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--repaired", type=Path, required=True)
    parser.add_argument("--files", nargs="*", help="photographs to draw; without, the candidates are listed")
    parser.add_argument("--out", type=Path, default=Path("docs/repair.jpg"))
    options = parser.parse_args()
    weights = (options.data / "models/deit_tiny_patch16_224.safetensors").resolve()
    original, repaired = load_model(f"timm:deit_tiny_patch16_224@{weights}"), load_model(options.repaired)
    if options.files:
        draw(original, repaired, options.data / "nips17", options.files).savefig(options.out, dpi=90)
    else:
        print(
            *(
                f"{file} {original.classes[label]}"
                for file, label in candidates(original, repaired, options.data / "nips17")
            ),
            sep="\n",
        )
