"""Load samples as tensors and batches, reproducibly for a seed whatever the number of workers or processes."""

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
    """A model's preprocessing of images, and the same geometry for masks."""

    def image(self, image: Image.Image, /) -> Tensor:
        """Return an RGB image as C x H x W floats."""

    def mask(self, mask: Image.Image, /) -> Tensor:
        """Return a mask of mode L as 1 x H x W floats in 0..1."""


Augment = Callable[[Image.Image, Image.Image | None, torch.Generator], tuple[Image.Image, Image.Image | None]]
"""(image, mask, generator) to the changed image and mask; no mask if it no longer fits."""


class ImageDataset(Dataset[dict[str, Any]]):
    """The samples of a data set as tensors.

    An item is a dict of image (C x H x W), label, mask (1 x H x W in 0..1, zeros if there is none), has_mask, index
    (into ``folder.samples``), group (its name, from ``group_labels`` for `group_columns`) and counts.

    `augment` changes image and mask before `preprocess`. Its generator depends only on the key: an index, or
    (index, seed) as ``SeededSampler`` yields. A negative index (index - length) is the same image, but with counts
    False (see ``DistributedBatchSampler``).
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
        index, seed = key if isinstance(key, tuple) else (key, key)
        sample = self.folder.samples[index]
        pil_image = load_image(sample.path)
        pil_mask = load_mask(sample.mask) if sample.mask else None
        if pil_mask is not None and pil_mask.size != pil_image.size:
            sizes = f"the mask has {format_size(pil_mask.size)} pixels, the image {format_size(pil_image.size)}"
            raise DataError(f"{sample.mask}: {sizes}")
        if self.augment is not None:
            pil_image, pil_mask = self.augment(pil_image, pil_mask, torch.Generator().manual_seed(seed))
        image = self.preprocess.image(pil_image)
        mask = self.preprocess.mask(pil_mask) if pil_mask is not None else image.new_zeros(1, *image.shape[-2:])
        return {
            "image": image,
            "label": sample.label,
            "mask": mask,
            "has_mask": pil_mask is not None,
            "index": index % len(self),
            "group": self.groups[index],
            "counts": index >= 0,
        }


class SeededSampler(Sampler[tuple[int, int]]):
    """Yield (index, augmentation seed) in a new random order on each pass, decided only by the seed and the epoch.

    With `groups`, one name per index, indices are sampled with replacement: first a group, uniformly, then one of its
    images, uniformly.

    Each pass advances the epoch; ``set_epoch`` sets it, to resume a stopped run.
    """

    def __init__(self, length: int, seed: int = 0, groups: Sequence[str] | None = None) -> None:
        self.length = length
        names = np.array(groups if groups is not None else [])
        self.members = [np.flatnonzero(names == name) for name in np.unique(names)]
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        self.epoch += 1
        if self.members:
            groups = rng.integers(len(self.members), size=self.length)
            order = np.array([rng.choice(self.members[group]) for group in groups])
        else:
            order = rng.permutation(self.length)
        seeds = rng.integers(2**62, size=self.length)
        return zip(order.tolist(), seeds.tolist(), strict=True)


class DistributedBatchSampler(Sampler[list[Any]]):
    """Yield this process's part of each batch when several processes run together.

    All processes get the same number of batches. If a batch has fewer images than processes, a process without a part
    gets an image that does not count.
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
    """Return the mean, or weighted mean, of one value per image of a batch (B); losses should end with it.

    If several processes share a batch, each gets its part of the mean, scaled so that the average of the results and
    gradients over the processes is that of one process with the whole batch. 0 if the weights sum to 0.
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
    """Return batches of a data set: in order, or shuffled by ``SeededSampler(seed)``. The last may be smaller.

    `balanced` samples groups uniformly. `shared` gives each process its part of every batch by
    ``DistributedBatchSampler``; the sampler of the images is then ``loader.batch_sampler.order``, else
    ``loader.sampler``.
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
        generator=torch.Generator().manual_seed(seed),  # by default workers are seeded from the global generator
        pin_memory=torch.cuda.is_available(),
    )
