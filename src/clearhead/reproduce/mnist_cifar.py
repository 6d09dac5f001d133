"""MNIST-CIFAR: do diverse heads, and selecting among them, help where the digit no longer predicts the class?

Nicolicioiu et al., arXiv 2308.16274. Each run trains the paper's model from scratch and, after every epoch, measures
every subset of the last layer's four heads on both validation and both test parts. All protocols of the table are
derived from these numbers, ID and OOD always for the same model, epoch and heads. Differences from the public code:
ERM is trained at both learning rates (the code gives ERM 1e-4 and Div 1e-3), the penalty is in the text's form (6.25 =
100 / H²), and no image is both in a validation part and in a test part (see ``clearhead.data.mnist_cifar``).
"""

from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor

from clearhead.data.mnist_cifar import Part, mnist_cifar
from clearhead.distributed import run_all
from clearhead.heads import DiversityLoss
from clearhead.heads.head_masking import HeadMask, attention_layers, head_mask_runner
from clearhead.models import Classifier, Preprocessing, from_module
from clearhead.progress import Progress
from clearhead.storage import read_json, write_json
from clearhead.study.cells import claim
from clearhead.training.loop import Loss, cross_entropy
from clearhead.zoo import mnist_cifar_vit

Accuracies = npt.NDArray[np.float64]
"""Accuracies of a run: epochs x 15 subsets x 4 parts."""

PARTS = ("id-val", "id-test", "ood-val", "ood-test")
SUBSETS = sorted((tuple(i >> h & 1 for h in range(4)) for i in range(1, 16)), key=sum, reverse=True)
"""The 15 subsets of four heads, the largest first, which wins ties. The last four are single heads."""
METHODS: dict[str, tuple[float, Loss]] = {
    "ERM, lr 1e-4": (1e-4, cross_entropy),
    "ERM, lr 1e-3": (1e-3, cross_entropy),
    "Div, lr 1e-3": (1e-3, DiversityLoss(weight=6.25)),
}
BATCH = 80


@dataclass(frozen=True)
class Run:
    """One training: its method (a key of ``METHODS``), whether the last block has a residual, epochs, seed."""

    method: str
    last_residual: bool
    epochs: int
    seed: int

    @property
    def name(self) -> str:
        """Name of its file."""
        method = self.method.replace(", lr ", "-").lower()
        return f"{method}-{'residual' if self.last_residual else 'plain'}-{self.epochs}-{self.seed}"


@dataclass(frozen=True)
class Protocol:
    """How a row of the table is derived from a run: the parts that select the epoch and the heads (None: last, all).

    With `single` only the four single heads are candidates, as in the public code.
    """

    name: str
    epoch: str | None
    heads: str | None
    single: bool = False


PROTOCOLS = (
    Protocol("all heads, epoch by ID validation", "id-val", None),
    Protocol("all heads, epoch by OOD validation", "ood-val", None),
    Protocol("all heads, last epoch", None, None),
    Protocol("best single head by OOD validation, last epoch", None, "ood-val", single=True),
    Protocol("best epoch and single head by OOD validation", "ood-val", "ood-val", single=True),
    Protocol("best subset by OOD validation, last epoch", None, "ood-val"),
    Protocol("best epoch by ID validation, then best subset by OOD validation", "id-val", "ood-val"),
    Protocol("best epoch and subset by OOD validation", "ood-val", "ood-val"),
)


def reproduce(
    out: Path,
    mnist: Path,
    cifar: Path,
    *,
    seeds: int = 10,
    epochs: int = 100,
    residuals: tuple[bool, ...] = (False, True),
    jobs: int = 1,
    device: str | None = None,
    progress: Progress | None = None,
) -> str:
    """Train what is not finished, and return the table (Markdown); every finished run is a file below `out`.

    Args:
        out: folder of the runs; finished ones are not run again.
        mnist: folder of MNIST, as ``clearhead.data.mnist_cifar`` reads it.
        cifar: folder of CIFAR-10, likewise.
        seeds: number of seeds, from 0; each draws its own data.
        epochs: of each run; the learning rate falls to a tenth after 70% and again after 80% of them.
        residuals: the models: without (as the public code) and with the last residual connection.
        jobs: number of parallel processes; each has its share of the threads.
        device: where to train; by default a GPU where there is one.
        progress: shows progress.

    Raises:
        DataError: if a source does not exist.
        StudyError: if the runs in `out` are of other sources.
    """
    claim(out, {"mnist": str(mnist.resolve()), "cifar": str(cifar.resolve())})
    runs = [Run(m, r, epochs, s) for s, r, m in product(range(seeds), residuals, METHODS)]
    missing = [run for run in runs if not _file(out, run).exists()]
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    run_all(_train, [(out, mnist, cifar, run, device) for run in missing], jobs, progress)
    return table([(run, read_run(_file(out, run))) for run in runs])


def _file(out: Path, run: Run) -> Path:
    return out / f"{run.name}.json"


def _train(out: Path, mnist: Path, cifar: Path, run: Run, device: str) -> None:
    accuracy = train_run(run, mnist_cifar(mnist, cifar, run.seed), device)
    write_json(_file(out, run), asdict(run) | {"parts": PARTS, "subsets": SUBSETS, "accuracy": accuracy.tolist()})


def read_run(file: Path) -> Accuracies:
    """Read the accuracies of a run."""
    return np.array(read_json(file)["accuracy"])


def train_run(run: Run, parts: dict[str, Part], device: str = "cpu") -> Accuracies:
    """Train one model, and return the accuracy of each subset of heads on each part after each epoch."""
    torch.manual_seed(run.seed)
    lr, loss = METHODS[run.method]
    module = mnist_cifar_vit(run.last_residual).to(device)
    preprocess = Preprocessing((64, 32), (64, 32), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    model = from_module(module, preprocess=preprocess, classes=("automobile", "truck"))
    data = {name: _tensors(parts[name], device) for name in ("train", *PARTS)}
    images, labels = data["train"]
    optimizer = torch.optim.Adam(module.parameters(), lr)
    milestones = [round(0.7 * run.epochs), round(0.8 * run.epochs)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    accuracy = []
    for _ in range(run.epochs):
        module.train()
        for batch in torch.split(torch.randperm(len(images)).to(device), BATCH):
            optimizer.zero_grad()
            value = loss(model, {"image": images[batch].float() / 255, "label": labels[batch]})["loss"]
            torch.autograd.backward(value)
            optimizer.step()
        schedule.step()
        accuracy.append(_measure(model, data))
    return np.array(accuracy)


def _tensors(part: Part, device: str) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(part.images).to(device), torch.from_numpy(part.label).to(device)


def _measure(model: Classifier, data: dict[str, tuple[Tensor, Tensor]]) -> list[list[float]]:
    """Return the accuracy of each subset of k of the last layer's H heads, scaled by H / k, on each part: 15 x 4."""
    model.module.eval()
    subsets = torch.tensor(SUBSETS, dtype=torch.float32)
    heads = HeadMask(subsets * 4 / subsets.sum(1, keepdim=True))
    first = data["id-val"][0][:2].float() / 255
    runner = head_mask_runner(model, attention_layers(model, first)[-1], first)
    columns = []
    for name in PARTS:
        images, labels = data[name]
        correct = [
            (runner.logits(some.float() / 255, heads).argmax(-1) == label).float()
            for some, label in zip(torch.split(images, 400), torch.split(labels, 400), strict=True)
        ]
        columns.append(torch.cat(correct, 1).mean(1).tolist())
    return [list(row) for row in zip(*columns, strict=True)]


def apply_protocol(accuracy: Accuracies, protocol: Protocol) -> tuple[float, float]:
    """Return the ID and OOD test accuracy of the epoch and heads that a protocol selects in a run."""
    column = {name: i for i, name in enumerate(PARTS)}
    first = len(SUBSETS) - 4 if protocol.single else 0
    epoch, subset = len(accuracy) - 1, 0
    if protocol.epoch and protocol.epoch == protocol.heads:
        candidates = accuracy[:, first:, column[protocol.heads]]
        epoch, subset = divmod(int(candidates.argmax()), candidates.shape[1])
        subset += first
    else:
        if protocol.epoch:
            epoch = int(accuracy[:, 0, column[protocol.epoch]].argmax())
        if protocol.heads:
            subset = first + int(accuracy[epoch, first:, column[protocol.heads]].argmax())
    id_test, ood_test = (float(accuracy[epoch, subset, column[name]]) for name in ("id-test", "ood-test"))
    return id_test, ood_test


def table(runs: list[tuple[Run, Accuracies]]) -> str:
    """Return ID and OOD test accuracy in %, mean ± std over seeds, by method, model and protocol (Markdown)."""
    lines = ["| method | last residual | protocol | ID | OOD | seeds |", "|---|---|---|---|---|---|"]
    for method, residual in dict.fromkeys((run.method, run.last_residual) for run, _ in runs):
        seeds = [a for run, a in runs if (run.method, run.last_residual) == (method, residual)]
        for protocol in PROTOCOLS:
            scores = 100 * np.array([apply_protocol(accuracy, protocol) for accuracy in seeds])
            means, spread = scores.mean(0), scores.std(0, ddof=1) if len(scores) > 1 else np.full(2, np.nan)
            cells = [f"{m:.1f}" + ("" if np.isnan(s) else f" ± {s:.1f}") for m, s in zip(means, spread, strict=True)]
            row = (method, "yes" if residual else "no", protocol.name, *cells, str(len(seeds)))
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n" + _differences(runs)


def _differences(runs: list[tuple[Run, Accuracies]]) -> str:
    """Return Div - ERM at the same learning rate, paired by seed: mean in points and its 95% t interval (Markdown)."""
    erm, div = list(METHODS)[1:]
    lines = ["", "| Div - ERM, both lr 1e-3 | last residual | ID | OOD | seeds |", "|---|---|---|---|---|"]
    for residual in dict.fromkeys(run.last_residual for run, _ in runs):
        by_seed = [
            {run.seed: a for run, a in runs if (run.method, run.last_residual) == (method, residual)}
            for method in (erm, div)
        ]
        for protocol in PROTOCOLS:
            scores = [[apply_protocol(one[seed], protocol) for seed in by_seed[0]] for one in by_seed]
            change = 100 * (np.array(scores[1]) - np.array(scores[0]))
            cells = [_with_interval(change[:, i]) for i in range(2)]
            lines.append(f"| {protocol.name} | {'yes' if residual else 'no'} | {' | '.join(cells)} | {len(change)} |")
    return "\n".join(lines) + "\n"


def _with_interval(values: Accuracies) -> str:
    if len(values) < 2:
        return f"{values.mean():+.1f}"
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():+.1f} [{values.mean() - half:+.1f}, {values.mean() + half:+.1f}]"
