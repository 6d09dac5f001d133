"""Folders of data as they are written: whole or not at all, with files linked where that can be."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clearhead.data.image_io import DataError


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to fill that appears as `target`, which is absent or empty, when the block ends well, else not at all.

    Raises DataError where it cannot be written.
    """
    partial = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        yield partial
        partial.chmod(0o755)  # mkdtemp's folders are for their owner alone
        if target.is_dir():
            target.rmdir()
        partial.rename(target)
    except OSError as error:
        raise DataError(f"{target} could not be written: {error}") from error
    finally:
        if partial is not None and partial.exists():
            shutil.rmtree(partial, ignore_errors=True)


def link(original: Path, target: Path) -> None:
    """A hard link to a file, or a copy of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # a copy onto a link of an earlier run would be written into the original
    try:
        os.link(original.resolve(), target)
    except OSError:
        shutil.copyfile(original, target)
