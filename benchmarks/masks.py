"""Measure the time of masks relative to the model's forward pass, and their IoU with true masks.

    python benchmarks/masks.py                                         speed, random weights suffice
    python benchmarks/masks.py --model timm:NAME@FILE --data FOLDER    overlap with the true masks of FOLDER

Speed: 100 images of 224 px through DeiT-Tiny. The floor is the forward pass, 2.5 GFLOP per image, which every mask
needs; on top come the cosines of 12 layers, 2 x 12 x 196² x 192 = 0.18 GFLOP, and three graphs (tau and its two
neighbours) of 196 nodes, each some 20 products with 4 vectors in float64, 2 x 20 x 196² x 4 = 6 MFLOP, and as much for
orthogonal bases. The target is twice the forward pass. The peer is the dense solver, whose cost grows with N³.

Overlap: images are divided into two halves, every other one; settings are chosen on the first, reported for the second.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import clearhead  # noqa: F401  (before timm and torchvision)

# isort: split
import numpy as np
import torch
from timing import seconds, table
from torch import Tensor

from clearhead.data.folder import read_folder
from clearhead.data.image_io import load_mask
from clearhead.data.loading import ImageDataset, loader
from clearhead.masks import Limits, write_masks
from clearhead.masks.tokencut import TAU, affinity, cut, iou, second_eigenvector, similarity
from clearhead.metrics.statistics import format_interval, format_value, mean
from clearhead.models import Classifier, load_model


def dense(weights: Tensor) -> Tensor:
    """Return the second smallest generalised eigenvector by a full decomposition."""
    root = weights.sum(-1).sqrt()
    return torch.linalg.eigh(weights / (root[..., :, None] * root[..., None, :])).eigenvectors[..., -2] / root


def speed(model: Classifier, pixels: Tensor, rounds: int) -> None:
    assert model.grid is not None
    grid, batches = model.grid, pixels.split(25)
    inputs = model.normalize(pixels).split(25)

    @torch.no_grad()
    def forward() -> None:
        for batch in inputs:
            model.module(batch)

    cosines = torch.cat([similarity(model, batch) for batch in batches])
    weights = affinity(cosines)
    candidates = {
        "forward": forward,
        "masks": lambda: [cut(similarity(model, batch), grid) for batch in batches],
        "similarity (forward included)": lambda: [similarity(model, batch) for batch in batches],
        "cut alone (three graphs)": lambda: cut(cosines, grid),
        "one graph": lambda: second_eigenvector(weights),
        "one graph, dense": lambda: dense(weights),
    }
    table(seconds(candidates, rounds), "forward", len(pixels))


def overlaps(model: Classifier, data: Path, batch_size: int) -> None:
    """Print the IoU of patches with true masks for layers, sides and taus, and of what `write_masks` writes."""
    assert model.grid is not None
    folder = read_folder(data)
    first_half = {sample.file for sample in folder.samples[::2]}
    folder = replace(folder, samples=tuple(sample for sample in folder.samples if sample.mask))
    first = np.array([sample.file in first_half for sample in folder.samples])
    whole = replace(model.preprocess, resize=model.preprocess.size, crop_mode="squash")
    similarities = {None: [], (-1,): []}
    for batch in loader(ImageDataset(folder, whole), batch_size, 0):
        for layers, batches in similarities.items():
            batches.append(similarity(model, batch["image"], layers))
    size = model.grid.width * 8, model.grid.height * 8
    true = [np.asarray(load_mask(sample.mask).resize(size)) > 0 for sample in folder.samples if sample.mask]
    print(f"{len(true)} images with masks; patches at {size[0]} x {size[1]}\n")
    print("| layers | object's side | tau | IoU, first half | IoU, second half |\n|---|---|---|---|---|")
    for layers, batches in similarities.items():
        for side in ("strongest", "inside"):
            for tau in (0.2, 0.3, 0.4):
                cuts = cut(torch.cat(batches), model.grid, tau, side)
                values = np.array(
                    [iou(np.kron(c.mask, np.ones((8, 8), bool)), t) for c, t in zip(cuts, true, strict=True)]
                )
                halves = " | ".join(_format(half) for half in (values[first], values[~first]))
                print(f"| {'all' if layers is None else 'last'} | {side} | {tau} | {halves} |", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        second = Path(temporary) / "second half"
        for sample in (sample for sample, chosen in zip(folder.samples, first, strict=True) if not chosen):
            assert sample.mask is not None
            for path, target in (
                (sample.path, second / sample.file),
                (sample.mask, second / "masks" / Path(sample.file).with_suffix(".png")),
            ):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(path.resolve())
        done = write_masks(second, Path(temporary) / "out", model, batch_size=batch_size)
    print(f"\nSecond half as written (tau {TAU}, {Limits()}): ", end="")
    print(f"{done.masks} of {done.images} saved, dropped {done.dropped}\n")
    print("| IoU with true masks | mean |\n|---|---|")
    for name, estimate in (
        ("patches", done.patch_iou),
        ("refined", done.all_iou),
        ("refined and saved", done.saved_iou),
    ):
        assert estimate is not None
        print(f"| {name} | {format_value(estimate.value)} {format_interval(estimate)} (n = {estimate.count}) |")


def _format(values: np.ndarray) -> str:
    estimate = mean(values)
    return f"{format_value(estimate.value)} {format_interval(estimate)}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="timm:deit_tiny_patch16_224")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.data:
        overlaps(load_model(options.model), options.data, options.batch_size)
    else:
        loaded = load_model(options.model, pretrained="@" in options.model)
        # Smooth noise: between patches that are all similar, or all different, there is nothing to cut.
        noise = torch.nn.functional.interpolate(torch.rand(options.images, 3, 7, 7), size=loaded.preprocess.size)
        speed(loaded, noise, options.rounds)
