"""A folder's samples to tensors and batches, the same for the same seed whatever the workers do."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler

from clearhead.data.dataset import ImageIndex, group_labels
from clearhead.data.image_io import DataError, format_size, load_image, load_mask
from clearhead.distributed import mean_over_processes, rank_and_size


class Preprocess(Protocol):
    """What a model does to an image before it sees it, and the same geometry for a mask."""

    def image(self, image: Image.Image, /) -> Tensor:
        """RGB image to C x H x W floats."""

    def mask(self, mask: Image.Image, /) -> Tensor:
        """Mask of mode L to 1 x H x W floats in 0..1."""


Augment = Callable[[Image.Image, Image.Image | None, torch.Generator], tuple[Image.Image, Image.Image | None]]


class ImageDataset(Dataset[dict[str, Any]]):
    """The samples of a folder as tensors.

    An item has image (C x H x W), label, mask (1 x H x W in 0..1, zeros where there is none), has_mask, index (into
    ``folder.samples``), group (its name, as ``group_labels`` gives it for `group_columns`) and counts. `augment`
    changes image and mask before `preprocess`; what it draws from its generator depends on the key alone: an index, or
    (index, draw) as ``SeededSampler`` gives, so neither on the workers nor on other code. An index less the length is
    the
    same image, but one that does not count (see ``DistributedBatchSampler``).
    """

    def __init__(
        self,
        folder: ImageIndex,
        preprocess: Preprocess,
        augment: Augment | None = None,
        group_columns: Sequence[str] | None = None,
    ) -> None:
        self.folder = folder
        self.preprocess = preprocess
        self.augment = augment
        self.groups = group_labels(folder, group_columns)

    def __len__(self) -> int:
        return len(self.folder.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index, draw = key if isinstance(key, tuple) else (key, key)
        sample = self.folder.samples[index]
        picture = load_image(sample.path)
        cover = load_mask(sample.mask) if sample.mask else None
        if cover is not None and cover.size != picture.size:
            raise DataError(
                f"{sample.mask}: the mask has {format_size(cover.size)} pixels, the image {format_size(picture.size)}"
            )
        if self.augment is not None:
            picture, cover = self.augment(picture, cover, torch.Generator().manual_seed(draw))
        image = self.preprocess.image(picture)
        mask = self.preprocess.mask(cover) if cover is not None else image.new_zeros(1, *image.shape[-2:])
        return {
            "image": image,
            "label": sample.label,
            "mask": mask,
            "has_mask": cover is not None,
            "index": index % len(self),
            "group": self.groups[index],
            "counts": index >= 0,
        }


class SeededSampler(Sampler[tuple[int, int]]):
    """A new order at every pass, each index with a number to seed its augmentation, from (seed, epoch) alone.

    With `groups`, a name for each index, a pass is not an order: each of its indices is drawn anew, first a group, all
    alike, then one of its images.

    Each pass moves on to the next epoch; ``set_epoch`` chooses it, to go on where a stopped run was.
    """

    def __init__(self, length: int, seed: int = 0, groups: Sequence[str] | None = None) -> None:
        self.length = length
        names = np.array(groups if groups is not None else [])
        self.members = [np.flatnonzero(names == name) for name in np.unique(names)]
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass that of `epoch` (from 0)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        self.epoch += 1
        if self.members:
            chosen = rng.integers(len(self.members), size=self.length)
            order = np.array([rng.choice(self.members[group]) for group in chosen])
        else:
            order = rng.permutation(self.length)
        draws = rng.integers(2**62, size=self.length)
        return zip(order.tolist(), draws.tolist(), strict=True)


class DistributedBatchSampler(Sampler[list[Any]]):
    """This process's part of each batch of an order, where several processes run the command together.

    All do as many batches. One that has no part in a batch of fewer images than processes gets an image that does not
    count.
    """

    def __init__(self, order: Sampler[Any], length: int, batch_size: int) -> None:
        self.order, self.length, self.batch_size = order, length, batch_size

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[Any]]:
        rank, processes = rank_and_size()
        keys = iter(self.order)
        while batch := list(islice(keys, self.batch_size)):
            yield batch[rank::processes] or [self._without_count(batch[0])]

    def _without_count(self, key: int | tuple[int, int]) -> int | tuple[int, int]:
        return (key[0] - self.length, key[1]) if isinstance(key, tuple) else key - self.length


def batch_mean(values: Tensor, batch: Mapping[str, Any], weight: Tensor | None = None) -> Tensor:
    """The mean of numbers of a batch's images (B), or their mean by `weight` (B): what a loss should end in.

    Where several processes share a batch, each gets its images' part of the mean over all of them, so that the mean of
    the processes' results, and of their gradients, is that of one process with the whole batch. 0 where no image has
    weight.
    """
    weight = torch.ones_like(values) if weight is None else weight.to(values)
    if "counts" in batch:
        weight = weight * batch["counts"].to(values)
    total = mean_over_processes(weight.sum())
    return (values * weight).sum() / total.where(total > 0, 1)


def loader(
    dataset: ImageDataset,
    batch_size: int,
    workers: int,
    shuffle: bool = False,
    seed: int = 0,
    balanced: bool = False,
    shared: bool = False,
) -> DataLoader[dict[str, Any]]:
    """Batches of a dataset: in order, or shuffled by ``SeededSampler(seed)``. The last may be smaller.

    `balanced` draws the groups alike often. `shared` gives each process its ``DistributedBatchSampler`` of every
    batch; the sampler of
    the images is then ``loader.batch_sampler.order``, else ``loader.sampler``.
    """
    sampler: Sampler[Any] | None = None
    if shuffle or balanced:
        sampler = SeededSampler(len(dataset), seed, dataset.groups if balanced else None)
    batches: dict[str, Any] = {"batch_size": batch_size, "sampler": sampler}
    if shared:
        batches = {
            "batch_sampler": DistributedBatchSampler(sampler or SequentialSampler(dataset), len(dataset), batch_size)
        }
    return DataLoader(
        dataset,
        **batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(seed),  # else workers are seeded by numbers of the global one
        pin_memory=torch.cuda.is_available(),
    )
