"""Measure how many tags the demo's model needs: worst-group accuracy after DFR on images tagged by known backgrounds.

Usage: python scripts/tag_demo.py DEMO (the folder data/ of a finished demo). Prints a line per number of tags.
"""

import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from clearhead.analyses.tag import propose
from clearhead.data.dataset import ImageIndex, group_labels
from clearhead.data.images import read_images
from clearhead.data.tags import TaggedFile, write_tags
from clearhead.demo.data import USUAL_BACKGROUND
from clearhead.demo.run import MODEL
from clearhead.errors import ClearheadError
from clearhead.models import Classifier, load_model
from clearhead.prediction.predict import logits_of
from clearhead.repairs import repair


def worst_group(model: Classifier, index: ImageIndex) -> float:
    """Return the accuracy of the worst group of class and background."""
    groups = np.array(group_labels(index, ["background"]))
    labels = np.array([sample.label for sample in index.samples])
    correct = logits_of(model, index, 100).argmax(1) == labels
    return min(float(correct[groups == group].mean()) for group in np.unique(groups))


def after_tags(
    model: Classifier, splits: Sequence[ImageIndex], chosen: Sequence[int], values: Sequence[str]
) -> float | None:
    """Return the worst group's test accuracy after DFR on the tagged training images; None where they are too few."""
    train, validation, test = splits
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tags.csv"
        write_tags(file, [TaggedFile(train.samples[i].file, values[i]) for i in chosen])
        try:
            return worst_group(repair(model, train, validation, method="dfr", tags=file)[0], test)
        except ClearheadError:
            return None


def main(data: str) -> None:
    """Print the worst-group accuracies over five seeds, for proposed and for random images."""
    warnings.filterwarnings("ignore", ".*one training image")
    model = load_model(str(MODEL))
    splits = [read_images(data, split=split, classes=model.classes) for split in ("train", "val", "test")]
    samples = splits[0].samples
    labels = np.array([sample.label for sample in samples])
    logits = torch.from_numpy(logits_of(model, splits[0], 100))
    losses = F.cross_entropy(logits, torch.from_numpy(labels), reduction="none").numpy()
    backgrounds = [sample.groups["background"] for sample in samples]
    usual = [USUAL_BACKGROUND[model.classes[label]] for label in labels]
    two = ["with" if a == b else "without" for a, b in zip(backgrounds, usual, strict=True)]
    print(f"before: {worst_group(model, splits[2]):.1%}")
    for name, values in (("with or without", two), ("the background", backgrounds)):
        for count in (40, 80, 160):
            for chance in (False, True):
                reached = []
                for seed in range(5):
                    if chance:
                        chosen = np.random.default_rng(seed).permutation(len(samples))[:count].tolist()
                    else:
                        chosen = [i for half in propose(losses, labels, count, seed) for i in half]
                    reached.append(after_tags(model, splits, chosen, values))
                cells = ", ".join("too few" if value is None else f"{value:.1%}" for value in reached)
                print(f"tag {name}, {count} {'random' if chance else 'proposed'} images: {cells}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
