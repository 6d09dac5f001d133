"""train, and repair by each of its methods."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from clearhead.analyses.compare import Comparison
from clearhead.analyses.compare import compare_predictions as compare
from clearhead.data.dataset import ImageIndex
from clearhead.data.image_io import DataError
from clearhead.data.images import read_images
from clearhead.data.splits import require_apart, train_and_validation
from clearhead.distributed import barrier, rank_and_size
from clearhead.errors import ClearheadError
from clearhead.heads import DiversityLoss
from clearhead.models import Classifier, NoHeadError, load_model, save_model
from clearhead.models.classifier import on_device
from clearhead.prediction.predict import predict
from clearhead.repairs import RetrainedHead, build_loss, default_config, repair, require_repair
from clearhead.repairs.head_selection import Objective, Search, Selection
from clearhead.results import Results, TrainingResults
from clearhead.runs import begin, read_results
from clearhead.training.linear_probe import fit_linear_probe
from clearhead.training.loop import Epoch, TrainConfig, best_epoch, cross_entropy, fit
from clearhead.workflows.pieces import (
    Progress,
    data_name,
    finish,
    given,
    model_name,
    provenance_of,
    titled,
)


@dataclass(frozen=True)
class _Check:
    """How a repaired model is compared with the one it came from."""

    groups: list[str] | None
    margin: float
    seed: int
    workers: int
    test: ImageIndex | None
    device: str | None
    progress: Progress | None

    def between(self, before: Classifier, after: Classifier, folder: ImageIndex, title: str) -> Comparison:
        """The comparison on some images."""
        options: dict[str, Any] = {"group_columns": self.groups, "seed": self.seed, "workers": self.workers}
        found = [
            predict(on_device(m, self.device), folder, **options, progress=titled(self.progress, f"{title}, {when}"))
            for m, when in ((before, "before"), (after, "after"))
        ]
        return compare(found[0], found[1], before.classes, self.margin, self.seed)


def run_train(
    model: str,
    data: str | Path,
    out: Path,
    settings: TrainConfig,
    loss: DiversityLoss | None = None,
    *,
    linear: bool = False,
    train_split: str = "train",
    validation_split: str = "val",
    pretrained: bool = True,
    save_epochs: Sequence[int] = (),
    device: str | None = None,
    progress: Progress | None = None,
) -> TrainingResults:
    """Plain fine-tuning, with a fresh head when the data has other classes. ``clearhead train``.

    By cross-entropy, or with `loss` by cross-entropy and head diversity. With `linear` the last layer alone is trained,
    on frozen features (``clearhead.training.linear_probe``); of the settings it takes the seed, the batch size and the
    workers.

    The model as it is after each epoch of `save_epochs` (0: before training) is left in ``out/epochs/EPOCH``,
    an ordinary checkpoint. Raises ClearheadError for an epoch outside the training, or soft labels where they would
    not be used.
    """
    if linear and save_epochs:
        raise ClearheadError("save_epochs: the last layer alone is not trained in epochs; leave linear out")
    if absent := [epoch for epoch in save_epochs if not 0 <= epoch <= settings.epochs]:
        raise ClearheadError(f"save_epochs: there is no epoch {absent[0]} in 0..{settings.epochs}")
    if settings.has_soft_targets and (loss is not None or linear):
        raise ClearheadError("label_smoothing, mixup, cutmix: for plain cross-entropy; leave out diversity, or linear")
    arguments = given(locals())
    if not begin(out, "train", arguments, shared=not linear):
        started = time.perf_counter()
        seed = settings.seed
        train, validation = train_and_validation(data, train=train_split, validation=validation_split, seed=seed)
        require_apart(training=train, validation=validation)
        torch.manual_seed(seed)  # what is not pretrained is drawn
        try:
            classifier = load_model(model, pretrained=pretrained)
        except NoHeadError:  # a self-supervised backbone
            classifier = None
        if classifier is None or classifier.classes != train.classes:
            torch.manual_seed(seed)
            count = len(train.classes)
            classifier = load_model(model, num_classes=count, classes=train.classes, pretrained=pretrained)
        results = TrainingResults(method="train")
        if linear:
            options: dict[str, Any] = {
                "batch_size": settings.batch_size,
                "workers": settings.workers,
                "progress": progress,
            }
            trained, found = fit_linear_probe(on_device(classifier, device), train, validation, **options)
            results = replace(results, linear=found)
        else:

            def on_epoch_end(epochs: list[Epoch], model: Classifier) -> None:
                if epochs[-1].number in save_epochs and rank_and_size()[0] == 0:
                    save_model(model, out / "epochs" / str(epochs[-1].number))

            trained, history = fit(
                classifier,
                loss or cross_entropy,
                train,
                validation,
                settings,
                out / "state",
                progress,
                device,
                on_epoch_end=on_epoch_end,
            )
            results = replace(results, history=history)
        if rank_and_size()[0] == 0:
            save_model(trained, out / "checkpoint")
            _finish(out, arguments, started, classifier, [train, validation], results)
        barrier()
    return read_results(out, Results)


def run_repair(
    model: str,
    data: str | Path,
    out: Path,
    settings: TrainConfig,
    loss: Any = None,
    *,
    method: str = "relevance",
    train_split: str = "train",
    validation_split: str = "val",
    test_split: str | None = None,
    groups: list[str] | None = None,
    margin: float = 0.02,
    device: str | None = None,
    progress: Progress | None = None,
) -> TrainingResults:
    """Make it rely on the right thing, then check it against the original for harm. ``clearhead repair``.

    `loss` is that of a method by masks, by default with its own terms. Of the others, ``dfr`` takes of the settings the
    seed, the batch size and the workers alone. `test_split` names images on which the comparison is made too; nothing
    is chosen by them.
    """
    options = asdict(loss) if loss else {}
    chosen = require_repair(method, settings, options)
    if loss is None and chosen.needs == "masks":
        loss = build_loss(method)
    arguments = given({name: value for name, value in locals().items() if name not in ("options", "chosen")})
    if not begin(out, "repair", arguments, shared=chosen.function is None):
        started = time.perf_counter()
        classifier = load_model(model)
        if train_split == validation_split:
            raise DataError(f"train split and validation split are both {train_split!r}: choosing needs other images")
        test = _test(data, test_split, [train_split, validation_split], classifier)
        train, validation = train_and_validation(
            data, train=train_split, validation=validation_split, classes=classifier.classes, seed=settings.seed
        )
        require_apart(training=train, validation=validation, test=test)
        repaired, outcome = repair(
            classifier,
            train,
            validation,
            method=method,
            config=settings,
            group_columns=groups,
            state=out / "state",
            device=device,
            progress=progress,
            **options,
        )
        report = outcome.report if isinstance(outcome.report, RetrainedHead) else None
        results = TrainingResults(method=method, last_layer=report, history=outcome.history, monitor=outcome.monitor)
        if rank_and_size()[0] == 0:
            check = _Check(groups, margin, settings.seed, settings.workers, test, device, progress)
            _conclude(out, arguments, started, classifier, repaired, [train, validation], results, check)
        barrier()
    return read_results(out, Results)


def run_select(
    model: str,
    data: str | Path,
    out: Path,
    *,
    search: Search = "exhaustive",
    layers: str | Sequence[int] | None = None,
    objective: Objective | None = None,
    ablation: Literal["rescale", "mean"] = "rescale",
    prune: bool = False,
    limit: int | None = None,
    validation_split: str = "val",
    test_split: str | None = None,
    groups: list[str] | None = None,
    margin: float = 0.02,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> TrainingResults:
    """Keep the attention heads that hold up on the validation images. ``clearhead repair --method heads``.

    The arguments are those of ``clearhead.repairs.head_selection.select_heads``; `test_split` as in `run_repair`.
    `prune` removes the heads from the weights (``clearhead.heads.prune``).
    """
    arguments = given(locals()) | {"method": "heads"}
    if not begin(out, "repair", arguments):
        started = time.perf_counter()
        classifier = load_model(model)
        test = _test(data, test_split, [validation_split], classifier)
        _, validation = train_and_validation(
            data, train=validation_split, validation=validation_split, classes=classifier.classes, seed=seed
        )
        require_apart(validation=validation, test=test)
        repaired, outcome = repair(
            classifier,
            None,
            validation,
            method="heads",
            config=replace(default_config(), seed=seed, batch_size=batch_size, workers=workers),
            group_columns=groups,
            device=device,
            progress=progress,
            search=search,
            layers=layers,
            objective=objective,
            ablation=ablation,
            prune=prune,
            limit=limit,
        )
        selection = cast(Selection, outcome.report)
        check = _Check(groups, margin, seed, workers, test, device, progress)
        results = TrainingResults(method="heads", selection=selection)
        _conclude(out, arguments, started, classifier, repaired, [validation], results, check)
    return read_results(out, Results)


def _test(data: str | Path, split: str | None, chosen_by: list[str], model: Classifier) -> ImageIndex | None:
    """The test images; DataError where the choice would see them."""
    if split is None:
        return None
    if split in chosen_by:
        raise DataError(f"test split {split!r}: the repair is trained or chosen on it; name images it does not see")
    return read_images(data, split=split, classes=model.classes)


def _conclude(
    out: Path,
    arguments: Mapping[str, Any],
    started: float,
    classifier: Classifier,
    repaired: Classifier,
    folders: list[ImageIndex],
    results: TrainingResults,
    check: _Check,
) -> None:
    """The checkpoint, the comparisons with the model it came from, the page."""
    save_model(repaired, out / "checkpoint")
    results = replace(results, check=check.between(classifier, repaired, folders[-1], "check"))
    if check.test is not None:
        results = replace(results, test=check.between(classifier, repaired, check.test, "test"))
    _finish(out, arguments, started, classifier, folders, results)


def _finish(
    out: Path,
    arguments: Mapping[str, Any],
    started: float,
    classifier: Classifier,
    folders: list[ImageIndex],
    results: TrainingResults,
) -> None:
    provenance = provenance_of(arguments, started, folders[0].samples, classifier)
    provenance["validation images"] = f"{len(folders[-1].samples):,}"
    if results.test:
        provenance["test images"] = f"{results.test.before.accuracy.count:,}"
    if results.history:
        kept = best_epoch(results.history, results.monitor).number
        provenance["epoch kept"] = f"{kept} of {len(results.history) - 1}"
    issues = list(dict.fromkeys(issue for folder in folders for issue in folder.issues))
    model, data = model_name(arguments["model"]), data_name(arguments["data"], None)
    finish(out, replace(results, model=model, data=data, issues=issues, provenance=provenance))
