"""What goes wrong with a model, in one line."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from clearhead.errors import ClearheadError


class ModelError(ClearheadError):
    """A model that cannot be loaded, understood or saved; the message says what was found and what would work."""


class NoHeadError(ModelError):
    """Weights without a classification head, as self-supervised ones are; num_classes gives them a fresh one."""


@contextmanager
def library_errors(name: str) -> Iterator[None]:
    """Whatever a library raises while it loads becomes a ModelError in one line."""
    try:
        yield
    except ModelError as error:
        raise type(error)(f"{name}: {error}") from error.__cause__
    except OSError as error:  # also what the hubs' clients raise without a network
        raise ModelError(
            f"{name}: its weights or config could not be had: {cause(error).rstrip('.')}. Without a network, "
            "give local files: timm:NAME@FILE, torchvision:NAME@FILE, hf:FOLDER or FOLDER; or pretrained=False for "
            "random weights"
        ) from error
    except Exception as error:  # timm, torchvision and transformers raise nearly anything
        raise ModelError(f"{name}: {cause(error)}") from error


def cause(error: Exception) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}{'...' if len(text) > 500 else ''}"


def close_matches(name: str, known: Sequence[str], prefix: str = "") -> str:
    """The end of a message about an unknown name: those that look like it, or nothing."""
    matches = [prefix + match for match in difflib.get_close_matches(name, known, n=4)]
    return f"; did you mean {', '.join(matches)}?" if matches else ""
