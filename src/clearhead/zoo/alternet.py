"""Pre-activation ResNets, and AlterNets: the same with some blocks replaced by attention (arXiv 2202.06709, section 4).

An AlterNet is built up from its ResNet, block by block (`build_up`). Everything but the attention blocks and the 3 x 3
stem is timm's ResNetV2.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, ClassifierHead, create_conv2d, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnetv2 import ResNetV2
from timm.models.swin_transformer import get_relative_position_index, window_partition, window_reverse
from torch import Tensor, nn

from clearhead.errors import ClearheadError
from clearhead.zoo.configs import cifar, imagenet

default_cfgs = generate_default_cfgs(
    {
        "preact_resnet50_32": cifar("stem.conv", "head.fc"),
        "preact_resnet50_224": imagenet("stem.conv", "head.fc"),
        "alternet50_32": cifar("stem.conv", "head.fc"),
        "alternet50_224": imagenet("stem.conv", "head.fc"),
        "preact_resnet_mini_32": cifar("stem.conv", "head.fc"),
        "alternet_mini_32": cifar("stem.conv", "head.fc"),
    }
)


def build_up(blocks: int, layers: Sequence[int] = (3, 4, 6, 4)) -> tuple[int, ...]:
    """Return how many attention blocks each stage has after `blocks` of a ResNet's blocks were replaced one by one.

    Within a stage every second block is replaced, starting at its end. The last stage comes first, until half of its
    blocks are replaced; then each earlier stage gets one at its end, from late to early; then these are filled too, in
    that order. So 4 blocks of (3, 4, 6, 4) are (0, 1, 1, 2), the paper's best of 0 to 5 on CIFAR-100. The paper
    replaces "alternately from the end" and moves to an earlier stage where that brings no gain: a search. This is one
    order that passes through its models.

    Raises ClearheadError for fewer than 0 blocks, or more than can be replaced.
    """
    room = [depth // 2 for depth in layers]
    last = len(layers) - 1
    order = [last] * room[last]
    for replaced in range(max(room)):
        order += [stage for stage in reversed(range(last)) if room[stage] > replaced]
    if not 0 <= blocks <= len(order):
        raise ClearheadError(
            f"attn_blocks: {blocks}; from 0 to {len(order)} can be replaced, every second block of the stages of "
            f"{', '.join(map(str, layers))}"
        )
    return tuple(order[:blocks].count(stage) for stage in range(len(layers)))


class WindowAttention(nn.Module):
    """Self-attention within w x w windows side by side, with a learned bias for each relative position.

    The bias is one table of (2 w - 1)², shared by the heads, as in the paper's code; q, k and v have no bias.
    """

    position: Tensor

    def __init__(self, dim: int, dim_out: int, *, num_heads: int, head_dim: int, window: int) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.qkv = nn.Linear(dim, 3 * num_heads * head_dim, bias=False)
        self.proj = nn.Linear(num_heads * head_dim, dim_out)
        self.position_bias = nn.Parameter(torch.empty((2 * window - 1) ** 2))
        self.register_buffer("position", get_relative_position_index(window, window), persistent=False)
        for parameter in (self.qkv.weight, self.proj.weight, self.position_bias):
            trunc_normal_(parameter, std=0.02)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map B x C x H x W to B x C' x H x W. Raises ClearheadError where the windows do not tile H x W."""
        height, width = x.shape[-2:]
        if height % self.window or width % self.window:
            raise ClearheadError(
                f"images: their feature map of {height} x {width} cannot be cut into windows of {self.window} x "
                f"{self.window}; pass images whose feature maps are multiples of that at the attention blocks"
            )
        side = (self.window, self.window)
        windows = window_partition(x.permute(0, 2, 3, 1), side).flatten(1, 2)
        q, k, v = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self.position_bias[self.position])
        windows = self.proj(attended.transpose(1, 2).flatten(2)).unflatten(1, side)
        joined: Tensor = window_reverse(windows, side, height, width).permute(0, 3, 1, 2)
        return joined


class AttentionBlock(nn.Module):
    """BN, GELU, 1 x 1 convolution to 1/4 of the channels, BN, window attention back to all; a residual around it."""

    def __init__(self, dim: int, *, num_heads: int, head_dim: int, window: int, drop_path: nn.Module) -> None:
        super().__init__()
        self.norm1 = BatchNormAct2d(dim, act_layer=nn.GELU)
        self.conv = nn.Conv2d(dim, dim // 4, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(dim // 4)
        self.attn = WindowAttention(dim // 4, dim, num_heads=num_heads, head_dim=head_dim, window=window)
        self.drop_path = drop_path
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map B x C x H x W to the same shape."""
        branch: Tensor = self.drop_path(self.attn(self.norm2(self.conv(self.norm1(x)))))
        return x + branch


class AlterNet(ResNetV2):
    """A pre-activation ResNet with BN-ReLU-GAP at its end, in which attention replaces some blocks.

    Args:
        layers: blocks of each stage.
        attn_blocks: attention blocks of each stage, at its end and every second before it; or their total number,
            distributed by `build_up`.
        num_heads: heads of each stage's attention blocks.
        head_dim: channels per head.
        window: side of the windows they attend in; the stages' feature maps must be multiples of it.
        small_images: use a stem of one 3 x 3 convolution, instead of 7 x 7 with stride 2 and pooling.
        **arguments: those of timm's ResNetV2: ``channels``, ``num_classes``, ``drop_path_rate``, ...

    Raises:
        ClearheadError: for too many `attn_blocks`, another number of `num_heads` than of stages, a `window` below 1.
    """

    stem: Any
    head: Any

    def __init__(
        self,
        layers: Sequence[int] = (3, 4, 6, 4),
        *,
        attn_blocks: int | Sequence[int] = 0,
        num_heads: Sequence[int] = (3, 6, 12, 24),
        head_dim: int = 64,
        window: int = 4,
        small_images: bool = True,
        **arguments: Any,
    ) -> None:
        counts = build_up(attn_blocks, layers) if isinstance(attn_blocks, int) else tuple(attn_blocks)
        room = [depth // 2 for depth in layers]
        if len(counts) != len(room) or any(not 0 <= n <= most for n, most in zip(counts, room, strict=True)):
            raise ClearheadError(
                f"attn_blocks: {counts}; the {len(room)} stages have room for at most {', '.join(map(str, room))}, "
                "every second block"
            )
        if len(num_heads) != len(room):
            raise ClearheadError(
                f"num_heads: {tuple(num_heads)}; one number for each of the {len(room)} stages is needed"
            )
        if window < 1:
            raise ClearheadError(f"window: {window}; at least 1 is needed")
        super().__init__(layers, conv_layer=create_conv2d, norm_layer=BatchNormAct2d, **arguments)
        if small_images:
            old = self.stem.conv
            conv = create_conv2d(old.in_channels, old.out_channels, 3)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            self.stem = nn.Sequential(OrderedDict(conv=conv))
            for feature in self.feature_info:
                feature["reduction"] = max(feature["reduction"] // 4, 1)
        for stage, count, heads in zip(self.stages, counts, num_heads, strict=True):
            for index in range(1 + len(stage.blocks) - 2 * count, len(stage.blocks), 2):
                replaced = stage.blocks[index]
                stage.blocks[index] = AttentionBlock(
                    replaced.conv3.out_channels,
                    num_heads=heads,
                    head_dim=head_dim,
                    window=window,
                    drop_path=replaced.drop_path,
                )
        # linear, where timm's is a 1 x 1 convolution: then its input is the model's features
        pooling = self.head.global_pool.pool_type
        self.head = ClassifierHead(self.num_features, self.num_classes, pooling, self.drop_rate)


_RESNET50 = {"layers": (3, 4, 6, 3)}
_ALTERNET50 = {"layers": (3, 4, 6, 4), "num_heads": (3, 6, 12, 24), "head_dim": 64}
_MINI = {"layers": (2, 2, 2, 2), "channels": (64, 96, 192, 384), "stem_chs": 32}


@register_model
def preact_resnet50_32(pretrained: bool = False, **kwargs: Any) -> AlterNet:
    """Pre-activation ResNet-50 with a 3 x 3 stem."""
    return _build("preact_resnet50_32", pretrained, _RESNET50 | kwargs)


@register_model
def preact_resnet50_224(pretrained: bool = False, **kwargs: Any) -> AlterNet:
    """Pre-activation ResNet-50 for ImageNet."""
    return _build("preact_resnet50_224", pretrained, _RESNET50 | {"small_images": False} | kwargs)


@register_model
def alternet50_32(pretrained: bool = False, **kwargs: Any) -> AlterNet:
    """AlterNet-50 for CIFAR: attention at the ends of stages 2 to 4, twice in the last; windows of 4 x 4."""
    return _build("alternet50_32", pretrained, _ALTERNET50 | {"attn_blocks": (0, 1, 1, 2), "window": 4} | kwargs)


@register_model
def alternet50_224(pretrained: bool = False, **kwargs: Any) -> AlterNet:
    """AlterNet-50 for ImageNet: three attention blocks in stage 3; windows of 7 x 7."""
    arguments = _ALTERNET50 | {"attn_blocks": (0, 1, 3, 2), "window": 7, "small_images": False}
    return _build("alternet50_224", pretrained, arguments | kwargs)


@register_model
def preact_resnet_mini_32(pretrained: bool = False, **kwargs: Any) -> AlterNet:
    """A small pre-activation ResNet: four stages of two bottleneck blocks, up to 384 channels."""
    return _build("preact_resnet_mini_32", pretrained, _MINI | kwargs)


@register_model
def alternet_mini_32(pretrained: bool = False, **kwargs: Any) -> AlterNet:
    """The small ResNet with attention at the ends of its last two stages; windows of 4 x 4."""
    arguments = _MINI | {"attn_blocks": (0, 0, 1, 1), "num_heads": (1, 2, 3, 6), "head_dim": 32, "window": 4}
    return _build("alternet_mini_32", pretrained, arguments | kwargs)


def _build(name: str, pretrained: bool, arguments: dict[str, Any]) -> Any:
    return build_model_with_cfg(AlterNet, name, pretrained, feature_cfg={"flatten_sequential": True}, **arguments)
