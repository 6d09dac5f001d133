"""Index image files that belong to no data set."""

from collections.abc import Sequence
from pathlib import Path

from clearhead.data.dataset import ImageIndex, Sample, check_samples, require_samples, sort_issues
from clearhead.data.splits import sample_n
from clearhead.inputs import valid_text


def index_files(
    files: Sequence[str | Path], classes: Sequence[str], limit: int | None = None, seed: int = 0
) -> ImageIndex:
    """Return an index of image files from anywhere, in their order. They have no labels: each has class 0.

    Args:
        files: the image files; repeated ones are used one time, those that cannot be decoded become issues.
        classes: the model's class names.
        limit: use at most this many, drawn at random.
        seed: of the drawn files.

    Raises:
        DataError: where no file can be used.
    """
    samples = tuple(Sample(valid_text(str(file)), Path(file), 0, None, {}) for file in dict.fromkeys(map(Path, files)))
    index = sample_n(ImageIndex(Path(), tuple(classes), samples, ()), limit, seed)
    usable, issues = check_samples(index.samples)
    require_samples("images", usable, issues)
    return ImageIndex(Path(), tuple(classes), tuple(usable), sort_issues(issues))
