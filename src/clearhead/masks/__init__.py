"""Make foreground masks for images: with a model (TokenCut), or from annotations."""

from clearhead.masks.annotations import FORMATS
from clearhead.masks.folder import Limits, MasksWritten, write_masks
from clearhead.masks.tokencut import Cut, tokencut

__all__ = ["FORMATS", "Cut", "Limits", "MasksWritten", "tokencut", "write_masks"]
