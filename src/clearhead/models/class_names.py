"""Class names."""

import functools
from collections import Counter

from timm.data import ImageNetInfo


@functools.cache
def imagenet_names(subset: str) -> tuple[str, ...]:
    """The first lemma of each class, and its WordNet id where another class has the same (case aside)."""
    info = ImageNetInfo(subset)
    names = [description.split(",")[0] for description in info.label_descriptions()]
    taken = Counter(name.casefold() for name in names)
    ids = info.label_names()
    return tuple(n if taken[n.casefold()] == 1 else f"{n} ({i})" for n, i in zip(names, ids, strict=True))


def numbered(count: int) -> tuple[str, ...]:
    """Names for classes that have none."""
    return tuple(f"class {index}" for index in range(count))
