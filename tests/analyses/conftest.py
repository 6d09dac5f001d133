"""Images of the tests of layers and of the loss landscape."""

from tests.layers.conftest import folder  # noqa: F401
