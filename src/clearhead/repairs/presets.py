"""The settings of arXiv 2206.01161 for relevance fine-tuning, by the paper's model names (supplement, table 1).

All models use the weights 2, 0.3, 0.8 and 0.2 of the loss (the defaults of ``RelevanceLoss``), AdamW with weight decay
1e-4, and 50 epochs with batch size 8 on 3 images of each of 500 classes. They differ in learning rate and temperature.
``demo`` has the settings of ``clearhead demo``, and ``counterfactual`` those of the repairs by counterfactuals: on a
DeiT-Tiny, higher learning rates and more epochs lowered the accuracy on clean validation images.
"""

from dataclasses import dataclass

from clearhead.errors import ClearheadError
from clearhead.training.config import Schedule, TrainConfig


@dataclass(frozen=True)
class Preset:
    """What differs between the models, and the epochs.

    Attributes:
        lr: learning rate at the start.
        temperature: T, which divides the logits; None is 1.
        epochs: passes over the training images.
        weights: timm's name of the weights that match the paper's description, where timm has them.
        schedule: of the learning rate.
        min_crop_area: smallest area of a random crop, as a fraction of the image.
        batch_size: images per step.
    """

    lr: float
    temperature: float | None = None
    epochs: int = 50
    weights: str | None = None
    schedule: Schedule = "decay"
    min_crop_area: float = 0.75
    batch_size: int = 8


PRESETS = {
    "ViT-B": Preset(3e-6, weights="vit_base_patch16_224.orig_in21k_ft_in1k"),
    "ViT-L": Preset(9e-7),
    "AR-S": Preset(2e-6, weights="vit_small_patch16_224.augreg_in21k_ft_in1k"),
    "AR-B": Preset(6e-7, weights="vit_base_patch16_224.augreg_in21k_ft_in1k"),
    "AR-L": Preset(9e-7, weights="vit_large_patch16_224.augreg_in21k_ft_in1k"),
    "DeiT-S": Preset(1e-6, 0.55, weights="deit_small_patch16_224.fb_in1k"),
    "DeiT-B": Preset(8e-7, 0.65, weights="deit_base_patch16_224.fb_in1k"),
    "counterfactual": Preset(2e-5, epochs=3, schedule="cosine", min_crop_area=0.5, batch_size=16),
    "demo": Preset(5e-4, epochs=3, schedule="cosine", min_crop_area=0.8),
}


def preset_named(name: str | None) -> Preset:
    """Return a preset by its name; None is ours, 10 epochs at 1e-5. Raises ClearheadError for an unknown name."""
    if name is None:
        return Preset(1e-5, epochs=10)
    if name not in PRESETS:
        raise ClearheadError(f"preset: {name!r} is unknown; choose from {', '.join(PRESETS)}")
    return PRESETS[name]


def default_config(preset: str | None = None) -> TrainConfig:
    """Return how a repair is trained by default: as in the paper, for fewer epochs at a higher rate without a preset.

    Raises ClearheadError for an unknown preset.
    """
    chosen = preset_named(preset)
    return TrainConfig(
        chosen.epochs,
        chosen.lr,
        batch_size=chosen.batch_size,
        schedule=chosen.schedule,
        min_crop_area=chosen.min_crop_area,
    )
