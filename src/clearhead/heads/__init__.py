"""Attention heads one by one: what each follows, how alike they are, which to keep."""

from clearhead.heads.diversity import DiversityLoss
from clearhead.heads.fold import fold_heads
from clearhead.heads.gradients import head_gradients
from clearhead.heads.head_masking import HeadMask
from clearhead.heads.prune import prune_heads
from clearhead.heads.scores import HeadScores, score_heads
from clearhead.heads.selection import Selection, select_heads

__all__ = [
    "DiversityLoss",
    "HeadMask",
    "HeadScores",
    "Selection",
    "fold_heads",
    "head_gradients",
    "prune_heads",
    "score_heads",
    "select_heads",
]
