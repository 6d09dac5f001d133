"""A vision transformer whose tokens attend to a k x k window around them, for any odd k."""

from typing import Any

import torch
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from clearhead.errors import ClearheadError


def window_mask(grid: tuple[int, int], window: int) -> Tensor:
    """Return which tokens of a grid, H x W, each attends to: those at most `window` // 2 steps away.

    N x N booleans, N = H W. A window is cut at the border: the attention is spread over the tokens inside. (The
    unfolding of arXiv 2202.06709 pads windows with zeros instead.) Raises ClearheadError unless `window` is odd and
    positive.
    """
    if window < 1 or window % 2 != 1:
        raise ClearheadError(
            f"window: {window}; an odd number of tokens is needed (1, 3, 5, ...), with the token in the middle"
        )
    rows, columns = (torch.arange(side) for side in grid)
    token = torch.cartesian_prod(rows, columns)  # row by row, the order of the tokens
    return (token[:, None] - token).abs().amax(-1) <= window // 2


class MaskedAttention(Attention):
    """timm's attention with a fixed mask."""

    mask: Tensor

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Map B x N x D to B x N x D."""
        attended: Tensor = super().forward(x, attn_mask=self.mask)
        return attended


class WindowVisionTransformer(VisionTransformer):
    """timm's VisionTransformer without a CLS token, in which every layer attends within k x k windows.

    Its parameters are those of a VisionTransformer of the same arguments, whose weights fit for any window; from
    `window` = 2 max(H, W) - 1 on, it also computes the same.

    Args:
        window: side k of the window, in tokens; odd, else ClearheadError.
        **arguments: those of VisionTransformer.
    """

    def __init__(self, *, window: int, **arguments: Any) -> None:
        super().__init__(**arguments, class_token=False, global_pool="avg", attn_layer=MaskedAttention)
        self.window = window
        self._register_masks()

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        """Set the input size as VisionTransformer does, and recompute the masks."""
        super().set_input_size(*args, **kwargs)
        self._register_masks()

    def _register_masks(self) -> None:
        mask = window_mask(self.patch_embed.grid_size, self.window).to(self.pos_embed.device)
        for block in self.blocks:
            block.attn.register_buffer("mask", mask, persistent=False)
