"""The settings of arXiv 2206.01161 for relevance fine-tuning, by the paper's names of the models (supplement, table 1).

All models have the weights 2, 0.3, 0.8 and 0.2 of the loss (the defaults of ``RelevanceLoss``), AdamW with weight decay
1e-4, and 50 epochs of batches of 8 on 3 images of each of 500 classes; they differ in learning rate and temperature.
"""

from dataclasses import dataclass

from clearhead.errors import ClearheadError


@dataclass(frozen=True)
class Preset:
    """What differs between the models, and the epochs.

    Attributes:
        lr: learning rate at the start.
        temperature: T, which divides the logits; None leaves it at 1.
        epochs: passes over the training images.
        weights: timm's name of the weights we take for the paper's, where timm has them.
    """

    lr: float
    temperature: float | None = None
    epochs: int = 50
    weights: str | None = None


PRESETS = {
    "ViT-B": Preset(3e-6, weights="vit_base_patch16_224.orig_in21k_ft_in1k"),
    "ViT-L": Preset(9e-7),
    "AR-S": Preset(2e-6, weights="vit_small_patch16_224.augreg_in21k_ft_in1k"),
    "AR-B": Preset(6e-7, weights="vit_base_patch16_224.augreg_in21k_ft_in1k"),
    "AR-L": Preset(9e-7, weights="vit_large_patch16_224.augreg_in21k_ft_in1k"),
    "DeiT-S": Preset(1e-6, 0.55, weights="deit_small_patch16_224.fb_in1k"),
    "DeiT-B": Preset(8e-7, 0.65, weights="deit_base_patch16_224.fb_in1k"),
}


def preset_named(name: str | None) -> Preset:
    """A preset by its name; None is ours: 10 epochs at 1e-5. Raises ClearheadError for another name."""
    if name is None:
        return Preset(1e-5, epochs=10)
    if name not in PRESETS:
        raise ClearheadError(f"preset: {name!r} is unknown; there is {', '.join(PRESETS)}")
    return PRESETS[name]
