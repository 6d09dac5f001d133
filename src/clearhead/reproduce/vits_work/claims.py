"""The claims of the paper, each judged by the interval of a difference."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, Literal

import numpy as np
from scipy.stats import t

from clearhead.analyses.fourier import Fourier
from clearhead.analyses.hessian import Spectrum
from clearhead.analyses.robustness import SuiteResult
from clearhead.metrics.statistics import Estimate, newcombe_difference
from clearhead.reproduce.vits_work.sizes import BLOCKS, FRACTIONS, Size
from clearhead.results import AuditResults, ComparisonResults

Sentence = tuple[str, str, str, Literal[-1, 1]]
"""What is said, of which model, against which (or of which kind of unit), and on which side of zero it lies."""

CORRUPTION = "mean corruption accuracy"
NEGATIVE = "share of negative eigenvalues"


@dataclass(frozen=True)
class Found:
    """All that was measured.

    Attributes:
        size: what was run.
        spectra: of each training, by name, at the epochs that were kept.
        maps: feature maps through depth.
        noise: accuracy under noise of one frequency after another.
        corruptions: accuracy under the corruptions of CIFAR-C.
        audits: of each training, on the test images and on its own training images, by name and split.
        against: comparisons on the test images, by the names of both.
    """

    size: Size
    spectra: dict[str, dict[int, Spectrum]]
    maps: Fourier
    noise: SuiteResult
    corruptions: SuiteResult
    audits: dict[tuple[str, str], AuditResults]
    against: dict[tuple[str, str], ComparisonResults]

    def of_batches(self, model: str, epoch: int, what: Callable[[Any], float]) -> np.ndarray:
        """A number of each mini-batch's spectrum; models that were trained alike are measured on the same batches."""
        return np.array([what(batch) for batch in self.spectra[model][epoch].batches])


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, the difference that it is judged by, and on which side of zero it should lie.

    It holds where the whole interval lies on that side, and does not where it lies on the other. An interval without
    width says nothing: all of few batches were alike.
    """

    says: str
    measured: str
    difference: Estimate
    sign: Literal[-1, 1]
    verdict: str = field(init=False)

    def __post_init__(self) -> None:
        low, high = sorted((self.sign * self.difference.low, self.sign * self.difference.high))
        told = low < high
        word = "holds" if told and low > 0 else "does not hold" if told and high < 0 else "inconclusive"
        object.__setattr__(self, "verdict", word)


def compared(size: Size) -> list[Sentence]:
    """The claims about test accuracy."""
    without, with_one = size.series[BLOCKS][:2]
    return [
        ("Multi-stage ViTs are more accurate than ViTs", "swin", "vit-cls", 1),
        ("Mixers are less accurate than ViTs", "mixer", "vit-cls", -1),
        ("GAP is more accurate than CLS", "vit-gap", "vit-cls", 1),
        ("Windows of 3 are more accurate than global attention", "vit-window-3", "vit-gap", 1),
        ("AlterNet is more accurate than ResNet", "alternet", "resnet", 1),
        ("and its first block of attention already gains", with_one, without, 1),
        ("With fewer images ViTs are less accurate", size.series[FRACTIONS][-1], "vit-gap", -1),
    ]


def claims(found: Found) -> list[Claim]:
    """What the slides and the poster say, held against what was measured."""
    told = _of_spectra(found)
    for says, of, other, sign in compared(found.size):
        change = found.against[other, of].comparison.differences["average accuracy"]
        told.append(Claim(says, f"test accuracy: {of} less {other}", change, sign))
    return [*told, *_of_fits(found), *_of_maps(found), *_of_shifts(found)]


def _of_spectra(found: Found) -> list[Claim]:
    take: dict[str, Callable[[Any], float]] = {
        "largest eigenvalue": lambda batch: batch.highest,
        NEGATIVE: lambda batch: float(np.mean(np.array(batch.values) < 0)),
    }
    early, last = found.size.early, found.size.settings.epochs
    rows: list[tuple[str, str, int, str, str, Literal[-1, 1]]] = [
        ("The loss of ViTs is flatter than that of ResNets", "largest eigenvalue", last, "vit-cls", "resnet", -1),
        ("The loss of ViTs is less convex early in training", NEGATIVE, early, "vit-cls", "resnet", 1),
        ("GAP makes the loss of ViTs more convex early", NEGATIVE, early, "vit-gap", "vit-cls", -1),
    ]
    told = []
    for says, what, epoch, of, other, sign in rows:
        after, before = (found.of_batches(name, epoch, take[what]) for name in (of, other))
        difference = _over_batches(after - before, "pp" if what == NEGATIVE else "")
        told.append(Claim(says, f"{what}, epoch {epoch}: {of} less {other}", difference, sign))
    return told


def _of_fits(found: Found) -> list[Claim]:
    rows: list[Sentence] = [
        (
            "With fewer images ViTs fit them no better: they do not overfit",
            found.size.series[FRACTIONS][-1],
            "vit-gap",
            1,
        ),
        ("Windows of 5 fit better than global attention", "vit-window", "vit-gap", -1),
        ("and better than windows of 3", "vit-window", "vit-window-3", -1),
        ("ResNets fit better than ViTs", "resnet", "vit-cls", -1),
    ]
    told = []
    for says, of, other, sign in rows:
        before, after = (found.audits[name, "train"].audit.calibration.loss for name in (other, of))
        told.append(
            Claim(says, f"loss on own training images: {of} less {other}", newcombe_difference(before, after), sign)
        )
    return told


def _of_maps(found: Found) -> list[Claim]:
    rows: list[Sentence] = [
        ("Attention lowers", "vit-gap", "attention", -1),
        ("MLPs raise", "vit-gap", "mlp", 1),
        ("Convolutions raise", "resnet", "conv", 1),
    ]
    told = []
    for says, name, kind, sign in rows:
        for changes, thing in (("high_change", "high frequencies"), ("variance_change", "variance")):
            change = getattr(found.maps.maps[name], changes)[kind]
            told.append(Claim(f"{says} {thing}", f"{name}, {kind}: change of {thing}", change, sign))
    return told


def _of_shifts(found: Found) -> list[Claim]:
    lost = {row.set: row.change for row in found.noise.changes if row.model == "vit-cls"}
    extra = newcombe_difference(lost["frequency noise 0.1"], lost["frequency noise 0.9"])
    says = "The higher the frequency of noise, the more it hurts ResNets beside ViTs"
    told = [Claim(says, "accuracy of vit-cls less resnet: at 0.9 π less at 0.1 π", extra, 1)]
    kept = {name: of[CORRUPTION] for name, of in found.corruptions.summaries.items() if CORRUPTION in of}
    for says, of, other in (
        ("Under corruptions ResNets are more accurate than ViTs", "resnet", "vit-cls"),
        ("and AlterNets than ResNets", "alternet", "resnet"),
    ):
        if kept:  # not without photographs of frost
            told.append(Claim(says, f"{CORRUPTION}: {of} less {other}", newcombe_difference(kept[other], kept[of]), 1))
    return told


def _over_batches(differences: np.ndarray, unit: str) -> Estimate:
    """The mean of few differences with Student's interval: a bootstrap of eight is too narrow."""
    mean, count = float(differences.mean()), len(differences)
    half = float(t.ppf(0.975, count - 1)) * float(differences.std(ddof=1)) / sqrt(count)
    return Estimate(mean, mean - half, mean + half, count, unit)
