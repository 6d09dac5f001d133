"""Interrupt a training as a user would, after some of its epochs."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest

from clearhead.training import loop


@contextmanager
def interrupted_after(epochs: int) -> Iterator[None]:
    """Raise KeyboardInterrupt in the block after the state of so many epochs has been saved, and catch it."""
    save_state, saved = loop.save_state, []

    def save_and_interrupt(*arguments: object) -> None:
        save_state(*arguments)
        saved.append(arguments)
        if len(saved) == epochs:
            raise KeyboardInterrupt

    with mock.patch.object(loop, "save_state", save_and_interrupt), pytest.raises(KeyboardInterrupt):
        yield
