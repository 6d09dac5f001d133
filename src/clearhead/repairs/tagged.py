"""The images that a repair by tags trains and selects on."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clearhead.data.dataset import DataIssue, ImageIndex, group_labels
from clearhead.data.tags import TAG, joined, require_tagged_groups, spread_tags, tagged_only, with_tags
from clearhead.progress import log

TagUse = Literal["tagged images", "all images", "none"]
"""How a repair takes a tags file: tagged images only; all images, the untagged ones of a class as a group; not."""


@dataclass(frozen=True)
class TaggedImages:
    """What a repair by tags works on.

    Attributes:
        train: images to train on; None for a repair that only selects.
        validation: images to select on; None if they are to be those of `train`, by cross-validation.
        groups: number of tagged images in each group.
        issues: rows of the tags file that were ignored.
    """

    train: ImageIndex | None
    validation: ImageIndex | None
    groups: dict[str, int]
    issues: list[DataIssue]


def read_tagged(
    train: ImageIndex | None, validation: ImageIndex, tags: str | Path, use: TagUse, *, trains: bool, seed: int
) -> TaggedImages:
    """Return the images of a repair, with the tags of training and validation images together.

    Args:
        train: the training images; None if only validation images are tagged.
        validation: the validation images.
        tags: the tags file.
        use: how the repair takes tags.
        trains: whether the repair uses training images.
        seed: of the division of tagged images.

    Raises:
        DataError: for a tags file that cannot be used (``clearhead.data.tags``), or too few tagged images.
    """
    index = with_tags(validation if train is None else joined(train, validation), tags)
    images = tagged_only(index)
    require_tagged_groups(images, every_class=trains and use == "tagged images")
    groups = dict(sorted(Counter(group_labels(images, [TAG])).items()))
    issues = [issue for issue in index.issues if issue.category == "tag-without-image"]
    log.info(
        "tags: %s tagged images in %s groups of %s to %s",
        *(f"{number:,}" for number in (len(images.samples), len(groups), min(groups.values()), max(groups.values()))),
    )
    if use == "tagged images":
        return TaggedImages(images if trains else None, None if trains else images, groups, issues)
    fitted, held_out = spread_tags(index, {sample.file for sample in validation.samples}, seed)
    return TaggedImages(fitted, held_out, groups, issues)
