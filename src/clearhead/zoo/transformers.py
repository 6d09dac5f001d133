"""timm's ViT, PiT, Swin and Mixer as in "How do vision transformers work" (arXiv 2202.06709), for 32 x 32 pixels.

The `mini` models are not from the paper: half a million parameters and 20 to 35 million multiply-adds per image, for
CPUs. Every constructor also takes the arguments of timm's class; all attention is fused, as `tap` needs it.
"""

from collections.abc import Callable
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, mlp_mixer, pit, register_model, swin_transformer
from timm.models.mlp_mixer import MlpMixer
from timm.models.pit import PoolingVisionTransformer
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from clearhead.zoo.configs import cifar
from clearhead.zoo.windows import WindowVisionTransformer

_VIT = cifar("patch_embed.proj", "head", fixed_input_size=True)
_SWIN = cifar("patch_embed.proj", "head.fc", fixed_input_size=True)

default_cfgs = generate_default_cfgs(
    {
        "vit_tiny_patch2_32": _VIT,
        "vit_tiny_patch2_gap_32": _VIT,
        "vit_tiny_patch2_window_32": _VIT,
        "pit_tiny_patch2_32": cifar("patch_embed.conv", "head", fixed_input_size=True),
        "swin_tiny_patch1_window4_32": _SWIN,
        "mixer_tiny_patch2_32": cifar("stem.proj", "head", fixed_input_size=True),
        "vit_mini_patch4_32": _VIT,
        "vit_mini_patch4_gap_32": _VIT,
        "vit_mini_patch4_window_32": _VIT,
        "swin_mini_patch2_window4_32": _SWIN,
    }
)

_TINY = {"patch_size": 2, "embed_dim": 192, "depth": 12, "num_heads": 3, "qkv_bias": False}
_MINI = {"patch_size": 4, "embed_dim": 96, "depth": 6, "num_heads": 3, "mlp_ratio": 2, "qkv_bias": False}
_GAP = {"class_token": False, "global_pool": "avg"}


@register_model
def vit_tiny_patch2_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT-Ti whose head reads the CLS token; q, k and v have no bias."""
    return _vit(VisionTransformer, "vit_tiny_patch2_32", pretrained, _TINY | kwargs)


@register_model
def vit_tiny_patch2_gap_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT-Ti whose head reads the average of the tokens (GAP)."""
    return _vit(VisionTransformer, "vit_tiny_patch2_gap_32", pretrained, _TINY | _GAP | kwargs)


@register_model
def vit_tiny_patch2_window_32(pretrained: bool = False, window: int = 5, **kwargs: Any) -> WindowVisionTransformer:
    """ViT-Ti with GAP, in which each token attends to the `window` x `window` tokens around it."""
    arguments = _TINY | {"window": window} | kwargs
    return _vit(WindowVisionTransformer, "vit_tiny_patch2_window_32", pretrained, arguments)


@register_model
def pit_tiny_patch2_32(pretrained: bool = False, **kwargs: Any) -> PoolingVisionTransformer:
    """PiT-Ti: patches of 2 x 2 with stride 1, so stages of 31 x 31, 16 x 16 and 8 x 8 tokens, and a CLS token."""
    arguments = {"patch_size": 2, "stride": 1, "base_dims": (48, 48, 48), "depth": (2, 6, 4), "heads": (2, 4, 8)}
    adapt = pit.checkpoint_filter_fn
    return _build(PoolingVisionTransformer, "pit_tiny_patch2_32", pretrained, adapt, arguments | kwargs)


@register_model
def swin_tiny_patch1_window4_32(pretrained: bool = False, **kwargs: Any) -> SwinTransformer:
    """Swin-Ti whose tokens are the pixels, with windows of 4 x 4."""
    arguments = {"patch_size": 1, "embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)}
    return _swin("swin_tiny_patch1_window4_32", pretrained, arguments | kwargs)


@register_model
def mixer_tiny_patch2_32(pretrained: bool = False, **kwargs: Any) -> MlpMixer:
    """MLP-Mixer of 8 blocks and 256 channels: 128 hidden channels in token mixing, 1024 in channel mixing."""
    arguments = {"patch_size": 2, "num_blocks": 8, "embed_dim": 256, "mlp_ratio": (0.5, 4.0)}
    return _build(MlpMixer, "mixer_tiny_patch2_32", pretrained, mlp_mixer.checkpoint_filter_fn, arguments | kwargs)


@register_model
def vit_mini_patch4_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """A small ViT with a CLS token: 8 x 8 tokens of 96 channels, 6 blocks, 3 heads, MLPs of 192."""
    return _vit(VisionTransformer, "vit_mini_patch4_32", pretrained, _MINI | kwargs)


@register_model
def vit_mini_patch4_gap_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """The small ViT with GAP."""
    return _vit(VisionTransformer, "vit_mini_patch4_gap_32", pretrained, _MINI | _GAP | kwargs)


@register_model
def vit_mini_patch4_window_32(pretrained: bool = False, window: int = 3, **kwargs: Any) -> WindowVisionTransformer:
    """The small ViT with GAP, in which each token attends to the `window` x `window` tokens around it."""
    arguments = _MINI | {"window": window} | kwargs
    return _vit(WindowVisionTransformer, "vit_mini_patch4_window_32", pretrained, arguments)


@register_model
def swin_mini_patch2_window4_32(pretrained: bool = False, **kwargs: Any) -> SwinTransformer:
    """A small Swin: stages of 16 x 16, 8 x 8 and 4 x 4 tokens with 32, 64 and 128 channels, 2 blocks each."""
    arguments = {"patch_size": 2, "embed_dim": 32, "depths": (2, 2, 2), "num_heads": (1, 2, 4)}
    return _swin("swin_mini_patch2_window4_32", pretrained, arguments | kwargs)


def _vit(model_class: Callable[..., Any], name: str, pretrained: bool, arguments: dict[str, Any]) -> Any:
    return _build(model_class, name, pretrained, checkpoint_filter_fn, arguments)


def _swin(name: str, pretrained: bool, arguments: dict[str, Any]) -> Any:
    arguments = {"window_size": 4, "drop_path_rate": 0.0} | arguments  # 0 by default, as in the other models
    adapt = swin_transformer.checkpoint_filter_fn
    return _build(SwinTransformer, name, pretrained, adapt, arguments, features=len(arguments["depths"]))


def _build(
    model_class: Callable[..., Any],
    name: str,
    pretrained: bool,
    adapt: Callable[..., Any],
    arguments: dict[str, Any],
    features: int = 3,
) -> Any:
    """Build a model of a timm class. `adapt` fits a checkpoint to it; `features` is for ``features_only``."""
    model = build_model_with_cfg(
        model_class,
        name,
        pretrained,
        pretrained_filter_fn=adapt,
        feature_cfg={"feature_cls": "getter", "out_indices": features},
        **arguments,
    )
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True  # timm's Swin is not fused by default
    return model
