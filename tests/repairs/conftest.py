"""Images with masks for the repairs."""

from tests.masked_images import folder

__all__ = ["folder"]
