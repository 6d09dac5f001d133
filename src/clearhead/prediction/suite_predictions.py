"""What a model answers on shifted sets: kept image by image, part by part, so that nothing is answered twice.

    predictions/<model>/<set>.parquet   the answers on a set; there, the set is done
    predictions/<model>/.parts/...      the answers so far, a file for about every ``PART`` of them

Sets that are shifts of one folder are answered in one pass: an image is decoded once. Which images make a batch
depends on nothing but the batch size, so a run that was stopped, or is shared by several processes, gives the same
answers as one that was not.
"""

import functools
import hashlib
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clearhead.data.image_io import DataError, load_image
from clearhead.distributed import barrier, rank_and_size
from clearhead.errors import ClearheadError
from clearhead.models import Classifier
from clearhead.models.classifier import evaluation_mode, fingerprint, require_not_nan
from clearhead.models.preprocessing import Preprocessing
from clearhead.runs import RunError, written
from clearhead.shifts.sets import ClassMapping, ShiftedDataset, file_name, generators, require_files

PART = 1024
"""Answers a part, to the next whole batch of images."""

TOP = 5


@dataclass(frozen=True)
class SuitePredictions:
    """What a model said of the N readable images of a set under one scoring.

    Attributes:
        file: unique name of each image.
        label: name of its class, among the set's.
        predicted: name of the class predicted; None for an output that means none of the set's classes.
        correct: whether that is the label.
        top5: whether the label is among the first five.
        confidence: the probability of the prediction.
        loss: negative log-likelihood of the label in nats.
        unreadable: for each image that could not be decoded why not, by file.
    """

    file: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    correct: np.ndarray
    top5: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray
    unreadable: Mapping[str, str]


def predict_suite(
    model: Classifier,
    sets: Sequence[ShiftedDataset],
    out: Path,
    *,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    most_unreadable: float = 0.01,
    progress: Callable[[Iterable, int], Iterable] | None = None,
) -> None:
    """Answer the sets that have no answers in `out` yet; each gets one file there, which ``read_answers`` reads.

    Several processes that run this together share the work; all return when it is done.

    Args:
        model: the classifier; it runs where its parameters are.
        sets: each name once.
        out: the folder of the model's answers.
        batch_size: images a batch.
        workers: processes that load images; 0 loads in this one.
        seed: of the shifts; each image has its own random numbers.
        most_unreadable: the share of a set's images that may be broken; more of them stop the run.
        track: wraps the batches to show progress: ``track(batches, count)``.

    Raises:
        DataError: where more images are broken.
        RunError: where `out` has answers of other weights, or to other images.
        ClearheadError: where the scoring of a set wants outputs that the model does not have.
    """
    require_files([one.name for one in sets], "sets")
    together: dict[tuple[int, int], list[ShiftedDataset]] = defaultdict(list)
    for one in sets:
        together[id(one.folder), one.border].append(one)
    asked = _digest(fingerprint(model.module), model.preprocess, seed)
    for group in together.values():
        images = _digest(asked, *_shown(group[0]))
        wanted = {one.name: _digest(images, one.name, one.class_mappings) for one in group}
        if not all(_answered(out / file_name(one.name), wanted[one.name]) for one in group):
            size = -(-PART // (batch_size * len(group))) * batch_size
            parts = out / ".parts" / _digest(*wanted.values(), size, batch_size)[:16]
            with evaluation_mode(model.module):
                _answer_parts(model, group, parts, size, batch_size, workers, seed, most_unreadable, progress)
            barrier()
            if rank_and_size()[0] == 0:
                _require_readable(group, parts, most_unreadable)
                _join(parts, group, out, wanted)
            barrier()
    if rank_and_size()[0] == 0:
        shutil.rmtree(out / ".parts", ignore_errors=True)


def read_suite_predictions(file: Path) -> dict[str, SuitePredictions]:
    """The answers on a set, by scoring."""
    table = pyarrow.parquet.read_table(file)
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    found = {}
    for scoring in dict.fromkeys(columns["scoring"]):
        mine = columns["scoring"] == scoring
        read = mine & (columns["problem"] == None)  # noqa: E711 (element by element)
        broken = mine & ~read
        found[str(scoring)] = SuitePredictions(
            **{name: columns[name][read] for name in SuitePredictions.__dataclass_fields__ if name != "unreadable"},
            unreadable=dict(zip(columns["file"][broken], columns["problem"][broken], strict=True)),
        )
    return found


class _Pictures(Dataset[tuple[Tensor, int, int, str]]):
    """The images of a folder as a model sees them: image, label, index, and why it could not be read, if so."""

    def __init__(self, one: ShiftedDataset, preprocess: Preprocessing) -> None:
        self.samples, self.border, self.preprocess = one.folder.samples, one.border, preprocess

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int, str]:
        sample = self.samples[index]
        try:
            picture = load_image(sample.path)
        except DataError as error:
            blank = torch.zeros(3, *self.preprocess.size)
            return blank, sample.label, index, str(error).removeprefix(f"{sample.path}: ")
        if self.border:
            width, height = picture.size
            picture = picture.crop((self.border, self.border, width - self.border, height - self.border))
        return self.preprocess.image(picture), sample.label, index, ""


def _answer_parts(
    model: Classifier,
    group: Sequence[ShiftedDataset],
    parts: Path,
    size: int,
    batch_size: int,
    workers: int,
    seed: int,
    most_unreadable: float,
    progress: Callable[[Iterable, int], Iterable] | None,
) -> None:
    """This process's share of the parts of a group that are not there yet."""
    samples = group[0].folder.samples
    rank, processes = rank_and_size()
    missing = [
        range(start, min(start + size, len(samples)))
        for number, start in enumerate(range(0, len(samples), size))
        if number % processes == rank and not _part(parts, start).exists()
    ]
    batches = [list(part[i : i + batch_size]) for part in missing for i in range(0, len(part), batch_size)]
    pictures: DataLoader = DataLoader(
        _Pictures(group[0], model.preprocess),
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )
    rows: dict[str, list[pa.Table]] = defaultdict(list)
    unreadable = _require_readable(group, parts, most_unreadable)
    ends = {part[-1]: part[0] for part in missing}
    device = next(model.module.parameters()).device
    for image, label, index, issue in progress(pictures, len(batches)) if progress else pictures:
        image, label = image.to(device, non_blocking=True), label.to(device, non_blocking=True)
        for one in group:
            rows[one.name] += _answer_batch(model, one, image, label, index, issue, seed)
        unreadable += sum(map(bool, issue))
        if unreadable > most_unreadable * len(samples):
            first = next(i for i, why in enumerate(issue) if why)
            raise _too_many(group, unreadable, most_unreadable, samples[int(index[first])].file, issue[first])
        if int(index[-1]) in ends:
            with (
                written(_part(parts, ends[int(index[-1])])) as path,
                pyarrow.parquet.ParquetWriter(path, _COLUMNS) as parquet,
            ):
                for tables in rows.values():  # a row group a set, so that one can be read without the others
                    parquet.write_table(pa.concat_tables(tables))
            rows.clear()


def _shown(one: ShiftedDataset) -> Iterator[object]:
    """The images and labels of a set, the same for all of its group."""
    yield from (one.border, one.folder.classes)
    yield from ((sample.file, sample.label) for sample in one.folder.samples)


def _digest(*parts: object) -> str:
    """A name for what answers are of: those of other weights, images or class mappings are not mixed in."""
    return hashlib.sha256("\n".join(map(str, parts)).encode("utf-8", "surrogateescape")).hexdigest()


def _answered(file: Path, wanted: str) -> bool:
    """Whether a set has been answered. Raises RunError where it was by another model, or something else was asked."""
    if not file.exists():
        return False
    if (pyarrow.parquet.read_schema(file).metadata or {}).get(_ASKED) != wanted.encode():
        raise RunError(
            f"{file} holds answers of another model of that name, or to other images: give another --out, or delete "
            "the folder to start anew"
        )
    return True


def _require_readable(group: Sequence[ShiftedDataset], parts: Path, most: float) -> int:
    """How many images of the parts could not be read; raises DataError where they are too many."""
    first = group[0]
    found: dict[str, str] = {}
    for file in sorted(parts.glob("*.parquet")):
        table = pyarrow.parquet.read_table(file, columns=["file", "problem"], filters=[("set", "==", first.name)])
        found |= {row["file"]: row["problem"] for row in table.to_pylist() if row["problem"] is not None}
    if len(found) > most * len(first.folder.samples):
        raise _too_many(group, len(found), most, *list(found.items())[-1])
    return len(found)


def _too_many(group: Sequence[ShiftedDataset], count: int, most: float, file: str, why: str) -> DataError:
    return DataError(
        f"{group[0].name}: {count} of {len(group[0].folder.samples)} images cannot be read, more than {100 * most:g}%; "
        f"the last is {file}: {why}"
    )


_ASKED = b"asked"
_COLUMNS = pa.schema(
    [(name, pa.string()) for name in ("set", "scoring", "file", "label", "predicted", "problem")]
    + [("correct", pa.bool_()), ("top5", pa.bool_()), ("confidence", pa.float32()), ("loss", pa.float32())]
)


def _part(parts: Path, start: int) -> Path:
    return parts / f"{start:09d}.parquet"


@torch.no_grad()
def _answer_batch(
    model: Classifier,
    one: ShiftedDataset,
    image: Tensor,
    label: Tensor,
    index: Tensor,
    issue: Sequence[str],
    seed: int,
) -> list[pa.Table]:
    """A table for each scoring."""
    logits = require_not_nan(model(_shifted(model, one, image, label, index, seed)).float())
    names = np.array([*one.folder.classes, None], dtype=object)
    readable = [not why for why in issue]
    tables = []
    for scoring, how in one.class_mappings.items():
        # as lists: small arrays that live on between freed batches would break up the memory
        said = {name: values.tolist() for name, values in scored(logits, label, how).items()}
        columns: dict[str, Any] = {
            "set": [one.name] * len(index),
            "scoring": [scoring] * len(index),
            "file": [one.folder.samples[i].file for i in index.tolist()],
            "label": names[label.cpu().numpy()],
            "predicted": [
                name if read else None for name, read in zip(names[said.pop("predicted")], readable, strict=True)
            ],
            "problem": [why or None for why in issue],
        }
        tables.append(pa.table(columns | said, _COLUMNS))
    return tables


def _shifted(model: Classifier, one: ShiftedDataset, image: Tensor, label: Tensor, index: Tensor, seed: int) -> Tensor:
    """Images under the shift or the attack of a set."""
    if one.shift is not None:
        image = one.shift(image, generators(seed, index.tolist(), image.device))
    if one.attack is not None:
        first = torch.tensor([own[0] for own in next(iter(one.class_mappings.values())).outputs], device=label.device)
        image = one.attack(model, image, first[label])
    return image


def scored(logits: Tensor, label: Tensor, scoring: ClassMapping) -> dict[str, Tensor]:
    """Logits (B x K) read as answers among the classes of a set.

    Returns predicted (class index, -1 for an output that means none), right, top5, confidence and loss, B each.
    """
    if scoring.of != logits.shape[1]:
        raise ClearheadError(
            f"the set is scored by models of {scoring.of:,} classes, in their usual order; this one has "
            f"{logits.shape[1]:,}"
        )
    class_of, output, member = _index(scoring, logits.shape[1], logits.device)
    log_p = logits.log_softmax(-1)
    if scoring.among == "all":
        top = logits.topk(min(TOP, logits.shape[1]), -1).indices
        predicted = class_of[top]
        loss = -log_p.masked_fill(~member[label], -torch.inf).logsumexp(-1)
        top5, confidence = member[label].gather(1, top), log_p.amax(-1).exp()
        return _found(predicted[:, 0], top5[:, 0], top5.any(1), confidence, loss)
    classes = len(scoring.outputs)
    if len(output[0]) == classes:
        scores = logits[:, output[0]]
    elif scoring.pool == "max":
        lowest = logits.new_full((len(logits), classes), -torch.inf)
        scores = lowest.scatter_reduce(1, output[1].expand(len(logits), -1), logits[:, output[0]], "amax")
    else:
        each = log_p[:, None].masked_fill(~member, -torch.inf).logsumexp(-1)  # not exp and log: far classes stay finite
        scores = each - member.sum(1).log()
    log_q = scores.log_softmax(-1)
    top = log_q.topk(min(TOP, classes), -1).indices
    hits = top == label[:, None]
    return _found(top[:, 0], hits[:, 0], hits.any(1), log_q.amax(-1).exp(), F.nll_loss(log_q, label, reduction="none"))


def _found(predicted: Tensor, right: Tensor, top5: Tensor, confidence: Tensor, loss: Tensor) -> dict[str, Tensor]:
    return {"predicted": predicted, "correct": right, "top5": top5, "confidence": confidence, "loss": loss}


@functools.lru_cache(maxsize=32)
def _index(scoring: ClassMapping, outputs: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The class of each output (-1: none), the outputs with their classes (2 x M), and which outputs mean a class."""
    pairs = torch.tensor([(o, c) for c, own in enumerate(scoring.outputs) for o in own], device=device).T
    class_of = torch.full((outputs,), -1, device=device)
    class_of[pairs[0]] = pairs[1]
    member = torch.zeros(len(scoring.outputs), outputs, dtype=torch.bool, device=device)
    member[pairs[1], pairs[0]] = True
    return class_of, pairs, member


def _join(parts: Path, group: Sequence[ShiftedDataset], out: Path, wanted: Mapping[str, str]) -> None:
    """The parts of a group as one file a set, in the order of its folder; then the parts go."""
    files = sorted(parts.glob("*.parquet"))
    for one in group:
        if not (target := out / file_name(one.name)).exists():
            found = pyarrow.parquet.read_table(files, filters=[("set", "==", one.name)])
            assert len(found) == len(one.folder.samples) * len(one.class_mappings), f"{one.name}: parts are missing"
            with written(target) as path:
                pyarrow.parquet.write_table(found.replace_schema_metadata({_ASKED: wanted[one.name]}), path)
    shutil.rmtree(parts)
