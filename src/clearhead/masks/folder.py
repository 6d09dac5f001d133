"""A folder of images to the same folder with foreground masks."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image

from clearhead.data.dataset import DataIssue, ImageIndex, Sample
from clearhead.data.folder import read_folder
from clearhead.data.image_io import DataError, load_image, load_mask
from clearhead.data.loading import ImageDataset, loader
from clearhead.data.writing import link, new_folder
from clearhead.errors import ClearheadError
from clearhead.masks.annotations import Found
from clearhead.masks.refine import patch_mask, refine
from clearhead.masks.tokencut import TAU, Cut, Side, iou, tokencut
from clearhead.metrics.statistics import Estimate, mean
from clearhead.models import Classifier

Annotations = Callable[[ImageIndex], Iterable[Found]]
"""What gives the masks of a folder's images by people's annotations."""

Progress = Callable[[Iterable, int, str], Iterable]


@dataclass(frozen=True)
class MasksWritten:
    """What ``write_masks`` made.

    Attributes:
        folder: the data with its masks.
        images: how many images there are.
        masks: how many of them have a mask now.
        problems: what the source had wrong, and each image whose mask was dropped, by kind.
        area: the foreground's mean share of an image, of the masks kept.
        patches: mean IoU of the patches' masks with the true ones, before they were refined and any was dropped; None
            where the source has no true masks or none was made from patches.
        made: mean IoU of all masks made with the true ones, dropped ones included; None without true masks.
        kept: the same of the masks that were kept.
    """

    folder: Path
    images: int
    masks: int
    issues: tuple[DataIssue, ...]
    area: Estimate
    patches: Estimate | None = None
    made: Estimate | None = None
    kept: Estimate | None = None

    @property
    def dropped(self) -> dict[str, int]:
        """How many masks were dropped for which reason."""
        return dict(Counter(issue.category for issue in self.issues if issue.action == DROPPED).most_common())


DROPPED = "mask dropped"  # the action of its problem


@dataclass(frozen=True)
class Limits:
    """What a mask must satisfy to be kept.

    Attributes:
        smallest: the least share of the image it covers; below, it is ``too-small``.
        largest: the most; above, it is ``too-large``.
        border: the most of the object's patches that may lie at the image's border; above, it is ``at-border``. Of
            masks made by a model alone, as is the next.
        agreement: the least IoU with what is cut at a tau a little lower or higher; below, it is ``inconsistent``.
    """

    smallest: float = 0.02
    largest: float = 0.9
    border: float = 0.2
    agreement: float = 0.5

    def __post_init__(self) -> None:
        for name, share in vars(self).items():
            if not 0 <= share <= 1:
                raise ClearheadError(f"{name}: {share}; a share from 0 to 1 is needed")


@dataclass(frozen=True)
class _Judged:
    """One image: why its mask was not kept (None: it was), what it covers, and its overlap with the true one."""

    issue: DataIssue | None
    area: float = np.nan
    patches: float = np.nan
    made: float = np.nan


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
    """Give the images of a folder foreground masks: found by a model, or from annotations.

    Args:
        source: images in class folders, as ``read_folder`` reads them.
        out: a new folder for the images (hard links where the file system allows it, else copies), metadata.csv and
            the masks; None puts the masks into ``source/masks``, which must not exist.
        model: finds the object by `tokencut`; it runs where its parameters are. It sees each image as a whole,
            scaled to its input size whatever its own preprocessing cuts off, so that no part goes without mask.
        annotations: gives the masks instead of a model, as ``functools.partial(coco_boxes, file)`` does.
        layers: whose keys are cut, by position; None for all layers, (-1,) as in the paper.
        tau: the cosine above which two patches are alike.
        side: which side of the cut is the object: ``inside``, that with less of it at the image's border, or the
            paper's, ``strongest``.
        limits: which masks are dropped.
        batch_size: images a batch.
        workers: processes that load images; 0 loads in this one.
        track: shows progress: ``track(items, count, title)``.

    The folder appears when it is complete. Raises DataError where nothing can be read or written, or not a single
    mask is kept; ClearheadError for both or neither of `model` and `annotations`, or a model without a grid of tokens.
    """
    if (model is None) == (annotations is None):
        raise ClearheadError("model, annotations: give one of the two, for masks found by a model or by people")
    source = Path(source)
    target = source / "masks" if out is None else Path(out)
    _require_free(target, out is None)
    data = read_folder(source)
    named, ambiguous = _one_a_name(data)
    with new_folder(target) as partial:
        masks = partial if out is None else partial / "masks"
        for name in data.classes:
            (masks / name).mkdir(parents=True)
        judged: Iterable[_Judged]
        if model is not None:
            judged = _found(model, named, masks, layers, tau, side, limits, batch_size, workers)
        else:
            assert annotations is not None
            judged = (_judge(sample, mask, None, limits, masks) for sample, mask in annotations(named))
        seen = [*(progress(judged, len(named.samples), "masks") if progress else judged), *ambiguous]
        if all(one.issue for one in seen):
            raise DataError(_no_mask(source, seen))
        if out is not None:
            _copy(data, partial)
    return _summary(source if out is None else target, data, seen)


def _require_free(target: Path, inside: bool) -> None:
    """Raise DataError where the masks' folder, or the new one, is already there."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        advice = "give a new folder to write to, or move them away" if inside else "choose another or remove it"
        raise DataError(f"{target} exists and is not an empty folder; {advice}")


def _one_a_name(data: ImageIndex) -> tuple[ImageIndex, list[_Judged]]:
    """The data without the images that would share a mask, as a.jpg and a.png do; and those."""
    stems = Counter(PurePosixPath(sample.file).with_suffix("") for sample in data.samples)
    alone, others = [], []
    for sample in data.samples:
        if stems[PurePosixPath(sample.file).with_suffix("")] == 1:
            alone.append(sample)
        else:
            detail = "another image of its class has the same name but for the extension"
            others.append(_Judged(DataIssue(sample.file, "shared-name", detail, DROPPED)))
    return replace(data, samples=tuple(alone)), others


def _found(
    model: Classifier,
    data: ImageIndex,
    masks: Path,
    layers: Sequence[int] | None,
    tau: float,
    side: Side,
    limits: Limits,
    batch_size: int,
    workers: int,
) -> Iterator[_Judged]:
    """Every image's mask by the model's features, judged and saved."""
    whole = replace(model.preprocess, resize=model.preprocess.size, crop_mode="squash")
    plain = replace(data, samples=tuple(replace(sample, mask=None) for sample in data.samples))
    device = next(model.module.parameters()).device

    def finish(sample: Sample, cut: Cut) -> _Judged:
        size = load_image(sample.path).size
        return _judge(sample, refine(cut, size), cut, limits, masks)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for batch in loader(ImageDataset(plain, whole), batch_size, workers):
            samples = [data.samples[index] for index in batch["index"]]
            cuts = tokencut(model, batch["image"].to(device), layers=layers, tau=tau, side=side)
            yield from pool.map(finish, samples, cuts)


def _judge(sample: Sample, mask: np.ndarray | tuple[str, str], cut: Cut | None, limits: Limits, masks: Path) -> _Judged:
    """Save a mask that is good enough, else say why not; `cut` is what a model found. `mask` may be a reason itself."""
    if isinstance(mask, tuple):
        return _Judged(DataIssue(sample.file, *mask, DROPPED))
    area = float(mask.mean())
    reason = None
    if area == 0:
        reason = "no-object", "nothing in the image stands out" if cut else "no object is annotated"
    elif area < limits.smallest:
        reason = "too-small", f"{area:.1%} of the image; less than {limits.smallest:.1%} is dropped"
    elif area > limits.largest:
        reason = "too-large", f"{area:.1%} of the image; more than {limits.largest:.1%} is dropped"
    elif cut and cut.border > limits.border:
        detail = f"{cut.border:.1%} of it lies at the image's border; more than {limits.border:.1%} is dropped"
        reason = "at-border", detail
    elif cut and cut.agreement < limits.agreement:
        detail = f"IoU {cut.agreement:.2f} with the cut of a near tau; less than {limits.agreement:.2f} is dropped"
        reason = "inconsistent", detail
    if reason is None:
        Image.fromarray(mask.astype(np.uint8) * 255).save(masks / PurePosixPath(sample.file).with_suffix(".png"))
    true = None if sample.mask is None else np.asarray(load_mask(sample.mask)) > 0
    return _Judged(
        DataIssue(sample.file, *reason, DROPPED) if reason else None,
        area,
        np.nan if true is None or cut is None else iou(patch_mask(cut, mask.shape[::-1]), true),
        np.nan if true is None else iou(mask, true),
    )


def _no_mask(source: Path, seen: list[_Judged]) -> str:
    issues = [one.issue for one in seen if one.issue]
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(p.category for p in issues).most_common())
    first = f"; first {issues[0].file}: {issues[0].detail}" if issues else ""
    return f"{source}: not one mask of {len(seen)} images is good enough to be kept ({kinds}){first}"


def _copy(data: ImageIndex, out: Path) -> None:
    """The usable images, and the table of the folder."""
    for sample in data.samples:
        link(sample.image_file, out / sample.file)
    table = data.root / "metadata.csv"
    if table.is_file():
        shutil.copyfile(table, out / table.name)


def _summary(folder: Path, data: ImageIndex, seen: list[_Judged]) -> MasksWritten:
    kept = [one for one in seen if one.issue is None]
    issues = (*data.issues, *(one.issue for one in seen if one.issue))
    area = mean(np.array([one.area for one in kept]), "%")
    return MasksWritten(
        folder,
        len(seen),
        len(kept),
        issues,
        area,
        _overlap([one.patches for one in seen]),
        _overlap([one.made for one in seen]),
        _overlap([one.made for one in kept]),
    )


def _overlap(values: list[float]) -> Estimate | None:
    """The mean of the overlaps that are known."""
    known = np.array([value for value in values if not np.isnan(value)])
    return mean(known) if len(known) else None
