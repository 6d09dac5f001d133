"""All repairs by name: what each needs and costs. ``clearhead.repairs.run`` runs them.

A repair is either a loss for ``clearhead.training.loop.fit`` or a function that returns a changed model. To add one,
write it in a module of its own and add a line to ``REPAIRS``.

    a loss       a callable that returns it; it receives those of ``LossInputs`` that are parameters of it: the original
                 model, the images, the columns of the groups, and so on
    a function   ``(model, train, validation, *, group_columns, seed, batch_size, workers, progress, ...) ->
                 (Classifier, report)``, with a small dataclass as report (add its type to ``Report``); one with a
                 parameter ``features`` can share the features of the images with others

All other parameters are the options of the repair.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from clearhead.data.dataset import ImageIndex
from clearhead.data.image_io import DataError
from clearhead.distributed import rank_and_size
from clearhead.errors import ClearheadError
from clearhead.heads import DiversityLoss
from clearhead.models import Classifier
from clearhead.progress import Progress
from clearhead.repairs.afr import ReweightedHead, reweight_head
from clearhead.repairs.counterfactual import CounterfactualLoss, background_swap
from clearhead.repairs.dfr import RetrainedHead, retrain_head
from clearhead.repairs.exmap import cluster_and_retrain
from clearhead.repairs.group_losses import GroupDRO, Reweight
from clearhead.repairs.head_selection import Selection, keep_heads
from clearhead.repairs.input_gradient_losses import GradMaskLoss, RRRLoss
from clearhead.repairs.jtt import JTTLoss
from clearhead.repairs.relevance import RelevanceLoss
from clearhead.repairs.tagged import TagUse
from clearhead.training.config import TrainConfig
from clearhead.training.history import Monitor
from clearhead.training.losses import Loss

Report = Selection | RetrainedHead | ReweightedHead
"""What the functions among the repairs report."""


@dataclass(frozen=True)
class Repair:
    """A way to repair a model; exactly one of `loss` and `function` is set.

    Attributes:
        summary: what it does, in a few words.
        needs: what the data must have besides labels: foreground ``masks``, ``groups`` (columns of metadata.csv) or
            ``nothing``.
        cost: in words.
        step_time: time of a training step, relative to that of a plain one.
        passes: forward passes over all images that a function takes, or a loss before training; None is 1 for a
            function and 0 for a loss.
        loss: returns the loss to train with.
        function: returns the repaired model and a report; it runs in one process.
        trains: whether it uses training images; if not, it uses the validation images only.
        monitor: what selects the epoch.
        balance_groups: draw training images from groups drawn uniformly.
        interpolate: average the weights with those of the original model; the validation loss selects how much.
        preset: key of ``PRESETS`` with the settings to train with by default; None for the general ones.
        source: the arXiv number of its paper, if there is one.
        note: what a reader of its result should know, if anything.
        tags: how it takes a tags file: it uses the tagged images only; all images, the untagged ones of a class as a
            group; or it takes none.
    """

    summary: str
    needs: Literal["masks", "groups", "nothing"]
    cost: str
    loss: Callable[..., Loss] | None = None
    function: Callable[..., tuple[Classifier, Report]] | None = None
    trains: bool = True
    monitor: Monitor = "loss"
    balance_groups: bool = False
    interpolate: bool = False
    preset: str | None = None
    source: str = ""
    note: str = ""
    tags: TagUse = "none"
    step_time: float = 1.0
    passes: float | None = None

    @property
    def shares_features(self) -> bool:
        """Whether it takes features of the images that were computed before."""
        return self.takes("features")

    @property
    def options(self) -> tuple[str, ...]:
        """The names of its options."""
        return tuple(name for name in self._parameters() if name not in _COMMON)

    def takes(self, name: str) -> bool:
        """Return whether its loss or function has a parameter of this name."""
        return name in self._parameters()

    def _parameters(self) -> list[str]:
        function = self.loss or self.function
        return list(inspect.signature(function).parameters) if function else []


@dataclass(frozen=True)
class LossInputs:
    """What a loss can be made from.

    Attributes:
        model: a copy of the original model, in eval mode.
        images: the training images.
        validation: the validation images.
        group_columns: metadata columns that define the groups together with the class; None for all columns.
        seed: random seed.
        batch_size: images per batch.
        workers: number of processes that load images.
        progress: shows progress.
    """

    model: Classifier | None = None
    images: ImageIndex | None = None
    validation: ImageIndex | None = None
    group_columns: Sequence[str] | None = None
    seed: int = 0
    batch_size: int = 32
    workers: int = 0
    progress: Progress | None = None


_COMMON = {*(f.name for f in fields(LossInputs)), "train", "features"}

_WITHOUT_GROUPS = (
    "No step saw a group label, and the result can vary much with the images and the seed: repeat the repair with "
    "other seeds, and believe the comparison on test images."
)

REPAIRS: dict[str, Repair] = {
    "afr": Repair(
        "retrain the classifier head with more weight on images the model is unsure of",
        "nothing",
        "one forward pass over all images, then seconds",
        function=reweight_head,
        source="2306.11074",
        note=_WITHOUT_GROUPS,
    ),
    "dfr": Repair(
        "retrain the classifier head on group-balanced images",
        "groups",
        "one forward pass over all images, then seconds",
        function=retrain_head,
        source="2204.02937",
        tags="tagged images",
    ),
    "exmap": Repair(
        "retrain the classifier head on images balanced over clusters of their relevance maps",
        "nothing",
        "a map and a forward pass of all images, then seconds",
        function=cluster_and_retrain,
        passes=8.0,
        source="2403.13870",
        note=_WITHOUT_GROUPS,
    ),
    "heads": Repair(
        "keep the attention heads that do best on validation images",
        "nothing",
        "no training; a search over subsets of heads",
        function=keep_heads,
        trains=False,
        source="1905.10650",
        tags="tagged images",
    ),
    "jtt": Repair(
        "give the images that the model misclassifies more weight",
        "nothing",
        "plain fine-tuning, and one forward pass over all images",
        loss=JTTLoss.from_mistakes,
        passes=1.0,
        source="2107.09931",
        note=_WITHOUT_GROUPS,
    ),
    "counterfactual": Repair(
        "keep the original outputs under the changes of the shortcut battery",
        "nothing",
        "fine-tuning, at about 2.5 times the time of plain steps",
        loss=CounterfactualLoss.from_model,
        step_time=2.5,
        interpolate=True,
        preset="counterfactual",
    ),
    "background-swap": Repair(
        "keep the original outputs on another image's background",
        "masks",
        "fine-tuning, at about 2.5 times the time of plain steps",
        loss=background_swap,
        step_time=2.5,
        interpolate=True,
        preset="counterfactual",
    ),
    "reweight": Repair(
        "weight images by the inverse size of their group",
        "groups",
        "plain fine-tuning",
        loss=Reweight.from_images,
        monitor="worst_group_loss",
        tags="all images",
    ),
    "groupdro": Repair(
        "minimise the loss of the worst group",
        "groups",
        "plain fine-tuning",
        loss=GroupDRO.from_images,
        monitor="worst_group_loss",
        balance_groups=True,
        source="1911.08731",
        tags="all images",
    ),
    "diversity": Repair(
        "penalise heads whose input gradients are similar",
        "nothing",
        "fine-tuning, at 2 to 3 times the time of plain steps",
        loss=DiversityLoss,
        source="2308.16274",
    ),
    "relevance": Repair(
        "move the relevance map to the foreground",
        "masks",
        "fine-tuning, at about 1.5 times the time of plain steps",
        loss=RelevanceLoss,
        step_time=1.5,
        source="2206.01161",
    ),
    "gradmask": Repair(
        "penalise the gradient of the label's logit at the background",
        "masks",
        "fine-tuning, at 2 to 3 times the time of plain steps",
        loss=GradMaskLoss,
        step_time=2.5,
        source="1904.07478",
    ),
    "rrr": Repair(
        "penalise the gradient of the log-probabilities at the background",
        "masks",
        "fine-tuning, at 2 to 3 times the time of plain steps",
        loss=RRRLoss,
        step_time=2.5,
        source="1703.03717",
    ),
}


def require_method(method: str) -> Repair:
    """Return a repair by its name. Raises ClearheadError for an unknown name."""
    if method not in REPAIRS:
        raise ClearheadError(f"method: {method!r} is unknown; choose from {', '.join(REPAIRS)}")
    return REPAIRS[method]


def require_repair(method: str, config: TrainConfig, options: Mapping[str, Any]) -> Repair:
    """Return a repair by its name. Raises ClearheadError for an unknown name, or a config or options it cannot use."""
    chosen = require_method(method)
    if unknown := [name for name in options if name not in chosen.options]:
        known = f"choose from {', '.join(chosen.options)}" if chosen.options else "it has none"
        raise ClearheadError(f"{', '.join(unknown)}: not an option of the method {method}; {known}")
    if config.has_soft_targets:
        raise ClearheadError(f"label_smoothing, mixup, cutmix: unsupported by the method {method}; leave them out")
    if config.augment == "strong" and chosen.needs == "masks":
        raise ClearheadError(
            f"augment: strong changes images without their masks, which the method {method} needs; use crop or weak"
        )
    if chosen.function is not None and rank_and_size()[1] > 1:
        raise ClearheadError(f"method: {method} runs in one process; start it without torchrun or accelerate launch")
    return chosen


def build_loss(method: str, inputs: LossInputs | None = None, options: Mapping[str, Any] | None = None) -> Loss:
    """Return the loss of a repair, made from a model and images where it needs them.

    Raises:
        ClearheadError: for a repair without a loss, or invalid options.
        DataError: for images without the masks that the loss needs.
    """
    chosen, inputs = REPAIRS[method], inputs or LossInputs()
    if chosen.loss is None:
        raise ClearheadError(f"method: {method} has no loss")
    images = inputs.images
    if chosen.needs == "masks" and images is not None and not any(sample.mask for sample in images.samples):
        unmasked = ", ".join(name for name, other in REPAIRS.items() if other.needs != "masks")
        raise DataError(
            f"{images.root}: {method} needs foreground masks, and none of its {len(images.samples):,} training images "
            "has one; put them in masks/<class>/<stem>.png (nonzero = object), make them with `clearhead data masks`, "
            f"or choose a method without masks: {unmasked}"
        )
    used = {f.name: getattr(inputs, f.name) for f in fields(inputs) if chosen.takes(f.name)}
    return chosen.loss(**used, **(options or {}))
