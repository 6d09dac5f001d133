"""How vision transformers work (Park & Kim, arXiv 2202.06709): its figures on CIFAR, and which of its claims hold.

The models are trained alike on parts of the images that are written to `out`/data, then each instrument is run on all
of them: every piece is a run folder with its page, and is not done twice. A claim is judged by the interval of a
difference: it holds where the whole interval lies on the claimed side of zero, and does not where it lies on the other.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow
import pyarrow.parquet
from scipy.stats import t

from clearhead import workflows
from clearhead.data.folder import ImageFolder
from clearhead.data.pixels import DataError, load_image
from clearhead.data.shards import read_images
from clearhead.data.splits import hold_out, part_of, splits_of
from clearhead.evaluate.statistics import Estimate, apart, interval, number
from clearhead.recipe import Settings
from clearhead.results import (
    AuditResults,
    ComparisonResults,
    FourierResults,
    SpectrumResults,
    SuiteResults,
)
from clearhead.runs import begin, write_results

Track = Callable[[Iterable, int, str], Iterable]

SPECTRA, MAPS, LESIONS, NOISE = "hessian", "fourier", "lesion", "noise"


@dataclass(frozen=True)
class Size:
    """What is run.

    Attributes:
        models: by the names of the table; those of ``ROLES`` are needed.
        settings: how all are trained.
        early: the epoch whose spectrum is taken beside that of the last one.
        train, validation, test: images of each, all there are where None.
        fractions: of the training images, for the ViT and the ResNet.
        batches: of 16 images, for a spectrum.
        probed: test images for feature maps and lesions.
    """

    models: dict[str, str]
    settings: Settings
    early: int
    train: int | None
    validation: int
    test: int | None
    fractions: tuple[float, ...]
    batches: int
    probed: int


SIZES = {
    "small": Size(
        {
            "resnet": "zoo:preact_resnet_mini_32",
            "vit-cls": "zoo:vit_mini_patch4_32",
            "vit-gap": "zoo:vit_mini_patch4_gap_32",
            "vit-window": "zoo:vit_mini_patch4_window_32,window=5",
            "alternet": "zoo:alternet_mini_32",
        },
        Settings(epochs=15, lr=1e-3, batch_size=64, weight_decay=0.05, augment="weak", clip=5.0, warmup=2),
        early=2,
        train=3000,
        validation=1000,
        test=2000,
        fractions=(0.3, 0.1),
        batches=8,
        probed=256,
    ),
    "paper": Size(
        {
            "resnet": "zoo:preact_resnet50_32,drop_path_rate=0.1",
            "vit-cls": "zoo:vit_tiny_patch2_32,drop_path_rate=0.1",
            "vit-gap": "zoo:vit_tiny_patch2_gap_32,drop_path_rate=0.1",
            "vit-window": "zoo:vit_tiny_patch2_window_32,window=5,drop_path_rate=0.1",
            "alternet": "zoo:alternet50_32,drop_path_rate=0.1",
        },
        Settings(
            epochs=305,
            lr=1.25e-4,
            batch_size=96,
            weight_decay=0.05,
            augment="strong",
            label_smoothing=0.1,
            mixup=1.0,
            cutmix=0.8,
            clip=5.0,
            warmup=5,
        ),
        early=5,
        train=None,
        validation=5000,
        test=None,
        fractions=(0.3, 0.1, 0.03),
        batches=64,
        probed=1024,
    ),
}
"""``small`` is for a CPU, with models of half a million parameters; ``paper`` has those of the paper and its recipe."""


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, the difference that it is judged by, and on which side of zero it should lie."""

    says: str
    measured: str
    difference: Estimate
    sign: Literal[-1, 1]
    verdict: str = field(init=False)

    def __post_init__(self) -> None:
        low, high = sorted((self.sign * self.difference.low, self.sign * self.difference.high))
        word = "holds" if low > 0 else "does not hold" if high < 0 else "cannot tell"
        object.__setattr__(self, "verdict", word)


def reproduce(
    out: Path,
    cifar: str | Path,
    *,
    size: str = "small",
    epochs: int | None = None,
    train: int | None = None,
    seed: int = 0,
    device: str | None = None,
    track: Track | None = None,
) -> str:
    """Do what is not done yet below `out`, and give the tables (Markdown).

    Args:
        out: folder of the runs.
        cifar: CIFAR-10 or CIFAR-100, as ``read_images`` takes it, with the splits train and test.
        size: of ``SIZES``.
        epochs: in place of the size's.
        train: training images in place of the size's.
        seed: of the images drawn, the weights and the order.
        device: where to train and measure.
        track: shows progress: ``track(pieces, count, title)``.

    Raises:
        DataError: for data without these splits, or with fewer images.
        ValueError: for another size, or no epochs after the warm-up.
    """
    if size not in SIZES:
        raise ValueError(f"size: {size!r} is unknown; there is {', '.join(SIZES)}")
    chosen = SIZES[size]
    if epochs is not None and epochs <= chosen.early:
        raise ValueError(f"epochs: got {epochs}; more than {chosen.early} are needed, the warm-up")
    chosen = replace(chosen, train=train or chosen.train)
    chosen = replace(chosen, settings=replace(chosen.settings, epochs=epochs or chosen.settings.epochs, seed=seed))
    data = _parts(out / "data", cifar, chosen, seed)
    run: dict[str, Any] = {"device": device, "track": track}
    last = chosen.settings.epochs
    trained = {name: (model, "100") for name, model in chosen.models.items()}
    for percent in [f"{100 * fraction:g}" for fraction in chosen.fractions]:
        trained |= {f"{name}-{percent}": (chosen.models[name], percent) for name in ("resnet", "vit-gap")}
    for name, (model, percent) in trained.items():
        keep = (chosen.early, last) if percent == "100" else (last,)
        arguments: dict[str, Any] = {"pretrained": False, "keep": keep, **run}
        workflows.run_train(model, data / percent, out / name, chosen.settings, **arguments)
    runs = [out / name for name in chosen.models]
    checkpoints = [str(folder / "checkpoint") for folder in runs]
    snapshots = [str(folder / "epochs" / str(epoch)) for folder in runs for epoch in (chosen.early, last)]
    spectra = workflows.run_hessian(
        snapshots, data / "100", out / SPECTRA, split="train", batches=chosen.batches, seed=seed, **run
    )
    options: dict[str, Any] = {"split": "test", "images": chosen.probed, "seed": seed, **run}
    maps = workflows.run_fourier(checkpoints, data / "100", out / MAPS, **options)
    workflows.run_lesion(checkpoints, data / "100", out / LESIONS, **options)
    noise = workflows.run_suite(checkpoints, ["frequency-noise"], data / "100", out / NOISE, split="test", **run)
    # how well training fits is told by its end: the epoch that is kept was chosen not to overfit
    places = {"train": f"epochs/{last}", "test": "checkpoint"}
    audits = {
        (name, split): workflows.run_audit(
            str(out / name / place), data / percent, out / f"{name}-on-{split}", split=split, **run
        )
        for name, (_, percent) in trained.items()
        for split, place in places.items()
    }
    smallest = f"{100 * min(chosen.fractions):g}"
    pairs = [("vit-cls", "vit-gap"), ("resnet", "alternet"), ("vit-gap", f"vit-gap-{smallest}")]
    against = {
        (before, after): workflows.run_compare(
            str(out / before / "checkpoint"),
            str(out / after / "checkpoint"),
            data / "100",
            out / f"{before}-against-{after}",
            split="test",
            **run,
        )
        for before, after in pairs
    }
    found = _Found(spectra, maps, noise, audits, against, chosen.early, last, smallest)
    told = f"Weight decay adds {chosen.settings.weight_decay:g} to every eigenvalue, left out here."
    return "\n".join([_table(found, list(trained)), told, "", _noise_table(noise), _claims_table(claims(found))])


@dataclass(frozen=True)
class _Found:
    """All that was measured."""

    spectra: SpectrumResults
    maps: FourierResults
    noise: SuiteResults
    audits: dict[tuple[str, str], AuditResults]
    against: dict[tuple[str, str], ComparisonResults]
    early: int
    last: int
    smallest: str

    def batches(self, model: str, when: str, what: Callable[[Any], float]) -> np.ndarray:
        """A number of each mini-batch's spectrum; the batches are the same for all models."""
        return np.array([what(batch) for batch in self.spectra.spectra[f"{model}, {when}"].batches])


def claims(found: _Found) -> list[Claim]:
    """What the slides and the poster say, held against what was measured."""
    early, late = f"epoch {found.early}", f"epoch {found.last}"
    told: list[Claim] = []

    def spectral(says: str, of: str, other: str, when: str, what: str, sign: Literal[-1, 1]) -> None:
        take: dict[str, Callable[[Any], float]] = {
            "largest eigenvalue": lambda batch: batch.highest,
            "share of negative eigenvalues": lambda batch: float(np.mean(np.array(batch.values) < 0)),
        }
        before, after = (found.batches(name, when, take[what]) for name in (other, of))
        unit = "pp" if "share" in what else ""
        told.append(Claim(says, f"{what}, {when}: {of} less {other}", _over_batches(after - before, unit), sign))

    spectral("The loss of ViTs is flatter than that of ResNets", "vit-cls", "resnet", late, "largest eigenvalue", -1)
    negative = "share of negative eigenvalues"
    spectral("The loss of ViTs is less convex early in training", "vit-cls", "resnet", early, negative, 1)
    spectral("GAP makes the loss of ViTs more convex early", "vit-gap", "vit-cls", early, negative, -1)
    gap, alter = ("vit-cls", "vit-gap"), ("resnet", "alternet")
    fewer = ("vit-gap", f"vit-gap-{found.smallest}")
    for says, pair, sign in (
        ("GAP is more accurate than CLS", gap, 1),
        ("AlterNet is more accurate than ResNet", alter, 1),
        ("With fewer images ViTs are less accurate", fewer, -1),
    ):
        change = found.against[pair].comparison.differences["average accuracy"]
        told.append(Claim(says, f"test accuracy: {pair[1]} less {pair[0]}", change, sign))  # type: ignore[arg-type]

    def fitted(says: str, of: str, other: str, sign: Literal[-1, 1]) -> None:
        before, after = (found.audits[name, "train"].audit.calibration.loss for name in (other, of))
        told.append(Claim(says, f"loss on own training images: {of} less {other}", apart(before, after), sign))

    fitted("and do not fit them better: they do not overfit", fewer[1], fewer[0], 1)
    fitted("Local attention fits better than global", "vit-window", "vit-gap", -1)
    fitted("AlterNet fits better than ResNet", "alternet", "resnet", -1)
    for says, name, kind, sign in (
        ("Attention lowers", "vit-gap", "attention", -1),
        ("MLPs raise", "vit-gap", "mlp", 1),
        ("Convolutions raise", "resnet", "conv", 1),
    ):
        for changes, thing in (("high_change", "high frequencies"), ("variance_change", "variance")):
            change = getattr(found.maps.maps[name], changes).get(kind)
            if change is not None:
                told.append(Claim(f"{says} {thing}", f"{name}, {kind}: change of {thing}", change, sign))  # type: ignore[arg-type]
    lost = {row.set: row.change for row in found.noise.changes if row.model == "vit-cls"}
    extra = apart(lost["frequency noise 0.1"], lost["frequency noise 0.9"])
    says = "The higher the frequency of noise, the more it hurts ResNets beside ViTs"
    told.append(Claim(says, "accuracy of vit-cls less resnet: at 0.9 π less at 0.1 π", extra, 1))
    return told


def _over_batches(differences: np.ndarray, unit: str) -> Estimate:
    """The mean of few differences with Student's interval: a bootstrap of eight is too narrow."""
    mean, count = float(differences.mean()), len(differences)
    half = float(t.ppf(0.975, count - 1)) * float(differences.std(ddof=1)) / sqrt(count)
    return Estimate(mean, mean - half, mean + half, count, unit)


def _parts(folder: Path, cifar: str | Path, size: Size, seed: int) -> Path:
    """The images drawn, each fraction a data set of its own with the splits train, val and test."""
    wanted = {"train": size.train, "validation": size.validation, "test": size.test, "fractions": size.fractions}
    if begin(folder, "reproduce vits-work", {"cifar": str(cifar), "seed": seed, **wanted}):
        return folder
    if not {"train", "test"} <= splits_of(cifar):
        raise DataError(
            f"{cifar}: the splits train and test are needed, there is {', '.join(splits_of(cifar)) or 'none'}"
        )
    every = read_images(cifar, split="train")
    test = read_images(cifar, split="test", classes=every.classes)
    needed = {"train": size.validation + (size.train or 1), "test": size.test or 1}
    for split, images in (("train", every), ("test", test)):
        if len(images.samples) < needed[split]:
            raise DataError(
                f"{cifar}: {len(images.samples):,} images in {split}, {needed[split]:,} are needed to draw from"
            )
    train, validation = hold_out(every, size.validation / len(every.samples), seed)
    if size.train is not None:
        train = part_of(train, min(1.0, size.train / len(train.samples)), seed)
    if size.test is not None:
        test = part_of(test, min(1.0, size.test / len(test.samples)), seed)
    for fraction in (1.0, *size.fractions):
        to = folder / f"{100 * fraction:g}"
        to.mkdir(parents=True, exist_ok=True)
        (to / "names.txt").write_text("\n".join(every.classes) + "\n", encoding="utf-8")
        for split, images in (("train", part_of(train, fraction, seed)), ("val", validation), ("test", test)):
            _write(images, to / f"{split}.parquet")
    write_results(folder, size)
    return folder


def _write(images: ImageFolder, path: Path) -> None:
    pictures = []
    for sample in images.samples:
        stream = io.BytesIO()
        load_image(sample.path).save(stream, "PNG")
        pictures.append(stream.getvalue())
    columns = {"image": pictures, "label": [sample.label for sample in images.samples]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def _told(value: Estimate | None) -> str:
    return "" if value is None else f"{number(value.value, value.unit)} {interval(value)}"


def _table(found: _Found, names: Sequence[str]) -> str:
    heads = ["model", "test error", "test loss", "training loss"]
    heads += [f"{what}, epoch {n}" for n in (found.early, found.last) for what in ("largest eigenvalue", "negative")]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in names:
        test, train = (found.audits[name, split].audit for split in ("test", "train"))
        wrong = test.accuracy
        error = Estimate(1 - wrong.value, 1 - wrong.high, 1 - wrong.low, wrong.count, "%")
        cells = [name, _told(error), _told(test.calibration.loss), _told(train.calibration.loss)]
        for when in (f"epoch {found.early}", f"epoch {found.last}"):
            spectrum = found.spectra.spectra.get(f"{name}, {when}")
            cells += [_told(spectrum.largest), _told(spectrum.negative)] if spectrum else ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _noise_table(noise: SuiteResults) -> str:
    levels = sorted({row.level for row in noise.rows if row.level is not None})
    lines = [f"| accuracy under noise of | none | {' | '.join(f'{level:g} π' for level in levels)} |"]
    lines.append("|---" * (2 + len(levels)) + "|")
    for model in noise.models:
        by_level = {row.level: row.top1.value for row in noise.rows if row.model == model}
        values = [by_level[level] for level in (None, *levels)]
        lines.append(f"| {model} | {' | '.join(number(value, '%') for value in values)} |")
    return "\n".join(lines) + "\n"


def _claims_table(made: Sequence[Claim]) -> str:
    lines = ["| the paper says | measured | difference | here it |", "|---|---|---|---|"]
    for claim in made:
        lines.append(f"| {claim.says} | {claim.measured} | {_told(claim.difference)} | {claim.verdict} |")
    return "\n".join(lines) + "\n"
