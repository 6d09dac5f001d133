"""One pass of a model over a folder: its answer for each image, where it looks, and its answer when parts are gone."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clearhead.attribution import explain_with_logits, known_method
from clearhead.data.dataset import ImageIndex, group_labels, require_classes
from clearhead.data.interventions import INTERVENTIONS, intervene
from clearhead.data.loading import ImageDataset, loader
from clearhead.models import Classifier
from clearhead.models.classifier import evaluation_mode, require_not_nan
from clearhead.progress import Progress, track


@dataclass(frozen=True)
class Predictions:
    """What a model said of N images, in the order of the folder.

    Attributes:
        file: unique name of each image.
        label, predicted: class indices, N.
        group: the group of each image (its class crossed with metadata columns).
        confidence: probability of the predicted class, N.
        loss: negative log-likelihood of the label in nats, N.
        brier: squared distance of the probabilities from the truth, summed over classes, N.
        relevance_mass: share of the relevance of the predicted class that lies in the foreground, N; NaN without mask.
        area: share of the image that is foreground, N: what a map that is the same everywhere would score.
        interventions: predicted class under each of ``INTERVENTIONS``, N; -1 without mask (or without another image).
        method: the relevance method used.
        scaled: confidence, loss and brier again, of the logits divided by a temperature; empty without one.
    """

    file: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    group: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray
    brier: np.ndarray
    relevance_mass: np.ndarray
    area: np.ndarray
    interventions: dict[str, np.ndarray]
    method: str
    scaled: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def correct(self) -> np.ndarray:
        """Whether each prediction is the label, N."""
        return self.predicted == self.label

    def table(self, classes: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Columns for a file that people read: classes by name, None where there is no prediction."""
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


def default_method(model: Classifier) -> str:
    """Relevance by attention where the model has a grid of tokens, else by the gradient at the pixels."""
    return "gae" if model.grid is not None else "input-gradient"


def predict(
    model: Classifier,
    folder: ImageIndex,
    *,
    group_columns: Sequence[str] | None = None,
    method: str | None = None,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    temperature: float | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """Run a model over a folder: a forward pass an image; with masks a backward and three forward passes more.

    Args:
        model: the classifier; it runs where its parameters are, in eval mode, and is left in its own.
        folder: the data, as ``read_folder(..., classes=model.classes)`` gives it.
        group_columns: metadata columns that make the groups, None for all.
        method: relevance method, a key of ``clearhead.attribution.METHODS``; None takes ``default_method``.
        batch_size: images a batch.
        workers: processes that load images; 0 loads in this one.
        seed: of the order of images, which decides whose background an image is shown on.
        temperature: what to divide the logits by, for `scaled`.
        progress: shows progress.

    Raises:
        DataError: for a file that can no longer be read, a folder that was read for other classes, or a group column
            that does not exist.
        ClearheadError: for answers that are NaN, an unknown method, or where there are masks one this model cannot be
            explained by.
    """
    require_classes(folder, model.classes)
    method = known_method(method or default_method(model))
    groups = group_labels(folder, group_columns)
    shuffle = any(sample.mask for sample in folder.samples)  # whose background, else nothing; shards are read in order
    batches = loader(ImageDataset(folder, model.preprocess), batch_size, workers, shuffle, seed)
    device = next(model.module.parameters()).device
    columns: dict[str, list[Tensor]] = defaultdict(list)
    with evaluation_mode(model.module):
        for batch in track(batches, progress, "predictions"):
            image, mask, has_mask = (batch[key].to(device) for key in ("image", "mask", "has_mask"))
            if has_mask.any():
                maps, logits = explain_with_logits(model, image, method=method)
            else:  # nothing to hold a map against
                with torch.inference_mode():
                    maps, logits = mask[:, 0], model(image)
            label = batch["label"].to(device)
            found = _of_batch(require_not_nan(logits.float()), label) | _reliance(maps, mask[:, 0], has_mask)
            if temperature is not None:
                scaled = _of_batch(logits.float() / temperature, label)
                found |= {f"{name}, scaled": scaled[name] for name in _SCALED}
            found |= _intervened(model, image, mask, has_mask)
            for name, values in found.items():
                columns[name].append(values.cpu())
            columns["index"].append(batch["index"])
    order = torch.cat(columns.pop("index")).argsort()
    numbers = {name: torch.cat(values)[order].numpy() for name, values in columns.items()}
    return Predictions(
        file=np.array([sample.file for sample in folder.samples]),
        label=np.array([sample.label for sample in folder.samples]),
        group=np.array(groups),
        interventions={name: numbers.pop(name) for name in INTERVENTIONS},
        method=method,
        scaled={name: numbers.pop(f"{name}, scaled") for name in _SCALED if temperature is not None},
        **numbers,
    )


def logits_of(
    model: Classifier,
    folder: ImageIndex,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
) -> np.ndarray:
    """The logits of a folder's images, N x classes in float32; one forward pass an image. Raises DataError."""
    device, found = next(model.module.parameters()).device, []
    batches = loader(ImageDataset(folder, model.preprocess), batch_size, workers)
    with evaluation_mode(model.module), torch.inference_mode():
        for batch in track(batches, progress, "logits"):
            found.append(require_not_nan(model(batch["image"].to(device)).float()).cpu())
    return torch.cat(found).numpy()


def relevance_masses(model: Classifier, folder: ImageIndex, batch_size: int = 32, workers: int = 0) -> np.ndarray:
    """The share of the relevance of the predicted class that lies in the foreground, N; NaN without mask.

    One forward and one backward pass an image, by ``default_method``. Raises DataError.
    """
    device, shares = next(model.module.parameters()).device, []
    for batch in loader(ImageDataset(folder, model.preprocess), batch_size, workers):
        maps, _ = explain_with_logits(model, batch["image"].to(device), method=default_method(model))
        found = _reliance(maps, batch["mask"][:, 0].to(device), batch["has_mask"].to(device))
        shares.append(found["relevance_mass"].cpu())
    return torch.cat(shares).numpy()


_SCALED = "confidence", "loss", "brier"


def _of_batch(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    probabilities = logits.softmax(-1)
    confidence, predicted = probabilities.max(-1)
    loss = F.cross_entropy(logits, labels, reduction="none")
    brier = (probabilities - F.one_hot(labels, logits.shape[-1])).square().sum(-1)
    return {"predicted": predicted, "confidence": confidence, "loss": loss, "brier": brier}


def _reliance(maps: Tensor, mask: Tensor, has_mask: Tensor) -> dict[str, Tensor]:
    """Share of the foreground relevance and share of the area; NaN where there is no mask or no relevance."""
    inside, total = (maps * mask).sum((1, 2)), maps.sum((1, 2))
    nothing = torch.full_like(inside, torch.nan)
    return {
        "relevance_mass": torch.where(has_mask & (total > 0), inside / total, nothing),
        "area": torch.where(has_mask, mask.mean((1, 2)), nothing),
    }


@torch.no_grad()
def _intervened(model: Classifier, image: Tensor, mask: Tensor, has_mask: Tensor) -> dict[str, Tensor]:
    """The predicted class under each intervention, -1 where it cannot be made."""
    predicted = {name: torch.full((len(image),), -1, device=image.device) for name in INTERVENTIONS}
    if not has_mask.any():
        return predicted
    x, s = image[has_mask], mask[has_mask]
    for name, changed in zip(INTERVENTIONS, intervene(x, s, model.preprocess.mean), strict=True):
        if name != "background swapped" or len(x) > 1:
            predicted[name][has_mask] = model(changed).argmax(-1)
    return predicted
