"""Names of classes: those of ImageNet, those of a file, and the class that a user means."""

import difflib
import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from timm.data import ImageNetInfo

from clearhead.errors import ClearheadError
from clearhead.models.errors import ModelError, cause


@functools.cache
def imagenet_names(subset: str) -> tuple[str, ...]:
    """Return the first lemma of each class, with its WordNet id where another class has the same (case aside)."""
    info = ImageNetInfo(subset)
    names = [description.split(",")[0] for description in info.label_descriptions()]
    counts = Counter(name.casefold() for name in names)
    ids = info.label_names()
    return tuple(n if counts[n.casefold()] == 1 else f"{n} ({i})" for n, i in zip(names, ids, strict=True))


def numbered(count: int) -> tuple[str, ...]:
    """Return names for classes that have none: ``class 0``, ``class 1``, ..."""
    return tuple(f"class {index}" for index in range(count))


def class_names(classes: Sequence[str] | str | Path) -> tuple[str, ...]:
    """Return class names from a list, or from a text file with one name per line. Raises ModelError."""
    if isinstance(classes, str | Path):
        file = Path(classes).expanduser()
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(
                f"classes: {file} cannot be read as text with one name per line ({cause(error)})"
            ) from error
        classes = [line.strip() for line in lines if line.strip()]
        if not classes:
            raise ModelError(f"classes: {file} is empty; one class name per line is needed")
    if duplicate := next((name for name, count in Counter(classes).items() if count > 1), None):
        raise ModelError(f"classes: {duplicate!r} is named twice; class names must be unique")
    return tuple(classes)


def class_index(classes: Sequence[str], name: str | int) -> int:
    """Return the index of a class from its name or its index. Raises ClearheadError with similar names."""
    if name in classes:
        return classes.index(str(name))
    if str(name).isdecimal() and int(name) < len(classes):
        return int(name)
    similar = difflib.get_close_matches(str(name), classes, 3, 0.4) or list(classes[:3])
    raise ClearheadError(
        f"class {name!r} is not one of the model's {len(classes)} classes: give a name, such as {', '.join(similar)}, "
        f"or an index in 0..{len(classes) - 1}"
    )
