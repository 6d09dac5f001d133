"""What is trained and measured: a small version for a CPU, or the paper's."""

from dataclasses import dataclass, replace
from typing import Any

from clearhead.data.augment import Augmentation
from clearhead.training.config import TrainConfig

FRACTIONS, BLOCKS = "Fewer images", "More blocks of attention"
"""Series that claims are about."""


def percent(fraction: float) -> str:
    """Return the name of a fraction of the images."""
    return f"{100 * fraction:g}"


@dataclass(frozen=True)
class Training:
    """A model, and how its training differs from that of the others.

    Attributes:
        model: its name.
        fraction: of the training images.
        epochs: fraction of the epochs of the others.
        augment: another augmentation; with ``none`` and ``weak`` no images are mixed.
    """

    model: str
    fraction: float = 1.0
    epochs: float = 1.0
    augment: Augmentation | None = None

    def settings(self, common: TrainConfig) -> TrainConfig:
        """Return how it is trained, where the others are trained as `common`."""
        epochs = round(self.epochs * common.epochs)
        if self.augment in ("none", "weak"):
            common = replace(common, mixup=0.0, cutmix=0.0)
        return replace(common, epochs=epochs, augment=self.augment or common.augment)


@dataclass(frozen=True)
class Size:
    """What is trained and measured.

    Attributes:
        trainings: by name; claims are about those that both sizes have.
        main: the trainings that every analysis is run on; the first, the ResNet, is the baseline under noise.
        series: trainings that differ in one setting, side by side; `FRACTIONS` ends with the ViT on the fewest images,
            `BLOCKS` begins with the models of no and of one block of attention.
        settings: how they are trained.
        early: the epoch whose spectrum is measured besides that of the last one.
        train, validation, test: number of images of each; None is all.
        batches: of 16 images, for a spectrum.
        probed: test images for feature maps and lesions.
        corrupted: test images for the corruptions.
    """

    trainings: dict[str, Training]
    main: tuple[str, ...]
    series: dict[str, tuple[str, ...]]
    settings: TrainConfig
    early: int
    train: int | None
    validation: int
    test: int | None
    batches: int
    probed: int
    corrupted: int | None

    def last(self, name: str) -> int:
        """Return the last epoch of a training."""
        return self.trainings[name].settings(self.settings).epochs

    @property
    def fractions(self) -> list[float]:
        """Fractions of the training images, the largest first."""
        return sorted({training.fraction for training in self.trainings.values()}, reverse=True)


def _small(name: str, changed: str = "", **differs: Any) -> Training:
    """Return a small model: half a million parameters, unless its size is what differs."""
    return Training(f"zoo:{name}_32{changed}", **differs)


def _paper(name: str, changed: str = "", **differs: Any) -> Training:
    """Return one of the paper's models, with its stochastic depth."""
    return Training(f"zoo:{name}_32,drop_path_rate=0.1{changed}", **differs)


_MAIN = ("resnet", "alternet", "swin", "vit-cls", "vit-gap", "vit-window", "mixer")
SIZES = {
    "small": Size(
        {
            "resnet": _small("preact_resnet_mini"),
            "alternet": _small("alternet_mini"),
            "swin": _small("swin_mini_patch2_window4"),
            "vit-cls": _small("vit_mini_patch4"),
            "vit-gap": _small("vit_mini_patch4_gap"),
            "vit-window": _small("vit_mini_patch4_window", ",window=5"),
            "mixer": _small("mixer_tiny_patch2", ",patch_size=4,num_blocks=6,embed_dim=96"),
            "resnet-30": _small("preact_resnet_mini", fraction=0.3),
            "resnet-10": _small("preact_resnet_mini", fraction=0.1),
            "vit-gap-30": _small("vit_mini_patch4_gap", fraction=0.3),
            "vit-gap-10": _small("vit_mini_patch4_gap", fraction=0.1),
            "alternet-1": _small("alternet_mini", ",attn_blocks=1"),
            "alternet-4": _small("alternet_mini", ",attn_blocks=4"),
            "vit-window-3": _small("vit_mini_patch4_window", ",window=3"),
            "vit-patch-8": _small("vit_mini_patch4_gap", ",patch_size=8"),
            "vit-heads-1": _small("vit_mini_patch4_gap", ",num_heads=1"),
            "vit-narrow": _small("vit_mini_patch4_gap", ",embed_dim=48"),
            "vit-shallow": _small("vit_mini_patch4_gap", ",depth=3"),
            "vit-none": _small("vit_mini_patch4_gap", augment="none"),
            "vit-third": _small("vit_mini_patch4_gap", epochs=1 / 3),
        },
        _MAIN,
        {
            FRACTIONS: ("resnet", "resnet-30", "resnet-10", "vit-gap", "vit-gap-30", "vit-gap-10"),
            BLOCKS: ("resnet", "alternet-1", "alternet", "alternet-4"),
            "Windows of 3, of 5, global attention": ("vit-window-3", "vit-window", "vit-gap"),
            "Patches of 4 and 8 pixels": ("vit-gap", "vit-patch-8"),
            "Heads: 1, 3": ("vit-heads-1", "vit-gap"),
            "Half the channels, all": ("vit-narrow", "vit-gap"),
            "Half the blocks, all": ("vit-shallow", "vit-gap"),
            "Augmentation: none, weak": ("vit-none", "vit-gap"),
            "A third of the epochs, all": ("vit-third", "vit-gap"),
        },
        TrainConfig(epochs=15, lr=1e-3, batch_size=64, weight_decay=0.05, augment="weak", max_grad_norm=5.0, warmup=2),
        early=2,
        train=3000,
        validation=1000,
        test=2000,
        batches=8,
        probed=256,
        corrupted=500,
    ),
    "paper": Size(
        {
            "resnet": _paper("preact_resnet50"),
            "alternet": _paper("alternet50"),
            "swin": _paper("swin_tiny_patch1_window4"),
            "pit": _paper("pit_tiny_patch2"),
            "vit-cls": _paper("vit_tiny_patch2"),
            "vit-gap": _paper("vit_tiny_patch2_gap"),
            "vit-window": _paper("vit_tiny_patch2_window", ",window=5"),
            "mixer": _paper("mixer_tiny_patch2"),
            "resnet-30": _paper("preact_resnet50", fraction=0.3),
            "resnet-10": _paper("preact_resnet50", fraction=0.1),
            "resnet-3": _paper("preact_resnet50", fraction=0.03),
            "vit-gap-30": _paper("vit_tiny_patch2_gap", fraction=0.3),
            "vit-gap-10": _paper("vit_tiny_patch2_gap", fraction=0.1),
            "vit-gap-3": _paper("vit_tiny_patch2_gap", fraction=0.03),
            "alternet-0": _paper("alternet50", ",attn_blocks=0"),
            "alternet-1": _paper("alternet50", ",attn_blocks=1"),
            "alternet-2": _paper("alternet50", ",attn_blocks=2"),
            "alternet-3": _paper("alternet50", ",attn_blocks=3"),
            "alternet-5": _paper("alternet50", ",attn_blocks=5"),
            "vit-window-3": _paper("vit_tiny_patch2_window", ",window=3"),
            "vit-patch-4": _paper("vit_tiny_patch2_gap", ",patch_size=4"),
            "vit-patch-8": _paper("vit_tiny_patch2_gap", ",patch_size=8"),
            "vit-heads-1": _paper("vit_tiny_patch2_gap", ",num_heads=1"),
            "vit-heads-12": _paper("vit_tiny_patch2_gap", ",num_heads=12"),
            "vit-narrow": _paper("vit_tiny_patch2_gap", ",embed_dim=96"),
            "vit-wide": _paper("vit_tiny_patch2_gap", ",embed_dim=384"),
            "vit-shallow": _paper("vit_tiny_patch2_gap", ",depth=6"),
            "vit-none": _paper("vit_tiny_patch2_gap", augment="none"),
            "vit-weak": _paper("vit_tiny_patch2_gap", augment="weak"),
            "vit-third": _paper("vit_tiny_patch2_gap", epochs=1 / 3),
        },
        (*_MAIN, "pit"),
        {
            FRACTIONS: (
                *("resnet", "resnet-30", "resnet-10", "resnet-3"),
                *("vit-gap", "vit-gap-30", "vit-gap-10", "vit-gap-3"),
            ),
            BLOCKS: ("alternet-0", "alternet-1", "alternet-2", "alternet-3", "alternet", "alternet-5"),
            "Windows of 3, of 5, global attention": ("vit-window-3", "vit-window", "vit-gap"),
            "Patches of 2, 4 and 8 pixels": ("vit-gap", "vit-patch-4", "vit-patch-8"),
            "Heads: 1, 3, 12": ("vit-heads-1", "vit-gap", "vit-heads-12"),
            "Half the channels, all, twice as many": ("vit-narrow", "vit-gap", "vit-wide"),
            "Half the blocks, all": ("vit-shallow", "vit-gap"),
            "Augmentation: none, weak, strong": ("vit-none", "vit-weak", "vit-gap"),
            "A third of the epochs, all": ("vit-third", "vit-gap"),
        },
        TrainConfig(
            epochs=305,
            lr=1.25e-4,
            batch_size=96,
            weight_decay=0.05,
            augment="strong",
            label_smoothing=0.1,
            mixup=1.0,
            cutmix=0.8,
            max_grad_norm=5.0,
            warmup=5,
        ),
        early=5,
        train=None,
        validation=5000,
        test=None,
        batches=64,
        probed=1024,
        corrupted=None,
    ),
}
"""``small`` is for a CPU; ``paper`` has the paper's models and recipe. Within a series one setting differs."""
