"""Predict every image of a data set: the class, its relevance in the foreground, the class under interventions."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from clearhead.attribution import explain_with_logits, require_method
from clearhead.data.dataset import ImageIndex, group_labels
from clearhead.data.images import DataLike, as_image_index
from clearhead.data.loading import ImageDataset, loader
from clearhead.models.classifier import Classifier, evaluation_mode, require_not_nan
from clearhead.models.source import ModelLike, as_classifier
from clearhead.progress import Progress, track
from clearhead.shifts.shortcuts import SHORTCUTS, require_shortcuts, table_name

Array = npt.NDArray[Any]

BACKGROUND = tuple(name for name, shortcut in SHORTCUTS.items() if shortcut.needs_mask)
"""The changes that need a mask."""


@dataclass(frozen=True)
class Predictions:
    """The predictions of one model for N images, in the order of the index.

    Attributes:
        file: unique name of each image.
        label: class index of each image.
        predicted: predicted class index.
        group: group of each image (its class crossed with metadata columns).
        confidence: probability of the predicted class.
        loss: negative log-likelihood of the label in nats.
        brier: Brier score: squared distance of the probabilities from the one-hot label, summed over classes.
        relevance_mass: share of the relevance of the predicted class that lies in the mask (relevance mass accuracy);
            NaN without a mask.
        area: share of the image that is in the mask: the relevance mass of a constant map; NaN without a mask.
        interventions: predicted class under each change of the images; -1 where it needs a mask that is missing, or
            where the batch has no other image with a mask.
        method: the attribution method of the relevance.
        scaled: confidence, loss and brier of the logits divided by a temperature; empty without a temperature.
    """

    file: Array
    label: Array
    predicted: Array
    group: Array
    confidence: Array
    loss: Array
    brier: Array
    relevance_mass: Array
    area: Array
    interventions: dict[str, Array]
    method: str
    scaled: dict[str, Array] = field(default_factory=dict)

    @property
    def correct(self) -> Array:
        """Whether each prediction equals the label, N."""
        return np.asarray(self.predicted == self.label)

    def table(self, classes: tuple[str, ...]) -> dict[str, Array]:
        """Return the columns of a table of predictions: classes by name, None where there is no prediction."""
        names = np.array([*classes, None], dtype=object)
        columns = {
            "file": self.file,
            "group": self.group,
            "label": names[self.label],
            "predicted": names[self.predicted],
        }
        columns |= {"confidence": self.confidence, "loss": self.loss, "brier": self.brier}
        columns |= {f"{name}, scaled": values for name, values in self.scaled.items()}
        columns |= {"relevance_mass": self.relevance_mass, "area": self.area}
        return columns | {f"predicted, {name}": names[values] for name, values in self.interventions.items()}


@dataclass(frozen=True)
class Changed:
    """A batch of n images before and after a change.

    Attributes:
        shortcut: the change, a key of ``SHORTCUTS``.
        index: into the index's samples, n.
        before: the images, n x C x H x W, pixels in 0..1.
        after: the changed images.
        label: n.
        logits_before: n x classes.
        logits_after: n x classes.
    """

    shortcut: str
    index: Tensor
    before: Tensor
    after: Tensor
    label: Tensor
    logits_before: Tensor
    logits_after: Tensor


def default_method(model: Classifier) -> str:
    """Return the default attribution method: GAE for models with a token grid, else the input gradient."""
    return "gae" if model.grid is not None else "input-gradient"


def predict(
    model: ModelLike,
    data: DataLike,
    *,
    group_columns: Sequence[str] | None = None,
    method: str | None = None,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    temperature: float | None = None,
    shortcuts: Sequence[str] = BACKGROUND,
    maps: bool = True,
    observe: Callable[[Changed], None] | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """Return a model's predictions: one forward pass per image and change; with a mask also one backward pass.

    Args:
        model: a classifier or the name of one; it runs in eval mode on the device of its parameters.
        data: the images: a folder, another source, or an index of the model's classes.
        group_columns: metadata columns that define the groups; None uses all columns.
        method: attribution method, a key of ``clearhead.attribution.METHODS``; None uses ``default_method``.
        batch_size: images per batch.
        workers: processes that load images; 0 loads in the main process.
        seed: of the order of the images, which pairs images with backgrounds.
        temperature: divisor of the logits for `scaled`.
        shortcuts: changes of the images, keys of ``clearhead.shifts.shortcuts.SHORTCUTS``; by default those that need
            a mask.
        maps: whether to measure the relevance in the foreground, of images with a mask.
        observe: is called with each batch under each change.
        progress: shows progress.

    Raises:
        DataError: if a file is unreadable, the index has other classes, or a group column does not exist.
        ClearheadError: if a logit is NaN, the method is unknown, or there are masks and the method does not support
            the model.
    """
    model = as_classifier(model)
    index = as_image_index(data, classes=model.classes)
    method = require_method(method or default_method(model))
    shortcuts = require_shortcuts(shortcuts)

    def measure(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        image, label, mask, has_mask = (batch[key] for key in ("image", "label", "mask", "has_mask"))
        explained = has_mask & maps
        if explained.any():
            heat, logits = explain_with_logits(model, image, method=method)
        else:  # no mask to compare a map with
            with torch.inference_mode():
                heat, logits = mask[:, 0], model(image)
        logits = require_not_nan(logits.float())
        columns = _scores(logits, label) | _relevance_mass(heat, mask[:, 0], explained)
        if temperature is not None:
            scaled = _scores(logits / temperature, label)
            columns |= {f"{name}, scaled": scaled[name] for name in _SCALED}
        return columns | _predict_changed(model, batch, logits, shortcuts, observe)

    shuffle = any(sample.mask for sample in index.samples)  # pairs backgrounds; shards are faster to read in order
    columns = _run(model, index, measure, batch_size, workers, progress, "predictions", seed if shuffle else None)
    return Predictions(
        file=np.array([sample.file for sample in index.samples]),
        label=np.array([sample.label for sample in index.samples]),
        group=np.array(group_labels(index, group_columns)),
        interventions={table_name(name): columns.pop(name) for name in shortcuts},
        method=method,
        scaled={name: columns.pop(f"{name}, scaled") for name in _SCALED if temperature is not None},
        **columns,
    )


def logits_of(
    model: Classifier, index: ImageIndex, batch_size: int = 32, workers: int = 0, progress: Progress | None = None
) -> Array:
    """Return the logits of the images, N x classes in float32; one forward pass per image.

    Raises:
        DataError: if a file is unreadable.
        ClearheadError: if a logit is NaN.
    """

    @torch.inference_mode()
    def measure(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": require_not_nan(model(batch["image"]).float())}

    return _run(model, index, measure, batch_size, workers, progress, "logits")["logits"]


def relevance_masses(model: Classifier, index: ImageIndex, batch_size: int = 32, workers: int = 0) -> Array:
    """Return the share of the relevance of the predicted class that lies in the mask, N; NaN without a mask.

    One forward and one backward pass per image, by ``default_method``.

    Raises:
        DataError: if a file is unreadable.
    """

    def measure(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        maps, _ = explain_with_logits(model, batch["image"], method=default_method(model))
        return _relevance_mass(maps, batch["mask"][:, 0], batch["has_mask"])

    return _run(model, index, measure, batch_size, workers)["relevance_mass"]


def _run(
    model: Classifier,
    index: ImageIndex,
    measure: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    batch_size: int,
    workers: int,
    progress: Progress | None = None,
    description: str = "",
    shuffle_seed: int | None = None,
) -> dict[str, Array]:
    """Measure each batch on the model's device, in eval mode; return the columns in the order of the index."""
    batches = loader(
        ImageDataset(index, model.preprocess), batch_size, workers, shuffle_seed is not None, shuffle_seed or 0
    )
    device = model.device
    columns: dict[str, list[Tensor]] = defaultdict(list)
    with evaluation_mode(model.module):
        for batch in track(batches, progress, description):
            on_device = {name: batch[name].to(device) for name in ("image", "label", "mask", "has_mask", "index")}
            for name, values in (measure(on_device) | {"index": batch["index"]}).items():
                columns[name].append(values.cpu())
    order = torch.cat(columns.pop("index")).argsort()
    return {name: torch.cat(values)[order].numpy() for name, values in columns.items()}


_SCALED = "confidence", "loss", "brier"


def _scores(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return predicted class, confidence, loss and Brier score of logits, B each."""
    probabilities = logits.softmax(-1)
    confidence, predicted = probabilities.max(-1)
    loss = F.cross_entropy(logits, labels, reduction="none")
    brier = (probabilities - F.one_hot(labels, logits.shape[-1])).square().sum(-1)
    return {"predicted": predicted, "confidence": confidence, "loss": loss, "brier": brier}


def _relevance_mass(maps: Tensor, mask: Tensor, has_mask: Tensor) -> dict[str, Tensor]:
    """Return the share of the relevance in the mask and the mask's area; NaN without a mask or without relevance."""
    inside, total = (maps * mask).sum((1, 2)), maps.sum((1, 2))
    undefined = torch.full_like(inside, torch.nan)
    return {
        "relevance_mass": torch.where(has_mask & (total > 0), inside / total, undefined),
        "area": torch.where(has_mask, mask.mean((1, 2)), undefined),
    }


@torch.inference_mode()
def _predict_changed(
    model: Classifier,
    batch: dict[str, Tensor],
    logits: Tensor,
    shortcuts: Sequence[str],
    observe: Callable[[Changed], None] | None,
) -> dict[str, Tensor]:
    """Return the predicted class under each change, B each; -1 without a mask it needs, or an image to swap with."""
    image, mask, has_mask = batch["image"], batch["mask"], batch["has_mask"]
    columns = {}
    for name in shortcuts:
        shortcut = SHORTCUTS[name]
        rows = has_mask if shortcut.needs_mask else torch.ones_like(has_mask)
        columns[name] = torch.full((len(image),), -1, device=image.device)
        if rows.sum() < (2 if name == "background-swapped" else 1):
            continue
        changed = shortcut.change(image[rows], mask[rows], model.preprocess.mean)
        after = model(changed).float()
        columns[name][rows] = after.argmax(-1)
        if observe:
            measured = (batch["index"][rows], image[rows], changed, batch["label"][rows], logits[rows], after)
            observe(Changed(name, *measured))
    return columns
