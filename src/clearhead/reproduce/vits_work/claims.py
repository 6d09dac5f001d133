"""The claims of the paper, each judged by the interval of a difference."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import t

from clearhead.analyses.audit import AuditResult
from clearhead.analyses.compare import ComparisonResult
from clearhead.analyses.fourier import Fourier
from clearhead.analyses.hessian import BatchSpectrum, Spectrum
from clearhead.analyses.robustness import SuiteResult
from clearhead.metrics.statistics import Estimate, newcombe_difference
from clearhead.reproduce.vits_work.sizes import BLOCKS, FRACTIONS, Size

Array = npt.NDArray[Any]

Sentence = tuple[str, str, str, Literal[-1, 1]]
"""A statement, the model, the model it is compared with (or a type of branch), and the sign of the difference."""

CORRUPTION = "mean corruption accuracy"
NEGATIVE = "share of negative eigenvalues"


@dataclass(frozen=True)
class Measurements:
    """Everything that was measured.

    Attributes:
        size: what was run.
        spectra: of each training, by name, at its saved epochs.
        maps: feature maps through depth.
        noise: accuracy under noise of each frequency.
        corruptions: accuracy under the corruptions of CIFAR-C.
        audits: of each training, on the test images and on its own training images, by name and split.
        comparisons: on the test images, by the names of both models.
    """

    size: Size
    spectra: dict[str, dict[int, Spectrum]]
    maps: Fourier
    noise: SuiteResult
    corruptions: SuiteResult
    audits: dict[tuple[str, str], AuditResult]
    comparisons: dict[tuple[str, str], ComparisonResult]

    def of_batches(self, model: str, epoch: int, number: Callable[[BatchSpectrum], float]) -> Array:
        """Return a number for each mini-batch; models of the same training recipe are measured on the same batches."""
        return np.array([number(batch) for batch in self.spectra[model][epoch].batches])


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, the difference that tests it, and the sign that the difference should have.

    It holds where the whole interval has that sign, and does not hold where it has the other. An interval without width
    is inconclusive: few batches had equal values.
    """

    statement: str
    measured: str
    difference: Estimate
    sign: Literal[-1, 1]
    verdict: str = field(init=False)

    def __post_init__(self) -> None:
        low, high = sorted((self.sign * self.difference.low, self.sign * self.difference.high))
        wide = low < high
        word = "holds" if wide and low > 0 else "does not hold" if wide and high < 0 else "inconclusive"
        object.__setattr__(self, "verdict", word)


def compared(size: Size) -> list[Sentence]:
    """Return the claims about test accuracy."""
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


def claims(measured: Measurements) -> list[Claim]:
    """Return the claims of the slides and the poster, with what was measured."""
    tested = _about_spectra(measured)
    for statement, model, other, sign in compared(measured.size):
        change = measured.comparisons[other, model].comparison.differences["average accuracy"]
        tested.append(Claim(statement, f"test accuracy: {model} - {other}", change, sign))
    return [*tested, *_about_fits(measured), *_about_maps(measured), *_about_shifts(measured)]


def _about_spectra(measured: Measurements) -> list[Claim]:
    numbers: dict[str, Callable[[BatchSpectrum], float]] = {
        "largest eigenvalue": lambda batch: batch.highest,
        NEGATIVE: lambda batch: float(np.mean(np.array(batch.values) < 0)),
    }
    early, last = measured.size.early, measured.size.settings.epochs
    rows: list[tuple[str, str, int, str, str, Literal[-1, 1]]] = [
        ("The loss of ViTs is flatter than that of ResNets", "largest eigenvalue", last, "vit-cls", "resnet", -1),
        ("The loss of ViTs is less convex early in training", NEGATIVE, early, "vit-cls", "resnet", 1),
        ("GAP makes the loss of ViTs more convex early", NEGATIVE, early, "vit-gap", "vit-cls", -1),
    ]
    tested = []
    for statement, number, epoch, model, other, sign in rows:
        after, before = (measured.of_batches(name, epoch, numbers[number]) for name in (model, other))
        difference = _over_batches(after - before, "pp" if number == NEGATIVE else "")
        tested.append(Claim(statement, f"{number}, epoch {epoch}: {model} - {other}", difference, sign))
    return tested


def _about_fits(measured: Measurements) -> list[Claim]:
    rows: list[Sentence] = [
        (
            "With fewer images ViTs fit them no better: they do not overfit",
            measured.size.series[FRACTIONS][-1],
            "vit-gap",
            1,
        ),
        ("Windows of 5 fit better than global attention", "vit-window", "vit-gap", -1),
        ("and better than windows of 3", "vit-window", "vit-window-3", -1),
        ("ResNets fit better than ViTs", "resnet", "vit-cls", -1),
    ]
    tested = []
    for statement, model, other, sign in rows:
        before, after = (measured.audits[name, "train"].audit.calibration.loss for name in (other, model))
        difference = newcombe_difference(before, after)
        tested.append(Claim(statement, f"loss on own training images: {model} - {other}", difference, sign))
    return tested


def _about_maps(measured: Measurements) -> list[Claim]:
    rows: list[Sentence] = [
        ("Attention lowers", "vit-gap", "attention", -1),
        ("MLPs raise", "vit-gap", "mlp", 1),
        ("Convolutions raise", "resnet", "conv", 1),
    ]
    tested = []
    for statement, name, branch_type, sign in rows:
        for attribute, number in (("high_change", "high frequencies"), ("variance_change", "variance")):
            change = getattr(measured.maps.maps[name], attribute)[branch_type]
            tested.append(Claim(f"{statement} {number}", f"{name}, {branch_type}: change of {number}", change, sign))
    return tested


def _about_shifts(measured: Measurements) -> list[Claim]:
    lost = {row.set: row.change for row in measured.noise.changes if row.model == "vit-cls"}
    extra = newcombe_difference(lost["frequency noise 0.1"], lost["frequency noise 0.9"])
    statement = "The higher the frequency of noise, the more it hurts ResNets compared with ViTs"
    tested = [Claim(statement, "accuracy of vit-cls - resnet: at 0.9 π - at 0.1 π", extra, 1)]
    summaries = measured.corruptions.summaries.items()
    accuracy = {name: numbers[CORRUPTION] for name, numbers in summaries if CORRUPTION in numbers}
    for statement, model, other in (
        ("Under corruptions ResNets are more accurate than ViTs", "resnet", "vit-cls"),
        ("and AlterNets than ResNets", "alternet", "resnet"),
    ):
        if accuracy:  # frost needs photographs, which may be missing
            difference = newcombe_difference(accuracy[other], accuracy[model])
            tested.append(Claim(statement, f"{CORRUPTION}: {model} - {other}", difference, 1))
    return tested


def _over_batches(differences: Array, unit: str) -> Estimate:
    """Return the mean of few differences with Student's interval: a bootstrap of eight is too narrow."""
    mean, count = float(differences.mean()), len(differences)
    half = float(t.ppf(0.975, count - 1)) * float(differences.std(ddof=1)) / sqrt(count)
    return Estimate(mean, mean - half, mean + half, count, unit)
