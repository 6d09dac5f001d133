"""Write foreground masks for a folder of images."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image

from clearhead.data.dataset import DataIssue, ImageIndex, Sample, count_categories
from clearhead.data.folder import read_folder
from clearhead.data.image_io import DataError, load_image, load_mask
from clearhead.data.loading import ImageDataset, loader
from clearhead.data.writing import link, new_folder, require_empty
from clearhead.errors import ClearheadError
from clearhead.masks.annotations import Annotated, Mask
from clearhead.masks.refine import patch_mask, refine
from clearhead.masks.tokencut import TAU, Cut, Side, iou, tokencut
from clearhead.metrics.statistics import Estimate, mean
from clearhead.models import Classifier
from clearhead.progress import Progress, track

Annotations = Callable[[ImageIndex], Iterable[Annotated]]
"""Yields the masks of a folder's images from annotations."""

DROPPED = "mask dropped"
"""The action of a ``DataIssue`` with a mask that is not saved."""


@dataclass(frozen=True)
class MasksWritten:
    """The result of ``write_masks``.

    Attributes:
        folder: the data with its masks.
        images: the number of images.
        masks: the number of saved masks.
        issues: those of the source, and one for each image whose mask was dropped.
        area: mean fraction of the image that a saved mask covers.
        patch_iou: mean IoU of the unrefined patch masks with true masks; None without true masks or a model.
        all_iou: mean IoU of all refined masks, dropped ones included, with true masks; None without true masks.
        saved_iou: mean IoU of the saved masks with true masks; None without true masks.
    """

    folder: Path
    images: int
    masks: int
    issues: tuple[DataIssue, ...]
    area: Estimate
    patch_iou: Estimate | None = None
    all_iou: Estimate | None = None
    saved_iou: Estimate | None = None

    @property
    def dropped(self) -> dict[str, int]:
        """The number of dropped masks for each reason."""
        return dict(Counter(issue.category for issue in self.issues if issue.action == DROPPED).most_common())


@dataclass(frozen=True)
class Limits:
    """Conditions for saving a mask; the last two apply only to masks made by a model.

    Attributes:
        min_area: fraction of the image; a smaller mask is ``too-small``.
        max_area: fraction of the image; a larger mask is ``too-large``.
        max_border: fraction of the object's patches at the image's border; with more, the mask is ``at-border``.
        min_agreement: IoU with the cuts at a slightly lower and higher tau; with less, the mask is ``inconsistent``.
    """

    min_area: float = 0.02
    max_area: float = 0.9
    max_border: float = 0.2
    min_agreement: float = 0.5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ClearheadError(f"{name}: got {value}; a fraction from 0 to 1 is needed")


@dataclass(frozen=True)
class _Outcome:
    """The mask of one image: why it was dropped (None: it was saved), the area it covers, its IoU with a true mask."""

    issue: DataIssue | None
    area: float = np.nan
    patch_iou: float = np.nan
    iou: float = np.nan


def write_masks(
    source: str | Path,
    out: str | Path | None = None,
    model: Classifier | None = None,
    *,
    annotations: Annotations | None = None,
    layers: Sequence[int] | None = None,
    tau: float = TAU,
    side: Side = "inside",
    limits: Limits = Limits(),
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
) -> MasksWritten:
    """Write foreground masks for the images of a folder, made by a model or from annotations.

    Args:
        source: images in class folders, as ``read_folder`` reads them.
        out: a new folder for the images (hard links, or copies if the file system does not allow links), metadata.csv
            and the masks. None writes the masks to ``source/masks``, which must not exist.
        model: finds the object by ``tokencut``, on the device of its parameters. Each image is scaled to the model's
            input size as a whole, whatever its preprocessing would crop, so that the mask covers all of it.
        annotations: yields the masks instead, such as ``functools.partial(coco_boxes, file)``.
        layers: positions of the layers whose keys are used; None for all, (-1,) for the paper's.
        tau: cosine similarity above which two patches are connected.
        side: the side of the cut that is the object: ``inside``, the one with less of it at the image's border, or
            the paper's ``strongest``.
        limits: which masks are dropped.
        batch_size: images per batch.
        workers: processes that load images; 0 loads in the main process.
        progress: wraps the images to show progress.

    The folder appears when it is complete.

    Raises:
        DataError: if data cannot be read or written, or no mask is saved.
        ClearheadError: for both or neither of `model` and `annotations`, or a model without a token grid.
    """
    if (model is None) == (annotations is None):
        raise ClearheadError("model, annotations: exactly one of the two is needed")
    source = Path(source)
    target = source / "masks" if out is None else Path(out)
    if out is None:
        require_empty(target, "name a new folder to write to, or move it")
    else:
        require_empty(target)
    data = read_folder(source)
    unique, shared = _split_shared_names(data)
    with new_folder(target) as partial:
        masks = partial if out is None else partial / "masks"
        for name in data.classes:
            (masks / name).mkdir(parents=True)
        outcomes: Iterable[_Outcome]
        if model is not None:
            cuts = cut_images(model, unique, layers=layers, tau=tau, side=side, batch_size=batch_size, workers=workers)
            outcomes = (_save_mask(sample, mask, cut, limits, masks) for sample, mask, cut in cuts)
        else:
            assert annotations is not None
            outcomes = (_save_mask(sample, mask, None, limits, masks) for sample, mask in annotations(unique))
        results = [*track(outcomes, progress, "masks", len(unique.samples)), *shared]
        if all(outcome.issue for outcome in results):
            raise DataError(_explain_no_masks(source, results))
        if out is not None:
            _copy(data, partial)
    return _summarize(source if out is None else target, data, results)


def _split_shared_names(data: ImageIndex) -> tuple[ImageIndex, list[_Outcome]]:
    """Return the data without images that share a mask name, such as a.jpg and a.png, and an outcome for each."""
    stems = Counter(PurePosixPath(sample.file).with_suffix("") for sample in data.samples)
    unique, shared = [], []
    for sample in data.samples:
        if stems[PurePosixPath(sample.file).with_suffix("")] == 1:
            unique.append(sample)
        else:
            detail = "another image of its class has the same name except for the extension"
            shared.append(_Outcome(DataIssue(sample.file, "shared-name", detail, DROPPED)))
    return replace(data, samples=tuple(unique)), shared


def cut_images(
    model: Classifier,
    data: ImageIndex,
    *,
    layers: Sequence[int] | None = None,
    tau: float = TAU,
    side: Side = "inside",
    batch_size: int = 32,
    workers: int = 0,
) -> Iterator[tuple[Sample, Mask, Cut]]:
    """Find the object in every image with a model; yield the refined mask, of the image's size, and the cut.

    Each image is scaled to the model's input size as a whole, whatever its preprocessing would crop.
    """
    whole = replace(model.preprocess, resize=model.preprocess.size, crop_mode="squash")
    unmasked = replace(data, samples=tuple(replace(sample, mask=None) for sample in data.samples))

    def finish(sample: Sample, cut: Cut) -> tuple[Sample, Mask, Cut]:
        return sample, refine(cut, load_image(sample.path).size), cut

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for batch in loader(ImageDataset(unmasked, whole), batch_size, workers):
            samples = [data.samples[index] for index in batch["index"]]
            cuts = tokencut(model, batch["image"].to(model.device), layers=layers, tau=tau, side=side)
            yield from pool.map(finish, samples, cuts)


def reason_to_drop(mask: Mask, cut: Cut | None, limits: Limits) -> tuple[str, str] | None:
    """Return why a mask does not satisfy the limits, as category and detail; `cut` is that of a model's mask."""
    area = float(mask.mean())
    if area == 0:
        return "no-object", "the model finds no object" if cut else "no object is annotated"
    if area < limits.min_area:
        return "too-small", f"{area:.1%} of the image; the minimum is {limits.min_area:.1%}"
    if area > limits.max_area:
        return "too-large", f"{area:.1%} of the image; the maximum is {limits.max_area:.1%}"
    if cut and cut.border > limits.max_border:
        detail = f"{cut.border:.1%} of its patches are at the image's border; the maximum is {limits.max_border:.1%}"
        return "at-border", detail
    if cut and cut.agreement < limits.min_agreement:
        detail = f"IoU {cut.agreement:.2f} with the cut at a near tau; the minimum is {limits.min_agreement:.2f}"
        return "inconsistent", detail
    return None


def _save_mask(sample: Sample, mask: Mask | tuple[str, str], cut: Cut | None, limits: Limits, masks: Path) -> _Outcome:
    """Save a mask that satisfies the limits; return the outcome. `cut` is the model's; `mask` may be a reason."""
    if isinstance(mask, tuple):
        return _Outcome(DataIssue(sample.file, *mask, DROPPED))
    reason = reason_to_drop(mask, cut, limits)
    if reason is None:
        Image.fromarray(mask.astype(np.uint8) * 255).save(masks / PurePosixPath(sample.file).with_suffix(".png"))
    true = None if sample.mask is None else np.asarray(load_mask(sample.mask)) > 0
    return _Outcome(
        DataIssue(sample.file, *reason, DROPPED) if reason else None,
        float(mask.mean()),
        np.nan if true is None or cut is None else iou(patch_mask(cut, mask.shape[::-1]), true),
        np.nan if true is None else iou(mask, true),
    )


def _explain_no_masks(source: Path, outcomes: list[_Outcome]) -> str:
    issues = [outcome.issue for outcome in outcomes if outcome.issue]
    first = f"; first {issues[0].file}: {issues[0].detail}" if issues else ""
    return f"{source}: the masks of all {len(outcomes)} images were dropped ({count_categories(issues)}){first}"


def _copy(data: ImageIndex, out: Path) -> None:
    """Copy the usable images and metadata.csv."""
    for sample in data.samples:
        link(sample.image_file, out / sample.file)
    table = data.root / "metadata.csv"
    if table.is_file():
        shutil.copyfile(table, out / table.name)


def _summarize(folder: Path, data: ImageIndex, outcomes: list[_Outcome]) -> MasksWritten:
    saved = [outcome for outcome in outcomes if outcome.issue is None]
    issues = (*data.issues, *(outcome.issue for outcome in outcomes if outcome.issue))
    return MasksWritten(
        folder,
        len(outcomes),
        len(saved),
        issues,
        mean(np.array([outcome.area for outcome in saved]), "%"),
        _mean_iou([outcome.patch_iou for outcome in outcomes]),
        _mean_iou([outcome.iou for outcome in outcomes]),
        _mean_iou([outcome.iou for outcome in saved]),
    )


def _mean_iou(values: list[float]) -> Estimate | None:
    """Return the mean of the values that are not NaN, if any."""
    known = np.array([value for value in values if not np.isnan(value)])
    return mean(known) if len(known) else None
