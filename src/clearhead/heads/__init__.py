"""Attention heads: gradients through each, masks, importance, diversity, and removal."""

from clearhead.heads.diversity import DiversityLoss
from clearhead.heads.fold import fold_heads
from clearhead.heads.gradients import head_gradients
from clearhead.heads.head_masking import HeadMask
from clearhead.heads.importance import head_importance
from clearhead.heads.prune import prune_heads

__all__ = ["DiversityLoss", "HeadMask", "fold_heads", "head_gradients", "head_importance", "prune_heads"]
