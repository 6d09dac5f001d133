"""MNIST-CIFAR: do diverse heads, and a choice among them, help where the digit no longer tells the class?

Nicolicioiu et al., arXiv 2308.16274. Each run trains the paper's model from scratch and, after every epoch, measures
every subset of the last layer's four heads on both validation and both test parts. All protocols of the table are read
off these numbers afterwards, ID and OOD always of the same model, epoch and heads. What differs from the public code:
ERM is trained at both learning rates (the code gives ERM 1e-4 and Div 1e-3), the penalty is in the text's form (6.25 =
100 / H²), and no picture is in a validation part and in a test part (see ``clearhead.data.mnist_cifar``).
"""

import json
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from clearhead.data.mnist_cifar import Part, mnist_cifar
from clearhead.distributed import run_all
from clearhead.heads import DiversityLoss
from clearhead.heads.head_masking import HeadMask, attention_layers, head_mask_runner
from clearhead.models import Classifier, Preprocessing, from_module
from clearhead.progress import Progress
from clearhead.runs import begin, written
from clearhead.training.loop import Loss, cross_entropy
from clearhead.zoo import mnist_cifar_vit

PARTS = ("id-val", "id-test", "ood-val", "ood-test")
SUBSETS = sorted((tuple(i >> h & 1 for h in range(4)) for i in range(1, 16)), key=sum, reverse=True)
"""The 15 subsets of four heads, the largest first: of equals the first is chosen. The last four are single heads."""
METHODS: dict[str, tuple[float, Loss]] = {
    "ERM, lr 1e-4": (1e-4, cross_entropy),
    "ERM, lr 1e-3": (1e-3, cross_entropy),
    "Div, lr 1e-3": (1e-3, DiversityLoss(weight=6.25)),
}
BATCH = 80


@dataclass(frozen=True)
class Run:
    """One training: its method (a key of ``METHODS``), whether the last block has its residual, epochs and seed."""

    method: str
    last_residual: bool
    epochs: int
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        method = self.method.replace(", lr ", "-").lower()
        return f"{method}-{'residual' if self.last_residual else 'plain'}-{self.epochs}-{self.seed}"


@dataclass(frozen=True)
class Protocol:
    """How a row of the table is read off a run: which epoch and which heads, chosen on which part (None: last, all).

    `single` lets the choice see the four single heads alone, as the public code does.
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
    """Train what is not trained yet, and give the table (Markdown); every finished run is a file below `out`.

    Args:
        out: folder of the runs; those in it are not done again.
        mnist: folder of MNIST, as ``clearhead.data.mnist_cifar`` reads it.
        cifar: folder of CIFAR-10, likewise.
        seeds: number of seeds, from 0; the data is drawn anew for each.
        epochs: of each run; the learning rate falls to a tenth after 70% and again after 80% of them.
        residuals: the models: without (as the public code) and with the last residual.
        jobs: processes; each has its share of the threads.
        device: where to train; a GPU where there is one by default.
        track: shows progress: ``track(runs, count, title)``.

    Raises:
        DataError: if a source is not there.
        RunError: if the runs in `out` are of other sources.
    """
    begin(out, "reproduce mnist-cifar", {"mnist": str(mnist.resolve()), "cifar": str(cifar.resolve())})
    runs = [Run(m, r, epochs, s) for s, r, m in product(range(seeds), residuals, METHODS)]
    left = [run for run in runs if not _file(out, run).exists()]
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    run_all(_one, [(out, mnist, cifar, run, device) for run in left], jobs, progress)
    return table([(run, read_run(_file(out, run))) for run in runs])


def _file(out: Path, run: Run) -> Path:
    return out / f"{run.name}.json"


def _one(out: Path, mnist: Path, cifar: Path, run: Run, device: str) -> None:
    accuracy = train_run(run, mnist_cifar(mnist, cifar, run.seed), device)
    with written(_file(out, run)) as path:
        content = asdict(run) | {"parts": PARTS, "subsets": SUBSETS, "accuracy": accuracy.tolist()}
        path.write_text(json.dumps(content), encoding="utf-8")


def read_run(file: Path) -> np.ndarray:
    """The accuracies of a run, epochs x 15 subsets x 4 parts."""
    return np.array(json.loads(file.read_text(encoding="utf-8"))["accuracy"])


def train_run(run: Run, parts: dict[str, Part], device: str = "cpu") -> np.ndarray:
    """Train one model; after each epoch the accuracy of each subset of heads on each part, epochs x 15 x 4."""
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
        for chosen in torch.randperm(len(images)).to(device).split(BATCH):
            optimizer.zero_grad()
            loss(model, {"image": images[chosen].float() / 255, "label": labels[chosen]})["loss"].backward()
            optimizer.step()
        schedule.step()
        accuracy.append(_measure(model, data))
    return np.array(accuracy)


def _tensors(part: Part, device: str) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(part.images).to(device), torch.from_numpy(part.label).to(device)


def _measure(model: Classifier, data: dict[str, tuple[Tensor, Tensor]]) -> list[list[float]]:
    """Accuracy of each subset of the last layer's heads, kept heads scaled by H / kept, on each part: 15 x 4."""
    model.module.eval()
    kept = torch.tensor(SUBSETS, dtype=torch.float32)
    heads = HeadMask(kept * 4 / kept.sum(1, keepdim=True))
    first = data["id-val"][0][:2].float() / 255
    ready = head_mask_runner(model, attention_layers(model, first)[-1], first)
    columns = []
    for name in PARTS:
        images, labels = data[name]
        right = [
            (ready.logits(some.float() / 255, heads).argmax(-1) == label).float()
            for some, label in zip(images.split(400), labels.split(400), strict=True)
        ]
        columns.append(torch.cat(right, 1).mean(1).tolist())
    return [list(row) for row in zip(*columns, strict=True)]


def read_off(accuracy: np.ndarray, protocol: Protocol) -> tuple[float, float]:
    """ID and OOD test accuracy of the epoch and heads that a protocol chooses in a run (epochs x 15 x 4)."""
    column = {name: i for i, name in enumerate(PARTS)}
    first = len(SUBSETS) - 4 if protocol.single else 0
    epoch, subset = len(accuracy) - 1, 0
    if protocol.epoch and protocol.epoch == protocol.heads:
        seen = accuracy[:, first:, column[protocol.heads]]
        epoch, subset = divmod(int(seen.argmax()), seen.shape[1])
        subset += first
    else:
        if protocol.epoch:
            epoch = int(accuracy[:, 0, column[protocol.epoch]].argmax())
        if protocol.heads:
            subset = first + int(accuracy[epoch, first:, column[protocol.heads]].argmax())
    id_test, ood_test = (float(accuracy[epoch, subset, column[name]]) for name in ("id-test", "ood-test"))
    return id_test, ood_test


def table(runs: list[tuple[Run, np.ndarray]]) -> str:
    """Markdown: a row for each method, model and protocol; ID / OOD test accuracy in %, mean ± std over seeds."""
    lines = ["| method | last residual | protocol | ID | OOD | seeds |", "|---|---|---|---|---|---|"]
    kinds = dict.fromkeys((run.method, run.last_residual) for run, _ in runs)
    for method, residual in kinds:
        found = [a for run, a in runs if (run.method, run.last_residual) == (method, residual)]
        for protocol in PROTOCOLS:
            scores = 100 * np.array([read_off(accuracy, protocol) for accuracy in found])
            means, spread = scores.mean(0), scores.std(0, ddof=1) if len(scores) > 1 else [np.nan, np.nan]
            cells = [f"{m:.1f}" + ("" if np.isnan(s) else f" ± {s:.1f}") for m, s in zip(means, spread, strict=True)]
            told = (method, "yes" if residual else "no", protocol.name, *cells, str(len(found)))
            lines.append(f"| {' | '.join(told)} |")
    return "\n".join(lines) + "\n" + _differences(runs)


def _differences(runs: list[tuple[Run, np.ndarray]]) -> str:
    """Div against ERM at the same learning rate, paired by seed: mean difference in points and its 95% t interval."""
    erm, div = list(METHODS)[1:]
    lines = ["", "| Div - ERM, both lr 1e-3 | last residual | ID | OOD | seeds |", "|---|---|---|---|---|"]
    for residual in dict.fromkeys(run.last_residual for run, _ in runs):
        by_seed = [
            {run.seed: a for run, a in runs if (run.method, run.last_residual) == (method, residual)}
            for method in (erm, div)
        ]
        for protocol in PROTOCOLS:
            scores = [[read_off(found[seed], protocol) for seed in by_seed[0]] for found in by_seed]
            change = 100 * (np.array(scores[1]) - np.array(scores[0]))
            cells = [_with_interval(change[:, i]) for i in range(2)]
            lines.append(f"| {protocol.name} | {'yes' if residual else 'no'} | {' | '.join(cells)} | {len(change)} |")
    return "\n".join(lines) + "\n"


def _with_interval(values: np.ndarray) -> str:
    if len(values) < 2:
        return f"{values.mean():+.1f}"
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():+.1f} [{values.mean() - half:+.1f}, {values.mean() + half:+.1f}]"
