"""Files of a data set in a second place."""

import os
import shutil
from pathlib import Path


def link(original: Path, target: Path) -> None:
    """A hard link to a file, or a copy of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # a copy onto a link of an earlier run would be written into the original
    try:
        os.link(original.resolve(), target)
    except OSError:
        shutil.copyfile(original, target)
