"""Errors about models, each in one line."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from clearhead.errors import ClearheadError


class ModelError(ClearheadError):
    """A model that cannot be loaded, used or saved; the message names the cause and what would work."""


class NoHeadError(ModelError):
    """Weights without a classification head, such as self-supervised ones; num_classes adds a new head."""


@contextmanager
def library_errors(name: str) -> Iterator[None]:
    """Turn whatever a library raises while it loads a model into a ModelError of one line."""
    try:
        yield
    except ModelError as error:
        raise type(error)(f"{name}: {error}") from error.__cause__
    except Exception as error:  # timm, torchvision and transformers raise nearly anything
        raise ModelError(f"{name}: {cause(error)}") from error


def cause(error: Exception) -> str:
    """Return an exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}{'...' if len(text) > 500 else ''}"


def close_matches(name: str, known: Sequence[str], prefix: str = "") -> str:
    """Return the end of a message about an unknown name: the names that are similar, or nothing."""
    matches = [prefix + match for match in difflib.get_close_matches(name, known, n=4)]
    return f"; did you mean {', '.join(matches)}?" if matches else ""
