"""Give the images of an index masks that a model makes (TokenCut), in memory: no file is written."""

import io
from dataclasses import dataclass, replace

from PIL import Image

from clearhead.data.dataset import ImageIndex
from clearhead.data.image_refs import InMemoryImage
from clearhead.data.splits import sample_n
from clearhead.masks.folder import Limits, cut_images, reason_to_drop
from clearhead.models import Classifier
from clearhead.progress import Progress, track

MOST_IMAGES = 500
"""At most this many images, drawn at random, get a mask."""


@dataclass(frozen=True)
class MasksMade:
    """What was made: `masks` for `images` images; the other masks were dropped (``Limits``)."""

    images: int
    masks: int


def add_masks(
    model: Classifier,
    index: ImageIndex,
    *,
    seed: int = 0,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
) -> tuple[ImageIndex, MasksMade]:
    """Return the index with masks by ``tokencut``, as ``write_masks`` makes them, of at most ``MOST_IMAGES`` images.

    Args:
        model: a vision transformer whose tokens form one grid.
        index: images without masks.
        seed: selects the images where there are more.
        batch_size: images per batch.
        workers: processes that load images.
        progress: shows progress.

    Raises:
        DataError: if a file is unreadable.
        ClearheadError: for a model without a token grid.
    """
    chosen = sample_n(index, MOST_IMAGES, seed)
    made, limits = {}, Limits()
    cuts = cut_images(model, chosen, batch_size=batch_size, workers=workers)
    for sample, mask, cut in track(cuts, progress, "masks", len(chosen.samples)):
        if reason_to_drop(mask, cut, limits) is None:
            buffer = io.BytesIO()
            Image.fromarray(mask).save(buffer, "PNG")
            made[sample.file] = InMemoryImage(f"mask of {sample.file}", buffer.getvalue())
    samples = tuple(replace(sample, mask=made.get(sample.file)) for sample in index.samples)
    return replace(index, samples=samples), MasksMade(len(chosen.samples), len(made))
