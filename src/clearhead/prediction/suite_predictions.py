"""Predict the images of shifted data sets; predictions are saved in parts, so that an interrupted run resumes.

    predictions/<model>/<set>.parquet   the predictions for a data set; the file exists when they are complete
    predictions/<model>/.parts/...      the predictions so far, one file per ``PART`` or so of them

Data sets that are shifts of the same images are predicted together: each image is decoded once. The batches depend on
the batch size only, so a resumed run, or one shared by several processes, gives the same predictions.
"""

import functools
import hashlib
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clearhead.data.image_io import DataError, load_image
from clearhead.distributed import barrier, rank_and_size
from clearhead.errors import ClearheadError
from clearhead.models.classifier import Classifier, evaluation_mode, fingerprint, require_not_nan
from clearhead.models.preprocessing import Preprocessing
from clearhead.progress import Progress, track
from clearhead.shifts.sets import ClassMapping, ShiftedDataset, file_name, generators, require_files
from clearhead.storage import atomic_path

PART = 1024
"""Predictions per part, rounded up to whole batches of images."""

TOP = 5

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class SuitePredictions:
    """The predictions of one model for the N readable images of a data set under one class mapping.

    Attributes:
        file: unique name of each image.
        label: name of its class in the data set.
        predicted: name of the predicted class; None for an output that belongs to no class of the data set.
        correct: whether the prediction equals the label.
        top5: whether the label is among the five most probable classes.
        confidence: probability of the predicted class.
        loss: negative log-likelihood of the label in nats.
        unreadable: by file, why an image could not be decoded.
    """

    file: Array
    label: Array
    predicted: Array
    correct: Array
    top5: Array
    confidence: Array
    loss: Array
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
    progress: Progress | None = None,
) -> None:
    """Predict the data sets that `out` has no predictions for; ``read_suite_predictions`` reads the file of each.

    Several processes that call this together share the work; all return when it is complete.

    Args:
        model: the classifier; it runs on the device of its parameters.
        sets: the data sets; their names must differ.
        out: folder of the model's predictions.
        batch_size: images per batch.
        workers: processes that load images; 0 loads in the main process.
        seed: of the shifts; each image has its own random numbers.
        most_unreadable: largest acceptable fraction of unreadable images of a data set.
        progress: shows progress.

    Raises:
        DataError: if more images are unreadable, or two names give the same file name.
        ClearheadError: if `out` holds predictions of other weights or images, a class mapping needs outputs that the
            model does not have, or a logit is NaN.
    """
    require_files([dataset.name for dataset in sets], "sets")
    groups: dict[tuple[int, int], list[ShiftedDataset]] = defaultdict(list)
    for dataset in sets:
        groups[id(dataset.folder), dataset.border].append(dataset)
    inputs = _digest(fingerprint(model.module), model.preprocess, seed)
    for group in groups.values():
        images = _digest(inputs, *_identity(group[0]))
        digests = {d.name: _digest(images, d.name, d.class_mappings) for d in group}
        if not all(_is_complete(out / file_name(name), digest) for name, digest in digests.items()):
            part_size = -(-PART // (batch_size * len(group))) * batch_size
            parts = out / ".parts" / _digest(*digests.values(), part_size, batch_size)[:16]
            with evaluation_mode(model.module):
                _predict_parts(model, group, parts, part_size, batch_size, workers, seed, most_unreadable, progress)
            barrier()
            if rank_and_size()[0] == 0:
                _count_unreadable(group, parts, most_unreadable)
                _merge(parts, group, out, digests)
            barrier()
    if rank_and_size()[0] == 0:
        shutil.rmtree(out / ".parts", ignore_errors=True)


def read_suite_predictions(file: Path) -> dict[str, SuitePredictions]:
    """Return the predictions for a data set by the name of the class mapping."""
    table = pyarrow.parquet.read_table(file)
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    predictions = {}
    for scoring in dict.fromkeys(columns["scoring"]):
        own = columns["scoring"] == scoring
        readable = own & (columns["problem"] == None)  # noqa: E711 (element by element)
        broken = own & ~readable
        predictions[str(scoring)] = SuitePredictions(
            **{name: columns[name][readable] for name in SuitePredictions.__dataclass_fields__ if name != "unreadable"},
            unreadable=dict(zip(columns["file"][broken], columns["problem"][broken], strict=True)),
        )
    return predictions


class _Images(Dataset[tuple[Tensor, int, int, str]]):
    """The images of a data set as the model's input: image, label, index, and the reason if it is unreadable."""

    def __init__(self, dataset: ShiftedDataset, preprocess: Preprocessing) -> None:
        self.samples, self.border, self.preprocess = dataset.folder.samples, dataset.border, preprocess

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int, str]:
        sample = self.samples[index]
        try:
            image = load_image(sample.path)
        except DataError as error:
            blank = torch.zeros(3, *self.preprocess.size)
            return blank, sample.label, index, str(error).removeprefix(f"{sample.path}: ")
        if self.border:
            width, height = image.size
            image = image.crop((self.border, self.border, width - self.border, height - self.border))
        return self.preprocess.image(image), sample.label, index, ""


def _predict_parts(
    model: Classifier,
    group: Sequence[ShiftedDataset],
    parts: Path,
    part_size: int,
    batch_size: int,
    workers: int,
    seed: int,
    most_unreadable: float,
    progress: Progress | None,
) -> None:
    """Predict this process's share of the missing parts of a group."""
    samples = group[0].folder.samples
    rank, processes = rank_and_size()
    missing = [
        range(start, min(start + part_size, len(samples)))
        for number, start in enumerate(range(0, len(samples), part_size))
        if number % processes == rank and not _part(parts, start).exists()
    ]
    batches = [list(part[i : i + batch_size]) for part in missing for i in range(0, len(part), batch_size)]
    images: DataLoader[Any] = DataLoader(
        _Images(group[0], model.preprocess),
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )
    tables: dict[str, list[pa.Table]] = defaultdict(list)
    unreadable = _count_unreadable(group, parts, most_unreadable)
    first_of = {part[-1]: part[0] for part in missing}
    device = model.device
    for image, label, index, issue in track(images, progress, "predictions", len(batches)):
        image, label = image.to(device, non_blocking=True), label.to(device, non_blocking=True)
        for dataset in group:
            tables[dataset.name] += _predict_batch(model, dataset, image, label, index, issue, seed)
        unreadable += sum(map(bool, issue))
        if unreadable > most_unreadable * len(samples):
            first = next(i for i, reason in enumerate(issue) if reason)
            raise _too_many(group, unreadable, most_unreadable, samples[int(index[first])].file, issue[first])
        last = int(index[-1])
        if last in first_of:
            with (
                atomic_path(_part(parts, first_of[last])) as path,
                pyarrow.parquet.ParquetWriter(path, _COLUMNS) as parquet,
            ):
                for rows in tables.values():  # one row group per data set, so that one can be read without the others
                    parquet.write_table(pa.concat_tables(rows))
            tables.clear()


def _identity(dataset: ShiftedDataset) -> Iterator[object]:
    """Yield what identifies the images and labels of a data set; it is the same for all of its group."""
    yield from (dataset.border, dataset.folder.classes)
    yield from ((sample.file, sample.label) for sample in dataset.folder.samples)


def _digest(*inputs: object) -> str:
    """Return a hash of what predictions depend on: predictions of other weights, images or mappings do not mix."""
    return hashlib.sha256("\n".join(map(str, inputs)).encode("utf-8", "surrogateescape")).hexdigest()


def _is_complete(file: Path, digest: str) -> bool:
    """Return whether a file of predictions exists. Raises ClearheadError if it has another digest."""
    if not file.exists():
        return False
    if (pyarrow.parquet.read_schema(file).metadata or {}).get(_DIGEST) != digest.encode():
        raise ClearheadError(
            f"out: {file} holds predictions of another model of that name, or for other images; choose another folder, "
            "or delete this one to start again"
        )
    return True


def _count_unreadable(group: Sequence[ShiftedDataset], parts: Path, most: float) -> int:
    """Return how many images of the saved parts are unreadable. Raises DataError if there are too many."""
    first = group[0]
    reasons: dict[str, str] = {}
    for file in sorted(parts.glob("*.parquet")):
        table = pyarrow.parquet.read_table(file, columns=["file", "problem"], filters=[("set", "==", first.name)])
        reasons |= {row["file"]: row["problem"] for row in table.to_pylist() if row["problem"] is not None}
    if len(reasons) > most * len(first.folder.samples):
        raise _too_many(group, len(reasons), most, *list(reasons.items())[-1])
    return len(reasons)


def _too_many(group: Sequence[ShiftedDataset], count: int, most: float, file: str, reason: str) -> DataError:
    return DataError(
        f"{group[0].name}: {count} of {len(group[0].folder.samples)} images cannot be read, more than {100 * most:g}%; "
        f"the last is {file}: {reason}"
    )


_DIGEST = b"digest"
_COLUMNS = pa.schema(
    [(name, pa.string()) for name in ("set", "scoring", "file", "label", "predicted", "problem")]
    + [("correct", pa.bool_()), ("top5", pa.bool_()), ("confidence", pa.float32()), ("loss", pa.float32())]
)


def _part(parts: Path, start: int) -> Path:
    return parts / f"{start:09d}.parquet"


@torch.no_grad()
def _predict_batch(
    model: Classifier,
    dataset: ShiftedDataset,
    image: Tensor,
    label: Tensor,
    index: Tensor,
    issue: Sequence[str],
    seed: int,
) -> list[pa.Table]:
    """Return one table per class mapping."""
    logits = require_not_nan(model(_shifted(model, dataset, image, label, index, seed)).float())
    names = np.array([*dataset.folder.classes, None], dtype=object)
    readable = [not reason for reason in issue]
    tables = []
    for scoring, mapping in dataset.class_mappings.items():
        # as lists: small arrays that live on between freed batches would fragment the memory
        scores = {name: values.tolist() for name, values in score_logits(logits, label, mapping).items()}
        predicted = names[scores.pop("predicted")]
        columns: dict[str, Any] = {
            "set": [dataset.name] * len(index),
            "scoring": [scoring] * len(index),
            "file": [dataset.folder.samples[i].file for i in index.tolist()],
            "label": names[label.cpu().numpy()],
            "predicted": [name if is_read else None for name, is_read in zip(predicted, readable, strict=True)],
            "problem": [reason or None for reason in issue],
        }
        tables.append(pa.table(columns | scores, _COLUMNS))
    return tables


def _shifted(
    model: Classifier, dataset: ShiftedDataset, image: Tensor, label: Tensor, index: Tensor, seed: int
) -> Tensor:
    """Return the images (pixels in 0..1) under the shift or the attack of a data set."""
    if dataset.shift is not None:
        image = dataset.shift(image, generators(seed, index.tolist(), image.device))
    if dataset.attack is not None:
        mapping = next(iter(dataset.class_mappings.values()))
        first = torch.tensor([outputs[0] for outputs in mapping.outputs], device=label.device)
        image = dataset.attack(model, image, first[label])
    return image


def score_logits(logits: Tensor, label: Tensor, mapping: ClassMapping) -> dict[str, Tensor]:
    """Return predictions among the classes of a data set from logits (B x K).

    Args:
        logits: B x K.
        label: class index in the data set, B.
        mapping: which outputs belong to which class.

    Returns:
        predicted (class index, -1 for an output of no class), correct, top5, confidence and loss, B each.

    Raises:
        ClearheadError: if the mapping is for another number of outputs.
    """
    if mapping.of != logits.shape[1]:
        raise ClearheadError(
            f"the set is scored by models of {mapping.of:,} classes, in their usual order; this one has "
            f"{logits.shape[1]:,}"
        )
    class_of, pairs, member = _mapping_tensors(mapping, logits.shape[1], logits.device)
    log_p = logits.log_softmax(-1)
    if mapping.among == "all":
        top = logits.topk(min(TOP, logits.shape[1]), -1).indices
        predicted = class_of[top[:, 0]]
        hits = member[label].gather(1, top)
        confidence = log_p.amax(-1).exp()
        loss = -log_p.masked_fill(~member[label], -torch.inf).logsumexp(-1)
    else:
        log_q = _pooled(logits, log_p, mapping, pairs, member).log_softmax(-1)
        top = log_q.topk(min(TOP, len(mapping.outputs)), -1).indices
        predicted = top[:, 0]
        hits = top == label[:, None]
        confidence = log_q.amax(-1).exp()
        loss = F.nll_loss(log_q, label, reduction="none")
    return {
        "predicted": predicted,
        "correct": hits[:, 0],
        "top5": hits.any(1),
        "confidence": confidence,
        "loss": loss,
    }


def _pooled(logits: Tensor, log_p: Tensor, mapping: ClassMapping, pairs: Tensor, member: Tensor) -> Tensor:
    """Return the unnormalised log-probability of each class of the data set, B x classes."""
    output, class_of_output = pairs
    classes = len(mapping.outputs)
    if len(output) == classes:
        return logits[:, output]
    if mapping.pool == "max":
        lowest = logits.new_full((len(logits), classes), -torch.inf)
        return lowest.scatter_reduce(1, class_of_output.expand(len(logits), -1), logits[:, output], "amax")
    sums = log_p[:, None].masked_fill(~member, -torch.inf).logsumexp(-1)  # improbable classes stay finite in logs
    return sums - member.sum(1).log()


@functools.lru_cache(maxsize=32)
def _mapping_tensors(mapping: ClassMapping, outputs: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the class of each output (-1: none), outputs with their classes (2 x M), and membership (C x outputs)."""
    pairs = torch.tensor([(o, c) for c, own in enumerate(mapping.outputs) for o in own], device=device).T
    class_of = torch.full((outputs,), -1, device=device)
    class_of[pairs[0]] = pairs[1]
    member = torch.zeros(len(mapping.outputs), outputs, dtype=torch.bool, device=device)
    member[pairs[1], pairs[0]] = True
    return class_of, pairs, member


def _merge(parts: Path, group: Sequence[ShiftedDataset], out: Path, digests: Mapping[str, str]) -> None:
    """Merge the parts of a group into one file per data set, in the order of its images, and remove the parts."""
    files = sorted(parts.glob("*.parquet"))
    for dataset in group:
        if not (target := out / file_name(dataset.name)).exists():
            table = pyarrow.parquet.read_table(files, filters=[("set", "==", dataset.name)])
            complete = len(dataset.folder.samples) * len(dataset.class_mappings)
            assert len(table) == complete, f"{dataset.name}: parts are missing"
            with atomic_path(target) as path:
                pyarrow.parquet.write_table(table.replace_schema_metadata({_DIGEST: digests[dataset.name]}), path)
    shutil.rmtree(parts)
