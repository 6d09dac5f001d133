"""Make the table "X-rays with a hospital's marker" of docs/results.md: every repair of a shortcut that a model learned.

    python scripts/learned_shortcut.py --data CLEARHEAD_DATA --out shortcut

A letter, as radiographers put beside the patient, is drawn into the corner of most chest X-rays of pneumonia and of few
normal ones (PneumoniaMNIST: MedMNIST v2, Yang et al. 2023, real images at 28 pixels). In the test split the letter is
in half of the images of each class. A DeiT-Tiny fine-tuned on the X-rays is then repaired by every method, and compared
with itself on the test split, over several seeds. Stopped and started again with the same arguments, it goes on.
"""

import argparse
import csv
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

import clearhead
from clearhead.data.dataset import ImageIndex, group_labels
from clearhead.data.images import read_images
from clearhead.data.splits import train_and_validation
from clearhead.data.writing import new_folder, write_metadata
from clearhead.metrics.statistics import (
    Estimate,
    accuracy_difference,
    by_group,
    format_interval,
    format_value,
    worst_group_difference,
)
from clearhead.metrics.verdict import noninferiority_verdict
from clearhead.models import Classifier
from clearhead.prediction.predict import predict
from clearhead.storage import atomic_path
from clearhead.training.loop import cross_entropy

Array = npt.NDArray[Any]

CLASSES = ("normal", "pneumonia")
LETTER = ("####.", "#...#", "#...#", "####.", "#.#..", "#..#.", "#...#")
CORNER = 9
"""Side of the square in the upper left corner that holds the letter; the masks leave it out."""

SIZE = 48
"""Side of the model's input: 3 x 3 tokens of DeiT-Tiny."""

REPAIR_EPOCHS = 2


def make_data(source: Path, out: Path, *, correlation: float, images: tuple[int, int], seed: int = 0) -> None:
    """Write the X-rays with the letter as a data folder with masks and metadata.csv (file, split, marker).

    Args:
        source: pneumoniamnist.npz.
        out: the new folder.
        correlation: fraction of pneumonia with the letter, and of normal X-rays without it, in training and validation.
        images: training and validation images per class, drawn from MedMNIST's training and validation images; the
            test images are all of MedMNIST's.
        seed: random seed.
    """
    arrays, rng, rows = np.load(source), np.random.default_rng(seed), []
    letter = np.array([[cell == "#" for cell in line] for line in LETTER])
    mask = np.full(arrays["test_images"].shape[1:], 255, np.uint8)
    mask[:CORNER, :CORNER] = 0
    pixels = np.concatenate([arrays["train_images"], arrays["val_images"]])
    labels = np.concatenate([arrays["train_labels"], arrays["val_labels"]])[:, 0]
    with new_folder(out) as folder:
        for label, name in enumerate(CLASSES):
            drawn = rng.permutation(np.flatnonzero(labels == label))[: sum(images)]
            tested = rng.permutation(np.flatnonzero(arrays["test_labels"][:, 0] == label))
            usual = correlation if name == "pneumonia" else 1 - correlation
            for split, numbers, fraction, source_pixels in (
                ("train", drawn[: images[0]], usual, pixels),
                ("val", drawn[images[0] :], usual, pixels),
                ("test", tested, 0.5, arrays["test_images"]),
            ):
                for position, number in enumerate(numbers):
                    marked, xray = position < round(fraction * len(numbers)), source_pixels[number].copy()
                    if marked:
                        xray[1 : 1 + letter.shape[0], 2 : 2 + letter.shape[1]][letter] = 255
                    file = f"{name}/{split}-{number:04d}.png"
                    save_png(folder / file, xray)
                    if split != "test":
                        save_png(folder / "masks" / file, mask)
                    rows.append((file, split, "yes" if marked else "no"))
        write_metadata(folder, ("file", "split", "marker"), sorted(rows))


def save_png(file: Path, pixels: Array) -> None:
    """Save grey pixels, H x W."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


@dataclass(frozen=True)
class Attempt:
    """One row of the table.

    Attributes:
        needs: what a user must have for it.
        method: a name of ``clearhead.repairs.REPAIRS``; None is plain training for as many further steps.
        tags: number of tagged images.
        split: the split they are drawn from.
        half_by_loss: whether half of them have the highest loss of their class; else all are drawn at random.
        groups: whether the marker of every training and validation image is known.
        options: of the method.
    """

    needs: str
    method: str | None
    tags: int = 0
    split: str = "val"
    half_by_loss: bool = True
    groups: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


BATTERY = "sticker", "date-stamp", "watermark"
"""The changes of the battery that resemble a letter in a corner."""

ATTEMPTS = {
    "DFR": Attempt("80 tags", "dfr", 80),
    "DFR, tags at random": Attempt("80 tags", "dfr", 80, half_by_loss=False),
    "DFR, tags of training images": Attempt("80 tags", "dfr", 80, split="train"),
    "DFR, fewer tags": Attempt("40 tags", "dfr", 40),
    "DFR, more tags": Attempt("160 tags", "dfr", 160),
    "group DRO": Attempt("80 tags", "groupdro", 80),
    "reweighting": Attempt("80 tags", "reweight", 80),
    "heads": Attempt("80 tags", "heads", 80),
    "DFR, all groups": Attempt("all groups", "dfr", groups=True),
    "group DRO, all groups": Attempt("all groups", "groupdro", groups=True),
    "reweighting, all groups": Attempt("all groups", "reweight", groups=True),
    "heads, all groups": Attempt("all groups", "heads", groups=True),
    "background swap": Attempt("masks", "background-swap"),
    "relevance": Attempt("masks", "relevance"),
    "relevance, background swap": Attempt("masks", "relevance", options={"target": "truth", "background_swap": 0.5}),
    "GradMask": Attempt("masks", "gradmask"),
    "RRR": Attempt("masks", "rrr"),
    "counterfactual": Attempt("battery", "counterfactual", options={"shortcuts": BATTERY}),
    "AFR": Attempt("nothing", "afr"),
    "JTT": Attempt("nothing", "jtt"),
    "plain training": Attempt("nothing", None),
}


def fine_tuned(
    name: str, train: ImageIndex, validation: ImageIndex, folder: Path, epochs: int, seed: int
) -> Classifier:
    """Return the model fine-tuned on the X-rays, from `folder` where it was saved before."""
    if not (folder / "checkpoint").exists():
        torch.manual_seed(seed)  # of the new classifier head
        model = clearhead.load_model(name, num_classes=len(CLASSES), classes=CLASSES, image_size=SIZE)
        config = configuration(epochs, seed)
        model, _ = clearhead.fit(model, cross_entropy, train, validation, config, folder / "state", group_columns=[])
        clearhead.save_model(model, folder / "checkpoint")
    return clearhead.load_model(folder / "checkpoint")


def configuration(epochs: int, seed: int) -> clearhead.TrainConfig:
    """Return how everything is trained. No crops: they would cut the letter off."""
    return clearhead.TrainConfig(epochs, lr=1e-4, batch_size=16, augment="none", seed=seed)


def write_tags(model: Classifier, images: ImageIndex, count: int, half_by_loss: bool, file: Path, seed: int) -> None:
    """Write a tags file of `count` images, half with the highest loss of their class or none, the others at random.

    The tags are the known markers; a user looks at the images.
    """
    loss, label = predict(model, images, batch_size=100).loss, np.array([s.label for s in images.samples])
    drawn: list[int] = []
    for number in range(len(CLASSES) if half_by_loss else 0):
        members = np.flatnonzero(label == number)
        drawn += members[(-loss[members]).argsort(kind="stable")][: count // (2 * len(CLASSES))].tolist()
    others = np.setdiff1d(np.arange(len(label)), drawn)
    drawn += np.random.default_rng(seed).choice(others, count - len(drawn), replace=False).tolist()
    with atomic_path(file) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as opened:
        rows = [(images.samples[i].file, images.samples[i].groups["marker"]) for i in sorted(drawn)]
        csv.writer(opened).writerows([("file", "tag"), *rows])


def attempt(
    row: Attempt, model: Classifier, train: ImageIndex, validation: ImageIndex, folder: Path, seed: int
) -> Classifier:
    """Return the repaired model; the original one where the tags do not suffice."""
    config = configuration(REPAIR_EPOCHS, seed)
    if row.needs != "masks":  # otherwise they would be loaded in vain
        train, validation = (
            replace(index, samples=tuple(replace(s, mask=None) for s in index.samples)) for index in (train, validation)
        )
    if row.method is None:
        return clearhead.fit(model, cross_entropy, train, validation, config, group_columns=[])[0]
    arguments: dict[str, Any] = {"group_columns": ["marker"] if row.groups else []}
    if row.tags:
        arguments = {"tags": folder / f"tags-{row.split}-{row.tags}-{'loss' if row.half_by_loss else 'random'}.csv"}
        images = {"train": train, "val": validation}[row.split]
        write_tags(model, images, row.tags, row.half_by_loss, arguments["tags"], seed)
    arguments |= {"method": row.method, "config": config, **row.options}
    try:
        return clearhead.repair(model, train, validation, **arguments)[0]
    except clearhead.ClearheadError as error:
        print(f"{error}; the original model is kept", flush=True)
        return model


@dataclass(frozen=True)
class Outcome:
    """One model on the test images of its seed.

    Attributes:
        correct: whether each prediction is correct.
        seconds: of processor time that the repair took.
    """

    correct: Array
    seconds: float


def outcome(make: Callable[[], Classifier], test: ImageIndex, file: Path) -> Outcome:
    """Make a model and test it, or read from `file` how that went before."""
    if not file.exists():
        started = time.process_time()
        model = make()
        seconds = time.process_time() - started
        correct = predict(model, test, batch_size=100).correct
        with atomic_path(file) as unfinished, unfinished.open("wb") as opened:
            np.savez(opened, correct=correct, seconds=seconds)
    saved = np.load(file)
    return Outcome(saved["correct"], float(saved["seconds"]))


def run_seed(options: argparse.Namespace, model_name: str, seed: int) -> tuple[dict[str, Outcome], Array]:
    """Return the outcome of each row with data, model and tags of one seed, the original first; and the groups."""
    folder = options.out / f"seed-{seed}"
    if not (folder / "data").exists():
        make_data(
            options.data / "pneumoniamnist/pneumoniamnist.npz",
            folder / "data",
            correlation=options.correlation,
            images=options.images,
            seed=seed,
        )
    train, validation = train_and_validation(folder / "data", classes=CLASSES)
    test = read_images(folder / "data", split="test", classes=CLASSES)

    def original() -> Classifier:
        return fine_tuned(model_name, train, validation, folder, options.epochs, seed)

    outcomes = {"original model": outcome(original, test, folder / "original model.npz")}
    for name in options.rows:
        repaired = partial(attempt, ATTEMPTS[name], original(), train, validation, folder, seed)
        outcomes[name] = outcome(repaired, test, folder / f"{name}.npz")
        print(f"seed {seed}: {name} {format_groups(outcomes[name].correct, group_labels(test, None))}", flush=True)
    return outcomes, np.array(group_labels(test, None))


def format_groups(correct: Array, groups: Sequence[str]) -> str:
    """Return the accuracy of each group."""
    return ", ".join(f"{name}: {format_value(e.value, '%')}" for name, e in by_group(correct, groups).items())


def table(seeds: Sequence[tuple[dict[str, Outcome], Array]]) -> str:
    """Return the table: means and standard deviations over the seeds, and paired differences from the original."""
    lines = [
        "| repair | needs | worst group | average | worst group, difference by seed | average, lowest difference "
        "| marker as in training, lowest difference | improved | CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in seeds[0][0]:
        rows = [(outcomes["original model"].correct, outcomes[name].correct, groups) for outcomes, groups in seeds]
        worst = [min(e.value for e in by_group(now, groups).values()) for _, now, groups in rows]
        average = [float(now.mean()) for _, now, _ in rows]
        seconds = np.mean([outcomes[name].seconds for outcomes, _ in seeds])
        cells = [name, ATTEMPTS[name].needs if name in ATTEMPTS else "", spread(worst), spread(average)]
        if name in ATTEMPTS:
            by_worst = [worst_group_difference(*row) for row in rows]
            by_average = [accuracy_difference(was, now) for was, now, _ in rows]
            usual = [accuracy_difference(was[as_trained(g)], now[as_trained(g)]) for was, now, g in rows]
            verdicts = [
                noninferiority_verdict({"worst-group accuracy": w, "average accuracy": a}).word
                for w, a in zip(by_worst, by_average, strict=True)
            ]
            cells += ["; ".join(map(formatted, by_worst)), lowest(by_average), lowest(usual)]
            cells += [f"{verdicts.count('improved')} of {len(verdicts)}"]
        else:
            cells += [""] * 4
        lines.append(f"| {' | '.join([*cells, f'{seconds:.0f}'])} |")
    return "\n".join(lines)


def as_trained(groups: Array) -> Array:
    """Return which images have the letter if and only if they show pneumonia: N, bool."""
    return np.isin(groups, [f"class={name}, marker={mark}" for name, mark in zip(CLASSES, ("no", "yes"), strict=True)])


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation of percentages."""
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=min(1, len(values) - 1)):.1f}%"


def lowest(differences: Sequence[Estimate]) -> str:
    """Return the lowest difference."""
    return formatted(min(differences, key=lambda difference: difference.value))


def formatted(difference: Estimate) -> str:
    """Return a difference with its interval."""
    return f"{format_value(difference.value, 'pp')} {format_interval(difference)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all rows of all seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("CLEARHEAD_DATA")
    parser.add_argument("--data", type=Path, default=data, required=data is None, help="default: CLEARHEAD_DATA")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--model", help="default: DeiT-Tiny in models/ of the data folder")
    parser.add_argument("--images", type=int, nargs=2, default=(400, 250), help="per class: training, validation")
    parser.add_argument("--correlation", type=float, default=0.97)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rows", nargs="*", choices=list(ATTEMPTS), default=list(ATTEMPTS), metavar="NAME")
    options = parser.parse_args(arguments)
    weights = (options.data / "models/deit_tiny_patch16_224.safetensors").resolve()
    model = options.model or f"timm:deit_tiny_patch16_224@{weights}"
    result = table([run_seed(options, model, seed) for seed in options.seeds])
    print(result)
    (options.out / "table.md").write_text(result + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
