"""A small pre-norm vision transformer whose heads may be wider than dim / heads, as in the MNIST-CIFAR experiments."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention with heads of `head_dim` channels; q, k and v have no bias."""

    def __init__(self, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * num_heads * head_dim, bias=False)
        self.proj = nn.Linear(num_heads * head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map B x N x D to B x N x D."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        projected: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return projected


class Block(nn.Module):
    """Attention and MLP, each after a norm and around a residual; `residual=False` omits that of the attention."""

    def __init__(self, dim: int, num_heads: int, head_dim: int, mlp_dim: int, residual: bool = True) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, num_heads, head_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, dim))
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Map B x N x D to B x N x D."""
        attended = self.attn(self.norm1(x))
        x = x + attended if self.residual else attended
        hidden: Tensor = self.mlp(self.norm2(x))
        return x + hidden


class SmallViT(nn.Module):
    """A ViT with a CLS token and learned positions.

    Args:
        image_size: H, W.
        patch_size: side of a patch.
        dim: channels of a token.
        depth: blocks.
        num_heads: heads of each.
        head_dim: channels of a head.
        mlp_dim: hidden channels of the MLP.
        num_classes: outputs.
        last_residual: False omits the residual connection around the last block's attention, as the public code of
            arXiv 2308.16274 does, so that the output depends only on the last heads.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        patch_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        head_dim: int,
        mlp_dim: int,
        num_classes: int,
        last_residual: bool = True,
    ) -> None:
        super().__init__()
        tokens = (image_size[0] // patch_size) * (image_size[1] // patch_size)
        self.patch_embed = nn.Conv2d(3, dim, patch_size, patch_size)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, tokens + 1, dim))
        self.blocks = nn.Sequential(
            *(Block(dim, num_heads, head_dim, mlp_dim, residual=last_residual or i < depth - 1) for i in range(depth))
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map B x 3 x H x W to logits, B x classes."""
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        logits: Tensor = self.head(self.norm(self.blocks(x)[:, 0]))
        return logits


def mnist_cifar_vit(last_residual: bool = True) -> SmallViT:
    """Return the model of the MNIST-CIFAR experiments (arXiv 2308.16274): 506,306 parameters, 64 x 32 pixels."""
    return SmallViT(
        (64, 32), 4, dim=64, depth=6, num_heads=4, head_dim=64, mlp_dim=128, num_classes=2, last_residual=last_residual
    )
